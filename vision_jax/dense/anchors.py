"""Anchors: the boxes beside which a detector describes what it finds; static, made by numpy.

They are those of torchvision's `AnchorGenerator` (`models/detection/anchor_utils.py`): the sides of a cell's anchors
are rounded, half to even, and the cell of row i and column j has its centre at (j, i) strides, not half a stride
further.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vision_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Anchors:
    """The shapes of the anchors of each level.

    Attributes:
        sizes: of the anchors of each level, in pixels: the square root of their area.
        ratios: height over width.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

    @property
    def per_cell(self) -> tuple[int, ...]:
        """The number of anchors of a cell, by level."""
        return tuple(len(sizes) * len(self.ratios) for sizes in self.sizes)

    def cell(self, level: int) -> np.ndarray:
        """Returns the anchors around (0, 0), (anchors, 4) float32; their ratio changes slowest."""
        sizes, roots = np.array(self.sizes[level], np.float32), np.sqrt(np.array(self.ratios, np.float32))
        heights, widths = (roots[:, None] * sizes).reshape(-1), ((1 / roots)[:, None] * sizes).reshape(-1)
        return np.round(np.stack([-widths, -heights, widths, heights], 1) / 2)

    def levels(
        self, map_sizes: Sequence[tuple[int, int]], image_size: tuple[int, int], strides: Sequence[int] | None = None
    ) -> tuple[np.ndarray, ...]:
        """Returns the anchors of each level, in the order row, column, anchor.

        Args:
            map_sizes: (height, width) of each level's map.
            image_size: (height, width) of the canvas.
            strides: distance of two cells in pixels, by level; None: the canvas over the map, rounded down.

        Returns:
            (height * width * anchors, 4) float32 each.

        Raises:
            ConfigError: if the number of maps is not that of the levels.
        """
        if len(map_sizes) != len(self.sizes) or (strides is not None and len(strides) != len(self.sizes)):
            raise ConfigError(
                f"There are {len(map_sizes)} maps and {len(self.sizes)} levels of anchors: give the sizes of the "
                "anchors of each level of the network."
            )
        found = []
        for level, (rows, columns) in enumerate(map_sizes):
            if strides is None:
                down, right = image_size[0] // rows, image_size[1] // columns
            else:
                down = right = strides[level]
            y, x = np.meshgrid(np.arange(rows) * down, np.arange(columns) * right, indexing="ij")
            centres = np.stack([x, y, x, y], -1).astype(np.float32).reshape(-1, 1, 4)
            found.append((centres + self.cell(level)).reshape(-1, 4))
        return tuple(found)


def _with_thirds(size: int) -> tuple[int, int, int]:
    return size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))


# RetinaNet (Lin et al. 2017) has nine anchors a cell, FCOS (Tian et al. 2019) one, as large as the stride of its level.
RETINANET = Anchors(tuple(_with_thirds(size) for size in (32, 64, 128, 256, 512)))
FCOS = Anchors(((8,), (16,), (32,), (64,), (128,)), (1.0,))
