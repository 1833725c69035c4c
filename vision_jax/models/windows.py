"""Attention of a plain vision transformer within windows (ViTDet: Li et al. 2022, arXiv:2203.16527).

Most blocks see windows of the map of patches, and a few, evenly spaced, all of it: so in all but these, attention takes
time in proportion to the number of patches, and not to its square. Weights are those of blocks that see all.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Windows(NamedTuple):
    """How a map is divided.

    Attributes:
        rows, columns: of the map of patches.
        side: height and width of a window, in patches.
    """

    rows: int
    columns: int
    side: int

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of a window; those of the map where it is smaller."""
        return min(self.side, self.rows), min(self.side, self.columns)

    @property
    def counts(self) -> tuple[int, int]:
        """How many windows there are below each other, and beside each other."""
        height, width = self.window
        return -(-self.rows // height), -(-self.columns // width)

    def cut(self, x: jax.Array) -> jax.Array:
        """Returns the windows of a map, which is padded with zeros below and on the right until they fit.

        Args:
            x: (batch, rows * columns, features).

        Returns:
            (batch, patches of a window, windows, features), each row by row.
        """
        (height, width), (down, across) = self.window, self.counts
        x = x.reshape(len(x), self.rows, self.columns, -1)
        x = jnp.pad(x, ((0, 0), (0, down * height - self.rows), (0, across * width - self.columns), (0, 0)))
        x = x.reshape(len(x), down, height, across, width, -1).transpose(0, 2, 4, 1, 3, 5)
        return x.reshape(len(x), height * width, down * across, -1)

    def join(self, x: jax.Array) -> jax.Array:
        """Returns the map of windows, (batch, rows * columns, features), without what was padded; undoes `cut`."""
        (height, width), (down, across) = self.window, self.counts
        x = x.reshape(len(x), height, width, down, across, -1).transpose(0, 3, 1, 4, 2, 5)
        x = x.reshape(len(x), down * height, across * width, -1)[:, : self.rows, : self.columns]
        return x.reshape(len(x), self.rows * self.columns, -1)


def evenly_spaced(depth: int, count: int) -> tuple[int, ...]:
    """Returns the numbers of the last blocks of so many parts of equal length: 2, 5, 8 and 11 for four of twelve."""
    return tuple((number + 1) * depth // count - 1 for number in range(count))
