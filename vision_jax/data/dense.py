"""From dense records to rows of a batch: images, boxes and masks on fixed canvases."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import cv2
import numpy as np

from vision_jax.data.boxes import IGNORED
from vision_jax.data.decode import DecodeError, decode
from vision_jax.data.dense_sizes import scale_boxes
from vision_jax.data.order import random_uniform
from vision_jax.data.pillow import MAX_PIXELS
from vision_jax.data.resizing import Canvas, Resizing, mixed_canvas
from vision_jax.data.views import Field
from vision_jax.errors import DataError

_STREAM = 5  # separates the random numbers here from those of orders, crops and replacements
NO_BOX = -1  # the label of padding among boxes


class CanvasOrder(Protocol):
    """An order of batches of which each has a canvas."""

    def canvas(self, step: int) -> Canvas:
        """Returns the canvas of a step."""
        ...


@dataclasses.dataclass(frozen=True)
class DenseTransform:
    """Resizes and cuts images, boxes and masks alike, and lays them onto canvases.

    The fields of a row are, for a canvas of H x W pixels:

    - `image` (H, W, channels) uint8, in the upper left corner; the rest is 0;
    - `size` (2,) int32, height and width of that part; `original` (2,) int32, those of the image as it is stored;
    - `index` () int32, the number of the record;
    - with `boxes`: `boxes` (max_boxes, 4) float32, x1, y1, x2, y2 in pixels of the canvas, and `box_labels`
      (max_boxes,) int32, `NO_BOX` for padding. Crowds are left out, and what lies outside of the part that is cut out;
    - with `masks`: `segmentation` (H, W) uint8, `IGNORED` outside of the image.

    Images are resized bilinearly without antialiasing, as torchvision's detectors do, and masks by nearest neighbors
    with the same pixel centers. What is random is keyed by (seed, visit, record).

    Attributes:
        resizing: to which size.
        canvases: of all steps, but for mixed batches; see `order.BucketOrder`.
        channels: 3 for RGB, 1 for grayscale.
        seed: of the run.
        boxes, masks: which fields there are.
        max_boxes: of an image.
        max_pixels: larger images are refused before they are decoded.
        canvas: of this step; None: one that holds all others.
        order: says which canvas a step has; None: all have `canvas`.
    """

    resizing: Resizing
    canvases: tuple[Canvas, ...]
    channels: int = 3
    seed: int = 0
    boxes: bool = False
    masks: bool = False
    max_boxes: int = 100
    max_pixels: int = MAX_PIXELS
    canvas: Canvas | None = None
    order: CanvasOrder | None = None

    def __post_init__(self) -> None:
        self.resizing.check_canvases(self.canvases)

    def on(self, canvas: Canvas) -> "DenseTransform":
        """Returns the transform for one canvas, at every step."""
        return dataclasses.replace(self, canvas=canvas, order=None)

    def following(self, order: CanvasOrder) -> "DenseTransform":
        """Returns the transform for the canvases of an order."""
        return dataclasses.replace(self, order=order)

    def at(self, step: int) -> "DenseTransform":
        """Returns the transform of a step."""
        return self if self.order is None else self.on(self.order.canvas(step))

    def largest(self) -> "DenseTransform":
        """Returns the transform of a step whose fields take the most."""
        return self if self.canvas is not None else self.on(mixed_canvas(self.canvases))

    def shapes(self) -> tuple["DenseTransform", ...]:
        """Returns the transforms of all steps that there can be, one for each canvas."""
        if self.canvas is not None and self.order is None:
            return (self,)
        return tuple(self.on(canvas) for canvas in dict.fromkeys((*self.canvases, mixed_canvas(self.canvases))))

    def fields(self) -> dict[str, Field]:
        """Returns the fields of the batch that it writes."""
        canvas = self.canvas or mixed_canvas(self.canvases)
        integers = np.dtype(np.int32)
        fields = {
            "image": Field((*canvas, self.channels), np.dtype(np.uint8)),
            "size": Field((2,), integers),
            "original": Field((2,), integers),
            "index": Field((), integers),
        }
        if self.boxes:
            fields["boxes"] = Field((self.max_boxes, 4), np.dtype(np.float32))
            fields["box_labels"] = Field((self.max_boxes,), integers)
        if self.masks:
            fields["segmentation"] = Field(canvas, np.dtype(np.uint8))
        return fields

    def __call__(
        self,
        records: Sequence[Mapping[str, Any]],
        numbers: np.ndarray,
        visits: np.ndarray,
        out: Mapping[str, np.ndarray],
    ) -> None:
        """Decodes records into rows of a batch.

        Args:
            records: n of them, as `vision_jax.data.boxes` says.
            numbers: (n,) integers, their numbers in the source.
            visits: (n,) integers, the number of times each was seen before.
            out: n rows of each of `fields()`, contiguous.

        Raises:
            DecodeError: for the first image that is damaged or of no known format.
            DataError: if an image has more than `max_boxes` boxes.
        """
        key = (_STREAM, self.seed, np.asarray(visits)[:, None], np.asarray(numbers)[:, None])
        uniforms = random_uniform(*key, np.arange(3))
        for row, record in enumerate(records):
            try:
                pixels = decode(record["image"], self.channels, max_pixels=self.max_pixels)
            except ValueError as error:
                raise DecodeError(row, str(error)) from error
            out["index"][row] = numbers[row]
            self._write(record, pixels, uniforms[row].tolist(), {name: rows[row, ...] for name, rows in out.items()})

    def _write(
        self, record: Mapping[str, Any], pixels: np.ndarray, uniforms: Sequence[float], out: Mapping[str, np.ndarray]
    ) -> None:
        """Writes a row; `out["index"]` has been written."""
        canvas = out["image"].shape[:2]
        old = pixels.shape[:2]
        new = self.resizing.size(old[0], old[1], canvas, uniforms[0])
        size = min(new[0], canvas[0]), min(new[1], canvas[1])
        top, left = (int(u * (whole - part + 1)) for u, whole, part in zip(uniforms[1:], new, size, strict=True))
        out["original"][:] = old
        out["size"][:] = size
        _lay(pixels, new, (top, left), size, out["image"], cv2.INTER_LINEAR)
        _pad(out["image"], size, 0)
        if self.masks:
            _lay(record["mask"], new, (top, left), size, out["segmentation"], cv2.INTER_NEAREST_EXACT)
            _pad(out["segmentation"], size, IGNORED)
        if self.boxes:
            kept = ~record["crowd"]
            boxes, inside = cut_boxes(scale_boxes(record["boxes"][kept], old, new), (top, left), size)
            labels = record["box_labels"][kept][inside]
            if len(boxes) > self.max_boxes:
                raise DataError(
                    f"Image {record['image_id']!r} (record {int(out['index'])}) has {len(boxes)} boxes, more than "
                    f"data.dense.max_boxes={self.max_boxes}: raise that."
                )
            out["boxes"][: len(boxes)], out["boxes"][len(boxes) :] = boxes, 0
            out["box_labels"][: len(boxes)], out["box_labels"][len(boxes) :] = labels, NO_BOX


def cut_boxes(boxes: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the boxes of an image in a part of it: clipped, and without those of which no area is left.

    Args:
        boxes: (n, 4) float32, x1, y1, x2, y2.
        corner: top and left of the part.
        size: its height and width.

    Returns:
        (m, 4) float32, in pixels of the part; and which of the n they are, (n,) bool.
    """
    top, left = corner
    height, width = size
    moved = boxes - np.asarray([left, top, left, top], np.float32)
    clipped = np.clip(moved, 0, np.asarray([width, height, width, height], np.float32))
    inside = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    return clipped[inside], inside


