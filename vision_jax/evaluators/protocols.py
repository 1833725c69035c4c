"""The evaluators of frozen features: nearest neighbors, ridge and logistic regression, and linear probes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.data import order
from vision_jax.data.sources import read_labels
from vision_jax.errors import ConfigError, DataError
from vision_jax.evaluators import features
from vision_jax.evaluators.base import Table
from vision_jax.evaluators.frozen import FrozenFeatures, Split, accuracies, accuracy, check_integer, check_positive
from vision_jax.evaluators.probe import Recipe, train_probes

# Learning rates of probes, for batches of 256. Those of SGD are DINOv2's (Oquab et al. 2023, arXiv:2304.07193). MAE has
# 0.1 for LARS, whose steps are proportional to a thousandth of the weights: fewer or smaller ones need more.
RATES = {
    "sgd": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
    "lars": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
}

_RANKED = 25_600  # features whose effective rank is computed

Found = dict[str, float | Table]  # `top1`, `top5`, what was chosen, and tables of what it was chosen from


def vote(train: Split, validation: Split, num_classes: int, k: int, temperature: float) -> Found:
    """Returns how well neighbors classify; see `Knn` for the options."""
    similarities, numbers = features.nearest(validation.features, train.features, k, cosine=True)

    def votes(rows: slice) -> jax.Array:
        labels = jnp.asarray(train.labels[numbers[rows]])
        found = features.neighbor_votes(jnp.asarray(similarities[rows]), labels, num_classes, temperature)
        return jnp.where(found > 0, found, -jnp.inf)

    return accuracy(votes, validation.labels)


def regress(train: Split, validation: Split, num_classes: int, l2: float) -> Found:
    """Returns how well ridge regression classifies; see `Ridge` for the options."""
    ridge = features.fit_ridge(jnp.asarray(train.features), jnp.asarray(train.labels), num_classes, l2)
    return accuracy(lambda rows: features.ridge_scores(ridge, validation.features[rows]), validation.labels)


def choose_logistic(
    train: Split, validation: Split, num_classes: int, l2s: Sequence[float], held_out: float, seed: int
) -> Found:
    """Returns how well logistic regression classifies; see `Logistic` for the options.

    Args:
        train, validation: what it learns from, and what it classifies.
        num_classes: number of classes.
        l2s: penalties.
        held_out: the share of the training examples that chooses among them.
        seed: of the choice of these examples.

    Raises:
        DataError: if there are too few.
    """
    x, y = jnp.asarray(train.features), jnp.asarray(train.labels)
    l2, more = l2s[0], {}
    if len(l2s) == 1:
        linear = features.fit_logistic(x, y, num_classes, l2)
    else:
        out, rest = np.split(order.permutation(seed, 0, len(y)), [round(held_out * len(y))])
        if not len(out) or not len(rest):
            raise DataError(
                f"held_out is {held_out}, which leaves none of {len(y)} training examples on one side: give another "
                "share, or a single l2."
            )
        sweep = features.sweep_logistic((x[rest], y[rest]), (x[out], y[out]), num_classes, l2s)
        l2, linear = l2s[sweep.chosen], sweep.linear
        more = {"penalties": {"l2": list(l2s), "held_out_top1": sweep.accuracies}}
    found = accuracy(
        lambda rows: features.linear_scores(linear, jnp.asarray(validation.features[rows])), validation.labels
    )
    return {**found, "l2": l2, **more}


def choose_probe(
    train: Split,
    validation: Split,
    num_classes: int,
    rates: Sequence[float],
    recipe: Recipe,
    seed: int,
    *,
    before_epoch: Callable[[], object] = lambda: None,
) -> Found:
    """Returns how well the best of several linear probes classifies; see `LinearProbes`, and `probe.train_probes`."""
    probes = train_probes(
        train.features, train.labels, num_classes, rates, recipe, seed=seed, before_epoch=before_epoch
    )
    top1, top5 = accuracies(lambda rows: probes.scores(jnp.asarray(validation.features[rows])), validation.labels)
    best = int(np.argmax(top1))
    return {
        "top1": float(top1[best]),
        "top5": float(top5[best]),
        "learning_rate": rates[best],
        "rates": {"learning_rates": list(rates), "top1": top1.tolist(), "top5": top5.tolist()},
    }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Knn(FrozenFeatures):
    """Weighted nearest neighbors, as DINO measures features (Caron et al. 2021, arXiv:2104.14294).

    All devices of process 0 search; see `features.nearest` for what that takes. A class without votes is not among the
    best five. Beside the accuracies, it tells whether the features have collapsed: their `spread` and `effective_rank`,
    of up to 25,600 of the training examples that vote (as many as Garrido et al. 2022, arXiv:2210.02885, take).

    Attributes:
        k: number of neighbors that vote.
        temperature: each votes with exp(cosine / temperature).
    """

    metrics: ClassVar[Mapping[str, bool]] = {"top1": True, "top5": True, "spread": True, "effective_rank": True}

    k: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer(self, "k")
        check_positive(self, "temperature")

    def learn(self, train: Split, validation: Split, num_classes: int) -> Found:
        count = len(train.features)
        # Evenly from all of the split, which may be in the order of its classes.
        some = train.features[np.arange(min(count, _RANKED)) * count // min(count, _RANKED)]
        collapse = {"spread": features.spread(some), "effective_rank": features.effective_rank(some)}
        return {**vote(train, validation, num_classes, self.k, self.temperature), **collapse}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ridge(FrozenFeatures):
    """Ridge regression of a few examples of each class (google-research/big_vision, evaluators/fewshot_lsr.py).

    Attributes:
        shots: number of examples of each class, chosen at random by the seed of the configuration; of a class that has
            fewer, all. None: all examples of all classes.
        l2: the penalty.
    """

    shots: int | None = 10
    l2: float = 1024.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer(self, "shots")
        check_positive(self, "l2")

    def chosen(self) -> np.ndarray | None:
        if self.shots is None:
            return super().chosen()
        with self.context.watchdog.suspended():  # it may read all labels
            labels = read_labels(self.context.bank.source, self.context.num_threads)
        return order.first_of_each(self.shuffled(), labels, self.shots)

    def learn(self, train: Split, validation: Split, num_classes: int) -> Found:
        return regress(train, validation, num_classes, self.l2)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Logistic(FrozenFeatures):
    """Logistic regression by L-BFGS, with the penalty that does best on a part of the training examples.

    Attributes:
        l2: penalties, on the sum of the losses; see `features.fit_logistic`. A single one needs no choice.
        held_out: the share of the training examples that chooses among them; the final fit is of all.
    """

    l2: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    held_out: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "l2")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out is {self.held_out}: it is a share, between 0 and 1.")

    def learn(self, train: Split, validation: Split, num_classes: int) -> Found:
        return choose_logistic(train, validation, num_classes, self.l2, self.held_out, self.context.seed)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LinearProbes(FrozenFeatures):
    """Linear probes trained by gradient descent, of several learning rates in one pass; the best one counts.

    That is the one of the highest accuracy on the validation split, as DINOv2 and others report it: with many rates, it
    is a little better than on other data.

    Attributes:
        learning_rates: for batches of 256 examples; see `probe.train_probes`. (): 13 from 1e-5 to 0.1 for sgd, and 7
            from 0.03 to 30 for lars.
        optimizer, epochs, warmup_epochs, batch_size, momentum, normalize: see `probe.Recipe`.
    """

    learning_rates: tuple[float, ...] = ()
    optimizer: str = Recipe.optimizer
    epochs: int = Recipe.epochs
    warmup_epochs: float = Recipe.warmup_epochs
    batch_size: int = Recipe.batch_size
    momentum: float = Recipe.momentum
    normalize: bool = Recipe.normalize

    def __post_init__(self) -> None:
        super().__post_init__()
        self.recipe()
        if self.learning_rates:
            check_positive(self, "learning_rates")

    def recipe(self) -> Recipe:
        """Returns how the probes are trained."""
        return Recipe(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Recipe)})

    def learn(self, train: Split, validation: Split, num_classes: int) -> Found:
        rates, seed = self.learning_rates or RATES[self.optimizer], self.context.seed
        return choose_probe(train, validation, num_classes, rates, self.recipe(), seed, before_epoch=self.stop_if_told)
