"""From encoded images to rows of a uint8 batch: decode, crop, resize.

A transform takes the images of some rows at once, so that whatever NumPy can do for all of them is done in one call;
what is left for each image runs in C without Python's lock.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import PIL.Image
import simplejpeg

from vision_jax.data import order

# The loader has a thread for each core: OpenCV's own would only get in their way.
cv2.setNumThreads(1)

_CROP_ATTEMPTS = 10
_CROP_STREAM = 1  # tells the random numbers of crops from those of the order
_CV2_FILTERS = {"bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}
_PILLOW_FILTERS = {"bilinear": PIL.Image.Resampling.BILINEAR, "bicubic": PIL.Image.Resampling.BICUBIC}
_COLORSPACES = {1: "GRAY", 3: "RGB"}
_PILLOW_MODES = {1: "L", 3: "RGB"}


class DecodeError(Exception):
    """An image cannot be decoded.

    Attributes:
        row: which of the images that were passed.
    """

    def __init__(self, row: int, reason: str):
        super().__init__(reason)
        self.row = row


def decode_with_pillow(data: bytes, channels: int) -> np.ndarray:
    """Decodes any format that Pillow reads: palettes, alpha, CMYK and 16 bits become RGB or grey.

    Args:
        data: the encoded image. EXIF orientation is ignored.
        channels: 3 for RGB, 1 for greyscale.

    Returns:
        (height, width, channels) uint8.

    Raises:
        ValueError: if the image is damaged, of no known format, or of 32 bits a pixel and channel.
    """
    with _open(data) as image:
        if image.mode in ("I", "F"):
            raise ValueError(f"its pixels have 32 bits (Pillow's mode {image.mode}), and what is white is unknown")
        if image.mode.startswith("I;16"):
            image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        pixels = np.asarray(image.convert(_PILLOW_MODES[channels]))
    return pixels.reshape(*pixels.shape[:2], channels)


@contextlib.contextmanager
def _open(data: bytes) -> Iterator[PIL.Image.Image]:
    """Opens an image with Pillow, and turns what its decoders raise into ValueErrors that a person understands."""
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            yield image
    except PIL.UnidentifiedImageError as error:
        raise ValueError("it is empty" if not data else "it is not an image of a known format") from error
    except ValueError:
        raise
    except Exception as error:  # on damaged input they raise most of Python's exceptions, SyntaxError among them
        raise ValueError(str(error)) from error


def decode(data: bytes, channels: int, *, least_size: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Decodes an image, JPEG by the fast way.

    Args:
        data: the encoded image.
        channels: 3 for RGB, 1 for greyscale.
        least_size: a JPEG may be reduced while it is decoded, by 2 or more, but not below this (height, width);
            (0, 0): it may not.

    Returns:
        (height, width, channels) uint8.

    Raises:
        ValueError: if the image is damaged or of no known format.
    """
    if data[:2] == b"\xff\xd8":
        height, width = least_size
        try:
            return simplejpeg.decode_jpeg(
                data, _COLORSPACES[channels], min_height=height, min_width=width, min_factor=2 if height else 1
            )
        except ValueError:
            # CMYK, or a file that libjpeg warns of. Pillow reads the harmless ones and refuses the rest.
            pass
    return decode_with_pillow(data, channels)


