"""Compares what was exported with JAX."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from vision_jax.errors import DataError
from vision_jax.export.subject import Subject

# The largest difference that is accepted, as a part of the logits' spread. In half precision a model is another one.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
BATCHES = (1, 8)

Run = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far results are from JAX's.

    Attributes:
        images: what they are of, for people.
        relative: the largest difference of a logit, divided by the standard deviation of all logits.
    """

    images: str
    relative: float


def difference(result: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference divided by the standard deviation of what is expected; NaN is infinitely far."""
    if result.shape != expected.shape or not np.isfinite(result).all() or not np.isfinite(expected).all():
        return float("inf")
    largest = float(np.abs(result.astype(np.float64) - expected).max())
    spread = float(expected.astype(np.float64).std())
    return 0.0 if largest == 0 else largest / spread if spread else float("inf")


def compare(subject: Subject, run: Run, pixels: np.ndarray | None = None) -> list[Difference]:
    """Compares an exported function with JAX in float32: on random images, and on given ones.

    Args:
        subject: what was exported.
        run: from images to logits, by what was written.
        pixels: (count, size, size, channels) uint8; None: there are none.
    """
    found = []
    for count in (subject.options.batch,) if subject.options.batch else BATCHES:
        images = subject.random_images(count, seed=count)
        relative = difference(run(images), subject.reference(images))
        found.append(Difference(f"{count} random image{'s' * (count > 1)}", relative))
    if pixels is not None:
        count = subject.options.batch or len(pixels)
        images = np.resize(subject.of_pixels(pixels), (count, *subject.shape[1:]))
        found.append(Difference(f"{min(count, len(pixels))} real", difference(run(images), subject.reference(images))))
    return found


def require(found: Sequence[Difference], tolerance: float, what: str) -> None:
    """Checks that differences are small enough.

    Raises:
        DataError: if one is not.
    """
    worst = max(found, key=lambda one: one.relative)
    if not worst.relative <= tolerance:
        raise DataError(
            f"{what} was not written: it differs from JAX by {worst.relative:.2g} of the logits' spread, of "
            f"{worst.images}, and {tolerance:g} is allowed (--tolerance)."
        )
