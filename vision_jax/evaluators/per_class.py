"""The confusion matrix of a classifier, and what follows from it: precision, recall and F1 of each class.

The functions of counts are those of scikit-learn with `zero_division=0`, in float64 on the host.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import ConfigError
from vision_jax.evaluators.base import Prefixed, Step, Table, run_pass
from vision_jax.evaluators.logits import LogitsEvaluator
from vision_jax.objectives.base import Objective

log = logging.getLogger(__name__)


def confusion_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Returns the confusion matrix of the examples where `mask` is 1, and the number of them in each class.

    An example with a NaN among its logits is predicted as no class: it is counted in `support` alone. The predicted
    class is the arg-max, of equal logits the first.

    Args:
        logits: (batch, classes).
        labels: (batch,) integers.
        mask: (batch,) of 1 for examples and 0 for padding.

    Returns:
        confusion: (classes, classes) int32, the examples of each label (row) and predicted class (column).
        support: (classes,) int32, the examples of each label.
    """
    classes = logits.shape[-1]
    predictions = jnp.where(jnp.isnan(logits).any(-1), -1, jnp.argmax(logits, -1))
    # A matrix product suits accelerators, which add to single elements one after another. Its terms are 0 and 1, so
    # it is exact for batches below 2^24, also in the reduced precision of matrix units.
    label_rows = jax.nn.one_hot(labels, classes) * (mask > 0)[:, None]
    confusion = label_rows.T @ jax.nn.one_hot(predictions, classes)
    return {"confusion": confusion.astype(jnp.int32), "support": label_rows.sum(0).astype(jnp.int32)}


def _ratio(numerator: Any, denominator: Any) -> np.ndarray:
    """Returns the quotient in float64, 0 where the denominator is 0."""
    return np.asarray(numerator, np.float64) / np.where(np.equal(denominator, 0), 1, denominator)


def _scores(correct: Any, predicted: Any, support: Any) -> dict[str, np.ndarray]:
    """Returns precision, recall and F1 from numbers of examples, whether of classes or sums over them."""
    return {
        "precision": _ratio(correct, predicted),
        "recall": _ratio(correct, support),
        "f1": _ratio(2 * correct, predicted + support),
    }


def class_scores(confusion: np.ndarray, support: np.ndarray) -> dict[str, np.ndarray]:
    """Returns precision, recall and F1 of each class, (classes,) float64 each; 0 where the denominator is 0.

    precision = correct / predicted, recall = correct / support, F1 = 2 correct / (predicted + support)

    Args:
        confusion, support: of all examples; see `confusion_sums`.
    """
    return _scores(np.diag(confusion), confusion.sum(0), support)


def averages(
    confusion: np.ndarray, support: np.ndarray, *, all_classes: bool = False
) -> dict[str, dict[str, np.ndarray]]:
    """Returns means of precision, recall and F1 over the classes: {"macro": {"precision": (), ...}, ...}.

    macro:    the mean over the classes that are the label or the prediction of an example
    micro:    from the sums over all classes; for one label an example, all three are the top-1 accuracy
    weighted: the mean weighted by the number of examples

    Args:
        confusion, support: of all examples; see `confusion_sums`.
        all_classes: classes that are neither label nor prediction count as 0 in `macro`.
    """
    predicted, scores = confusion.sum(0), class_scores(confusion, support)
    counted = np.full(len(support), True) if all_classes else predicted + support > 0
    return {
        "macro": {name: values[counted].mean() for name, values in scores.items()},
        "micro": _scores(np.trace(confusion), predicted.sum(), support.sum()),
        "weighted": {name: _ratio((values * support).sum(), support.sum()) for name, values in scores.items()},
    }


def balanced_accuracy(confusion: np.ndarray, support: np.ndarray) -> float:
    """Returns the mean recall of the classes that have examples (arguments as for `averages`)."""
    return float(_ratio(np.diag(confusion), support)[support > 0].mean())


