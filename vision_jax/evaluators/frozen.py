"""Evaluators of frozen features: what a simple classifier of them learns on the training split, and how well it does.

Images are preprocessed as in evaluation, without augmentation. Features of both splits are collected on process 0, and
held until the evaluation ends: 4 bytes * examples * dimensions. What is computed of them, is computed there, on one
device, and told to the other processes.
"""

import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import augment
from vision_jax.data import order
from vision_jax.data.sources import SubsetSource, read_labels
from vision_jax.devices import distributed
from vision_jax.errors import ConfigError, DataError
from vision_jax.evaluators import features, probe
from vision_jax.evaluators.base import Evaluator, Prefixed, Step, Table, collect
from vision_jax.metrics import in_top_k
from vision_jax.objectives.base import Objective

log = logging.getLogger(__name__)

_BLOCK = 4096  # rows whose scores are compared at once

# Learning rates of probes, for batches of 256, by optimizer. LARS takes a thousandth of a step as long as the weights.
_RATES = {"sgd": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0), "lars": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)}

Split = tuple[np.ndarray, np.ndarray]  # (examples, dim) float32, (examples,) int32


def _check_positive(evaluator: Any, *names: str) -> None:
    """Checks options that are numbers, or tuples of numbers.

    Raises:
        ConfigError: if one is not positive, or there is none.
    """
    for name in names:
        value = getattr(evaluator, name)
        values = value if isinstance(value, tuple) else (value,)
        if not values or not all(number is None or number > 0 for number in values):
            raise ConfigError(f"{name} is {value}: give {'positive numbers' if values is value else 'a positive one'}.")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FrozenFeatures(Evaluator):
    """An evaluator of the features of the backbone, whatever was trained.

    Attributes:
        train_examples: how many examples of the training split it learns from, chosen at random but always the same;
            None: all.
    """

    train_examples: int | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "train_examples")

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

    def chosen(self) -> np.ndarray | None:
        """Returns the numbers of the training examples that it learns from; None: all."""
        there = len(self.context.bank.source)
        if self.train_examples is None or self.train_examples == there:
            return None
        if self.train_examples > there:
            raise DataError(
                f"An evaluation asks for {self.train_examples} training examples, and there are {there}: lower "
                "train_examples, or leave it unset."
            )
        return order.subset(there, self.train_examples)

    def learn(self, train: Split, validation: Split, num_classes: int) -> dict[str, float | Table]:
        """Returns what a classifier that learns from one split measures on the other; in process 0."""
        raise NotImplementedError

    def __call__(self, objective: Objective, variables: Prefixed) -> dict[str, float | Table]:
        variables, bank = dict(variables), self.context.bank
        compiled = self.compiled(objective, self.make_step, variables)
        chosen = self.chosen()
        source = bank.source if chosen is None else SubsetSource(bank.source, chosen)
        on_train = dataclasses.replace(self.context, source=source)
        train = bank.keep(
            ("train", None if chosen is None else chosen.tobytes()),
            variables,
            lambda: collect(on_train, compiled, variables, description="features of training"),
        )
        validation = bank.keep(
            ("validation",), variables, lambda: collect(self.context, compiled, variables, description="features")
        )
        tables: dict[str, Table] = {}

        def measure() -> dict[str, float]:
            assert train is not None  # in process 0
            assert validation is not None
            results: dict[str, float] = {"count": self.check_count(len(validation["label"]))}
            dataclasses.replace(self, context=on_train).check_count(len(train["label"]))
            for prefix in variables:
                first, second = ((rows[f"{prefix}features"], rows["label"]) for rows in (train, validation))
                if not (np.isfinite(first[0]).all() and np.isfinite(second[0]).all()):
                    results |= {f"{prefix}{name}": float("nan") for name in self.metrics}
                    continue
                for name, value in self.learn(first, second, bank.source.num_classes).items():
                    if isinstance(value, dict):
                        tables[f"{prefix}{name}"] = value
                    else:
                        results[f"{prefix}{name}"] = value
            return results

        with self.context.watchdog.suspended():
            return {**distributed.from_first(measure), **tables}


