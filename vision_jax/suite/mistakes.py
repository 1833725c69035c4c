"""The most confident mistakes on evaluation sets, explained: a page for each set, beside the results."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax import pretrained
from vision_jax.build import TrainedModel
from vision_jax.data.transforms import EvalTransform
from vision_jax.devices import distributed
from vision_jax.errors import DataError, reason
from vision_jax.evaluators import suites
from vision_jax.evaluators.suites import IMAGENET_A_CLASSES, IMAGENET_R_CLASSES
from vision_jax.explain import Method
from vision_jax.explanations import PAGE, Explanation, Folder, ImageExplainer, check_output, read_images
from vision_jax.predict import Predictor
from vision_jax.suite.sets import Outputs, Pass, objectnet_classes

FOLDER = "mistakes"  # of the output
_BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a set says of predictions, one entry an image.

    Attributes:
        prediction: (n,) integers, of ImageNet's classes or the model's own; -1: none, as a logit is NaN.
        confidence: (n,) float, its probability among the classes that compete.
        is_wrong: (n,) bool.
    """

    prediction: np.ndarray
    confidence: np.ndarray
    is_wrong: np.ndarray

    def most_confident_mistakes(self, number: int) -> np.ndarray:
        """Returns the entries of wrong predictions, the most confident first; at most so many."""
        wrong = np.flatnonzero(self.is_wrong & (self.prediction >= 0))
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:number]


def judge(name: str, outputs: Outputs) -> Judged:
    """Returns which predictions on a set are wrong, as the set counts.

    Args:
        name: of the pass; see `sets.openers`.
        outputs: what was computed of it.
    """
    if name in ("a", "r"):
        best = outputs.best_a[:, 0] if name == "a" else outputs.best_r[:, 0]
        among = np.asarray(IMAGENET_A_CLASSES if name == "a" else IMAGENET_R_CLASSES)
        prediction = np.where(best < 0, -1, among[best])
        confidence = outputs.confidence_a if name == "a" else outputs.confidence_r
        return Judged(prediction, confidence, prediction != outputs.label)
    prediction = outputs.best[:, 0]
    found = prediction
    if name == "objectnet":
        found = suites.mapped_classes(prediction[:, None], list(objectnet_classes().values()))[:, 0]
    return Judged(prediction, outputs.confidence, found != outputs.label)


class Mistakes:
    """Explains the most confident mistakes of a model on one set after another. Every process takes part.

    Args:
        trained: the model.
        model: what suite.json says of it.
        output: the folder of the results.
        methods: see `explanations.parse_methods`.
        number: how many mistakes of each set.
        columns: which logit is that of each of the classes that predictions number; None: they are the same.

    Raises:
        ConfigError: if a method cannot explain this model.
    """

    def __init__(
        self,
        trained: TrainedModel,
        model: Mapping[str, Any],
        output: pathlib.Path,
        methods: Mapping[str, Method],
        number: int,
        columns: np.ndarray | None,
    ):
        self._model, self._output, self._number, self._columns = model, output, number, columns
        self._explainer = ImageExplainer(Predictor.of(trained), methods, batch_size=min(number, _BATCH_SIZE))
        self._asked = {"methods": [str(method) for method in self._explainer.methods.values()], "number": number}

    def are_in(self, entry: Mapping[str, Any]) -> bool:
        """Returns whether an entry of suite.json has them already, as they are asked for now."""
        there = entry.get("mistakes")
        return there is not None and {**there, "page": None} == {**self._asked, "page": None}

    def write(self, one: Pass, transform: EvalTransform, outputs: Outputs) -> dict[str, Any]:
        """Writes the mistakes on a set, in a folder of that name, and returns what suite.json says of them.

        Args:
            one: the pass over the set.
            transform: of its images.
            outputs: what was computed of it.

        Raises:
            ConfigError: if there is something else in the folder.
            DataError, CheckpointError: if an image cannot be read any more, or the storage fails.
        """
        judged = judge(one.name, outputs)
        chosen = judged.most_confident_mistakes(self._number)
        if not len(chosen):
            return {**self._asked, "page": None}
        numbers = outputs.index[chosen].tolist()
        images = read_images(one.images, transform, numbers)
        predictions = judged.prediction[chosen]
        targets = predictions if self._columns is None else self._columns[predictions]
        names = pretrained.display_names(one.images.class_names)
        paths = [one.images.describe(number) for number in numbers]
        found = self._explainer.stream(images, paths, targets.tolist())
        labels = [names[label] for label in outputs.label[chosen].tolist()]
        explanations = [dataclasses.replace(each, label=label) for each, label in zip(found, labels, strict=True)]
        distributed.from_first(lambda: self._write(one.name, explanations))
        return {**self._asked, "page": f"{FOLDER}/{one.name}/{PAGE}"}

    def _write(self, name: str, explanations: Sequence[Explanation]) -> None:
        directory = self._output / FOLDER / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"Cannot make {directory}: {reason(error)}.") from error
        check_output(directory, overwrite=True)
        folder = Folder(directory, self._explainer.methods)
        for explanation in explanations:
            folder.add(explanation)
        folder.finish(f"Most confident mistakes: {name}", {"model": dict(self._model), "set": name})
