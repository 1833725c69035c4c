"""Calibration of a classifier: do its probabilities say how often it is right?

The functions work on logits on the host, in float64, a few thousand examples at a time.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from vision_jax.devices import distributed
from vision_jax.errors import ConfigError, DataError
from vision_jax.evaluators.base import Prefixed, Step, collect
from vision_jax.evaluators.logits import LogitsEvaluator
from vision_jax.objectives.base import Objective

BINS = 15
_BLOCK_ELEMENTS = 2**22  # of float64 logits, so that temporary arrays take some hundred MB at most
_LARGEST_TEMPERATURE = 100.0  # and its inverse is the smallest


def bin_sums(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> dict[str, np.ndarray]:
    """Returns sums over examples in bins of equal width of the confidence, which is the highest probability.

    Bin i has confidences from i / bins, inclusive, to (i + 1) / bins, exclusive; the last one includes 1.

    Args:
        confidence: (examples,), from 0 to 1.
        correct: (examples,), 1 where the most probable class is the label, and otherwise 0.
        bins: their number.

    Returns:
        (bins,) float64 each: `count`, the number of examples, and the sums of `confidence` and `correct`.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    index = np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="right") - 1
    index = np.clip(index, 0, bins - 1)
    return {
        "count": np.bincount(index, minlength=bins).astype(np.float64),
        "confidence": np.bincount(index, confidence, bins),
        "correct": np.bincount(index, correct, bins),
    }


