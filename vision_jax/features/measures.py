"""Measures of stored features: simple classifiers that are fitted to some features and tried on others."""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax.errors import ConfigError, DataError, suggest
from vision_jax.evaluators import protocols
from vision_jax.evaluators.frozen import Split
from vision_jax.evaluators.probe import OPTIMIZERS, Recipe
from vision_jax.evaluators.protocols import Found
from vision_jax.features.files import Features

log = logging.getLogger(__name__)


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
        seed: of the training examples that choose, and of the probes.

    Raises:
        ConfigError: if one of them cannot be.
    """

    k: int = protocols.Knn.k
    temperature: float = protocols.Knn.temperature
    ridge_l2: float = protocols.Ridge.l2
    logistic_l2s: tuple[float, ...] = protocols.Logistic.l2
    probe_optimizer: str = "sgd"
    probe_rates: tuple[float, ...] = ()
    seed: int = 0

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


def _knn(train: Split, validation: Split, classes: int, options: Protocols) -> Found:
    k = min(options.k, len(train.labels))
    found = protocols.vote(train, validation, classes, k, options.temperature)
    return {**found, "k": k, "temperature": options.temperature}


def _ridge(train: Split, validation: Split, classes: int, options: Protocols) -> Found:
    return {**protocols.regress(train, validation, classes, options.ridge_l2), "l2": options.ridge_l2}


def _logistic(train: Split, validation: Split, classes: int, options: Protocols) -> Found:
    return protocols.choose_logistic(
        train, validation, classes, options.logistic_l2s, protocols.Logistic.held_out, options.seed
    )


def _probe(train: Split, validation: Split, classes: int, options: Protocols) -> Found:
    rates = options.probe_rates or protocols.RATES[options.probe_optimizer]
    recipe = Recipe(optimizer=options.probe_optimizer, normalize=options.probe_optimizer == "lars")
    return protocols.choose_probe(train, validation, classes, rates, recipe, options.seed)


MEASURES: Mapping[str, Callable[[Split, Split, int, Protocols], Found]] = {
    "knn": _knn,
    "ridge": _ridge,
    "logistic": _logistic,
    "probe": _probe,
}


def check_kinds(kinds: Sequence[str]) -> None:
    """Checks that there are measures of such names.

    Raises:
        ConfigError: if not.
    """
    for kind in kinds:
        if kind not in MEASURES:
            raise ConfigError(f"There is no measure {kind!r}: {suggest(kind, MEASURES)}")


def measure(
    kinds: Sequence[str], train: Features, validation: Features, options: Protocols | None = None
) -> dict[str, Found]:
    """Returns what each measure finds: `top1` and `top5`, shares of the validation images, what was chosen, and tables.

    With the same seed and options, it is what the evaluations of the same kinds find in training (`config.evals`), up
    to the dtype of the files.

    Args:
        kinds: names in `MEASURES`.
        train: the features to fit, or the neighbors.
        validation: those to classify.
        options: of the measures.

    Raises:
        ConfigError: for an unknown measure.
        DataError: if there are no labels, or the features are not of the same model and classes.
    """
    check_kinds(kinds)
    check_same_model(train, validation)
    check_same_classes(train, validation)
    if train.digest == validation.digest:
        log.warning("The images that are classified are those of --train: these are no results on unseen images.")
    results = {}
    for kind in kinds:
        log.info("%s: %d images are classified by %d.", kind, len(validation), len(train))
        # Neighbors are looked for in the files; what is fitted has its features in memory, and on the device.
        first, second = (_split(each, in_memory=kind != "knn") for each in (train, validation))
        results[kind] = MEASURES[kind](first, second, train.about.num_classes, options or Protocols())
    return results


def _split(features: Features, *, in_memory: bool) -> Split:
    rows: Any = np.asarray(features.features, np.float32) if in_memory else features.features
    return Split(rows, np.asarray(features.labels))


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
