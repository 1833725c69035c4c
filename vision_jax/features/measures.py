"""Measures of stored features: simple classifiers that are fitted to some features and tried on others."""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import ConfigError, DataError, suggest
from vision_jax.evaluators import features as protocols
from vision_jax.evaluators.probe import OPTIMIZERS, Recipe, train_probes
from vision_jax.evaluators.protocols import RATES, accuracies
from vision_jax.features.files import Features

log = logging.getLogger(__name__)

_HELD_OUT = 5  # one in so many training examples chooses the penalty of logistic regression


@dataclasses.dataclass(frozen=True)
class Protocols:
    """Options of the measures; see docs/evaluation.md.

    Attributes:
        k: neighbors that vote.
        temperature: of their votes, exp(cosine / temperature).
        ridge_l2: the penalty of ridge regression.
        logistic_l2s: penalties of logistic regression, of which one is chosen by part of the training examples.
        probe_optimizer: of linear probes: sgd, DINO's, or lars, MAE's, with batch norm; see `probe.Recipe`.
        probe_rates: their learning rates, of which the best one counts; (): those of `evaluators.protocols.RATES`.

    Raises:
        ConfigError: if one of them cannot be.
    """

    k: int = 20
    temperature: float = 0.07
    ridge_l2: float = 1024.0
    logistic_l2s: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    probe_optimizer: str = "sgd"
    probe_rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"--k is {self.k}: give 1 or more.")
        if self.probe_optimizer not in OPTIMIZERS:
            raise ConfigError(f"--probe_optimizer is {self.probe_optimizer!r}: give {' or '.join(OPTIMIZERS)}.")
        if not self.logistic_l2s:
            raise ConfigError("--logistic_l2s is empty: give a penalty, or several.")
        for name, values in (
            ("temperature", (self.temperature,)),
            ("ridge_l2", (self.ridge_l2,)),
            ("logistic_l2s", self.logistic_l2s),
            ("probe_rates", self.probe_rates),
        ):
            if any(not value > 0 or (name != "temperature" and math.isinf(value)) for value in values):
                raise ConfigError(f"--{name} is {', '.join(map(str, values))}: give positive numbers.")


def _knn(train: Features, validation: Features, options: Protocols) -> dict[str, Any]:
    items: Any = train.features
    queries: Any = validation.features
    similarities, numbers = protocols.nearest(queries, items, options.k, cosine=True)
    votes = protocols.neighbor_votes(
        similarities, _labels(train)[numbers], train.about.num_classes, options.temperature
    )
    top1 = protocols.top1(votes, _labels(validation))
    return {"top1": top1, "k": similarities.shape[1], "temperature": options.temperature}


def _ridge(train: Features, validation: Features, options: Protocols) -> dict[str, Any]:
    fitted = protocols.fit_ridge(_rows(train), _labels(train), train.about.num_classes, options.ridge_l2)
    scores = protocols.ridge_scores(fitted, _rows(validation))
    return {"top1": protocols.top1(scores, _labels(validation)), "l2": options.ridge_l2}


def _logistic(train: Features, validation: Features, options: Protocols) -> dict[str, Any]:
    """Chooses the penalty by a part of the training examples, and fits it to all of them."""
    features, labels, classes, l2s = _rows(train), _labels(train), train.about.num_classes, options.logistic_l2s
    if len(l2s) == 1:
        l2, linear = l2s[0], protocols.fit_logistic(features, labels, classes, l2s[0])
    else:
        held_out = np.arange(len(labels)) % _HELD_OUT == _HELD_OUT - 1
        if not held_out.any():
            raise DataError(f"{len(labels)} training examples are too few to choose --logistic_l2s by: give one alone.")
        fitted, chosen_by = ((features[here], labels[here]) for here in (~held_out, held_out))
        sweep = protocols.sweep_logistic(fitted, chosen_by, classes, l2s)
        l2, linear = l2s[sweep.chosen], sweep.linear
    scores = protocols.linear_scores(linear, _rows(validation))
    return {"top1": protocols.top1(scores, _labels(validation)), "l2": l2}


def _probe(train: Features, validation: Features, options: Protocols) -> dict[str, Any]:
    """Trains a probe for each learning rate, and takes the one that is best on the validation features."""
    recipe = Recipe(optimizer=options.probe_optimizer, normalize=options.probe_optimizer == "lars")
    rates = options.probe_rates or RATES[options.probe_optimizer]
    labels, wanted = np.asarray(train.labels), np.asarray(validation.labels)
    probes = train_probes(np.asarray(train.features), labels, train.about.num_classes, rates, recipe)
    top1, _ = accuracies(lambda rows: probes.scores(jnp.asarray(validation.features[rows])), wanted)
    best = int(np.argmax(top1))
    return {"top1": float(top1[best]), "learning_rate": rates[best]}


MEASURES: Mapping[str, Callable[[Features, Features, Protocols], dict[str, Any]]] = {
    "knn": _knn,
    "ridge": _ridge,
    "logistic": _logistic,
    "probe": _probe,
}


def measure(
    kinds: Sequence[str], train: Features, validation: Features, options: Protocols | None = None
) -> dict[str, dict[str, Any]]:
    """Returns what each measure finds: `top1`, the share of validation images that are classified rightly, and options.

    Args:
        kinds: names in `MEASURES`.
        train: the features to fit, or the neighbors.
        validation: those to classify.
        options: of the measures.

    Raises:
        ConfigError: for an unknown measure.
        DataError: if there are no labels, or the features are not of the same model and classes.
    """
    for kind in kinds:
        if kind not in MEASURES:
            raise ConfigError(f"There is no measure {kind!r}: {suggest(kind, MEASURES)}")
    check_same_model(train, validation)
    check_same_classes(train, validation)
    results = {}
    for kind in kinds:
        log.info("%s: %d images are classified by %d.", kind, len(validation), len(train))
        results[kind] = MEASURES[kind](train, validation, options or Protocols())
    return results


def check_same_model(features: Features, others: Features) -> None:
    """Checks that features can be compared.

    Raises:
        DataError: if they are of different weights or preprocessing.
    """
    if features.about.digest != others.about.digest:
        raise DataError(
            f"The features in {features.directory} and {others.directory} are of different models or preprocessing "
            f"({features.about.model}, {features.about.origin}; {others.about.model}, {others.about.origin}): make "
            "both by the same one."
        )


def check_same_classes(*several: Features) -> None:
    """Checks that there are labels, and that they mean the same.

    Raises:
        DataError: if not.
    """
    for features in several:
        if features.labels is None:
            raise DataError(f"The images of {features.directory} have no labels, which measuring needs.")
        first, about = several[0].about, features.about
        if (about.num_classes, about.class_names) != (first.num_classes, first.class_names):
            raise DataError(
                f"The labels in {several[0].directory} and {features.directory} are of other classes "
                f"({first.num_classes} and {about.num_classes}, or of other names): use splits of one data set."
            )


def _rows(features: Features) -> jax.Array:
    return jnp.asarray(np.asarray(features.features, np.float32))


def _labels(features: Features) -> jax.Array:
    return jnp.asarray(features.labels)
