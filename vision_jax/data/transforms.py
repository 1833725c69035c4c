"""From records to rows of a batch: decode once, crop all views, resize each.

A transform takes several records at once, so that NumPy operations are vectorized over them; the work for each image is
done in C without the GIL.
"""

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL.Image

from vision_jax.data import jpeg
from vision_jax.data.crops import choose_crops
from vision_jax.data.decode import DecodeError, decode, decode_part, header_and_size
from vision_jax.data.pillow import MAX_PIXELS
from vision_jax.data.views import Field, View, check_names
from vision_jax.errors import ConfigError

# The loader has one thread per core: OpenCV's own threads would only interfere.
cv2.setNumThreads(1)

_CV2_FILTERS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}
_PILLOW_FILTERS = {"bilinear": PIL.Image.Resampling.BILINEAR, "bicubic": PIL.Image.Resampling.BICUBIC}
# If crops together span this share of an image, it is decoded completely: assembling a partial JPEG would cost more.
_NEARLY_ALL = 0.7
# Fields that are copied from a record unchanged, by name.
Copied = tuple[tuple[str, Field], ...]
LABEL: Copied = (("label", Field((), np.dtype(np.int32))),)


def _copy(copied: Copied, records: Sequence[Mapping[str, Any]], out: Mapping[str, np.ndarray]) -> None:
    for name, _ in copied:
        for row, record in enumerate(records):
            out[name][row] = record[name]


