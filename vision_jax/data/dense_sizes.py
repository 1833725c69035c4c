"""How large the images of a detector become, and where their boxes come to lie; with numpy alone.

The arithmetic is that of torchvision's `GeneralizedRCNNTransform` (`models/detection/transform.py`). Preparing images
on the host and resizing float images on the device both use it.
"""

import math

import numpy as np

from vision_jax.errors import ConfigError


def resized_size(height: int, width: int, shorter: int, longer: int) -> tuple[int, int]:
    """Returns the (height, width) of an image that is resized with its proportions kept.

    Its shorter side becomes `shorter`, or less if its longer side would become more than `longer`. The scale is
    computed and the sizes are rounded down in float64, so that 500 x 334 becomes 1197 x 799 and not 1197 x 800; no side
    becomes less than one pixel.

    Args:
        height, width: of the image, in pixels.
        shorter, longer: the sizes to reach, 800 and 1333 in the common recipes; a `longer` of 0 sets no limit.

    Raises:
        ConfigError: if a size is not positive, or `longer` is less than `shorter`.
    """
    _check(height, width, shorter, longer)
    scale = shorter / min(height, width)
    if longer:
        scale = min(scale, longer / max(height, width))
    return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))


def resized_sizes(sizes: np.ndarray, shorter: int, longer: int) -> np.ndarray:
    """Returns what `resized_size` returns, of many images at once.

    Args:
        sizes: (n, 2) integers, height and width of each image.
        shorter, longer: as there.

    Returns:
        (n, 2) int32.

    Raises:
        ConfigError: as there.
    """
    if not len(sizes):
        return np.zeros((0, 2), np.int32)
    least, most = sizes.min(axis=1), sizes.max(axis=1)
    height, width = sizes[int(least.argmin())].tolist()
    _check(height, width, shorter, longer)
    scale = shorter / least  # integers, divided and multiplied as float64
    if longer:
        scale = np.minimum(scale, longer / most)
    return np.maximum(1, np.floor(sizes * scale[:, None])).astype(np.int32)


def _check(height: int, width: int, shorter: int, longer: int) -> None:
    if min(height, width) < 1:
        raise ConfigError(f"An image of {height} x {width} pixels cannot be resized: it has no pixels.")
    if shorter < 1 or (longer and longer < shorter):
        raise ConfigError(
            f"Images cannot be resized to a shorter side of {shorter} and a longer of at most {longer}: give positive "
            "sizes, the longer not below the shorter."
        )


def padded_size(height: int, width: int, divisor: int = 32) -> tuple[int, int]:
    """Returns (height, width) rounded up to multiples of `divisor`."""
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def scale_boxes(boxes: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Returns the boxes of an image of size `old` in the same image of size `new`.

    Each side has its own scale, the ratio of the sizes, as the sizes are rounded.

    Args:
        boxes: (..., 4), x1 y1 x2 y2 in pixels.
        old, new: (height, width).

    Returns:
        (..., 4) float32.
    """
    vertical, horizontal = np.float32(new[0]) / np.float32(old[0]), np.float32(new[1]) / np.float32(old[1])
    return np.asarray(boxes, np.float32) * np.array([horizontal, vertical, horizontal, vertical], np.float32)
