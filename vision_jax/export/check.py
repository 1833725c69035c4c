"""Compares what was exported with JAX."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from vision_jax.errors import DataError
from vision_jax.export.subject import Subject

# The largest difference that is accepted, as a part of the logits' spread. In half precision a model is another one.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
BATCHES = (1, 8)
# The largest share of detections that may differ, as where an IoU is the threshold but for rounding.
SHARE = 0.01

Results = np.ndarray | tuple[np.ndarray, ...]
Run = Callable[[np.ndarray], Results]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far results are from JAX's.

    Attributes:
        images: what they are of, for people.
        relative: the largest difference of a logit, divided by the standard deviation of all logits; see
            `difference`.
    """

    images: str
    relative: float


def scale_of(finds: str) -> str:
    """Returns what differences are divided by, for people; `finds` is `TrainedModel.dense`."""
    return "root mean square" if finds == "boxes" else "standard deviation"


def unit_of(finds: str, *, with_nms: bool = False) -> str:
    """Returns what differences are of, for people; `finds` is `TrainedModel.dense`."""
    if with_nms:
        return "of scores, or of boxes as a part of the longer side of the images"
    return f"as a part of the logits' {scale_of(finds)}"


def difference(result: Results, expected: Results, scales: Sequence[float] | None = None) -> float:
    """Returns the largest difference divided by the standard deviation of what is expected; NaN is infinitely far.

    Of several outputs, those of a detector, it is the largest of each, divided by its root mean square: before training
    they differ by little, around the logit of a small prior. `scales` are other divisors.
    """
    if isinstance(result, tuple) and isinstance(expected, tuple):
        scales = scales or [float(np.sqrt(np.square(output.astype(np.float64)).mean())) for output in expected]
        return max(map(_relative, result, expected, scales)) if len(result) == len(expected) else float("inf")
    if isinstance(result, tuple) or isinstance(expected, tuple):
        return float("inf")
    return _relative(result, expected, float(expected.astype(np.float64).std()))


def _relative(result: np.ndarray, expected: np.ndarray, scale: float) -> float:
    if result.shape != expected.shape or not np.isfinite(result).all() or not np.isfinite(expected).all():
        return float("inf")
    largest = float(np.abs(result.astype(np.float64) - expected).max())
    return 0.0 if largest == 0 else largest / scale if scale else float("inf")


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
        relative = difference(run(images), subject.reference(images), subject.scales)
        found.append(Difference(f"{count} random image{'s' * (count > 1)}", relative))
    if pixels is not None:
        count = subject.options.batch or len(pixels)
        images = np.resize(subject.of_pixels(pixels), (count, *subject.shape[1:]))
        relative = difference(run(images), subject.reference(images), subject.scales)
        found.append(Difference(f"{min(count, len(pixels))} real", relative))
    return found


def require(
    found: Sequence[Difference], tolerance: float, what: str, unit: str = "as a part of the logits' spread"
) -> None:
    """Checks that differences, of which `unit` says what they are of, are small enough.

    Raises:
        DataError: if one is not.
    """
    worst = max(found, key=lambda one: one.relative)
    if not worst.relative <= tolerance:
        raise DataError(
            f"{what} was not written: it differs from JAX by {worst.relative:.2g} ({worst.images}), {unit}, "
            f"and {tolerance:g} is allowed (--tolerance)."
        )
