"""The images of an evaluation set, with what scoring has to know of each: its label, and its number in ILSVRC2012.

The label of an image is the folder that it is in, whether that is one of the file system or within an archive.
"""

import dataclasses
import functools
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vision_jax import pretrained
from vision_jax.data import archives, listing, tfds_format
from vision_jax.data.archives import Archive
from vision_jax.data.cache import cache_dir
from vision_jax.data.images import ImageSource, image_members
from vision_jax.data.sources import (
    FolderSource,
    Record,
    RelabeledSource,
    Source,
    SubsetSource,
    TfdsSource,
    digest_of,
)
from vision_jax.data.transforms import LABEL, Copied
from vision_jax.data.views import Field
from vision_jax.errors import DataError
from vision_jax.preparation.archives import ImageNetArchives
from vision_jax.preparation.inputs import Reader
from vision_jax.suite.find import CORRUPTIONS, Validation

log = logging.getLogger(__name__)

_INTEGER = Field((), np.dtype(np.int32))
FIELDS: Copied = (*LABEL, ("index", _INTEGER), ("number", _INTEGER))  # of a batch, beside the image
_NUMBER = re.compile(r"(?:^|.*/)ILSVRC2012_val_(\d{8})\.[^/.]+", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Images:
    """A source of records with `image`, `label`, `index` and `number`.

    Attributes:
        source: of the images.
        class_names: one for each label.
        labels: (n,) integers; None: the source's records have them.
        numbers: (n,) integers, the numbers that ILSVRC2012 gives the validation images, 0 where the file's name tells
            none; None: by the `file_name` of each record.
        left_out: what of the set was left out, for a person; empty: nothing.
    """

    source: Source
    class_names: Sequence[str]
    labels: np.ndarray | None = None
    numbers: np.ndarray | None = None
    left_out: str = ""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        label = record["label"] if self.labels is None else self.labels[index]
        if self.numbers is None:
            number = number_in(bytes(record.get("file_name", b"")).decode("utf-8", "replace"))
        else:
            number = self.numbers[index]
        return {"image": record["image"], "label": int(label), "index": index, "number": int(number)}

    def describe(self, index: int) -> str:
        return self.source.describe(index)

    def name(self, index: int) -> str:
        """Returns the name of an image's file, with the folder that it is in; empty: it is not known."""
        return _file_name(self.source, index)

    def fingerprint(self) -> str:
        return digest_of("suite", self.source.fingerprint(), self.labels, self.numbers, self.class_names)


def _file_name(source: Source, index: int) -> str:
    while isinstance(source, RelabeledSource | SubsetSource):
        index = int(source.indices[index]) if isinstance(source, SubsetSource) else index
        source = source.source
    if isinstance(source, TfdsSource):
        return bytes(source[index].get("file_name", b"")).decode("utf-8", "replace") if source.has_file_names else ""
    if isinstance(source, _RecordSource):
        return source.name(index)
    if isinstance(source, FolderSource):
        return os.fsdecode(bytes(source.names[index]))
    return "/".join(source.describe(index).split("/")[-2:]) if isinstance(source, ImageSource) else ""


def number_in(name: str) -> int:
    """Returns the number in the name of a validation image, as in ILSVRC2012_val_00000001.JPEG; 0: there is none."""
    match = _NUMBER.fullmatch(name)
    return int(match[1]) if match else 0


class _Located(ImageSource):
    """Images of a set, which are the same wherever they lie."""

    def fingerprint(self) -> str:
        names = ["/".join(name.split("/")[-2:]) for _, name in self.items]
        return digest_of("images", names)


def in_class_folders(
    path: pathlib.Path, classes: Mapping[str, int], class_names: Sequence[str], *, below: str = "", partly: bool = False
) -> Images:
    """Returns the images of a folder or an archive, each labeled by the folder that it is in.

    Args:
        path: of the folder or archive.
        classes: the label of each class folder, by name.
        class_names: one for each label.
        below: only images in class folders of such a folder belong to the set, as `frost/3`; "": all do.
        partly: the set has other classes too, which do not count.

    Raises:
        DataError: if it cannot be read, or no image is in the folder of a class.
    """
    items: list[tuple[Archive | None, str]] = []
    labels: list[int] = []
    others: dict[str, int] = {}
    for archive, name in _all_images(path):
        *above, folder, _ = ["", "", *name.split("/")]
        if below and not f"/{'/'.join(above)}".endswith(f"/{below}"):
            continue
        if (label := classes.get(folder)) is None:
            others[folder] = others.get(folder, 0) + 1
        else:
            items.append((archive, name))
            labels.append(label)
    if not items:
        there = f"; its images are in {listing.shorten(sorted(others), 3)}" if others else ""
        examples = listing.shorten(list(classes), 3)
        raise DataError(f"{path} holds no image in the folder of a class ({examples}){there}.")
    left_out = ""
    if others and not partly:
        left_out = (
            f"{sum(others.values())} images are in folders that are no classes ({listing.shorten(sorted(others), 3)})"
        )
        log.warning("Left out of %s: %s.", path, left_out)
    numbers = np.asarray([number_in(name) for _, name in items], np.int32)
    return Images(_Located(items), class_names, np.asarray(labels, np.int32), numbers, left_out)


def corruptions_in(path: pathlib.Path) -> list[tuple[str, int]]:
    """Returns the (corruption, severity) pairs that a corruption's folder or an archive of ImageNet-C holds images of.

    Raises:
        DataError: if it holds none, or cannot be read.
    """
    if path.is_dir():
        return [(path.name, level) for level in range(1, 6) if (path / str(level)).is_dir()]
    found = set()
    for _, name in _all_images(path):
        parts = name.split("/")
        if len(parts) >= 4 and parts[-4] in CORRUPTIONS and parts[-3] in ("1", "2", "3", "4", "5"):
            found.add((parts[-4], int(parts[-3])))
    if not found:
        raise DataError(f"{path} is called as an archive of ImageNet-C, and holds no CORRUPTION/SEVERITY/CLASS/IMAGE.")
    return sorted(found, key=lambda pair: (CORRUPTIONS.index(pair[0]), pair[1]))


def _all_images(path: pathlib.Path) -> Iterable[tuple[Archive | None, str]]:
    """Returns the archive, if it is one, and the name of every image."""
    if path.is_dir():
        names, left_out = listing.list_images(path)
        listing.log_left_out(path, left_out)
        return [(None, f"{path}/{name}") for name in names]
    archive, members = _opened(path)
    return [(archive, name) for name in members]


@functools.lru_cache(maxsize=1)  # of ImageNet-C, an archive is used twenty times in a row
def _opened(path: pathlib.Path) -> tuple[Archive, list[str]]:
    archive = archives.open_archive(path)
    return archive, image_members(archive)


@dataclasses.dataclass(frozen=True)
class _RecordSource:
    """Records of something that can be prepared; see `vision_jax.preparation.inputs`."""

    path: pathlib.Path
    records: np.ndarray
    reader: Reader
    class_names: Sequence[str]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return {"image": self.reader.read(self.records[index]).data, "label": int(self.records["label"][index])}

    def name(self, index: int) -> str:
        return bytes(self.records["name"][index]).decode("utf-8", "replace")

    def describe(self, index: int) -> str:
        return f"{self.path}/{self.name(index)}"

    def fingerprint(self) -> str:
        return digest_of("records", self.records["name"], self.records["label"], self.records["size"], self.class_names)


def in_prepared(path: pathlib.Path, classes: Sequence[str]) -> Images | None:
    """Returns the images of a data set that `prepare` has written; None: the folder holds no such data set.

    Args:
        path: the folder.
        classes: which the labels number.

    Raises:
        DataError: if it is unfinished, has several splits, or other classes.
    """
    if not (path / "features.json").is_file():
        if (path / "incomplete").is_dir():
            raise DataError(f"{path} is not finished: run the command that prepares it again.")
        return None
    names = list(tfds_format.read_metadata(path).info.splits)
    if len(names) != 1:
        raise DataError(f"{path} has the splits {', '.join(names)}, and one is needed.")
    return _relabeled(TfdsSource(path, names[0]), path, classes)


def open_validation(place: Validation, classes: Sequence[str] | None = None) -> Images:
    """Returns the validation images, whose labels number ImageNet's 1,000 classes, or those given.

    Raises:
        DataError: if it cannot be read, or has other classes.
    """
    source: _RecordSource | TfdsSource | FolderSource
    if place.kind == "archives":
        index = ImageNetArchives(place.directory).index(cache_dir(), train_split=False)
        source = _RecordSource(place.path, index.splits["validation"], index.reader, index.class_names)
    elif place.kind == "tfds":
        source = TfdsSource(place.directory, place.split)
    else:
        option = "placing it beside the folder as val.csv"
        source = FolderSource(place.directory, place.split, labels_option=option)
    return _relabeled(source, place.path, pretrained.imagenet_classes() if classes is None else classes)


def of_source(source: Source, what: str, classes: Sequence[str]) -> Images:
    """Returns the images of a source, whose labels number `classes`; one without names has as many, in their order.

    Raises:
        DataError: if it has others; `what` names it.
    """
    if list(source.class_names) == list(classes) or (not source.class_names and source.num_classes == len(classes)):
        return Images(source, classes)
    return _relabeled(source, what, classes)


def _relabeled(source: Source, path: pathlib.Path | str, classes: Sequence[str]) -> Images:
    """Returns the images of a source, whose labels number `classes`.

    Raises:
        DataError: if it has a class that is not among them.
    """
    labels = pretrained.map_classes(source.class_names, classes)
    if not len(labels) or (labels < 0).any():
        lacking = [name for name, label in zip(source.class_names, labels, strict=True) if label < 0]
        which = "ImageNet's 1,000 WordNet ids" if classes == pretrained.imagenet_classes() else "the model's"
        raise DataError(
            f"{path} has classes that are none of {which}"
            f"{': ' + listing.shorten(lacking, 3) if lacking else ', or does not name them'}."
        )
    numbers = None
    if isinstance(source, _RecordSource | FolderSource):
        numbers = np.asarray([number_in(source.describe(index)) for index in range(len(source))], np.int32)
    return Images(RelabeledSource(source, labels, classes), classes, numbers=numbers)
