"""Deletion and insertion (Petsiuk et al. 2018, arXiv:1806.07421): which of several explanations is faithful.

Pixels are replaced in the order of a map, those of the highest values first. The faster the class's probability falls
as pixels are deleted, and the faster it rises as they are inserted, the better the map.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.explain import variants
from vision_jax.explain.base import Apply, probability

KERNEL_SIZE, SIGMA = 11, 5.0  # of RISE's blur


class Curve(NamedTuple):
    """How the probability of a class changes.

    Attributes:
        shares: (n + 1,) float32, of the pixels that are replaced: from 0 to 1.
        scores: (batch, n + 1) float32, the probability of the class.
        auc: (batch,) float32, the area under the scores: the mean of neighbors, over all n steps.
    """

    shares: np.ndarray
    scores: jax.Array
    auc: jax.Array


def deletion(
    apply: Apply,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array | None = None,
    *,
    step: int | None = None,
    baseline: jax.Array | np.ndarray | float = 0.0,
    batch_size: int = variants.BATCH_SIZE,
) -> Curve:
    """Returns how the probability falls as pixels are replaced by a color.

    Args:
        apply: images -> logits (batch, classes).
        images: (batch, height, width, channels) float32 in [0, 1].
        maps: (batch, height, width), the explanations; of pixels with equal values, the upper left one is first.
        targets: (batch,) integers; None: the classes of the images, as RISE has it.
        step: pixels that are replaced at once; None: as many as a row has, which is RISE's 224.
        baseline: what replaces them, to be broadcast to the images; 0 is black. RISE has the mean of the normalization.
        batch_size: images in one forward pass.
    """
    targets = apply(images).argmax(-1) if targets is None else targets
    return _curve(apply, (images, jnp.broadcast_to(baseline, images.shape)), maps, targets, step, batch_size)


def insertion(
    apply: Apply,
    images: jax.Array,
    maps: jax.Array,
    targets: jax.Array | None = None,
    *,
    step: int | None = None,
    baseline: jax.Array | np.ndarray | float | None = None,
    batch_size: int = variants.BATCH_SIZE,
) -> Curve:
    """Returns how the probability rises as pixels of the image replace those of another one.

    Args:
        apply, images, maps, targets, step, batch_size: as for `deletion`.
        baseline: the image at the beginning, to be broadcast to the images; None: they are blurred, as in RISE.
    """
    targets = apply(images).argmax(-1) if targets is None else targets
    start = blur(images) if baseline is None else jnp.broadcast_to(baseline, images.shape)
    return _curve(apply, (start, images), maps, targets, step, batch_size)


def _curve(
    apply: Apply,
    ends: tuple[jax.Array, jax.Array],
    maps: jax.Array,
    targets: jax.Array,
    step: int | None,
    batch_size: int,
) -> Curve:
    """Returns the curve from the first of two batches of images to the second."""
    batch, height, width = maps.shape
    step = width if step is None else step
    count = -(-height * width // step)
    places = order(maps)

    def make(numbers: jax.Array) -> jax.Array:
        replaced = places[:, None] < step * numbers[:, None, None]
        return jnp.where(replaced[..., None], ends[1][:, None], ends[0][:, None])

    measure = functools.partial(probability, targets=targets)
    scores = variants.measure_all(apply, make, measure, (batch, count + 1), batch_size)
    shares = np.minimum(step * np.arange(count + 1) / (height * width), 1).astype(np.float32)
    return Curve(shares, scores, area(scores))


def area(scores: jax.Array) -> jax.Array:
    """Returns the area under curves (..., n + 1) whose points are 1 / n apart, by trapezoids, (...,)."""
    return (scores.sum(-1) - (scores[..., 0] + scores[..., -1]) / 2) / (scores.shape[-1] - 1)


def order(maps: jax.Array) -> jax.Array:
    """Returns the place of each pixel in the order of falling values, from 0: (batch, height, width) int32."""
    flat = maps.reshape(len(maps), -1)
    places = jnp.argsort(jnp.argsort(-flat, stable=True, axis=-1), axis=-1)
    return places.reshape(maps.shape).astype(jnp.int32)


def blur_kernel() -> np.ndarray:
    """Returns the kernel of RISE's blur in one direction, (11,) float64; in both, it is a product.

    It is a Gaussian of standard deviation 5, up to 4 of these, reflected into 11 pixels: much flatter than one that is
    cut off there.
    """
    radius = int(4 * SIGMA + 0.5)
    gaussian = np.exp(-0.5 * (np.arange(-radius, radius + 1) / SIGMA) ** 2)
    impulse = np.zeros(KERNEL_SIZE)
    impulse[KERNEL_SIZE // 2] = 1
    return np.convolve(np.pad(impulse, radius, mode="symmetric"), gaussian / gaussian.sum(), mode="valid")


def blur(images: jax.Array) -> jax.Array:
    """Returns images blurred as in RISE; beyond their borders they are black, 0."""
    kernel = jnp.asarray(blur_kernel(), jnp.float32)
    channels = images.shape[-1]
    for shape in ((KERNEL_SIZE, 1), (1, KERNEL_SIZE)):
        images = jax.lax.conv_general_dilated(
            images,
            jnp.tile(kernel.reshape(*shape, 1, 1), (1, 1, 1, channels)),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
            precision=jax.lax.Precision.HIGHEST,
        )
    return images
