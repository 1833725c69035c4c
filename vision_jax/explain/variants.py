"""Scores of many variants of each image, a few in each forward pass, so that memory does not grow with their number."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.explain.base import Apply

BATCH_SIZE = 64  # images in one forward pass


def groups(count: int, batch: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of the variants in groups of one size, and which of them are there: the last may not be full.

    Args:
        count: of variants of each image.
        batch: the number of images.
        batch_size: of images in one forward pass; never less than one variant of each.

    Returns:
        (groups, size) int32 and float32, the latter 1 or 0.
    """
    number = -(-count // max(1, batch_size // batch))
    size = -(-count // number)
    numbers = np.arange(number * size).reshape(number, size)
    return np.minimum(numbers, count - 1).astype(np.int32), (numbers < count).astype(np.float32)


def evaluate(apply: Apply, images: jax.Array, measure: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Returns what is measured of variants of images.

    Args:
        apply: images -> logits (batch, classes).
        images: (batch, variants, height, width, channels).
        measure: logits (batch, variants, classes) -> (batch, variants).
    """
    logits = apply(images.reshape(-1, *images.shape[2:]))
    return measure(logits.reshape(*images.shape[:2], -1))


def measure_all(
    apply: Apply,
    make: Callable[[jax.Array], jax.Array],
    measure: Callable[[jax.Array], jax.Array],
    shape: tuple[int, int],
    batch_size: int = BATCH_SIZE,
) -> jax.Array:
    """Returns what is measured of all variants, (batch, count) float32.

    Args:
        apply: images -> logits (batch, classes).
        make: numbers of variants (m,) int32 -> these of each image, (batch, m, height, width, channels).
        measure: logits (batch, m, classes) -> (batch, m).
        shape: (batch, count).
        batch_size: of images in one forward pass.
    """
    batch, count = shape
    numbers, _ = groups(count, batch, batch_size)
    found = jax.lax.map(lambda some: evaluate(apply, make(some), measure), jnp.asarray(numbers))
    return jnp.moveaxis(found, 0, 1).reshape(batch, -1)[:, :count]


def accumulate(step: Callable[[jax.Array, jax.Array], Any], start: Any, count: int, batch: int, batch_size: int) -> Any:
    """Returns the sum of what a function of groups of variants gives.

    Args:
        step: (numbers (m,) int32, which of them are there (m,) float32) -> what is added up, a tree of arrays.
        start: of the sum.
        count, batch, batch_size: as for `groups`.
    """

    def add(total: Any, group: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, step(*group)), None

    numbers, there = groups(count, batch, batch_size)
    return jax.lax.scan(add, start, (jnp.asarray(numbers), jnp.asarray(there)))[0]
