"""Decoding images, or as little of them as crops need; `transforms` makes batches of them."""

import math
import re
import threading
from collections.abc import Sequence

import numpy as np
import PIL.Image
import simplejpeg

from vision_jax.data import jpeg, pillow
from vision_jax.data.pillow import MAX_PIXELS

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
    """Decodes any format that Pillow reads: palettes, alpha, CMYK and 16 bits become RGB or gray.

    Args:
        data: the encoded image. EXIF orientation is ignored.
        channels: 3 for RGB, 1 for grayscale.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        (height, width, channels) uint8.

    Raises:
        ValueError: if the image is damaged, of no known format, too large, or of 32 bits per pixel and channel.
    """
    with pillow.open_image(data, max_pixels) as image:
        if image.mode in ("I", "F"):
            raise ValueError(f"its pixels have 32 bits (Pillow's mode {image.mode}), and what is white is unknown")
        if image.mode.startswith("I;16"):
            image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the same colors, without a warning that names no file
        pixels = np.asarray(image.convert(_PILLOW_MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


def decode(
    data: bytes, channels: int, *, least_size: tuple[int, int] = (0, 0), max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decodes an image exactly, JPEG and binary PPM by the fast way.

    Args:
        data: the encoded image.
        channels: 3 for RGB, 1 for grayscale.
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

    libjpeg goes on at almost any damage, fills with gray what it could not read, and warns. Its warnings are damage
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
    """Decodes a JPEG whose colors are sampled so unusually that only Pillow can, and Pillow keeps warnings to itself.

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


def decode_part(
    data: bytes, header: jpeg.Header, crop: Sequence[int], shrink: float, channels: int, fast: dict[str, bool]
) -> tuple[np.ndarray, jpeg.Box] | None:
    """Decodes as little of a JPEG as a crop needs.

    Args:
        data, header: the JPEG.
        crop: top, left, height, width.
        shrink: what is decoded may be reduced, by 2 or more, but not below this share of its size.
        channels: 3 for RGB, 1 for grayscale.
        fast: for simplejpeg.

    Returns:
        (height, width, channels) uint8, and which part of the image that is, in pixels of the whole; None if the
        decoder refuses it or warns of damage.
    """
    top, left, height, width = crop
    piece: bytes | bytearray = data
    box = jpeg.Box(0, 0, header.height, header.width)
    whole = (height, width) == (header.height, header.width)
    if not whole and header.sequential and header.num_components in _COLORSPACES:
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
    return header_and_size(data, max_pixels)[1]


def header_and_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[jpeg.Header | None, tuple[int, int]]:
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
