"""From encoded images to rows of a uint8 batch: decode, crop, resize.

A transform takes the images of some rows at once, so that whatever NumPy can do for all of them is done in one call;
what is left for each image runs in C without Python's lock.
"""

import bisect
import dataclasses
import math
import re
import threading
from collections.abc import Sequence

import cv2
import numpy as np
import PIL.Image
import simplejpeg

from vision_jax.data import jpeg, order, pillow
from vision_jax.data.pillow import MAX_PIXELS

# The loader has a thread for each core: OpenCV's own would only get in their way.
cv2.setNumThreads(1)

_CROP_ATTEMPTS = 10
_CROP_STREAM = 1  # tells the random numbers of crops from those of the order
_CV2_FILTERS = {"bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}
_PILLOW_FILTERS = {"bilinear": PIL.Image.Resampling.BILINEAR, "bicubic": PIL.Image.Resampling.BICUBIC}
_COLORSPACES = {1: "GRAY", 3: "RGB"}
_PILLOW_MODES = {1: "L", 3: "RGB"}
_JPEG, _END = b"\xff\xd8", b"\xff\xd9"  # markers of the start and the end
# What the decoder says of an image of which only the upper rows were asked for, if all else is in order; and of files
# with something between the last pixel and the end.
_LEFT_OVER = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9")
# What it says of oddities in front of the first pixel, which change none.
_ODD_HEADER = re.compile(
    r"Corrupt JPEG data: \d+ extraneous bytes before marker 0x..|Warning: unknown JFIF revision number .*"
    r"|Invalid SOS parameters for sequential JPEG"
)
_NO_END = "Premature end of JPEG file"
_UNUSUAL_SAMPLING = "tjDecompressHeader"
_KEPT_SCRATCH = 64 << 20  # bytes that a thread keeps for the next image
_PPM = re.compile(rb"P6\s(\d{1,9})\s(\d{1,9})\s255\s")


class DecodeError(Exception):
    """An image cannot be decoded.

    Attributes:
        row: which of the images that were passed.
    """

    def __init__(self, row: int, reason: str):
        super().__init__(reason)
        self.row = row


def decode_with_pillow(data: bytes, channels: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes any format that Pillow reads: palettes, alpha, CMYK and 16 bits become RGB or grey.

    Args:
        data: the encoded image. EXIF orientation is ignored.
        channels: 3 for RGB, 1 for greyscale.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        (height, width, channels) uint8.

    Raises:
        ValueError: if the image is damaged, of no known format, too large, or of 32 bits a pixel and channel.
    """
    with pillow.open_image(data, max_pixels) as image:
        if image.mode in ("I", "F"):
            raise ValueError(f"its pixels have 32 bits (Pillow's mode {image.mode}), and what is white is unknown")
        if image.mode.startswith("I;16"):
            image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the same colours, without a warning that names no file
        pixels = np.asarray(image.convert(_PILLOW_MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def decode(
    data: bytes, channels: int, *, least_size: tuple[int, int] = (0, 0), max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decodes an image exactly, JPEG and binary PPM by the fast way.

    Args:
        data: the encoded image.
        channels: 3 for RGB, 1 for greyscale.
        least_size: a JPEG may be reduced while it is decoded, by 2 or more, but not below this (height, width);
            (0, 0): it may not.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        (height, width, channels) uint8, perhaps read-only.

    Raises:
        ValueError: if the image is damaged, of no known format or too large.
    """
    if data[:2] == _JPEG:
        return _decode_jpeg(data, channels, least_size, max_pixels)
    if channels == 3 and (pixels := _ppm_pixels(data)) is not None:
        pillow.check_pixels(pixels.shape[0], pixels.shape[1], max_pixels)
        return pixels
    return decode_with_pillow(data, channels, max_pixels)


def _decode_jpeg(data: bytes, channels: int, least_size: tuple[int, int], max_pixels: int) -> np.ndarray:
    """Does what `decode` says, of a JPEG.

    libjpeg goes on at almost any damage, fills with grey what it could not read, and warns. Its warnings are damage
    here, but for those of which the pixels are the same as without: oddities of the header, an end marker that is
    missing, and bytes between the last pixel and the end marker. Those can also be what is left when a flipped bit has
    shortened the code: such damage nobody can tell from files that are merely untidy.
    """
    try:
        header = jpeg.read_header(data)
    except ValueError:
        data = jpeg.tidied(data)
        header = jpeg.read_header(data)
    pillow.check_pixels(header.height, header.width, max_pixels)
    height, width = least_size
    options = {"min_height": height, "min_width": width, "min_factor": 2 if height else 1}
    in_color = header.num_components in _COLORSPACES
    colorspace = _COLORSPACES[channels] if in_color else "CMYK"
    try:
        pixels = _decode_strictly(data, colorspace, options)
    except ValueError as error:
        message = str(error)
        if message.startswith(_UNUSUAL_SAMPLING):
            return _decode_completely_with_pillow(data, channels, max_pixels)
        mended = data
        if _ODD_HEADER.fullmatch(message):
            mended = jpeg.tidied(data)
        elif message == _NO_END and header.sequential:
            mended = data + _END
        if mended == data:
            raise ValueError(f"it is damaged: {message}") from error
        try:
            pixels = _decode_strictly(mended, colorspace, options)
        except ValueError as second:
            raise ValueError(f"it is damaged: {second}") from second
    # Pillow knows how to make RGB of CMYK; that the file is whole is known now.
    return pixels if in_color else decode_with_pillow(data, channels, max_pixels)


def _decode_strictly(data: bytes, colorspace: str, options: dict[str, int]) -> np.ndarray:
    """Decodes a JPEG; ValueError for every warning of libjpeg but the one for bytes before the end marker.

    libjpeg tells the first warning alone. Where it is that one, all pixels have been decoded without another.
    """
    try:
        return simplejpeg.decode_jpeg(data, colorspace, **options)
    except ValueError as error:
        if not _LEFT_OVER.fullmatch(str(error)):
            raise
    return simplejpeg.decode_jpeg(data, colorspace, strict=False, **options)


def _decode_completely_with_pillow(data: bytes, channels: int, max_pixels: int) -> np.ndarray:
    """Decodes a JPEG whose colours are sampled so unusually that only Pillow can, and Pillow keeps warnings to itself.

    Bytes are inserted before the end marker. Where pixels change by them, the code has ended too early.
    """
    end = data.rfind(_END)
    end = len(data) if end < 0 else end
    pixels, others = (
        decode_with_pillow(data[:end] + filling + _END, channels, max_pixels)
        for filling in (b"\x00" * 64, b"\x55" * 64)
    )
    if (pixels != others).any():
        raise ValueError("it is damaged: its code ends too early")
    return pixels


def _ppm_pixels(data: bytes) -> np.ndarray | None:
    """Returns a view of the pixels of a binary PPM with eight bits; None for any other image."""
    header = _PPM.match(data)
    if header is None:
        return None
    width, height = int(header[1]), int(header[2])
    if len(data) - header.end() != height * width * 3:
        return None
    return np.frombuffer(data, np.uint8, offset=header.end()).reshape(height, width, 3)


_local = threading.local()


def _scratch(size: int) -> np.ndarray:
    """Returns memory of this thread that is used again and again: new memory costs a tenth of decoding into it."""
    if size > _KEPT_SCRATCH:
        return np.empty(size, np.uint8)
    buffer = getattr(_local, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = _local.buffer = np.empty(size, np.uint8)
    return buffer


def _decode_part(
    data: bytes, header: jpeg.Header, crop: Sequence[int], shrink: float, channels: int, fast: dict[str, bool]
) -> tuple[np.ndarray, jpeg.Box] | None:
    """Decodes as little of a JPEG as a crop needs.

    Args:
        data, header: the JPEG.
        crop: top, left, height, width.
        shrink: what is decoded may be reduced, by 2 or more, but not below this share of its size.
        channels: 3 for RGB, 1 for greyscale.
        fast: for simplejpeg.

    Returns:
        (height, width, channels) uint8, and which part of the image that is, in pixels of the whole; None if the
        decoder refuses it or warns of damage.
    """
    top, left, height, width = crop
    piece: bytes | bytearray = data
    box = jpeg.Box(0, 0, header.height, header.width)
    if header.sequential and header.num_components in _COLORSPACES:
        piece, box = jpeg.part(data, header, top, left, top + height, left + width)
    rows, columns = box.bottom - box.top, box.right - box.left
    reduced = {"min_height": math.ceil(rows * shrink), "min_width": math.ceil(columns * shrink), "min_factor": 2}
    if shrink > 0.5:
        reduced = {}
    buffer = _scratch(rows * columns * channels)
    try:
        return simplejpeg.decode_jpeg(piece, _COLORSPACES[channels], buffer=buffer, **reduced, **fast), box
    except ValueError as error:
        if box.bottom == header.height or not _LEFT_OVER.fullmatch(str(error)):
            return None
    if reduced:
        rows, columns = simplejpeg.decode_jpeg_header(piece, **reduced)[:2]
    return buffer[: rows * columns * channels].reshape(rows, columns, channels), box


def image_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Returns (height, width) from the header of an encoded image.

    Raises:
        ValueError: if the header is damaged or of no known format, or the image has more than `max_pixels`.
    """
    return _header_and_size(data, max_pixels)[1]


def _header_and_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[jpeg.Header | None, tuple[int, int]]:
    """Returns what the header of a JPEG says, None for other formats and untidy JPEGs, and (height, width)."""
    header = None
    if data[:2] == _JPEG:
        try:
            read = header = jpeg.read_header(data)
        except ValueError:
            read = jpeg.read_header(jpeg.tidied(data))
        size = (read.height, read.width)
    elif (pixels := _ppm_pixels(data)) is not None:
        size = (pixels.shape[0], pixels.shape[1])
    else:
        with pillow.open_image(data, max_pixels) as image:
            return None, (image.height, image.width)
    pillow.check_pixels(*size, max_pixels)
    return header, size


def random_crops(
    heights: np.ndarray,
    widths: np.ndarray,
    uniforms: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Chooses a crop for each image, as Inception's training did (Szegedy et al. 2015) and torchvision does.

    Ten times, a share of the area is drawn from `scale` and a ratio of width to height from `ratio`, log-uniformly; the
    first crop that fits is taken, at a random place. Where none fits, the largest central crop with a ratio in range.

    Args:
        heights, widths: (n,) sizes of the images.
        uniforms: (n, 22) in [0, 1): area and ratio of each attempt, then vertical and horizontal position.
        scale: least and largest share of the area.
        ratio: least and largest ratio of width to height.

    Returns:
        (n, 4) int64: top, left, height, width.
    """
    rows = np.arange(len(heights))
    heights, widths = np.asarray(heights, np.int64), np.asarray(widths, np.int64)
    areas = (heights * widths)[:, None] * (scale[0] + (scale[1] - scale[0]) * uniforms[:, 0:20:2])
    log_ratio = np.log(ratio)
    ratios = np.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * uniforms[:, 1:20:2])
    crop_widths = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
    crop_heights = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
    fits = (
        (crop_widths > 0) & (crop_widths <= widths[:, None]) & (crop_heights > 0) & (crop_heights <= heights[:, None])
    )
    first = np.argmax(fits, axis=1)
    crop_widths, crop_heights = crop_widths[rows, first], crop_heights[rows, first]
    tops = (uniforms[:, 20] * (heights - crop_heights + 1)).astype(np.int64)
    lefts = (uniforms[:, 21] * (widths - crop_widths + 1)).astype(np.int64)

    none = ~fits[rows, first]
    if none.any():
        central_ratio = np.clip(widths / heights, *ratio)
        central_widths = np.minimum(widths, np.rint(heights * central_ratio)).astype(np.int64)
        central_heights = np.minimum(heights, np.rint(widths / central_ratio)).astype(np.int64)
        crop_heights = np.where(none, np.maximum(central_heights, 1), crop_heights)
        crop_widths = np.where(none, np.maximum(central_widths, 1), crop_widths)
        tops = np.where(none, (heights - crop_heights) // 2, tops)
        lefts = np.where(none, (widths - crop_widths) // 2, lefts)
    return np.stack([tops, lefts, crop_heights, crop_widths], axis=1)


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """The random resized crop of training.

    Of a JPEG only what the crop needs is decoded, as far as the file allows it (see `jpeg.part`); where the crop is at
    least twice the output it is reduced while it is decoded, which is both faster and antialiased. What is left, a
    factor below two, is up to `filter`.

    Attributes:
        size: height and width of the result.
        channels: 3 for RGB, 1 for greyscale.
        scale, ratio: see `random_crops`.
        seed: keys the crops, with the visit and the record.
        filter: "bilinear" or "area", OpenCV's; "pillow-bilinear" or "pillow-bicubic", antialiased, as torchvision and
            timm train, and slower.
        scaled_decoding: reduce JPEGs while they are decoded.
        fast_dct, fast_upsampling: libjpeg-turbo's faster and less exact ways.
        sizes: (first step, size) pairs, ascending: from that step on `size` is another one (progressive resizing).
        max_pixels: larger images are refused before they are decoded.
    """

    size: int
    channels: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    seed: int
    filter: str = "bilinear"
    scaled_decoding: bool = True
    fast_dct: bool = False
    fast_upsampling: bool = False
    sizes: tuple[tuple[int, int], ...] = ()
    max_pixels: int = MAX_PIXELS

    @property
    def max_size(self) -> int:
        """The largest height and width at any step."""
        return max([self.size, *(size for _, size in self.sizes)])

    def at(self, step: int) -> "TrainTransform":
        """Returns the transform of a step."""
        index = bisect.bisect_right([first for first, _ in self.sizes], step)
        return dataclasses.replace(self, size=self.sizes[index - 1][1]) if index else self

    def __call__(self, images: Sequence[bytes], records: np.ndarray, visits: np.ndarray, out: np.ndarray) -> None:
        """Decodes images into rows of a batch.

        Args:
            images: encoded, n of them.
            records: (n,) integers, their numbers in the source.
            visits: (n,) integers, the how manieth time each is seen in the training.
            out: (n, size, size, channels) uint8, contiguous.

        Raises:
            DecodeError: for the first image that is damaged or of no known format.
        """
        headers: list[jpeg.Header | None] = []
        sizes = np.empty((len(images), 2), np.int64)
        for row, data in enumerate(images):
            try:
                header, sizes[row] = _header_and_size(data, self.max_pixels)
            except ValueError as error:
                raise DecodeError(row, str(error)) from error
            headers.append(header)
        numbers = np.arange(2 * _CROP_ATTEMPTS + 2)
        uniforms = order.random_uniform(_CROP_STREAM, self.seed, visits[:, None], records[:, None], numbers[None, :])
        crops = random_crops(sizes[:, 0], sizes[:, 1], uniforms, self.scale, self.ratio)
        for row, (data, header, crop) in enumerate(zip(images, headers, crops.tolist(), strict=True)):
            try:
                pixels = self._pixels(data, header, crop)
            except ValueError as error:
                raise DecodeError(row, str(error)) from error
            self._resize(pixels, out[row])

    def _pixels(self, data: bytes, header: jpeg.Header | None, crop: Sequence[int]) -> np.ndarray:
        """Returns the pixels of a crop (top, left, height, width), reduced if it is large."""
        top, left, height, width = crop
        shrink = self.size / min(height, width) if self.scaled_decoding else 1.0
        part = None
        if header is not None:
            fast = {"fastdct": self.fast_dct, "fastupsample": self.fast_upsampling}
            part = _decode_part(data, header, crop, shrink, self.channels, fast)
        if part is None:
            return decode(data, self.channels, max_pixels=self.max_pixels)[top : top + height, left : left + width]
        pixels, box = part
        top, left, rows, columns = top - box.top, left - box.left, box.bottom - box.top, box.right - box.left
        if pixels.shape[:2] == (rows, columns):
            return pixels[top : top + height, left : left + width]
        # The decoder reduces to so many eighths, and rounds the size up.
        eighths = next(n for n in range(1, 8) if (-(-rows * n // 8), -(-columns * n // 8)) == pixels.shape[:2])
        bottom = min(pixels.shape[0], round((top + height) * eighths / 8))
        right = min(pixels.shape[1], round((left + width) * eighths / 8))
        top, left = round(top * eighths / 8), round(left * eighths / 8)
        return pixels[min(top, bottom - 1) : bottom, min(left, right - 1) : right]

    def _resize(self, pixels: np.ndarray, out: np.ndarray) -> None:
        """Resizes (height, width, channels) into (size, size, channels)."""
        if (code := _CV2_FILTERS.get(self.filter)) is not None:
            target = out if self.channels == 3 else out[:, :, 0]
            cv2.resize(pixels, (self.size, self.size), dst=target, interpolation=code)
        else:
            image = _as_pillow(pixels).resize(
                (self.size, self.size), _PILLOW_FILTERS[self.filter.removeprefix("pillow-")]
            )
            out[:] = np.asarray(image).reshape(out.shape)


def _as_pillow(pixels: np.ndarray) -> PIL.Image.Image:
    """Returns (height, width, 1 or 3) uint8 as a Pillow image."""
    return PIL.Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]))


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Resize and centre crop, as torchvision and timm evaluate: exact decoding, then Pillow's antialiased filters.

    Of an image more than sixteen times as long as wide only the middle is resized: the rest could take gigabytes.

    Attributes:
        size: height and width of the result.
        resize: the shorter side is resized to it first; the longer one in proportion, rounded down.
        channels: 3 for RGB, 1 for greyscale.
        filter: "bilinear" or "bicubic".
        max_pixels: larger images are refused before they are decoded.
    """

    size: int
    resize: int
    channels: int
    filter: str = "bilinear"
    max_pixels: int = MAX_PIXELS

    @property
    def max_size(self) -> int:
        return self.size

    def at(self, step: int) -> "EvalTransform":
        """Returns the transform of a step: this one."""
        return self

    def __call__(self, images: Sequence[bytes], records: np.ndarray, visits: np.ndarray, out: np.ndarray) -> None:
        """Decodes `images` into `out`: (n, size, size, channels) uint8. Nothing depends on `records` or `visits`.

        Raises:
            DecodeError: for the first image that is damaged or of no known format.
        """
        for row, data in enumerate(images):
            try:
                pixels = decode(data, self.channels, max_pixels=self.max_pixels)
            except ValueError as error:
                raise DecodeError(row, str(error)) from error
            height, width = pixels.shape[:2]
            longest = 16 * min(height, width)
            if max(height, width) > longest:
                top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
                pixels = pixels[top : top + longest, left : left + longest]
                height, width = pixels.shape[:2]
            if height <= width:
                new_height, new_width = self.resize, self.resize * width // height
            else:
                new_height, new_width = self.resize * height // width, self.resize
            image = _as_pillow(pixels)
            if (new_height, new_width) != (height, width):
                image = image.resize((new_width, new_height), _PILLOW_FILTERS[self.filter])
            top, left = round((new_height - self.size) / 2), round((new_width - self.size) / 2)
            crop = image.crop((left, top, left + self.size, top + self.size))
            out[row] = np.asarray(crop).reshape(self.size, self.size, self.channels)