def image_size(data: bytes) -> tuple[int, int]:
    """Returns (height, width) from the header of an encoded image.

    Raises:
        ValueError: if the header is damaged or of no known format.
    """
    if data[:2] == b"\xff\xd8":
        try:
            return simplejpeg.decode_jpeg_header(data)[:2]
        except ValueError:
            pass
    with _open(data) as image:
        return image.height, image.width


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

    JPEGs of which the crop is at least twice the output are reduced while they are decoded, which is both faster and
    antialiased. What is left, a factor below two, is up to `filter`.

    Attributes:
        size: height and width of the result.
        channels: 3 for RGB, 1 for greyscale.
        scale, ratio: see `random_crops`.
        seed: keys the crops, with the epoch and the record.
        filter: "bilinear" or "area", OpenCV's.
    """

    size: int
    channels: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    seed: int
    filter: str = "bilinear"

    def __call__(self, images: Sequence[bytes], records: np.ndarray, epoch: int, out: np.ndarray) -> None:
        """Decodes `images`, of the numbers `records`, into `out`: (n, size, size, channels) uint8.

        Raises:
            DecodeError: for the first image that is damaged or of no known format.
        """
        sizes = np.empty((len(images), 2), np.int64)
        for row, data in enumerate(images):
            try:
                sizes[row] = image_size(data)
            except ValueError as error:
                raise DecodeError(row, str(error)) from error
        numbers = np.arange(2 * _CROP_ATTEMPTS + 2)
        uniforms = order.random_uniform(_CROP_STREAM, self.seed, epoch, records[:, None], numbers[None, :])
        crops = random_crops(sizes[:, 0], sizes[:, 1], uniforms, self.scale, self.ratio)
        # The smallest image that still has `size` pixels in the crop along either side.
        shrink = np.minimum(1.0, self.size / np.minimum(crops[:, 2], crops[:, 3]))
        least_sizes = np.ceil(sizes * shrink[:, None]).astype(np.int64).tolist()
        filter_code = _CV2_FILTERS[self.filter]
        for row, (data, crop, size, least_size) in enumerate(
            zip(images, crops.tolist(), sizes.tolist(), least_sizes, strict=True)
        ):
            try:
                image = decode(data, self.channels, least_size=least_size)
            except ValueError as error:
                raise DecodeError(row, str(error)) from error
            top, left, height, width = crop
            if image.shape[0] != size[0] or image.shape[1] != size[1]:  # it was reduced while decoding
                vertical, horizontal = image.shape[0] / size[0], image.shape[1] / size[1]
                bottom = min(image.shape[0], round((top + height) * vertical))
                right = min(image.shape[1], round((left + width) * horizontal))
                top, left = min(round(top * vertical), bottom - 1), min(round(left * horizontal), right - 1)
            else:
                bottom, right = top + height, left + width
            target = out[row] if self.channels == 3 else out[row, :, :, 0]
            cv2.resize(image[top:bottom, left:right], (self.size, self.size), dst=target, interpolation=filter_code)


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """Resize and centre crop, as torchvision and timm evaluate: exact decoding, then Pillow's antialiased filters.

    Of an image more than sixteen times as long as wide only the middle is resized: the rest could take gigabytes.

    Attributes:
        size: height and width of the result.
        resize: the shorter side is resized to it first; the longer one in proportion, rounded down.
        channels: 3 for RGB, 1 for greyscale.
        filter: "bilinear" or "bicubic".
    """

    size: int
    resize: int
    channels: int
    filter: str = "bilinear"

    def __call__(self, images: Sequence[bytes], records: np.ndarray, epoch: int, out: np.ndarray) -> None:
        """Decodes `images` into `out`: (n, size, size, channels) uint8. Nothing depends on `records` or `epoch`.

        Raises:
            DecodeError: for the first image that is damaged or of no known format.
        """
        for row, data in enumerate(images):
            try:
                pixels = decode(data, self.channels)
            except ValueError as error:
                raise DecodeError(row, str(error)) from error
            height, width = pixels.shape[:2]
            longest = 16 * min(height, width)
            if max(height, width) > longest:
                top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
                pixels = np.ascontiguousarray(pixels[top : top + longest, left : left + longest])
                height, width = pixels.shape[:2]
            if height <= width:
                new_height, new_width = self.resize, self.resize * width // height
            else:
                new_height, new_width = self.resize * height // width, self.resize
            image = PIL.Image.fromarray(pixels if self.channels == 3 else pixels[:, :, 0])
            if (new_height, new_width) != (height, width):
                image = image.resize((new_width, new_height), _PILLOW_FILTERS[self.filter])
            top, left = round((new_height - self.size) / 2), round((new_width - self.size) / 2)
            crop = image.crop((left, top, left + self.size, top + self.size))
            out[row] = np.asarray(crop).reshape(self.size, self.size, self.channels)
