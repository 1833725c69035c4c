"""The table of classes that an evaluation of the kind `per_class` gives, and what of it is worth being shown."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from vision_jax.errors import DataError
from vision_jax.pretrained import display_names

SCORES = ("precision", "recall", "f1")


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """What is known of each class; see `evaluators.per_class.class_table`.

    Attributes:
        names: of the classes, for people.
        support: (classes,) int64, the examples of each.
        scores: precision, recall and f1, (classes,) float64 each.
        confusion: (entries, 3) int64, the entries of the confusion matrix that are not 0: label, prediction, examples.
    """

    names: list[str]
    support: np.ndarray
    scores: dict[str, np.ndarray]
    confusion: np.ndarray

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Self:
        """Reads a table of tables.jsonl.

        Raises:
            DataError: if something is missing in it, or does not fit together.
        """
        try:
            names = display_names([str(name) for name in table["classes"]])
            support = np.array(table["support"], np.int64)
            scores = {name: np.array(table[name], np.float64) for name in SCORES}
            confusion = np.array(table["confusion"], np.int64).reshape(-1, 3)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"A table of classes is damaged: {error!r}.") from error
        shapes = {values.shape for values in (support, *scores.values())}
        if not names or shapes != {(len(names),)} or (confusion < 0).any() or (confusion[:, :2] >= len(names)).any():
            raise DataError(f"A table of classes is damaged: it has {len(names)} names, and values for {shapes}.")
        return cls(names, support, scores, confusion)

    @property
    def is_wrong(self) -> np.ndarray:
        """Which entries of `confusion` are errors, (entries,) bool."""
        return self.confusion[:, 0] != self.confusion[:, 1]

    def confusions(self, number: int) -> list[tuple[int, int, int]]:
        """Returns the most frequent errors as (label, prediction, examples), ordered as in `per_class`."""
        wrong = self.confusion[self.is_wrong]
        order = np.lexsort((wrong[:, 1], wrong[:, 0], -wrong[:, 2]))[:number]
        return [(int(label), int(prediction), int(count)) for label, prediction, count in wrong[order]]

    def most_confused(self, number: int) -> np.ndarray:
        """Returns `number` classes, ascending: those in the most frequent confusions; all if there are fewer."""
        if len(self.names) <= number:
            return np.arange(len(self.names))
        chosen: dict[int, None] = {}
        confused = (one for label, prediction, _ in self.confusions(number * number) for one in (label, prediction))
        for one in itertools.chain(confused, range(number)):  # of a perfect classifier, the first ones
            if len(chosen) == number:
                break
            chosen[one] = None
        return np.array(sorted(chosen), np.int64)

    def ranked(self) -> np.ndarray:
        """Returns the classes that are the label or the prediction of an example, by F1 from the worst to the best."""
        predicted = np.bincount(self.confusion[:, 1], self.confusion[:, 2], len(self.names))
        there = np.flatnonzero(self.support + predicted > 0)
        return there[np.argsort(self.scores["f1"][there], kind="stable")]
