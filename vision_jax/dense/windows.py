"""A segmenter on images that are larger than those it was trained on, and on mirror images too.

The positions of windows, and that they are averaged as logits and mirror images as probabilities, are those of
mmsegmentation (`models/segmentors/encoder_decoder.py`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import ConfigError

Apply = Callable[[jax.Array], jax.Array]


def window_positions(canvas: tuple[int, int], window: int, stride: int) -> np.ndarray:
    """Returns the top left corners of windows that cover a canvas: (windows, 2) int32, row by row.

    The last window of a row or a column is moved back so that it ends where the canvas ends.

    Args:
        canvas: (height, width).
        window: side of the windows; where the canvas is smaller, they are as high or wide as the canvas.
        stride: from one window to the next, at most `window`.

    Raises:
        ConfigError: if windows would leave out pixels.
    """
    if not 1 <= stride <= window:
        raise ConfigError(
            f"Windows of {window} pixels, {stride} pixels apart, do not cover an image: give windows of some pixels, "
            "and a stride of 1 to as many pixels."
        )
    starts = []
    for length in canvas:
        count = max(0, -(-(length - window) // stride)) + 1
        starts.append([max(0, min(number * stride, length - window)) for number in range(count)])
    return np.array([(top, left) for top in starts[0] for left in starts[1]], np.int32)


def sliding_logits(apply: Apply, images: jax.Array, window: int, stride: int) -> jax.Array:
    """Returns logits averaged over windows, one window after the other, so that the network is compiled once.

    Args:
        apply: (batch, height, width, channels) -> logits (batch, height, width, classes).
        images: (batch, height, width, channels).
        window, stride: see `window_positions`; 512 and 341 in the recipes for ADE20K.

    Returns:
        (batch, height, width, classes) float32.
    """
    batch, height, width, channels = images.shape
    positions = window_positions((height, width), window, stride)
    high, wide = min(window, height), min(window, width)
    counts = np.zeros((height, width, 1), np.float32)
    for top, left in positions:
        counts[top : top + high, left : left + wide] += 1
    classes = jax.eval_shape(apply, jax.ShapeDtypeStruct((batch, high, wide, channels), images.dtype)).shape[-1]

    def add(total: jax.Array, position: jax.Array) -> tuple[jax.Array, None]:
        corner = 0, position[0], position[1], 0
        logits = apply(jax.lax.dynamic_slice(images, corner, (batch, high, wide, channels))).astype(jnp.float32)
        here = jax.lax.dynamic_slice(total, corner, logits.shape)
        return jax.lax.dynamic_update_slice(total, here + logits, corner), None

    total, _ = jax.lax.scan(add, jnp.zeros((batch, height, width, classes)), jnp.asarray(positions))
    return total / counts


def mirrored_probabilities(apply: Apply, images: jax.Array, widths: jax.Array | None = None) -> jax.Array:
    """Returns probabilities averaged over an image and its mirror image.

    Args:
        apply: (batch, height, width, channels) -> logits (batch, height, width, classes).
        images: (batch, height, width, channels).
        widths: (batch,) integers, the valid part of each image, which alone is mirrored; None: all of it.

    Returns:
        (batch, height, width, classes) float32.
    """
    straight = jax.nn.softmax(apply(images).astype(jnp.float32))
    mirrored = jax.nn.softmax(apply(_mirror(images, widths)).astype(jnp.float32))
    return (straight + _mirror(mirrored, widths)) / 2


def _mirror(images: jax.Array, widths: jax.Array | None) -> jax.Array:
    mirrored = jnp.flip(images, 2)
    if widths is None:
        return mirrored
    # Mirrored as a whole, the valid part is at the right end; rolled back, padding is at the right again.
    return jax.vmap(lambda image, shift: jnp.roll(image, shift, 1))(mirrored, widths - images.shape[2])
