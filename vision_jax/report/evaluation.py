"""What the checkpoint of a run predicts on the validation split: for each example, and from that, for classes."""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import build, evaluate, pretrained
from vision_jax.data.loader import Transform
from vision_jax.data.sources import Record, Source
from vision_jax.data.views import Field
from vision_jax.errors import ConfigError
from vision_jax.evaluators import calibration, per_class
from vision_jax.evaluators.base import Prefixed, Step, collect
from vision_jax.evaluators.logits import LogitsEvaluator
from vision_jax.explain import Method
from vision_jax.explanations.explainer import Explanation, ImageExplainer
from vision_jax.explanations.overlays import overlay
from vision_jax.explanations.program import read_images
from vision_jax.objectives import Objective
from vision_jax.predict import Predictor
from vision_jax.report.classes import ClassTable
from vision_jax.report.runs import Run
from vision_jax.runtime.checkpoint import BestMetric, Checkpointer, best_step, choose_checkpoints

log = logging.getLogger(__name__)

_NUMBER = "number"


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """What a model has looked at in an example.

    Attributes:
        method: as it is written.
        target: the class that is explained, by name; None: the map is the same for every class.
        overlay: the map on the image, (size, size, 3) uint8.
    """

    method: str
    target: str | None
    overlay: np.ndarray


