"""Images of any format by Pillow: which formats, by which suffixes they are known, and how large they may be.

Pillow's own limit of pixels is a variable of the whole process, half an error and half a warning. Here each call has a
limit of its own, and a program that uses this package keeps Pillow as it has set it.
"""

import contextlib
import functools
import io
import struct
import threading
from collections.abc import Iterator

import PIL.features
import PIL.Image
import PIL.ImageFile

# Of an image, unless the caller says otherwise: Pillow's default, which takes half a gigabyte as RGB.
MAX_PIXELS = 178_956_970

# Formats of Pillow that hold no picture, need another program to be decoded, are to be dropped by Pillow, or are not
# told by any suffix.
_NO_PICTURES = frozenset(
    {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IM", "IMT", "IPTC", "MCIDAS", "MPEG", "SPIDER", "WMF", "XVTHUMB"}
)
# These are tried first. The order of the others is Pillow's, and those that any data may be come last.
_COMMON = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")


class UnknownFormat(ValueError):
    """It is no image, or of no format that can be decoded here."""


class TooManyPixels(ValueError):
    """An image has more pixels than may be decoded.

    Attributes:
        width, height: as its header says.
        limit: how many pixels it may have.
    """

    def __init__(self, width: int, height: int, limit: int, option: str):
        super().__init__(
            f"it has {width}x{height} pixels, more than {option}={limit}: raise that if the image is meant to be so "
            "large"
        )
        self.width, self.height, self.limit = width, height, limit


@functools.cache
def formats() -> tuple[str, ...]:
    """Returns the formats that can be decoded here, by Pillow's names, in the order in which they are tried."""
    PIL.Image.preinit()
    PIL.Image.init()
    known = [name for name in PIL.Image.ID if name not in _NO_PICTURES]
    if not PIL.features.check("jpg_2000"):
        known.remove("JPEG2000")
    return tuple(
        sorted(
            known,
            key=lambda name: (
                _COMMON.index(name) if name in _COMMON else len(_COMMON),
                PIL.Image.OPEN[name][1] is None,
            ),
        )
    )


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Returns the suffixes of files that hold an image that can be decoded here, in lower case: `.jpg` and so on."""
    known = {*formats(), "MPO"}  # a JPEG with others behind it
    suffixes = {suffix for suffix, name in PIL.Image.registered_extensions().items() if name in known}
    return frozenset(suffixes - {".pfm"})  # floating-point numbers, of which nobody knows what is white


def check_pixels(height: int, width: int, max_pixels: int = MAX_PIXELS, option: str = "data.max_pixels") -> None:
    """Checks the size of an image before memory is taken for it.

    Args:
        height, width: as its header says.
        max_pixels: the limit.
        option: what raises it, in the user's words.

    Raises:
        TooManyPixels: if it has more pixels.
    """
    if height * width > max_pixels:
        raise TooManyPixels(width, height, max_pixels, option)


@contextlib.contextmanager
def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[PIL.Image.Image]:
    """Opens an image; what Pillow's decoders raise, then and later, become ValueErrors that a person understands.

    Raises:
        ValueError: if it is damaged, of no known format, or has more than `max_pixels`.
    """
    try:
        with _open(data) as image:
            check_pixels(image.height, image.width, max_pixels)
            with _without_pillows_limit(image.height * image.width):
                yield image
    except ValueError:
        raise
    except PIL.Image.DecompressionBombError as error:  # of an image within, as icons have them
        raise ValueError("it holds an image that is larger than its header says") from error
    except Exception as error:  # on damaged input they raise most of Python's exceptions, SyntaxError among them
        raise ValueError(str(error) or type(error).__name__) from error


@contextlib.contextmanager
def _without_pillows_limit(num_pixels: int) -> Iterator[None]:
    """Keeps decoders that look at Pillow's limit themselves, as that of TIFF, from refusing what ours allows.

    Only an image above that limit needs it. Two such images are not decoded at once.
    """
    if PIL.Image.MAX_IMAGE_PIXELS is None or num_pixels <= PIL.Image.MAX_IMAGE_PIXELS:
        yield
        return
    with _lock:
        before, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = before


_lock = threading.RLock()


def _open(data: bytes) -> PIL.Image.Image:
    """Does what `PIL.Image.open` does, without its limit of pixels and for `formats` alone."""
    for name in formats():
        factory, accept = PIL.Image.OPEN[name]
        try:
            verdict = accept is None or accept(data[:16])
            if verdict and not isinstance(verdict, str):  # a string says why it cannot be decoded
                return factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # how a plugin says that it is another format
            continue
    raise UnknownFormat("it is not an image of a known format" if data else "it is empty")
