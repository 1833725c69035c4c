"""Maps as pictures: in colors, on the image that they are of."""

import functools

import numpy as np
import PIL.Image

from vision_jax.report import drawing

LEAST = 224  # pixels of a picture that is looked at by itself; a smaller image is shown with larger pixels
_CLIPPED = 99  # percentile of a map's values from which on all have the last color: single pixels would hide the others
_STRENGTH = 0.6  # of the colors, beside the image


def scaled(values: np.ndarray, signed: bool) -> np.ndarray:
    """Returns a map whose strongest values are 1, and if it is signed, also -1.

    Args:
        values: (height, width) float.
        signed: whether values below zero mean something; otherwise the least value becomes 0.
    """
    values = values.astype(np.float64)
    if not signed:
        values = values - values.min()
    most = np.percentile(np.abs(values), _CLIPPED) or np.abs(values).max()
    return np.clip(values / most, -1, 1) if most else np.zeros_like(values)


def colored(values: np.ndarray, signed: bool) -> np.ndarray:
    """Returns the colors of a map as `scaled` gives it, (height, width, 3) uint8.

    They are matplotlib's inferno, whose lightness grows evenly (van der Walt and Smith 2015), or for signed maps RdBu
    (ColorBrewer), red for what speaks for the class and blue for what speaks against it.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    table = _table(signed)
    place = (values + 1) / 2 if signed else values
    return table[np.round(place * (len(table) - 1)).astype(np.int64)]


def overlay(image: np.ndarray, values: np.ndarray, signed: bool) -> np.ndarray:
    """Returns a map on its image, (height, width, 3) uint8.

    Args:
        image: (height, width, 1 or 3) uint8.
        values: (height, width) float, of the same size.
        signed: see `scaled`.
    """
    colors = colored(scaled(values, signed), signed).astype(np.float64)
    gray = image.astype(np.float64) @ (np.full(1, 1.0) if image.shape[-1] == 1 else np.array([0.299, 0.587, 0.114]))
    mixed = _STRENGTH * colors + (1 - _STRENGTH) * gray[..., None]
    return np.round(mixed).astype(np.uint8)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Returns an image, (height, width, 1 or 3), with 3 channels."""
    return np.repeat(image, 3, -1) if image.shape[-1] == 1 else image


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """Returns a square image, (size, size, channels), with single pixels visible if it is enlarged."""
    if image.shape[0] == size:
        return image
    method = PIL.Image.Resampling.NEAREST if image.shape[0] < size else PIL.Image.Resampling.LANCZOS
    picture = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return np.asarray(picture.resize((size, size), method)).reshape(size, size, -1)


def enlarged(image: np.ndarray) -> np.ndarray:
    """Returns an image whose pixels are repeated, as often as it takes to reach `LEAST`; a larger one as it is."""
    factor = -(-LEAST // image.shape[0])
    return image.repeat(factor, 0).repeat(factor, 1)


def scale_of_colors(signed: bool) -> np.ndarray:
    """Returns the colors from the least to the largest value, (1, 256, 3) uint8."""
    return _table(signed)[None]


@functools.cache
def _table(signed: bool) -> np.ndarray:
    """Returns 256 colors, (256, 3) uint8."""
    drawing.check_installed()
    import matplotlib

    colors = matplotlib.colormaps["RdBu_r" if signed else "inferno"](np.arange(256))
    return np.round(255 * colors[:, :3]).astype(np.uint8)
