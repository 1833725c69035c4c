"""The sizes that images and their annotations become, and the canvases that hold them.

A canvas is (height, width) of the arrays of a batch: an image lies in its upper left corner, and the rest is padding.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from vision_jax.data.dense_sizes import resized_size, resized_sizes
from vision_jax.errors import ConfigError, suggest

Canvas = tuple[int, int]
KINDS = ("fit", "range", "jitter", "squash")


@dataclasses.dataclass(frozen=True)
class Resizing:
    """How images are resized.

    Attributes:
        kind: fit: the shorter side becomes `shorter`, or less where the longer side would be above `longer`, as in
            torchvision's detectors; of several `shorter` sides one is chosen (multi-scale training). range: the
            shorter side is drawn between the two of `shorter`, then a part as large as the canvas is cut out, as in
            torchvision's reference for segmentation. jitter: the image is as large as the canvas holds, times a factor
            drawn from `jitter`, then a part is cut out (large-scale jitter, Ghiasi et al. 2021). squash: the whole
            image becomes as large as the canvas, whatever its aspect ratio.
        shorter: pixels, see above.
        longer: pixels; None: without a limit.
        jitter: smallest and largest factor.

    Raises:
        ConfigError: for values that cannot be.
    """

    kind: str = "fit"
    shorter: tuple[int, ...] = (800,)
    longer: int | None = 1333
    jitter: tuple[float, ...] = (0.1, 2.0)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"data.dense.resize is {self.kind!r}: {suggest(self.kind, KINDS)}")
        if not self.shorter or not all(isinstance(side, int) and side > 0 for side in self.shorter):
            raise ConfigError(f"data.dense.shorter is {self.shorter}: it takes positive integers, one or more.")
        if self.kind == "range" and (len(self.shorter) != 2 or self.shorter[0] > self.shorter[1]):
            raise ConfigError(
                f"data.dense.shorter is {self.shorter}: for a range it takes the smallest and the largest."
            )
        if self.longer is not None and self.longer < max(self.shorter):
            raise ConfigError(f"data.dense.longer is {self.longer}, less than data.dense.shorter={self.shorter}.")
        if self.kind == "fit" and self.longer is None:
            raise ConfigError("data.dense.longer is not set, and no canvas holds the longest side: set it.")
        if len(self.jitter) != 2 or not 0 < self.jitter[0] <= self.jitter[1] < math.inf:
            raise ConfigError(f"data.dense.jitter is {self.jitter}: it takes the smallest and the largest factor.")

    @property
    def cuts(self) -> bool:
        """Whether what does not fit into the canvas is cut off, at random."""
        return self.kind in ("range", "jitter")

    def size(self, height: int, width: int, canvas: Canvas, uniform: float) -> tuple[int, int]:
        """Returns the (height, width) that an image becomes, before anything is cut off.

        Sides are rounded down in float64, as in torchvision: 334 times 800 / 334 is 799. Where nothing is cut off, it
        is at most as large as the canvas: that only matters for an image that stands for another (`max_bad_records`).

        Args:
            height, width: of the image.
            canvas: that it is for.
            uniform: random number in [0, 1).
        """
        short, long = min(height, width), max(height, width)
        if self.kind == "squash":
            return canvas
        if self.kind == "range":
            side = self.shorter[0] + int(uniform * (self.shorter[1] - self.shorter[0] + 1))
            other = max(1, int(side * long / short))
            if self.longer is not None and other > self.longer:
                side, other = max(1, int(self.longer * short / long)), self.longer
            return (side, other) if height <= width else (other, side)
        if self.kind == "jitter":
            factor = self.jitter[0] + uniform * (self.jitter[1] - self.jitter[0])
            scale = min(canvas[0] / height, canvas[1] / width) * factor
            return _scaled(height, width, scale)
        size = resized_size(height, width, self.shorter[int(uniform * len(self.shorter))], self.longer or 0)
        if not _holds(canvas, size):
            size = _scaled(height, width, min(canvas[0] / height, canvas[1] / width))
        return size

    def canvases_of(self, sizes: np.ndarray, canvases: Sequence[Canvas]) -> np.ndarray:
        """Returns the number of the canvas of least area that holds each image, at the largest size that it can become.

        Where parts are cut out or the image is squashed, that is the first and only canvas.

        Args:
            sizes: (n, 2) integers, height and width of each image.
            canvases: to choose from.

        Returns:
            (n,) int8.

        Raises:
            ConfigError: if none holds an image; it names the first such.
        """
        found = np.zeros(len(sizes), np.int8)
        if self.kind != "fit":
            return found
        becoming = resized_sizes(sizes, max(self.shorter), self.longer or 0)
        found[:] = -1
        areas = [height * width for height, width in canvases]
        for number in sorted(range(len(canvases)), key=areas.__getitem__):
            found[(found < 0) & (becoming <= canvases[number]).all(axis=1)] = number
        if (outside := np.flatnonzero(found < 0)).size:
            (height, width), (new_height, new_width) = sizes[outside[0]], becoming[outside[0]]
            raise ConfigError(
                f"data.dense.canvases is {tuple(canvases)}, none of which holds an image of {height}x{width} pixels, "
                f"height first, that becomes {new_height}x{new_width}: add a larger one."
            )
        return found

    def canvas_of(self, height: int, width: int, canvases: Sequence[Canvas]) -> int:
        """Returns the number of the canvas of one image; see `canvases_of`."""
        return int(self.canvases_of(np.asarray([[height, width]]), canvases)[0])

    def check_canvases(self, canvases: Sequence[Canvas]) -> None:
        """Checks that every image has a canvas.

        Raises:
            ConfigError: if there is none, or one too many.
        """
        if not canvases or not all(len(canvas) == 2 and min(canvas) > 0 for canvas in canvases):
            raise ConfigError(f"data.dense.canvases is {tuple(canvases)}: it takes (height, width), once or more.")
        if len(set(canvases)) < len(canvases):
            raise ConfigError(f"data.dense.canvases is {tuple(canvases)}: give each canvas once.")
        if self.kind != "fit":
            if len(canvases) > 1:
                raise ConfigError(
                    f"data.dense.canvases is {tuple(canvases)}, and data.dense.resize={self.kind} takes one canvas: "
                    "give one, or set data.dense.resize='fit'."
                )
            return
        short, long = max(self.shorter), self.longer
        assert long is not None
        for size in ((short, long), (long, short)):
            if not any(_holds(canvas, size) for canvas in canvases):
                raise ConfigError(
                    f"data.dense.canvases is {tuple(canvases)}, none of which holds {size[0]}x{size[1]} pixels, height "
                    "first, which images of data.dense.shorter and longer can have: add one, or enlarge one."
                )


def _holds(canvas: Canvas, size: tuple[int, int]) -> bool:
    return size[0] <= canvas[0] and size[1] <= canvas[1]


def _scaled(height: int, width: int, scale: float) -> tuple[int, int]:
    return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))


def mixed_canvas(canvases: Sequence[Canvas]) -> Canvas:
    """Returns the canvas that holds whatever one of several holds."""
    return max(height for height, _ in canvases), max(width for _, width in canvases)


def bucket_indices(
    sizes: np.ndarray, resizing: Resizing, canvases: Sequence[Canvas]
) -> list[tuple[Canvas, np.ndarray]]:
    """Returns, for each canvas that has any, the records that it is for, (n,) int64 ascending.

    Args:
        sizes: (records, 2) integers, of a dense source.
        resizing, canvases: of the transform.

    Raises:
        ConfigError: if a record has no canvas.
    """
    of = resizing.canvases_of(sizes, canvases)
    parts = ((canvas, np.flatnonzero(of == number)) for number, canvas in enumerate(canvases))
    return [(canvas, indices) for canvas, indices in parts if len(indices)]