def _lay(
    pixels: np.ndarray,
    whole: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
    out: np.ndarray,
    filter_code: int,
) -> None:
    """Resizes an image, and writes a part of it into the upper left corner of a canvas.

    Args:
        pixels: (height, width, ...) uint8.
        whole: height and width that it is resized to.
        corner, size: top and left of the part, and its height and width.
        out: (height, width, ...) uint8, of the canvas; what is beside the part is not written.
        filter_code: of OpenCV.
    """
    (top, left), (height, width) = corner, size
    target = out[:height, :width]
    if pixels.shape[:2] == whole:
        target[:] = pixels[top : top + height, left : left + width]
    elif whole == size:  # straight into the canvas
        flat = target[..., 0] if target.ndim == 3 and target.shape[2] == 1 else target
        cv2.resize(pixels, (width, height), dst=flat, interpolation=filter_code)
    else:
        resized = cv2.resize(pixels, (whole[1], whole[0]), interpolation=filter_code)
        part = resized[top : top + height, left : left + width]
        target[:] = part.reshape(target.shape)  # OpenCV drops a single channel


def _pad(out: np.ndarray, size: tuple[int, int], value: int) -> None:
    """Writes a value beside the part of a canvas that has an image."""
    height, width = size
    out[height:] = value
    out[:height, width:] = value
