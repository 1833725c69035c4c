"""Dense records in tfds' layout: what `python -m vision_jax prepare` writes of boxes and masks, and the source of it.

An example has `image`, `file_name`, `image_id` (text) and, as far as there are any, `objects` with `box` (x1, y1, x2,
y2 in pixels), `label`, `is_crowd` and `area`, and `mask`, a PNG of classes. Beside the shards of a split there is
objects-SPLIT.npz with the same of all records, and their sizes, so that batches can be planned, and evaluated, without
reading images; there the areas are float64, which an example cannot hold. tfds does not know that file.
"""

import dataclasses
import io
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image

from vision_jax.data import tfds_format
from vision_jax.data.boxes import AnnotatedImages, Objects
from vision_jax.data.masks import decode_mask
from vision_jax.data.sources import Record, TfdsSource, digest_of
from vision_jax.errors import DataError, reason

_OBJECTS = tuple(field.name for field in dataclasses.fields(Objects))


@dataclasses.dataclass(frozen=True)
class Table:
    """What is known of the records of a split without their images.

    Attributes:
        sizes, image_ids, objects: see `boxes.AnnotatedImages`.
        box_classes: names of the labels of boxes; (): there are none.
        mask_classes: names of the classes of masks; (): there are none.
    """

    sizes: np.ndarray
    image_ids: np.ndarray
    objects: Objects | None
    box_classes: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: AnnotatedImages) -> "Table":
        """Returns that of a source."""
        names = tuple(source.box_classes), tuple(source.mask_classes)
        return cls(source.sizes, source.image_ids, source.objects, *names)

    def take(self, indices: np.ndarray) -> "Table":
        """Returns that of some records."""
        objects = None if self.objects is None else self.objects.take(indices)
        return dataclasses.replace(self, sizes=self.sizes[indices], image_ids=self.image_ids[indices], objects=objects)

    def write(self, path: pathlib.Path) -> None:
        """Writes it as a file of arrays."""
        objects = {} if self.objects is None else vars(self.objects)
        names = {"box_classes": np.asarray(self.box_classes, str), "mask_classes": np.asarray(self.mask_classes, str)}
        np.savez(path, allow_pickle=False, sizes=self.sizes, image_ids=self.image_ids, **names, **objects)

    @classmethod
    def read(cls, path: pathlib.Path) -> "Table":
        """Returns what `write` has written.

        Raises:
            DataError: if it is not there, or damaged.
        """
        if not path.is_file():
            raise DataError(
                f"There is no {path}: the data set has no boxes or masks that `python -m vision_jax prepare` has "
                "written. Prepare it from COCO's or Pascal VOC's files, or from folders of masks."
            )
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = dict(arrays)
            objects = Objects(*(found[name] for name in _OBJECTS)) if _OBJECTS[0] in found else None
            names = (tuple(found[name].tolist()) for name in ("box_classes", "mask_classes"))
            return cls(found["sizes"], found["image_ids"], objects, *names)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is damaged ({reason(error)}): prepare the data set again.") from error


def objects_path(directory: pathlib.Path, split: str) -> pathlib.Path:
    """Returns the file with the `Table` of a split."""
    return directory / f"objects-{split}.npz"


def serialize(record: Mapping[str, Any], file_name: bytes) -> bytes:
    """Returns the example of a dense record; see above."""
    values: dict[str, Sequence[Any]] = {
        "image": [record["image"]],
        "file_name": [file_name],
        "image_id": [str(record["image_id"]).encode()],
    }
    if "boxes" in record:
        values["objects/box"] = record["boxes"].reshape(-1).tolist()
        values["objects/label"] = record["box_labels"].tolist()
        values["objects/is_crowd"] = [int(crowd) for crowd in record["crowd"]]
        values["objects/area"] = record["area"].tolist()
    if "mask" in record:
        values["mask"] = [encode_mask(record["mask"])]
    return tfds_format.serialize(values)


def encode_mask(mask: np.ndarray) -> bytes:
    """Returns (height, width) uint8 as a PNG of gray levels."""
    encoded = io.BytesIO()
    PIL.Image.fromarray(mask).save(encoded, "PNG")
    return encoded.getvalue()