def _accuracies(scores: Any, features_: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns top-1 and top-5 accuracy of `scores`, a function of features."""
    hits = np.zeros(2)
    for start in range(0, len(labels), _BLOCK):
        rows = slice(start, start + _BLOCK)
        found, truth = scores(features_[rows]), jnp.asarray(labels[rows])
        hits += [float(in_top_k(found, truth, k).sum()) for k in (1, 5)]
    return {"top1": float(hits[0] / len(labels)), "top5": float(hits[1] / len(labels))}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Knn(FrozenFeatures):
    """Weighted nearest neighbors, as DINO measures features (Caron et al. 2021, arXiv:2104.14294).

    Attributes:
        k: number of neighbors that vote.
        temperature: each votes with exp(cosine / temperature).
    """

    metrics: ClassVar[Mapping[str, bool]] = {"top1": True, "top5": True}

    k: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "k", "temperature")

    def learn(self, train: Split, validation: Split, num_classes: int) -> dict[str, float | Table]:
        bank = features.normalize(jnp.asarray(train[0]))
        labels = jnp.asarray(train[1])

        def votes(queries: np.ndarray) -> jax.Array:
            similarities, numbers = features.nearest(features.normalize(jnp.asarray(queries)), bank, self.k)
            return features.neighbor_votes(similarities, labels[numbers], num_classes, self.temperature)

        return {**_accuracies(votes, *validation)}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ridge(FrozenFeatures):
    """Ridge regression of a few examples of each class (google-research/big_vision, evaluators/fewshot_lsr.py).

    Attributes:
        shots: number of examples of each class, chosen at random by the seed of the configuration; of a class that has
            fewer, all. None: all examples of all classes.
        l2: the penalty.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"top1": True, "top5": True}

    shots: int | None = 10
    l2: float = 1024.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "shots", "l2")

    def chosen(self) -> np.ndarray | None:
        among = super().chosen()
        if self.shots is None:
            return among
        context = self.context
        with context.watchdog.suspended():  # it may read all labels
            labels = read_labels(context.bank.source, context.num_threads)
        among = np.arange(len(labels)) if among is None else among
        shuffled = among[np.random.default_rng(context.seed).permutation(len(among))]
        shots = [shuffled[labels[shuffled] == c][: self.shots] for c in range(context.bank.source.num_classes)]
        return np.sort(np.concatenate(shots))

    def learn(self, train: Split, validation: Split, num_classes: int) -> dict[str, float | Table]:
        ridge = features.fit_ridge(jnp.asarray(train[0]), jnp.asarray(train[1]), num_classes, self.l2)
        return {**_accuracies(functools.partial(features.ridge_scores, ridge), *validation)}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Logistic(FrozenFeatures):
    """Logistic regression by L-BFGS, with the penalty that does best on a part of the training examples.

    Attributes:
        l2: penalties, on the sum of the losses; see `features.fit_logistic`.
        held_out: the share of the training examples that chooses among them; the final fit is of all.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"top1": True, "top5": True}

    l2: tuple[float, ...] = (1e-4, 1e-2, 1.0, 100.0)
    held_out: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "l2")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out is {self.held_out}: it is a share, between 0 and 1.")

    def learn(self, train: Split, validation: Split, num_classes: int) -> dict[str, float | Table]:
        count = len(train[1])
        shuffled = np.random.default_rng(self.context.seed).permutation(count)
        out, rest = np.split(shuffled, [round(self.held_out * count)])
        if not len(out) or not len(rest):
            raise DataError(f"held_out is {self.held_out}, which leaves none of {count} training examples on a side.")
        parts = [(jnp.asarray(train[0][rows]), jnp.asarray(train[1][rows])) for rows in (rest, out)]
        sweep = features.sweep_logistic(parts[0], parts[1], num_classes, self.l2)
        table = {"l2": list(self.l2), "held_out_top1": sweep.accuracies}
        scores = functools.partial(features.linear_scores, sweep.linear)
        return {**_accuracies(scores, *validation), "l2": self.l2[sweep.chosen], "penalties": table}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LinearProbeAccuracy(FrozenFeatures):
    """A linear probe by gradient descent, of the best of several learning rates, which are trained in one pass.

    The best rate is that of the highest accuracy on the validation split, as the self-supervised papers report it.

    Attributes:
        learning_rates: for batches of 256; they are scaled in proportion to `batch_size`. (): those of `_RATES`.
        epochs, batch_size, optimizer, normalize, momentum: see `probe.train_probes`.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"top1": True, "top5": True}

    learning_rates: tuple[float, ...] = ()
    epochs: int = 100
    batch_size: int = 1024
    optimizer: str = "sgd"
    normalize: bool = False
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "epochs", "batch_size", *(["learning_rates"] if self.learning_rates else []))
        if self.optimizer not in probe.OPTIMIZERS:
            raise ConfigError(f"optimizer is {self.optimizer!r}: the probe has {' and '.join(probe.OPTIMIZERS)}.")

    def learn(self, train: Split, validation: Split, num_classes: int) -> dict[str, float | Table]:
        rates = self.learning_rates or _RATES[self.optimizer]
        batch_size = min(self.batch_size, len(train[1]))
        probes = probe.train_probes(
            jnp.asarray(train[0]),
            jnp.asarray(train[1]),
            num_classes,
            [rate * batch_size / 256 for rate in rates],
            epochs=self.epochs,
            batch_size=batch_size,
            optimizer=self.optimizer,
            normalize=self.normalize,
            momentum=self.momentum,
            seed=self.context.seed,
        )
        top1, top5 = probes.hits(jnp.asarray(validation[0]), jnp.asarray(validation[1])) / len(validation[1])
        best = int(np.argmax(top1))
        table = {"learning_rates": list(rates), "top1": top1.tolist(), "top5": top5.tolist()}
        return {
            "top1": float(top1[best]),
            "top5": float(top5[best]),
            "learning_rate": rates[best],
            "rates": table,
        }