@dataclasses.dataclass(frozen=True)
class Example:
    """An example that is shown.

    Attributes:
        image: (size, size, channels) uint8, what the model saw.
        label, prediction: names of classes.
        is_correct: whether they are the same class.
        confidence: the probability of the prediction.
        of_label: that of the label.
        description: by which people can find the record.
        maps: by each method that of the prediction, and then that of the label; (): it is not explained.
    """

    image: np.ndarray
    label: str
    prediction: str
    is_correct: bool
    confidence: float
    of_label: float
    description: str
    maps: tuple[ClassMap, ...] = ()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a checkpoint predicts.

    Attributes:
        step: of the checkpoint.
        choice: why it is this one, such as "the best by val/top1".
        is_ema: whether the weights are the moving average.
        split: of the data.
        accuracy: the share of the examples that are predicted correctly.
        count: how many examples there are.
        undefined: how many of them have NaN among their logits; they have no prediction, and no confidence.
        classes: the table of classes.
        averages: means over the classes; see `per_class.averages`.
        bins: sums by confidence; see `calibration.bin_sums`.
        errors: of calibration; see `calibration.calibration_errors`.
        mistakes: wrong predictions, the most confident first.
        uncertain: the least confident predictions.
        methods: by which the mistakes are explained.
        unexplained: why they are not, a sentence; None: they are, or nobody has asked.
    """

    step: int
    choice: str
    is_ema: bool
    split: str
    accuracy: float
    count: int
    undefined: int
    classes: ClassTable
    averages: dict[str, dict[str, float]]
    bins: dict[str, np.ndarray]
    errors: dict[str, float]
    mistakes: tuple[Example, ...]
    uncertain: tuple[Example, ...]
    methods: tuple[Method, ...] = ()
    unexplained: str | None = None


def choose(run: Run, step: int | str | None) -> tuple[list[int], str]:
    """Returns the checkpoints that may be evaluated, in order of preference, and why the first one is chosen.

    Args:
        run: whose checkpoints they are; it has some.
        step: a number or "best"; None: the best if one is known, or else the latest.

    Raises:
        CheckpointError: if there is no such checkpoint.
    """
    best = BestMetric.of(run.about) if run.about else None
    if step is not None:
        chosen = choose_checkpoints(Checkpointer(run.workdir / "checkpoints"), run.workdir, step)
        return chosen, f"the best by {best.name}" if step == "best" and best else "as asked for"
    latest_first = run.steps[::-1]
    if best is None or (first := best_step(run.steps, best.scores(run.records))) is None:
        return latest_first, "the latest"
    return [first, *(other for other in latest_first if other != first)], f"the best by {best.name}"


def evaluate_run(
    run: Run,
    candidates: Sequence[int],
    choice: str,
    examples: int = 16,
    methods: Mapping[str, Method] | None = None,
) -> Evaluation | None:
    """Evaluates the first of some checkpoints that is not damaged, on the data that its configuration names.

    Args:
        run: whose checkpoints they are.
        candidates, choice: see `choose`.
        examples: how many mistakes, and how many uncertain predictions, are kept with their images.
        methods: by which the mistakes are explained; see `explanations.parse_methods`.

    Returns:
        what it predicts; None if the objective trains no classifier.

    Raises:
        VisionJaxError: if that is not possible, such as because the data is not there any more.
    """
    checkpointer = Checkpointer(run.workdir / "checkpoints")
    step, found = checkpointer.restore_first(
        candidates, functools.partial(_evaluate, checkpointer, examples, methods or {})
    )
    if found is None or step == candidates[0]:
        return found and dataclasses.replace(found, choice=choice)
    return dataclasses.replace(found, choice=f"instead of step {candidates[0]}, {choice}, which is damaged")


def _evaluate(checkpointer: Checkpointer, examples: int, methods: Mapping[str, Method], step: int) -> Evaluation | None:
    with evaluate.restored(checkpointer, step) as model:
        if not model.objective.classifies:
            return None
        prefix = "ema_" if "ema_" in model.variables else ""
        context = build.make_context(model.config, model.mesh, model.source, watchdog=model.watchdog)
        predictor = _Predictor(
            context=dataclasses.replace(context, transform=_Numbered(context.transform)), flip=model.config.eval.flip
        )
        rows = predictor.rows(model.objective, {"": model.variables[prefix]})
        size: Any = model.objective.setup.model
        names = pretrained.display_names(per_class.class_names(model.source.class_names, size.num_classes))
        found = measure(rows, names)
        show = functools.partial(_show, model.source, context.transform, rows, names)
        chosen = most_confident_mistakes(rows, examples)
        mistakes, explainer, unexplained = show(chosen), None, None
        if methods and mistakes:
            classes = {name: rows[name][chosen] for name in ("prediction", "label")}
            with model.watchdog.suspended():  # some methods take thousands of passes
                try:
                    explainer = _explainer(model, prefix, methods, len(mistakes))
                    mistakes = explain_mistakes(explainer, mistakes, classes)
                except ConfigError as error:
                    unexplained = str(error)
        return Evaluation(
            step=step,
            choice="",
            is_ema=bool(prefix),
            split=model.config.data.val_split,
            mistakes=mistakes,
            uncertain=show(least_confident(rows, examples)),
            methods=tuple(explainer.methods.values()) if explainer else (),
            unexplained=unexplained,
            **found,
        )


def _explainer(model: evaluate.Restored, prefix: str, methods: Mapping[str, Method], batch_size: int) -> ImageExplainer:
    """Returns what explains the predictions of a checkpoint.

    Raises:
        ConfigError: if a method cannot explain this model.
    """
    module, variables = model.objective.setup.model, model.variables[prefix]
    predictor = Predictor(module, variables, preprocessing=build.make_preprocessing(model.config), mesh=model.mesh)
    return ImageExplainer(predictor, methods, batch_size=batch_size)


def explain_mistakes(
    explainer: ImageExplainer, mistakes: Sequence[Example], classes: Mapping[str, np.ndarray]
) -> tuple[Example, ...]:
    """Returns mistakes with what the model has looked at, for the class that it predicts and for the right one.

    Args:
        explainer: of the model.
        mistakes: their examples.
        classes: the numbers of each `prediction` and `label`, (mistakes,) integers.
    """
    images, paths = [each.image for each in mistakes], [each.description for each in mistakes]
    of_prediction = explainer.stream(images, paths, classes["prediction"].tolist())
    of_label = explainer.stream(images, paths, classes["label"].tolist())

    def maps(example: Example, found: Sequence[Explanation]) -> Iterator[ClassMap]:
        for name, method in explainer.methods.items():
            for explanation, target in zip(found, (example.prediction, example.label), strict=True):
                if explanation.error is None and (method.of_class or target == example.prediction):
                    drawn = overlay(example.image, explanation.maps[name], method.signed)
                    yield ClassMap(name, target if method.of_class else None, drawn)

    return tuple(
        dataclasses.replace(example, maps=tuple(maps(example, found)))
        for example, *found in zip(mistakes, of_prediction, of_label, strict=True)
    )


def measure(rows: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, Any]:
    """Returns what follows from predictions, as the fields of `Evaluation`.

    Args:
        rows: `label` and `prediction`, (examples,) integers, -1 being no class, and `confidence`, (examples,) float.
        names: of the classes.
    """
    labels, predictions = rows["label"].astype(np.int64), rows["prediction"].astype(np.int64)
    defined, classes = predictions >= 0, len(names)
    cells = np.bincount(labels[defined] * classes + predictions[defined], minlength=classes * classes)
    confusion, support = cells.reshape(classes, classes), np.bincount(labels, minlength=classes)
    averages = per_class.averages(confusion, support)
    bins = calibration.bin_sums(rows["confidence"][defined], (labels == predictions)[defined])
    return {
        "accuracy": float((labels == predictions).mean()),
        "count": len(labels),
        "undefined": int((~defined).sum()),
        "classes": ClassTable.from_json(per_class.class_table(names, confusion, support, 0)),
        "averages": {mean: {name: float(x) for name, x in scores.items()} for mean, scores in averages.items()},
        "bins": bins,
        "errors": calibration.calibration_errors(bins) if defined.any() else {},
    }


def most_confident_mistakes(rows: Mapping[str, np.ndarray], number: int) -> np.ndarray:
    """Returns the rows of wrong predictions, the most confident first; those without a prediction are left out."""
    wrong = np.flatnonzero((rows["prediction"] >= 0) & (rows["prediction"] != rows["label"]))
    return wrong[np.argsort(-rows["confidence"][wrong], kind="stable")][:number]


def least_confident(rows: Mapping[str, np.ndarray], number: int) -> np.ndarray:
    """Returns the rows of predictions, right or wrong, the least confident first."""
    there = np.flatnonzero(rows["prediction"] >= 0)
    return there[np.argsort(rows["confidence"][there], kind="stable")][:number]


def _show(
    source: Source, transform: Transform, rows: Mapping[str, np.ndarray], names: Sequence[str], chosen: np.ndarray
) -> tuple[Example, ...]:
    """Reads the images of some rows again, as the model saw them."""
    numbers = rows[_NUMBER][chosen].tolist()
    images = read_images(source, transform, numbers)
    return tuple(
        Example(
            image=image,
            label=names[rows["label"][row]],
            prediction=names[rows["prediction"][row]],
            is_correct=bool(rows["label"][row] == rows["prediction"][row]),
            confidence=float(rows["confidence"][row]),
            of_label=float(rows["of_label"][row]),
            description=source.describe(number),
        )
        for row, number, image in zip(chosen.tolist(), numbers, images, strict=True)
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Predictor(LogitsEvaluator):
    """Predicts each example of a split."""

    def make_step(self, objective: Objective) -> Step:
        """Returns (variables by prefix, batch) -> by name, a value for each example."""

        def step(variables: Prefixed, batch: Any) -> dict[str, jax.Array]:
            logits = self.logits(objective, variables, batch)[""].astype(jnp.float32)
            probabilities = jax.nn.softmax(logits)
            defined = ~jnp.isnan(logits).any(-1)
            return {
                _NUMBER: batch[_NUMBER],
                "label": batch["label"],
                "prediction": jnp.where(defined, jnp.argmax(logits, -1), -1),
                "confidence": probabilities.max(-1),
                "of_label": jnp.take_along_axis(probabilities, batch["label"][:, None], -1)[:, 0],
            }

        return step

    def rows(self, objective: Objective, variables: Prefixed) -> dict[str, np.ndarray]:
        """Returns the predictions, (examples,) each, in the order of the split, without damaged examples."""
        compiled = self.compiled(objective, self.make_step, variables)
        rows = collect(self.context, compiled, variables, everywhere=True, description="report")
        assert rows is not None  # in every process
        self.check_count(len(rows["label"]))
        return rows


@dataclasses.dataclass(frozen=True)
class _Numbered:
    """A transform that also writes the number of each record, as examples may be left out.

    Attributes:
        transform: what writes all else.
    """

    transform: Transform

    def at(self, step: int) -> "_Numbered":
        return _Numbered(self.transform.at(step))

    def largest(self) -> "_Numbered":
        return _Numbered(self.transform.largest())

    def fields(self) -> dict[str, Field]:
        return {**self.transform.fields(), _NUMBER: Field((), np.dtype(np.int32))}

    def __call__(
        self, records: Sequence[Record], numbers: np.ndarray, visits: np.ndarray, out: Mapping[str, np.ndarray]
    ) -> None:
        self.transform(records, numbers, visits, out)
        out[_NUMBER][:] = numbers