def features(table: Table) -> dict[str, Any]:
    """Returns tfds' features of the examples of a table, but for `file_name`."""
    tfds = tfds_format.import_tfds()
    found: dict[str, Any] = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "image_id": tfds.features.Text(),
    }
    if table.box_classes:
        found["objects"] = tfds.features.Sequence(
            {
                "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
                "label": tfds.features.ClassLabel(names=_distinct(table.box_classes)),
                "is_crowd": tfds.features.Scalar(dtype=np.bool_),
                "area": tfds.features.Scalar(dtype=np.float32),
            }
        )
    if table.mask_classes:
        found["mask"] = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
    return found


def _distinct(names: Sequence[str]) -> list[str]:
    """Returns names of which none is another, as tfds needs them: unused numbers get their own."""
    return [name if names.count(name) == 1 else f"{name} {number}" for number, name in enumerate(names)]


def write_dataset(directory: pathlib.Path, name: str, splits: Mapping[str, tuple[Table, Sequence[Record]]]) -> None:
    """Writes a small data set of dense records, one shard a split.

    Args:
        directory: an empty folder.
        name: of the data set.
        splits: what is known of the records, and the records, by split.
    """
    lengths, sizes = {}, {}
    for split, (table, records) in splits.items():
        writer = tfds_format.open_shard(directory / tfds_format.shard_name(name, split, 0, 1))
        examples = [serialize(record, f"{record['image_id']}.jpg".encode()) for record in records]
        for example in examples:
            writer.write(example)
        writer.close()
        table.write(objects_path(directory, split))
        lengths[split], sizes[split] = [len(examples)], sum(map(len, examples))
    first = next(iter(splits.values()))[0]
    tfds_format.write_metadata(directory, name, lengths, sizes, (), file_names=True, features=features(first))


class PreparedSource(TfdsSource):
    """A split of dense records that `prepare` has written; see `TfdsSource`.

    Args:
        directory, split: as there.
        masks: whether it is masks that are wanted, whose classes are then `class_names`; False: boxes.

    Raises:
        DataError: if there is no such data set or split, or it has no masks or no boxes.
    """

    def __init__(self, directory: pathlib.Path, split: str, *, masks: bool = False):
        self._masks_wanted = masks
        super().__init__(directory, split)
        tables = []
        for name, total, first, take in self._parts:
            table = Table.read(objects_path(self.directory, name))
            if len(table.sizes) != total:
                raise DataError(
                    f"{objects_path(self.directory, name)} is of {len(table.sizes)} records, and the split has "
                    f"{total}: prepare the data set again."
                )
            tables.append(table.take(np.arange(first, first + take)))
        first_table = tables[0]
        names = first_table.mask_classes if masks else first_table.box_classes
        if not names:
            raise DataError(
                f"{self.directory} has {'boxes, but no masks' if masks else 'masks, but no boxes'}: prepare it with "
                f"{'--masks' if masks else 'boxes'}, or choose another objective."
            )
        self.class_names, self.num_classes = list(names), len(names)
        self.has_masks, self.has_boxes = bool(first_table.mask_classes), bool(first_table.box_classes)
        sizes = np.concatenate([table.sizes for table in tables])
        self.image_ids = np.concatenate([table.image_ids for table in tables])
        self.objects = _concatenate([table.objects for table in tables if table.objects is not None])
        self._table = AnnotatedImages(sizes, self.image_ids, self.objects)
        self.sizes = self._table.sizes

    def _choose(self, features: Any) -> tuple[int, list[str]]:
        self._image_key = "image"
        return 0, []  # the tables have them

    def image_size(self, index: int) -> tuple[int, int]:
        """Returns height and width of an image; it is not read."""
        return self._table.image_size(index)

    def annotations(self, index: int) -> Record:
        """Returns a record without its image and mask; no file is read."""
        return self._table.annotations(index)

    def __getitem__(self, index: int) -> Record:
        features = self._features(index)
        record = {"image": features["image"].bytes_list.value[0], **self.annotations(index)}
        if self.has_masks:
            record["mask"] = decode_mask(features["mask"].bytes_list.value[0])
        return record

    def fingerprint(self) -> str:
        objects = () if self.objects is None else tuple(vars(self.objects).values())
        return digest_of("prepared", super().fingerprint(), self._masks_wanted, self.sizes, self.image_ids, *objects)


def _concatenate(parts: Sequence[Objects]) -> Objects | None:
    """Returns the objects of several tables, one after another."""
    if len(parts) < 2:
        return parts[0] if parts else None
    counts = np.concatenate([part.counts for part in parts])
    others = (np.concatenate([getattr(part, name) for part in parts]) for name in _OBJECTS[1:])
    return Objects(np.concatenate([[0], np.cumsum(counts)]), *others)
