"""Tables of embeddings of positions, made of sines and cosines."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import ConfigError

TABLES = ("sincos2d", "mae", "mocov3")


def sincos2d(height: int, width: int, features: int, kind: str = "sincos2d") -> np.ndarray:
    """Returns embeddings of positions, (1, height * width, features) float32: sines and cosines of both coordinates.

    sincos2d:  of the column, then of the row, with wavelengths from 2 pi to 20000 pi (big_vision)
    mae:       the same, but wavelengths end before 20000 pi (He et al. 2021, arXiv:2111.06377)
    mocov3:    as for mae, but of the row, then of the column (Chen et al. 2021, arXiv:2104.02057)
    """
    if features % 4 or features < 8:
        raise ConfigError(f"positions {kind} need features in fours, at least 8; there are {features}.")
    frequencies = 10_000.0 ** -np.linspace(0, 1, features // 4, endpoint=kind == "sincos2d")
    rows, columns = np.indices((height, width)).reshape(2, -1, 1) * frequencies
    first, second = (rows, columns) if kind == "mocov3" else (columns, rows)
    parts = [np.sin(first), np.cos(first), np.sin(second), np.cos(second)]
    return np.concatenate(parts, axis=1, dtype=np.float32)[None]


def positions_init(kind: str, grid: int) -> nn.initializers.Initializer:
    """Returns what makes `sincos2d` tables, (1, tokens, features), for a square grid; of tokens before it, zeros."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        del key
        table = sincos2d(grid, grid, shape[-1], kind)
        return jnp.asarray(np.pad(table, ((0, 0), (shape[1] - grid**2, 0), (0, 0))), dtype)

    return init