def most_frequent_confusions(confusion: np.ndarray, number: int) -> list[tuple[int, int, int]]:
    """Returns up to `number` triples (label, predicted class, examples), the most frequent first.

    Correct predictions are left out. Of equally frequent ones, the lower label, then the lower prediction, is first.
    """
    wrong = np.array(confusion)
    np.fill_diagonal(wrong, 0)
    labels, predictions = np.nonzero(wrong)
    counts = wrong[labels, predictions]
    order = np.argsort(-counts, kind="stable")[:number]
    return [(int(labels[i]), int(predictions[i]), int(counts[i])) for i in order]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PerClass(LogitsEvaluator):
    """Macro, micro and weighted means of precision, recall and F1, and balanced accuracy.

    The table `classes` has the values of each class and the confusion matrix; the most frequent confusions are logged
    by name. The devices hold the matrix, 4 bytes * classes^2, a few times.

    Attributes:
        confusions: how many of the most frequent confusions are logged, and listed in the table.
    """

    metrics: ClassVar[Mapping[str, bool]] = {
        "balanced_accuracy": True,
        **{f"{mean}_{name}": True for mean in ("macro", "micro", "weighted") for name in ("precision", "recall", "f1")},
    }

    confusions: int = 10

    def __post_init__(self) -> None:
        if self.confusions < 0:
            raise ConfigError(f"confusions is {self.confusions}: it is how many are listed, 0 or more.")

    def make_step(self, objective: Objective) -> Step:
        """Returns (variables by prefix, batch) -> `confusion_sums` by prefix."""

        def step(variables: Prefixed, batch: Any) -> dict[str, dict[str, jax.Array]]:
            logits = self.logits(objective, variables, batch)
            return {prefix: confusion_sums(values, batch["label"], batch["mask"]) for prefix, values in logits.items()}

        return step

    def __call__(self, objective: Objective, variables: Prefixed) -> dict[str, float | Table]:
        variables = dict(variables)
        results: dict[str, float | Table] = {}
        sums = run_pass(self.context, self.compiled(objective, self.make_step, variables), variables)
        for prefix, of_prefix in sums.items():
            confusion, support = (of_prefix[name].astype(np.int64) for name in ("confusion", "support"))
            results["count"] = self.check_count(int(support.sum()))
            results[f"{prefix}balanced_accuracy"] = balanced_accuracy(confusion, support)
            for mean, scores in averages(confusion, support).items():
                results |= {f"{prefix}{mean}_{name}": float(value) for name, value in scores.items()}
            results[f"{prefix}classes"] = self._table(prefix, confusion, support)
        return results

    def _table(self, prefix: str, confusion: np.ndarray, support: np.ndarray) -> Table:
        """Returns the table of each class, and logs the most frequent confusions."""
        table = class_table(self.context.source.class_names, confusion, support, self.confusions)
        if frequent := table["confusions"]:
            log.info(
                "The most frequent confusions%s:\n%s",
                " of the EMA" if prefix == "ema_" else "",
                "\n".join(f"  {label} as {predicted}: {n} of {all_}" for label, predicted, n, all_ in frequent),
            )
        return table


def class_table(names: Sequence[str], confusion: np.ndarray, support: np.ndarray, confusions: int) -> Table:
    """Returns the values of each class, the confusion matrix, and the most frequent confusions, as JSON.

    Args:
        names: of the classes; those that are unknown get their numbers.
        confusion, support: of all examples; see `confusion_sums`.
        confusions: how many of the most frequent ones are listed.
    """
    names = class_names(names, len(support))
    labels, predictions = np.nonzero(confusion)
    return {
        "classes": names,
        "support": support.tolist(),
        **{name: values.tolist() for name, values in class_scores(confusion, support).items()},
        "confusion": np.stack([labels, predictions, confusion[labels, predictions]], 1).tolist(),
        "confusions": [
            [names[label], names[prediction], count, int(support[label])]
            for label, prediction, count in most_frequent_confusions(confusion, confusions)
        ],
    }


def class_names(names: Sequence[str], classes: int) -> list[str]:
    """Returns a name for each class: its number where the names are unknown."""
    return [*names, *map(str, range(len(names), classes))]