class _Decoded(NamedTuple):
    """Decoded pixels of an image or a part of it, possibly at reduced size.

    Attributes:
        pixels: (height, width, channels) uint8.
        top, left: of the part, in pixels of the whole image.
        factor: of the reduction, in each direction.
    """

    pixels: np.ndarray
    top: int
    left: int
    factor: float

    def cut(self, crop: Sequence[int]) -> np.ndarray:
        """Returns the pixels of a crop (top, left, height, width), in pixels of the whole image."""
        top, left, height, width = crop
        top, left, factor = top - self.top, left - self.left, self.factor
        if factor == 1:
            return self.pixels[top : top + height, left : left + width]
        bottom = min(self.pixels.shape[0], round((top + height) * factor))
        right = min(self.pixels.shape[1], round((left + width) * factor))
        top, left = round(top * factor), round(left * factor)
        return self.pixels[min(top, bottom - 1) : bottom, min(left, right - 1) : right]

    def halved(self) -> "_Decoded":
        """Returns the means of 2x2 pixels; an odd last row or column is dropped."""
        height, width = self.pixels.shape[0] // 2, self.pixels.shape[1] // 2
        half = cv2.resize(self.pixels[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
        return _Decoded(half.reshape(height, width, -1), self.top, self.left, self.factor / 2)


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """The random resized crops of training, one or more per image, which is decoded once.

    Of a JPEG only the part that the crops need is decoded, as far as the file permits (see `jpeg.part`); if all of them
    are at least twice as large as their output, it is decoded at reduced size, which is both faster and antialiased. If
    only some are, those are cropped from repeatedly halved pixels. The remaining factor, below two, is up to `filter`.

    Attributes:
        views: the crops; see `crops.choose_crops` for their positions.
        channels: 3 for RGB, 1 for grayscale.
        seed: keys the crops, with the visit, the record and the number of the view.
        filter: "bilinear", "bicubic" or "area", OpenCV's; "pillow-bilinear" or "pillow-bicubic", antialiased, as
            torchvision and timm train, and slower.
        scaled_decoding: decode at reduced size, or halve afterwards, as above.
        fast_dct, fast_upsampling: libjpeg-turbo's faster, less exact decoding.
        sizes: (first step, size) pairs, ascending: from that step on the view `image` has another size (progressive
            resizing).
        copied: fields that are copied from the records unchanged.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        ConfigError: if two views have the same name, or there are `sizes` but no view `image`.
    """

    views: tuple[View, ...]
    channels: int
    seed: int
    filter: str = "bilinear"
    scaled_decoding: bool = True
    fast_dct: bool = False
    fast_upsampling: bool = False
    sizes: tuple[tuple[int, int], ...] = ()
    copied: Copied = LABEL
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        check_names(self.views)
        names = [view.name for view in self.views]
        if self.sizes and "image" not in names:
            raise ConfigError(f"Progressive sizes are those of the view 'image', and the views are {names}.")

    def at(self, step: int) -> "TrainTransform":
        """Returns the transform of a step."""
        index = bisect.bisect_right([first for first, _ in self.sizes], step)
        return self._resized(self.sizes[index - 1][1]) if index else self

    def largest(self) -> "TrainTransform":
        """Returns the transform of a step whose fields take the most."""
        return self._resized(max(size for _, size in self.sizes)) if self.sizes else self

    def shapes(self) -> tuple["TrainTransform", ...]:
        """Returns the transforms of all steps that there can be, one for each size."""
        return tuple(self._resized(size) for size in sorted({size for _, size in self.sizes})) or (self,)

    def _resized(self, size: int) -> "TrainTransform":
        views = (dataclasses.replace(view, size=size) if view.name == "image" else view for view in self.views)
        return dataclasses.replace(self, views=tuple(views))

    def fields(self) -> dict[str, Field]:
        """Returns the fields of the batch that it writes."""
        images = {name: field for view in self.views for name, field in view.fields(self.channels).items()}
        return images | dict(self.copied)

    def __call__(
        self,
        records: Sequence[Mapping[str, Any]],
        numbers: np.ndarray,
        visits: np.ndarray,
        out: Mapping[str, np.ndarray],
    ) -> None:
        """Decodes records into rows of a batch.

        Args:
            records: n of them, with the encoded image as `image`, and the fields to copy.
            numbers: (n,) integers, their numbers in the source.
            visits: (n,) integers, the number of times each was seen before.
            out: n rows of each of `fields()`, contiguous.

        Raises:
            DecodeError: for the first image that is damaged or of no known format.
        """
        _copy(self.copied, records, out)
        headers: list[jpeg.Header | None] = []
        sizes = np.empty((len(records), 2), np.int64)
        for row, record in enumerate(records):
            try:
                header, sizes[row] = header_and_size(record["image"], self.max_pixels)
            except ValueError as error:
                raise DecodeError(row, str(error)) from error
            headers.append(header)
        crops = choose_crops(self.views, self.seed, numbers, visits, sizes)
        self._write_boxes(crops, sizes, out)
        outputs = [view.size for view in self.views for _ in range(view.count)]
        for row, (record, header) in enumerate(zip(records, headers, strict=True)):
            targets: list[np.ndarray] = []
            for view in self.views:
                rows = out[view.name]
                targets += [rows[row]] if view.count == 1 else list(rows[row])
            try:
                self._cut_all(record["image"], header, crops[row].tolist(), outputs, targets)
            except ValueError as error:
                raise DecodeError(row, str(error)) from error

    def _write_boxes(self, crops: np.ndarray, sizes: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        """Writes the positions of the crops, for the views with `geometry`."""
        first = 0
        for view in self.views:
            here = slice(first, first := first + view.count)
            if view.geometry:
                boxes = crops[:, here].copy()
                boxes[..., 2:] += boxes[..., :2]
                out[f"{view.name}_box"][:] = (boxes / np.tile(sizes, 2)[:, None]).reshape(out[f"{view.name}_box"].shape)

    def _cut_all(
        self,
        data: bytes,
        header: jpeg.Header | None,
        crops: Sequence[Sequence[int]],
        sizes: Sequence[int],
        targets: Sequence[np.ndarray],
    ) -> None:
        """Decodes an image once and writes its crops.

        Args:
            data, header: the image.
            crops: top, left, height, width of each.
            sizes: heights and widths of the results.
            targets: where they are written.
        """
        levels = [self._decode(data, header, crops, sizes)]
        several = self.scaled_decoding and len(crops) > 1
        for crop, size, target in zip(crops, sizes, targets, strict=True):
            # A single crop was reduced by the decoder; of several, the decoder served the most demanding one.
            reducible = min(crop[2], crop[3]) * levels[0].factor / size if several else 1
            level = int(math.log2(reducible)) if reducible >= 2 else 0
            while len(levels) <= level:
                levels.append(levels[-1].halved())
            self._resize(levels[level].cut(crop), size, target)

    def _decode(
        self, data: bytes, header: jpeg.Header | None, crops: Sequence[Sequence[int]], sizes: Sequence[int]
    ) -> _Decoded:
        """Decodes the part of an image that its crops need, at reduced size if all of them are large."""
        if header is not None:
            if len(crops) == 1:
                region = crops[0]
            else:
                top, left = min(crop[0] for crop in crops), min(crop[1] for crop in crops)
                bottom, right = max(crop[0] + crop[2] for crop in crops), max(crop[1] + crop[3] for crop in crops)
                region = [top, left, bottom - top, right - left]
                if region[2] * region[3] > _NEARLY_ALL * header.height * header.width:
                    region = [0, 0, header.height, header.width]
            shrink = 1.0
            if self.scaled_decoding:
                shrink = max(size / min(crop[2:]) for crop, size in zip(crops, sizes, strict=True))
            fast = {"fastdct": self.fast_dct, "fastupsample": self.fast_upsampling}
            part = decode_part(data, header, region, shrink, self.channels, fast)
            if part is not None:
                pixels, box = part
                rows, columns = box.bottom - box.top, box.right - box.left
                # The decoder reduces to a multiple of 1/8, and rounds the size up.
                eighths = next(
                    n for n in (8, *range(1, 8)) if (-(-rows * n // 8), -(-columns * n // 8)) == pixels.shape[:2]
                )
                return _Decoded(pixels, box.top, box.left, eighths / 8)
        return _Decoded(decode(data, self.channels, max_pixels=self.max_pixels), 0, 0, 1.0)

    def _resize(self, pixels: np.ndarray, size: int, out: np.ndarray) -> None:
        """Resizes (height, width, channels) into (size, size, channels)."""
        if (code := _CV2_FILTERS.get(self.filter)) is not None:
            target = out if self.channels == 3 else out[:, :, 0]
            cv2.resize(pixels, (size, size), dst=target, interpolation=code)
        else:
            filter_name = self.filter.removeprefix("pillow-")
            image = _as_pillow(pixels).resize((size, size), _PILLOW_FILTERS[filter_name])
            out[:] = np.asarray(image).reshape(out.shape)


def _as_pillow(pixels: np.ndarray) -> PIL.Image.Image:
    """Returns (height, width, 1 or 3) uint8 as a Pillow image."""
    return PIL.Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]))


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Resize and center crop, as in torchvision and timm: exact decoding, then Pillow's antialiased filters.

    Of an image with an aspect ratio above 16, only the middle is resized: the rest could take gigabytes.

    Attributes:
        size: height and width of the result.
        resize: the shorter side is resized to it first; the longer one in proportion, rounded down.
        channels: 3 for RGB, 1 for grayscale.
        filter: "bilinear" or "bicubic".
        copied: what of a record is a field of the batch as it is.
        max_pixels: larger images are refused before they are decoded.
        border: pixels that are cut off each side first.
    """

    size: int
    resize: int
    channels: int
    filter: str = "bilinear"
    copied: Copied = LABEL
    max_pixels: int = MAX_PIXELS
    border: int = 0

    def at(self, step: int) -> "EvalTransform":
        """Returns the transform of a step: this one."""
        return self

    def largest(self) -> "EvalTransform":
        """Returns the transform of a step whose fields take the most: this one."""
        return self

    def fields(self) -> dict[str, Field]:
        """Returns the fields of the batch that it writes: `image`, (size, size, channels) uint8, and what is copied."""
        return {"image": Field((self.size, self.size, self.channels), np.dtype(np.uint8))} | dict(self.copied)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width of an image before it is cropped."""
        if height <= width:
            return self.resize, self.resize * width // height
        return self.resize * height // width, self.resize

    def __call__(
        self,
        records: Sequence[Mapping[str, Any]],
        numbers: np.ndarray,
        visits: np.ndarray,
        out: Mapping[str, np.ndarray],
    ) -> None:
        """Decodes `records` into `out`, n rows of each of `fields()`. Nothing depends on `numbers` or `visits`.

        Raises:
            DecodeError: for the first image that is damaged or of no known format.
        """
        _copy(self.copied, records, out)
        for row, record in enumerate(records):
            try:
                pixels = decode(record["image"], self.channels, max_pixels=self.max_pixels)
            except ValueError as error:
                raise DecodeError(row, str(error)) from error
            if self.border:
                pixels = pixels[self.border : -self.border, self.border : -self.border]
                if not pixels.size:
                    raise DecodeError(row, f"it is not larger than its border of {self.border} pixels")
            height, width = pixels.shape[:2]
            longest = 16 * min(height, width)
            if max(height, width) > longest:
                top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
                pixels = pixels[top : top + longest, left : left + longest]
                height, width = pixels.shape[:2]
            new_height, new_width = self.resized(height, width)
            image = _as_pillow(pixels)
            if (new_height, new_width) != (height, width):
                image = image.resize((new_width, new_height), _PILLOW_FILTERS[self.filter])
            top, left = round((new_height - self.size) / 2), round((new_width - self.size) / 2)
            crop = image.crop((left, top, left + self.size, top + self.size))
            out["image"][row] = np.asarray(crop).reshape(self.size, self.size, self.channels)


@dataclasses.dataclass(frozen=True)
class SquareTransform(EvalTransform):
    """The same, but both sides are resized to `resize`, whatever the aspect ratio; as BiT and few-shot evaluations do.

    Of an image with an aspect ratio above 16, only the middle is used here too.
    """

    def resized(self, height: int, width: int) -> tuple[int, int]:
        return self.resize, self.resize


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What is done with an image before a model sees it in evaluation.

    Attributes:
        transform: from encoded images to uint8 pixels, on the host.
        mean, std: what the pixels are then normalized by, on the devices; see `augment.normalize`.
    """

    transform: EvalTransform
    mean: tuple[float, ...]
    std: tuple[float, ...]