def calibration_errors(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the expected (Naeini et al. 2015), maximum and root-mean-square calibration error from `bin_sums`.

    With the share p of examples in a bin and its gap g = |mean of correct - mean of confidence|:

    ece = sum p g, mce = max g over the bins with examples, rms = sqrt(sum p g^2)
    """
    count = sums["count"]
    share = count / count.sum()
    gap = np.abs(sums["correct"] - sums["confidence"]) / np.maximum(count, 1)
    return {
        "ece": float((share * gap).sum()),
        "mce": float(gap.max()),
        "rms": float(np.sqrt((share * gap**2).sum())),
    }


def _blocks(logits: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields logits, in float64, and labels of a few thousand examples at a time."""
    size = max(1, _BLOCK_ELEMENTS // logits.shape[1])
    for start in range(0, len(labels), size):
        yield logits[start : start + size].astype(np.float64), labels[start : start + size]


def probability_scores(
    logits: np.ndarray, labels: np.ndarray, *, temperature: float = 1.0, bins: int = BINS
) -> dict[str, float]:
    """Returns measures of softmax(logits / temperature).

    Args:
        logits: (examples, classes), float.
        labels: (examples,) integers.
        temperature: divides the logits.
        bins: number of bins of the calibration errors.

    Returns:
        nll: negative log-likelihood, in nats: the mean of -log p[label].
        brier: Brier score (1950): the mean of the sum over the classes of (p - 1 for the label, p for others)^2.
        ece, mce, rms: see `calibration_errors`.
        confidence: the mean of the highest probability.
        All of them are NaN if one of the logits is.
    """
    sums: dict[str, Any] = {"nll": 0.0, "brier": 0.0, "bins": dict.fromkeys(("count", "confidence", "correct"), 0.0)}
    for scores, targets in _blocks(logits, labels):
        rows = np.arange(len(targets))
        scores = scores / temperature
        scores -= scores.max(1, keepdims=True)
        log_normalizer = np.log(np.exp(scores).sum(1))
        probabilities = np.exp(scores - log_normalizer[:, None])
        of_label = probabilities[rows, targets]
        sums["nll"] += (log_normalizer - scores[rows, targets]).sum()
        # sum (p - t)^2 = sum p^2 - 2 p[label] + 1, for targets t of 0 and 1
        sums["brier"] += (np.square(probabilities).sum(1) - 2 * of_label + 1).sum()
        binned = bin_sums(probabilities.max(1), probabilities.argmax(1) == targets, bins)
        sums["bins"] = {name: sums["bins"][name] + value for name, value in binned.items()}
    count = len(labels)
    return {
        "nll": float(sums["nll"] / count),
        "brier": float(sums["brier"] / count),
        **calibration_errors(sums["bins"]),
        "confidence": float(sums["bins"]["confidence"].sum() / count),
    }


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature that minimizes the NLL of softmax(logits / temperature) (Guo et al. 2017,
    arXiv:1706.04599).

    The NLL is convex in b = 1 / temperature. With expectations and variances over the classes by their probabilities,

    dNLL/db = mean(E[z] - z[label]), d2NLL/db2 = mean(Var[z])

    so that Newton's method, kept within a bracket, converges in a few iterations. The result is from 0.01 to 100. Where
    the logits say nothing of the labels, it is 100; where the highest one is always the label's, there is no optimum,
    and the result is a temperature at which the NLL is 0 in float64, or 0.01.

    Args:
        logits: (examples, classes), float.
        labels: (examples,) integers.

    Returns:
        the temperature; NaN if one of the logits is not finite.
    """
    if not np.isfinite(logits).all():
        return float("nan")

    def derivatives(b: float) -> tuple[float, float]:
        first = second = 0.0
        for scores, targets in _blocks(logits, labels):
            weights = np.exp(b * (scores - scores.max(1, keepdims=True)))
            weights /= weights.sum(1, keepdims=True)
            mean = (weights * scores).sum(1)
            first += float((mean - scores[np.arange(len(targets)), targets]).sum())
            second += float((weights * np.square(scores - mean[:, None])).sum())
        return first, second

    low, high, b = 1 / _LARGEST_TEMPERATURE, _LARGEST_TEMPERATURE, 1.0
    while high - low > 1e-9 * low:
        slope, curvature = derivatives(b)
        low, high = (b, high) if slope < 0 else (low, b)
        newton = b - slope / curvature if curvature > 0 else low
        if abs(newton - b) <= 1e-9 * b:
            return 1 / newton
        b = newton if low < newton < high else float(np.sqrt(low * high))
    return 1 / b


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Calibration(LogitsEvaluator):
    """NLL, Brier score, ECE, MCE and RMS calibration error, each also after temperature scaling as `scaled_` + name.

    The temperature is fitted on the first, third, fifth, … example of the split, and `scaled_` measures are those of
    the others. Process 0 keeps all logits: 4 bytes * examples * classes.

    Attributes:
        bins: number of bins of the calibration errors.
    """

    metrics: ClassVar[Mapping[str, bool]] = {
        scaled + name: False for scaled in ("", "scaled_") for name in ("nll", "brier", "ece", "mce", "rms")
    }

    bins: int = BINS

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise ConfigError(f"bins is {self.bins}: calibration needs at least one; {BINS} are usual.")

    def make_step(self, objective: Objective) -> Step:
        """Returns (variables by prefix, batch) -> the logits under prefix + "logits", and the labels."""

        def step(variables: Prefixed, batch: Any) -> dict[str, jax.Array]:
            logits = self.logits(objective, variables, batch)
            return {"label": batch["label"], **{f"{prefix}logits": values for prefix, values in logits.items()}}

        return step

    def __call__(self, objective: Objective, variables: Prefixed) -> dict[str, float]:
        variables = dict(variables)
        rows = collect(self.context, self.compiled(objective, self.make_step, variables), variables)

        def measure() -> dict[str, float]:
            assert rows is not None  # in process 0
            count = self.check_count(len(rows["label"]))
            if count < 2:
                raise DataError("There is one example: a temperature is fitted on one half, and measured on another.")
            results: dict[str, float] = {"count": count}
            for prefix in variables:
                results |= self._measure(prefix, rows[f"{prefix}logits"], rows["label"])
            return results

        with self.context.watchdog.suspended():
            return distributed.from_first(measure)

    def _measure(self, prefix: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        temperature = fit_temperature(logits[::2], labels[::2])
        scores = probability_scores(logits, labels, bins=self.bins)
        scaled = probability_scores(logits[1::2], labels[1::2], temperature=temperature, bins=self.bins)
        found = scores | {f"scaled_{name}": value for name, value in scaled.items()}
        return {
            **{prefix + name: found[name] for name in self.metrics},
            f"{prefix}temperature": temperature,
        }
