"""Choosing crops: the position of each view, a pure function of (seed, visit, record, number of the view)."""

from collections.abc import Sequence

import numpy as np

from vision_jax.data import order
from vision_jax.data.views import View

_ATTEMPTS = 10
_STREAM = 1  # separates the random numbers of crops from those of the order


def choose_crops(
    views: Sequence[View], seed: int, numbers: np.ndarray, visits: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Chooses a crop for every view of some images.

    Views are numbered consecutively, each as often as its count. The key of a random number is (seed, visit, record,
    index), followed by the number of the view; that of the first one is omitted, so that adding views does not change
    its crops.

    Args:
        views: in the order of their numbers; V in total, each counted `View.count` times.
        seed: of the run.
        numbers: (n,) integers, the images' numbers in the source.
        visits: (n,) integers, the number of times each was seen before.
        sizes: (n, 2) integers, their heights and widths.

    Returns:
        (n, V, 4) int64: top, left, height, width.
    """
    total = sum(view.count for view in views)
    which = np.arange(2 * _ATTEMPTS + 2)
    key = (_STREAM, seed, visits[:, None, None], numbers[:, None, None], which)
    uniforms = np.empty((len(numbers), total, len(which)))
    uniforms[:, :1] = order.random_uniform(*key)
    if total > 1:
        uniforms[:, 1:] = order.random_uniform(*key, np.arange(1, total)[:, None])
    heights, widths = (np.repeat(side, total).reshape(-1, total) for side in np.asarray(sizes).T)
    crops = np.zeros((len(numbers), total, 4), np.int64)
    first = 0
    for view in views:
        here = slice(first, first := first + view.count)
        if view.kind == "resize":
            crops[:, here, 2], crops[:, here, 3] = heights[:, here], widths[:, here]
        else:
            sides = heights[:, here].ravel(), widths[:, here].ravel()
            chosen = random_crops(*sides, uniforms[:, here].reshape(-1, len(which)), view.scale, view.ratio)
            crops[:, here] = chosen.reshape(-1, view.count, 4)
    return crops


def random_crops(
    heights: np.ndarray,
    widths: np.ndarray,
    uniforms: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, ...],
) -> np.ndarray:
    """Chooses a random resized crop for each image, as in Inception (Szegedy et al. 2015) and torchvision.

    Ten times, a share of the area is drawn from `scale` and an aspect ratio from `ratio`, log-uniformly; the first crop
    that fits is used, at a random position. If none fits, it is the largest center crop with a ratio in range.

    Args:
        heights, widths: (n,) sizes of the images.
        uniforms: (n, 22) in [0, 1): area and ratio of each attempt, then vertical and horizontal position.
        scale: minimum and maximum share of the area.
        ratio: minimum and maximum ratio of width to height; (): that of the image, in which every crop fits.

    Returns:
        (n, 4) int64: top, left, height, width.
    """
    rows = np.arange(len(heights))
    heights, widths = np.asarray(heights, np.int64), np.asarray(widths, np.int64)
    areas = (heights * widths)[:, None] * (scale[0] + (scale[1] - scale[0]) * uniforms[:, 0:20:2])
    if ratio:
        log_ratio = np.log(ratio)
        ratios = np.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * uniforms[:, 1:20:2])
    else:
        ratios = np.broadcast_to((widths / heights)[:, None], areas.shape)
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
        central_ratio = np.clip(widths / heights, *(ratio or (0, np.inf)))
        central_widths = np.minimum(widths, np.rint(heights * central_ratio)).astype(np.int64)
        central_heights = np.minimum(heights, np.rint(widths / central_ratio)).astype(np.int64)
        crop_heights = np.where(none, np.maximum(central_heights, 1), crop_heights)
        crop_widths = np.where(none, np.maximum(central_widths, 1), crop_widths)
        tops = np.where(none, (heights - crop_heights) // 2, tops)
        lefts = np.where(none, (widths - crop_widths) // 2, lefts)
    return np.stack([tops, lefts, crop_heights, crop_widths], axis=1)
