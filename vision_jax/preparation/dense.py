"""Data sets with boxes or masks as input: COCO's, Pascal VOC's, and folders of images and masks.

Images keep their bytes, since boxes and masks are in their pixels. Records are found by their number in the split,
which takes the place of a label until the example is written.
"""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from vision_jax.data import prepared
from vision_jax.data.boxes import AnnotatedImages
from vision_jax.data.coco import CocoSource
from vision_jax.data.masks import MasksSource
from vision_jax.data.voc import VocSource
from vision_jax.errors import DataError
from vision_jax.preparation.inputs import Index, Original, make_records

KINDS = {"coco": "COCO", "voc": "Pascal VOC", "masks": "images and masks"}
_SPLITS = {"train": "train", "val": "validation", "test": "test"}  # by the first letters of their names


@dataclasses.dataclass(frozen=True)
class Options:
    """What is read of a data set with boxes or masks; see `config.data.dense` for the others.

    Attributes:
        masks: masks of classes: of COCO besides boxes, of Pascal VOC instead of boxes.
    """

    masks: bool = False
    categories: tuple[str, ...] = ()
    category_ids: bool = False
    reduce_zero_label: bool = False
    skip_bad: bool = False


@dataclasses.dataclass(frozen=True)
class DenseReader:
    """Reads single records; `file` is the number of the split, and `label` that of the record in it."""

    sources: tuple[AnnotatedImages, ...]

    def read(self, record: np.void) -> Original:
        index = int(record["label"])
        dense = self.sources[record["file"]][index]
        return Original(bytes(record["name"]), index, dense["image"], dense)


class DenseInput:
    """A data set with boxes or masks.

    Args:
        directory: of the data set.
        layout: as `layout_of` says.
        options: what is read.

    Raises:
        DataError: if it has no split, or something in it is wrong and not to be left out.
    """

    def __init__(self, directory: pathlib.Path, layout: str, options: Options):
        self.name, self.kind = layout, KINDS[layout]
        if layout != "masks" and options.reduce_zero_label:
            raise DataError(f"--reduce_zero_label is for folders of masks, and {directory} is: {self.kind}.")
        if layout == "masks" and options.category_ids:
            raise DataError(f"--category_ids is for COCO and Pascal VOC, and {directory} is: {self.kind}.")
        self._options, self._layout = options, layout
        self._sources: dict[str, AnnotatedImages] = {}
        for name in _split_names(directory, layout, options.masks):
            split = next((_SPLITS[first] for first in _SPLITS if name.startswith(first) and name != "trainval"), None)
            if split is None:
                continue
            if split in self._sources:
                raise DataError(f"{directory} has two {split} splits, of which {name} is one: move the other away.")
            self._sources[split] = self._open(directory, name)
        if not self._sources:
            raise DataError(f"{directory} has no split whose name begins with train, val or test.")

    def _open(self, directory: pathlib.Path, split: str) -> AnnotatedImages:
        options = self._options
        if self._layout == "masks":
            return MasksSource(
                directory,
                split,
                class_names=options.categories,
                reduce_zero_label=options.reduce_zero_label,
                skip_bad=options.skip_bad,
            )
        chosen: dict[str, Any] = {
            "masks": options.masks,
            "category_ids": options.category_ids,
            "skip_bad": options.skip_bad,
        }
        if self._layout == "voc":
            return VocSource(directory, split, classes=options.categories, **chosen)
        return CocoSource(directory, split, categories=options.categories, **chosen)

    def identity(self) -> dict[str, Any]:
        """Returns JSON that differs for different inputs; no image is read."""
        splits = {split: source.fingerprint() for split, source in self._sources.items()}
        options = {**dataclasses.asdict(self._options), "categories": list(self._options.categories)}
        return {"kind": self.kind, "splits": splits, "options": options}

    def index(self, cache: pathlib.Path) -> Index:
        """Lists the records, and what is known of them without their images."""
        del cache
        splits: dict[str, np.ndarray] = {}
        tables: dict[str, prepared.Table] = {}
        for number, (split, source) in enumerate(self._sources.items()):
            paths = [source.describe(index) for index in range(len(source))]
            sizes = np.asarray([os.stat(path).st_size for path in paths])
            # The name of a file may not tell it from others in other folders, but the image's number does.
            names = [f"{source.image_ids[i]}{os.path.splitext(path)[1]}".encode() for i, path in enumerate(paths)]
            splits[split] = make_records(names, np.arange(len(source)), number, np.zeros_like(sizes), sizes)
            tables[split] = prepared.Table.of(source)
        first = next(iter(self._sources.values()))
        reader = DenseReader(tuple(self._sources.values()))
        return Index(splits, list(first.class_names), {}, reader, tables=tables)


def layout_of(directory: pathlib.Path) -> str:
    """Returns "coco", "voc" or "masks", or "" if a folder is none of these."""
    if any(directory.glob("annotations/instances_*.json")) or any(directory.glob("*/_annotations.coco.json")):
        return "coco"
    if (directory / "JPEGImages").is_dir() and (directory / "ImageSets").is_dir():
        return "voc"
    return "masks" if _mask_splits(directory) else ""


def _mask_splits(directory: pathlib.Path) -> list[str]:
    """Returns the folders of images that have a folder of masks of the same name."""
    folders = (path for path in sorted(directory.glob("images/*")) if path.is_dir())
    kinds = ("masks", "annotations")
    return [path.name for path in folders if any((directory / kind / path.name).is_dir() for kind in kinds)]


def _split_names(directory: pathlib.Path, layout: str, masks: bool) -> list[str]:
    """Returns the names of what may be splits."""
    if layout == "coco":
        files = sorted(directory.glob("annotations/instances_*.json"))
        return [path.stem.removeprefix("instances_") for path in files] or sorted(
            path.parent.name for path in directory.glob("*/_annotations.coco.json")
        )
    if layout == "voc":
        lists = directory / "ImageSets" / ("Segmentation" if masks else "Main")
        return [path.stem for path in sorted(lists.glob("*.txt")) if path.stem in ("train", "val", "test")]
    return _mask_splits(directory)
