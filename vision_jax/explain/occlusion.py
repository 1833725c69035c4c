"""Explanations by what the score loses when parts of the image are hidden; no gradients, so of any function of images.

`occlusion` hides one window after another; `rise` hides random parts. Both take a fixed number of images through the
network at once, whatever the number of masks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.attacks.base import fold_in, keys_of
from vision_jax.explain import variants
from vision_jax.explain.base import Apply, of_class, probability, scores


def occlusion(
    apply: Apply,
    images: jax.Array,
    targets: jax.Array,
    *,
    window: int | tuple[int, int],
    stride: int | tuple[int, int],
    baseline: jax.Array | np.ndarray | float = 0.0,
    batch_size: int = variants.BATCH_SIZE,
) -> jax.Array:
    """Returns what the score loses by a window over each pixel (Zeiler and Fergus 2013, arXiv:1311.2901).

    It is the mean over the windows that cover the pixel, as in captum. Windows begin at multiples of the stride, until
    one reaches the border; that one is cut off there.

    Args:
        apply: images -> logits (batch, classes).
        images: (batch, height, width, channels) float32 in [0, 1].
        targets: (batch,) integers.
        window: its height and width, or one number for both, in pixels.
        stride: from one window to the next, not above `window`.
        baseline: what a window is filled with, to be broadcast to the images; 0 is black.
        batch_size: images in one forward pass.

    Returns:
        (batch, height, width) float32.
    """
    sides, strides = (value if isinstance(value, tuple) else (value, value) for value in (window, stride))
    rows, columns = (
        windows(length, side, step) for length, side, step in zip(images.shape[1:3], sides, strides, strict=True)
    )

    def make(numbers: jax.Array) -> jax.Array:
        row, column = jnp.asarray(rows)[numbers // len(columns)], jnp.asarray(columns)[numbers % len(columns)]
        hidden = row[:, :, None] * column[:, None, :]
        return jnp.where(hidden[None, ..., None] > 0, filling, images[:, None])

    filling = jnp.broadcast_to(baseline, images.shape)[:, None]
    shape, measure = (len(images), len(rows) * len(columns)), functools.partial(of_class, targets=targets)
    found = variants.measure_all(apply, make, measure, shape, batch_size)
    lost = scores(apply, images, targets)[:, None] - found
    total = jnp.einsum("bij,ih,jw->bhw", lost.reshape(len(images), len(rows), -1), rows, columns)
    return total / jnp.einsum("h,w->hw", rows.sum(0), columns.sum(0))


def windows(length: int, side: int, stride: int) -> np.ndarray:
    """Returns which pixels of a row of `length` each window covers, (windows, length) float32, 1 or 0."""
    count = max(0, -(-(length - side) // stride)) + 1
    starts = stride * np.arange(count)[:, None]
    pixels = np.arange(length)
    return ((pixels >= starts) & (pixels < starts + side)).astype(np.float32)


def rise(
    apply: Apply,
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    *,
    masks: int = 8000,
    cells: int = 7,
    share: float | jax.Array = 0.5,
    baseline: jax.Array | np.ndarray | float = 0.0,
    batch_size: int = variants.BATCH_SIZE,
) -> jax.Array:
    """Returns RISE (Petsiuk et al. 2018, arXiv:1806.07421): the mean of random masks, weighted by what they leave.

    The weight of a mask is the target's probability (softmax) of the masked image; the sum is divided by the number of
    masks and by `share`.

    Args:
        apply: images -> logits (batch, classes).
        images: (batch, height, width, channels) float32 in [0, 1].
        targets: (batch,) integers.
        key: a random key, or one for each image.
        masks: how many; the paper has 8000 for ResNet-50 and 4000 for VGG-16.
        cells: of the grid of each mask, in both directions; see `random_masks`.
        share: of the grid's cells that are visible.
        baseline: what is seen where the mask hides the image, to be broadcast to the images. RISE masks normalized
            images, so that it is the mean color of the normalization.
        batch_size: images in one forward pass.

    Returns:
        (batch, height, width) float32, not negative.
    """
    keys, measure = keys_of(key, len(images)), functools.partial(probability, targets=targets)
    filling = jnp.broadcast_to(baseline, images.shape)[:, None]
    shape = (images.shape[1], images.shape[2])

    def step(numbers: jax.Array, there: jax.Array) -> jax.Array:
        drawn = jax.vmap(lambda number: fold_in(keys, number), out_axes=1)(numbers)
        visible = jax.vmap(jax.vmap(lambda own: random_mask(own, shape, cells, share)))(drawn)
        seen = filling + visible[..., None] * (images[:, None] - filling)
        weights = variants.evaluate(apply, seen, measure) * there
        return jnp.einsum("bmhw,bm->bhw", visible, weights)

    total = variants.accumulate(step, jnp.zeros(images.shape[:3]), masks, len(images), batch_size)
    return total / (masks * share)


def random_mask(key: jax.Array, shape: tuple[int, int], cells: int, share: float | jax.Array) -> jax.Array:
    """Returns a mask of RISE: a grid of zeros and ones, enlarged bilinearly and moved by less than a cell.

    A cell has ceil(length / cells) pixels. The grid is enlarged to cells + 1 of them, and a random part of it cut out.
    The interpolation is a product of small matrices, so that no pixel is looked up.

    Args:
        key: a random key.
        shape: (height, width).
        cells: of the grid, in both directions.
        share: probability of a one.

    Returns:
        (height, width) float32 in [0, 1].
    """
    of_grid, *of_shifts = jax.random.split(key, 3)
    grid = jax.random.bernoulli(of_grid, share, (cells, cells)).astype(jnp.float32)
    rows, columns = (
        interpolation(length, cells, jax.random.randint(own, (), 0, -(-length // cells)))
        for own, length in zip(of_shifts, shape, strict=True)
    )
    # Exact also where products are of bfloat16: weights would have eight bits.
    return jnp.einsum("hi,ij,wj->hw", rows, grid, columns, precision=jax.lax.Precision.HIGHEST)


def interpolation(length: int, cells: int, shift: jax.Array | int) -> jax.Array:
    """Returns the weights of the cells of a grid in each pixel, (length, cells) float32; see `random_mask`.

    Beyond the middles of the outer cells, the grid is mirrored, as scikit-image does it.
    """
    size = (cells + 1) * -(-length // cells)
    place = jnp.abs((jnp.arange(length) + shift + 0.5) * cells / size - 0.5)
    place = (cells - 1) - jnp.abs((cells - 1) - place)
    return jnp.maximum(0, 1 - jnp.abs(place[:, None] - jnp.arange(cells)))
