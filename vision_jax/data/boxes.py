"""Dense records: images with boxes, with a mask of classes, or both; and the checks of what a data set says of them.

Besides `image`, a record of a dense source has

- `image_id`: the number or name that the data set gives the image;
- `size`: (height, width) of the image, as the data set says;
- where the source `has_boxes`: `boxes` (n, 4) float32, x1, y1, x2 and y2 in pixels, where a pixel is from 0 to 1;
  `box_labels` (n,) int32; `crowd` (n,) bool, boxes that are neither to be learned nor to be missed; `area` (n,)
  float64, in pixels, by which COCO tells small objects from large ones;
- where it `has_masks`: `mask` (height, width) uint8, a class for each pixel, or `IGNORED`.
"""

import dataclasses
import logging
import math
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vision_jax.data.decode import image_size
from vision_jax.data.sources import Record, Source, SubsetSource
from vision_jax.errors import DataError, one_line

log = logging.getLogger(__name__)

IGNORED = 255  # of a mask: pixels that count for nothing
BACKGROUND = "background"
UNUSED = "N/A"  # the class of a number that no category has
SKIP = "set data.dense.skip_bad=True (--skip_bad of prepare)"
_TOLERANCE = 1.0  # pixels by which a box may stick out of its image: what rounding does
_SHOWN = 5  # of the problems that are left out

Box = tuple[float, float, float, float]


