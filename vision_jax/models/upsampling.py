"""Resizing of feature maps as torch does it, as products with matrices that are known before anything runs.

A product with a small constant matrix is what TPUs and GPUs do best; a gather of single positions is what they do
worst.
"""

import jax
import jax.numpy as jnp
import numpy as np


def bilinear(x: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes maps linearly along both axes: torch's `interpolate(mode="bilinear", align_corners=False)`.

    There is no antialiasing, which only shrinking would need. The sums are in float32.

    Args:
        x: (batch, rows, columns, features).
        height, width: of the result.

    Returns:
        (batch, height, width, features) of the dtype of x.
    """
    return _along_both(x, bilinear_matrix(x.shape[1], height), bilinear_matrix(x.shape[2], width))


def nearest(x: jax.Array, height: int, width: int) -> jax.Array:
    """Repeats positions: torch's `interpolate(mode="nearest")`; arguments and result as of `bilinear`."""
    rows, columns = x.shape[1:3]
    if -(-height // 2) == rows and -(-width // 2) == columns:  # twice as large, or one less: torch's rule is the same
        batch, features = x.shape[0], x.shape[-1]
        wide = jnp.broadcast_to(x[:, :, None, :, None], (batch, rows, 2, columns, 2, features))
        return wide.reshape(batch, 2 * rows, 2 * columns, features)[:, :height, :width]
    return _along_both(x, nearest_matrix(rows, height), nearest_matrix(columns, width))


def bilinear_matrix(length: int, wanted: int) -> np.ndarray:
    """Returns the weights of `length` positions in each of `wanted` ones, (wanted, length) float32."""
    centers = np.maximum((np.arange(wanted) + 0.5) * length / wanted - 0.5, 0.0)
    before = np.minimum(centers.astype(int), length - 1)
    share = centers - before
    matrix = np.zeros((wanted, length), np.float32)
    matrix[np.arange(wanted), before] += 1 - share
    matrix[np.arange(wanted), np.minimum(before + 1, length - 1)] += share
    return matrix


def nearest_matrix(length: int, wanted: int) -> np.ndarray:
    """Returns 1 where a position is repeated, (wanted, length) float32: position i shows i * length // wanted."""
    matrix = np.zeros((wanted, length), np.float32)
    matrix[np.arange(wanted), np.arange(wanted) * length // wanted] = 1
    return matrix


def _along_both(x: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """Returns the products with both matrices; in float32 they are exact to rounding on all devices."""
    height, width = len(rows), len(columns)
    if x.shape[1:3] == (height, width):
        return x
    if x.shape[1:3] == (1, 1):
        return jnp.broadcast_to(x, (x.shape[0], height, width, x.shape[-1]))
    precision = "highest" if x.dtype == jnp.float32 else None
    left, right = (jnp.asarray(matrix, x.dtype) for matrix in (rows, columns))
    # Rows first: the order in which less is computed where both grow by as much.
    x = jnp.einsum("bhwc,ih->biwc", x, left, precision=precision)
    return jnp.einsum("biwc,jw->bijc", x, right, precision=precision)
