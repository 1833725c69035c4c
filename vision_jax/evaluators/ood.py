"""Out-of-distribution detection by a classifier's logits: scores of examples, and measures of their separation.

All functions work on the host, in float64. In-distribution examples are the positive ones, and score higher.
"""

import numpy as np


def max_softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the highest probability (Hendrycks and Gimpel 2016, arXiv:1610.02136) of (n, classes): (n,)."""
    return np.exp(max_logit(logits) - energy(logits))


def max_logit(logits: np.ndarray) -> np.ndarray:
    """Returns the highest logit (Hendrycks et al. 2019, arXiv:1911.11132) of (n, classes): (n,)."""
    return logits.max(1).astype(np.float64)


def energy(logits: np.ndarray) -> np.ndarray:
    """Returns log sum exp, the negative energy (Liu et al. 2020, arXiv:2010.03759), of (n, classes): (n,)."""
    highest = max_logit(logits)
    return highest + np.log(np.exp(logits.astype(np.float64) - highest[:, None]).sum(1))


SCORES = {"max_softmax": max_softmax, "max_logit": max_logit, "energy": energy}


def _cumulative(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many positives and negatives reach each of the scores that occur, from the highest to the lowest."""
    thresholds = np.unique(np.concatenate([positives, negatives]))[::-1]
    reach = lambda scores: len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")  # noqa: E731
    return reach(positives), reach(negatives)


def auroc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Returns the area under the ROC curve: the probability that a positive scores higher, ties counting half.

    Args:
        positives, negatives: (n,) and (m,) scores.
    """
    ranked = np.sort(negatives)
    below, not_above = (np.searchsorted(ranked, positives, side=side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(negatives)))


def fpr_at_tpr(positives: np.ndarray, negatives: np.ndarray, tpr: float = 0.95) -> float:
    """Returns the share of negatives that reach the highest threshold that at least a share `tpr` of positives reaches.

    Args:
        positives, negatives: (n,) and (m,) scores.
        tpr: above 0, and at most 1.
    """
    true, false = _cumulative(positives, negatives)
    first = np.argmax(true / len(positives) >= tpr)
    return float(false[first] / len(negatives))


def average_precision(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Returns the area under the precision-recall curve, without interpolation, as scikit-learn defines it.

    The sum over thresholds, from the highest, of (recall - recall before) * precision; equal scores are one threshold.

    Args:
        positives, negatives: (n,) and (m,) scores.
    """
    true, false = _cumulative(positives, negatives)
    return float((np.diff(true, prepend=0) * true / (true + false)).sum() / len(positives))


def separation(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """Returns the measures of how well scores tell in-distribution examples from others.

    Args:
        inside, outside: (n,) and (m,) scores.

    Returns:
        auroc, fpr95: see `auroc` and `fpr_at_tpr`.
        aupr_in: `average_precision` with in-distribution examples as positives.
        aupr_out: with the others as positives, by the negative scores.
    """
    return {
        "auroc": auroc(inside, outside),
        "fpr95": fpr_at_tpr(inside, outside),
        "aupr_in": average_precision(inside, outside),
        "aupr_out": average_precision(-outside, -inside),
    }