class DenseSource(Source, Protocol):
    """A source of dense records, of which sizes and boxes are known without reading images."""

    has_boxes: bool
    has_masks: bool

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of all images, (n, 2) int32; none is read."""
        ...

    def image_size(self, index: int) -> tuple[int, int]:
        """Returns height and width of an image; it is not decoded."""
        ...

    def annotations(self, index: int) -> Record:
        """Returns a record without its image and mask; no file is read."""
        ...


@dataclasses.dataclass(frozen=True)
class Objects:
    """The boxes of all records, one after another.

    Attributes:
        starts: (records + 1,) int64, where those of each record begin.
        boxes, labels, crowd, area: of all n objects; see above.
    """

    starts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray

    @classmethod
    def join(cls, records: Iterable[Sequence[tuple[Box, int, bool, float]]]) -> "Objects":
        """Returns the table of (box, label, crowd, area) for each object of each record."""
        counts = [0]
        rows: list[tuple[Box, int, bool, float]] = []
        for objects in records:
            rows += objects
            counts.append(len(objects))
        boxes, labels, crowd, area = zip(*rows, strict=True) if rows else ((), (), (), ())
        return cls(
            np.cumsum(counts, dtype=np.int64),
            np.asarray(boxes, np.float32).reshape(-1, 4),
            np.asarray(labels, np.int32),
            np.asarray(crowd, bool),
            np.asarray(area, np.float64),
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def counts(self) -> np.ndarray:
        """How many each record has, (records,) int64."""
        return np.diff(self.starts)

    def of(self, index: int) -> Record:
        """Returns the entries that a record has for its objects."""
        here = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return {
            "boxes": self.boxes[here],
            "box_labels": self.labels[here],
            "crowd": self.crowd[here],
            "area": self.area[here],
        }

    def take(self, indices: np.ndarray) -> "Objects":
        """Returns the objects of some records, (n,) integers."""
        counts = self.counts[indices]
        starts = np.concatenate([[0], np.cumsum(counts)])
        rows = np.repeat(self.starts[:-1][indices] - starts[:-1], counts) + np.arange(starts[-1])
        return Objects(starts, self.boxes[rows], self.labels[rows], self.crowd[rows], self.area[rows])


class AnnotatedImages:
    """What the sources of dense records have in common; a subclass reads images and masks.

    Attributes:
        sizes: (records, 2) int32, height and width.
        image_ids: (records,) integers or strings.
        objects: of the records; None: they have no boxes.
        has_boxes, has_masks: what records have.
        box_classes, mask_classes: names of the classes of each, if they have any.
        num_classes, class_names: of the masks, if there are any, else of the boxes.
    """

    has_masks = False
    num_classes: int
    class_names: Sequence[str]
    box_classes: Sequence[str] = ()
    mask_classes: Sequence[str] = ()

    def __init__(self, sizes: np.ndarray, image_ids: np.ndarray, objects: Objects | None):
        self.sizes, self.image_ids, self.objects = np.asarray(sizes, np.int32).reshape(-1, 2), image_ids, objects

    @property
    def has_boxes(self) -> bool:
        return self.objects is not None

    def __len__(self) -> int:
        return len(self.sizes)

    def image_size(self, index: int) -> tuple[int, int]:
        height, width = self.sizes[index].tolist()
        return height, width

    def annotations(self, index: int) -> Record:
        record = {"image_id": self.image_ids[index].item(), "size": self.image_size(index)}
        return record if self.objects is None else record | self.objects.of(index)

    def __getitem__(self, index: int) -> Record:
        record = {"image": self._image(index), **self.annotations(index)}
        if (found := image_size(record["image"], sys.maxsize)) != record["size"]:
            (height, width), (should_height, should_width) = found, record["size"]
            raise DataError(
                f"{self.describe(index)} has {width}x{height} pixels, and its annotations or its mask are of "
                f"{should_width}x{should_height}: correct or remove it."
            )
        if self.has_masks:
            record["mask"] = self._mask(index)
        return record

    def _image(self, index: int) -> bytes:
        with open(self.describe(index), "rb") as file:
            return file.read()

    def _mask(self, index: int) -> np.ndarray:
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """Returns the path of the image."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """See `sources.Source`."""
        raise NotImplementedError


class DenseSubset(SubsetSource):
    """Some of the records of a dense source."""

    source: Any

    @property
    def has_boxes(self) -> bool:
        return self.source.has_boxes

    @property
    def has_masks(self) -> bool:
        return self.source.has_masks

    @property
    def sizes(self) -> np.ndarray:
        return self.source.sizes[self.indices]

    def image_size(self, index: int) -> tuple[int, int]:
        return self.source.image_size(int(self.indices[index]))

    def annotations(self, index: int) -> Record:
        return self.source.annotations(int(self.indices[index]))


class Problems:
    """What is wrong with a data set: the first problem is an error, or all are left out and counted.

    Args:
        where: the data set, for messages.
        skip: leave out what is wrong.
    """

    def __init__(self, where: str, *, skip: bool):
        self.where, self.skip = where, skip
        self.found: list[str] = []

    def add(self, message: str) -> None:
        """Notes a problem: a sentence without its end, which names the record.

        Raises:
            DataError: unless problems are left out.
        """
        message = one_line(message)
        if not self.skip:
            raise DataError(f"{self.where}: {message}. Correct it, or {SKIP} to leave out what is wrong.")
        self.found.append(message)

    def report(self) -> None:
        """Logs how many there were, and the first."""
        if self.found:
            more = f"\n  and {len(self.found) - _SHOWN} more" if len(self.found) > _SHOWN else ""
            lines = "".join(f"\n  - {message}" for message in self.found[:_SHOWN])
            log.warning(
                "%s: %d objects or images are wrong and left out:%s%s", self.where, len(self.found), lines, more
            )


def leads_out(name: str) -> bool:
    """Returns whether the path of a file, as a data set lists it, may lead out of the folder that it is relative to."""
    path = pathlib.PurePath(name)
    return path.is_absolute() or ".." in path.parts


def box_problem(box: Any, height: int, width: int) -> str:
    """Returns what is wrong with a box (x1, y1, x2, y2), as "has ...", or "" if nothing is.

    A box may stick out of its image by a pixel, as annotators' rounding has it.
    """
    if not all(isinstance(side, int | float) and not isinstance(side, bool) and math.isfinite(side) for side in box):
        return f"has a box that is not made of finite numbers: {tuple(box)}"
    x1, y1, x2, y2 = box
    if not (x2 > x1 and y2 > y1):
        return f"has a box that is empty or inverted: x1, y1, x2, y2 are {tuple(box)}"
    if min(x1, y1) < -_TOLERANCE or x2 > width + _TOLERANCE or y2 > height + _TOLERANCE or x1 >= width or y1 >= height:
        return f"has a box outside of its image of {width}x{height} pixels: x1, y1, x2, y2 are {tuple(box)}"
    return ""


def mask_problem(mask: np.ndarray, size: tuple[int, int], num_classes: int) -> str:
    """Returns what is wrong with a mask, as "has ...", or "" if nothing is.

    Args:
        mask: (height, width) uint8.
        size: height and width of its image.
        num_classes: classes are 0 to num_classes - 1, or `IGNORED`.
    """
    if mask.shape != size:
        return f"has {mask.shape[1]}x{mask.shape[0]} pixels, and its image {size[1]}x{size[0]}"
    return class_problem(np.flatnonzero(np.bincount(mask.reshape(-1), minlength=256)), num_classes)


def class_problem(values: np.ndarray, num_classes: int) -> str:
    """Returns what is wrong with the values that a mask has, (n,) integers, as "has ...", or "" if nothing is."""
    wrong = [int(value) for value in values if value >= num_classes and value != IGNORED]
    if wrong:
        return (
            f"has the classes {wrong[:5]}, and there are {num_classes}, 0 to {num_classes - 1}, or {IGNORED} for none"
        )
    return ""


def with_objects(source: Any, *, masks: bool) -> np.ndarray:
    """Returns which records have something to learn from, as torchvision's references choose them for training.

    Of boxes that is one, perhaps of a crowd, of which both sides are longer than a pixel; of masks, objects of more
    than a thousand pixels together. Where the records of masks have no boxes, it is all.

    Args:
        source: of dense records.
        masks: whether it is masks that are to be learned.

    Returns:
        (n,) int64, ascending.
    """
    if not source.has_boxes:
        return np.arange(len(source))
    chosen = []
    for index in range(len(source)):
        objects: Mapping[str, np.ndarray] = source.annotations(index)
        if masks:
            useful = objects["area"].sum() > 1000
        else:
            sides = objects["boxes"][:, 2:] - objects["boxes"][:, :2]
            useful = bool((sides > 1).all(axis=1).any())
        if useful:
            chosen.append(index)
    return np.asarray(chosen, np.int64)
