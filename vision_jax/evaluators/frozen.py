"""The base of evaluators of frozen features: a simple classifier learns from those of the training split.

Images are preprocessed as in evaluation, without augmentation. Features of both splits are collected on process 0, and
held until the evaluation ends: 4 bytes * examples * dimensions, twice with an EMA. What is computed of them is computed
there, on the devices of that process, and told to the others.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import augment
from vision_jax.data import order
from vision_jax.data.sources import SubsetSource
from vision_jax.devices import distributed
from vision_jax.errors import ConfigError, Interrupted
from vision_jax.evaluators.base import Context, Evaluator, Prefixed, Step, Table, collect
from vision_jax.metrics import in_top_k
from vision_jax.objectives.base import Objective

_BLOCK = 4096  # rows whose scores are compared at once


class Split(NamedTuple):
    """The features of a split, on the host.

    Attributes:
        features: (examples, dim) float32.
        labels: (examples,) int32.
    """

    features: np.ndarray
    labels: np.ndarray


def check_positive(evaluator: Any, *names: str) -> None:
    """Checks options that are numbers, or tuples of numbers; None is left alone.

    Raises:
        ConfigError: if one is no positive number, or there is none.
    """
    for name in names:
        value = getattr(evaluator, name)
        values = value if isinstance(value, tuple) else (value,)
        if not values or not all(number is None or _is_positive(number) for number in values):
            raise ConfigError(f"{name} is {value}: give {'positive numbers' if values is value else 'a positive one'}.")


def _is_positive(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 < number < float("inf")


def check_integer(evaluator: Any, *names: str) -> None:
    """Checks options that are positive integers, or None.

    Raises:
        ConfigError: if one is not.
    """
    for name in names:
        value = getattr(evaluator, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name} is {value!r}: give a positive integer, or leave it unset.")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FrozenFeatures(Evaluator):
    """An evaluator of the features of the backbone, whatever was trained, by the labels of the data.

    Attributes:
        train_examples: it learns from at most so many examples of the training split, chosen at random by the seed
            of the configuration; None: from all.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"top1": True, "top5": True}

    train_examples: int | None = None

    def __post_init__(self) -> None:
        check_integer(self, "train_examples")

    def make_step(self, objective: Objective) -> Step:
        """Returns (variables by prefix, batch) -> features under prefix + "features", and the labels."""
        model, context = objective.setup.model, self.context

        def step(variables: Prefixed, batch: Any) -> dict[str, Any]:
            images = augment.normalize(batch["image"], context.mean, context.std)
            found = {"label": batch["label"]}
            for prefix, values in variables.items():
                made: Any = model.apply(values, images, train=False, method="features")
                found[f"{prefix}features"] = made.astype(jnp.float32)
            return found

        return step

    def shuffled(self) -> np.ndarray:
        """Returns the numbers of the training examples that it may learn from, (n,) int32, in a random order."""
        return order.permutation(self.context.seed, 0, len(self.context.bank.source))[: self.train_examples]

    def chosen(self) -> np.ndarray | None:
        """Returns the numbers of the training examples that it learns from, ascending; None: all."""
        return None if self.train_examples is None else np.sort(self.shuffled())

    def learn(self, train: Split, validation: Split, num_classes: int) -> dict[str, float | Table]:
        """Returns what a classifier that learns from one split measures on the other; in process 0."""
        raise NotImplementedError

    def __call__(self, objective: Objective, variables: Prefixed) -> dict[str, float | Table]:
        variables, bank = dict(variables), self.context.bank
        chosen = self._chosen
        source = bank.source if chosen is None else SubsetSource(bank.source, chosen)
        on_train = dataclasses.replace(self.context, source=source, max_bad_records=bank.max_bad_records)

        def rows(context: Context, description: str) -> dict[str, np.ndarray] | None:
            compiled = self.compiled(objective, self.make_step, variables)
            return collect(context, compiled, variables, description=description)

        key = None if chosen is None else chosen.tobytes()
        train = bank.keep(("train", key), variables, lambda: rows(on_train, "features of training"))
        validation = bank.keep(("validation",), variables, lambda: rows(self.context, "features"))

        def measure() -> dict[str, float | Table]:
            assert train is not None  # in process 0
            assert validation is not None
            results: dict[str, float | Table] = {"count": self.check_count(len(validation["label"]))}
            on_train.check_count(len(train["label"]))
            for prefix in variables:
                self.stop_if_told()
                first, second = (Split(rows[f"{prefix}features"], rows["label"]) for rows in (train, validation))
                if not (np.isfinite(first.features).all() and np.isfinite(second.features).all()):
                    results |= {f"{prefix}{name}": float("nan") for name in self.metrics}
                    continue
                found = self.learn(first, second, bank.source.num_classes)
                results |= {f"{prefix}{name}": value for name, value in found.items()}
            return results

        with self.context.watchdog.suspended():
            return distributed.from_first(measure)

    @functools.cached_property
    def _chosen(self) -> np.ndarray | None:
        return self.chosen()

    def stop_if_told(self) -> None:
        """Raises Interrupted if this process is to stop; several processes do that at the next batch or step."""
        if self.context.preemption is not None and self.context.preemption.noticed():
            raise Interrupted


def accuracies(scores: Callable[[slice], jax.Array], labels: np.ndarray) -> np.ndarray:
    """Returns the top-1 and top-5 accuracy of several classifiers, (2, classifiers) float64.

    Of equal scores, the lower class is better. A class with the score -inf is never predicted.

    Args:
        scores: from some rows to the scores that each classifier gives them, (classifiers, rows, classes).
        labels: of all rows.
    """
    parts = [slice(start, start + _BLOCK) for start in range(0, len(labels), _BLOCK)]
    hits = sum(np.asarray(_hits(scores(rows), jnp.asarray(labels[rows])), np.int64) for rows in parts)
    return np.asarray(hits) / len(labels)


@jax.jit
def _hits(scores: jax.Array, labels: jax.Array) -> jax.Array:
    def count(scores: jax.Array, k: int) -> jax.Array:
        predicted = scores[jnp.arange(len(labels)), labels] > -jnp.inf
        return (in_top_k(scores, labels, k) & predicted).sum()

    return jnp.stack([jax.vmap(functools.partial(count, k=k))(scores) for k in (1, 5)])


def accuracy(scores: Callable[[slice], jax.Array], labels: np.ndarray) -> dict[str, float | Table]:
    """Returns `top1` and `top5` of one classifier: as `accuracies`, with scores (rows, classes)."""
    top1, top5 = accuracies(lambda rows: scores(rows)[None], labels)[:, 0].tolist()
    return {"top1": top1, "top5": top5}
