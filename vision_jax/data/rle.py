"""Masks of single objects as COCO stores them: polygons, and run-length encoding (RLE), compressed or not."""

import math
from typing import Any

import numpy as np

from vision_jax.errors import ConfigError

_FAR = 2  # sizes of the image that a corner of a polygon may be away from it


def import_mask() -> Any:
    """Returns pycocotools.mask.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import pycocotools.mask
    except ImportError as error:
        raise ConfigError(
            f"pycocotools cannot be imported ({error}), which reads COCO's masks: pip install 'vision_jax[detection]'."
        ) from error
    return pycocotools.mask


def encode(segmentation: Any, height: int, width: int) -> bytes:
    """Returns the compressed RLE of an object's mask.

    Args:
        segmentation: polygons [[x, y, x, y, ...], ...], or {"size": [height, width], "counts": runs or a string}.
        height, width: of the image.

    Raises:
        ValueError: if it is malformed, or of another size; the message says how.
    """
    module = import_mask()
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", ())) != [height, width]:
            raise ValueError(f"its RLE has the size {segmentation.get('size')}, and its image {[height, width]}")
        counts = segmentation.get("counts")
        if isinstance(counts, str | bytes):
            counts = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
            _check_runs(runs_of(counts), height * width)
            return counts
        if not isinstance(counts, list) or not all(type(run) is int for run in counts):
            raise ValueError("its RLE has counts that are neither a string nor a list of integers")
        _check_runs(counts, height * width)
        return module.frPyObjects(segmentation, height, width)["counts"]
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("it has no segmentation")
    for polygon in segmentation:
        _check_polygon(polygon, height, width)
    return module.merge(module.frPyObjects(segmentation, height, width))["counts"]


def decode(counts: bytes, height: int, width: int) -> np.ndarray:
    """Returns the mask of a compressed RLE, (height, width) uint8, 1 within the object."""
    return import_mask().decode({"size": [height, width], "counts": counts})


def runs_of(counts: bytes) -> list[int]:
    """Returns the runs of a compressed RLE: in turn, how many pixels are outside and inside, column by column.

    A number is written in groups of five bits, the lowest first, each as a character from 48 on with a bit that says
    whether another follows; from the fourth on, it is the difference to the one before the last.

    Raises:
        ValueError: if it is no such string. pycocotools takes whatever bytes there are.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        group = character - 48
        if not 0 <= group < 64:
            raise ValueError(f"its RLE has the character {chr(character)!r}, which it cannot have")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("its RLE ends within a number")
    return runs


def _check_runs(runs: list[int], num_pixels: int) -> None:
    if any(run < 0 for run in runs) or sum(runs) != num_pixels:
        raise ValueError(f"its RLE has runs of {sum(runs)} pixels in all, some negative or too few for {num_pixels}")


def _check_polygon(polygon: Any, height: int, width: int) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("it has a polygon that is not a list of three corners or more, x and y of each")
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in polygon):
        raise ValueError("it has a polygon that is not made of finite numbers")
    for values, side in ((polygon[0::2], width), (polygon[1::2], height)):
        if min(values) < -_FAR * side or max(values) > (1 + _FAR) * side:
            raise ValueError(f"it has a polygon far outside of its image of {width}x{height} pixels")
