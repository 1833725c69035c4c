"""What a detector or segmenter finds in some images of the validation split, beside what is there."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax import evaluate
from vision_jax.build import TrainedModel
from vision_jax.data import pillow
from vision_jax.data.boxes import BACKGROUND, IGNORED, DenseSubset
from vision_jax.data.decode import decode
from vision_jax.dense import drawing
from vision_jax.errors import DataError
from vision_jax.objectives import OBJECTIVES
from vision_jax.predict_dense import DensePrediction, DensePredictor
from vision_jax.report.markup import Markup, element, image, number, table
from vision_jax.report.runs import Run
from vision_jax.runtime.checkpoint import Checkpointer

_SEED = 0  # of the choice of images
SIDE = 480  # of a picture
_THRESHOLD = 0.3  # of scores of boxes that are shown
_MOST_BOXES = 30


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image, twice.

    Attributes:
        truth: with what the data says, (height, width, 3) uint8.
        found: with what the model says.
        description: by which people can find the record.
        caption: what is seen, in words.
        classes: names and colors of the classes that are in either.
    """

    truth: np.ndarray
    found: np.ndarray
    description: str
    caption: str
    classes: tuple[tuple[str, tuple[int, int, int]], ...]


@dataclasses.dataclass(frozen=True)
class Found:
    """What a checkpoint finds.

    Attributes:
        step: of the checkpoint.
        choice: why it is this one.
        is_ema: whether the weights are the moving average.
        split: of the data.
        pairs: some images.
    """

    step: int
    choice: str
    is_ema: bool
    split: str
    pairs: tuple[Pair, ...]


def finds(run: Run) -> str:
    """Returns what the objective of a run learns from, "boxes" or "masks"; "": whole images, or it is not known."""
    kind = OBJECTIVES.get((run.config.get("objective") or {}).get("name") or "")
    return kind.dense if kind is not None else ""


def show_run(run: Run, candidates: Sequence[int], choice: str, examples: int = 8) -> Found:
    """Predicts some images of the validation split with the first of some checkpoints that is not damaged.

    Args:
        run: whose checkpoints they are.
        candidates, choice: see `evaluation.choose`.
        examples: how many images; which ones is always the same for a split.

    Raises:
        VisionJaxError: if that is not possible, such as because the data is not there any more.
    """
    checkpointer = Checkpointer(run.workdir / "checkpoints")
    step, found = checkpointer.restore_first(candidates, functools.partial(_show, checkpointer, run, examples))
    if step != candidates[0]:
        choice = f"instead of step {candidates[0]}, {choice}, which is damaged"
    return dataclasses.replace(found, choice=choice)


def _show(checkpointer: Checkpointer, run: Run, examples: int, step: int) -> Found:
    with evaluate.restored(checkpointer, step) as model:
        prefix = "ema_" if "ema_" in model.variables else ""
        trained = TrainedModel(
            model.config,
            model.objective,
            model.variables[prefix],
            tuple(model.source.class_names),
            str(run.workdir),
            model.mesh,
            step,
            bool(prefix),
        )
        count = min(examples, len(model.source))
        chosen = np.sort(np.random.RandomState(_SEED).choice(len(model.source), count, replace=False))
        source: Any = DenseSubset(model.source, chosen)
        predictor = DensePredictor(trained)
        pairs = [
            _pair(source[row], prediction, predictor.class_names)
            for row, prediction in enumerate(predictor.stream(source))
            if prediction.error is None
        ]
        return Found(step, "", bool(prefix), model.config.data.val_split, tuple(pairs))


def _pair(record: Mapping[str, Any], prediction: DensePrediction, names: Sequence[str]) -> Pair:
    """Returns an image with what is there, and with what was found."""
    pixels = decode(record["image"], 3, max_pixels=pillow.MAX_PIXELS)
    if prediction.boxes is not None:
        found = prediction.boxes.above(_THRESHOLD)
        texts = [f"{names[label]} {score:.0%}" for label, score in zip(found.labels, found.scores, strict=True)]
        shown = slice(_MOST_BOXES - 1, None, -1) if len(texts) > _MOST_BOXES else slice(None, None, -1)
        labels = record["box_labels"]
        crowds = (" (crowd)" if crowd else "" for crowd in record["crowd"])
        there = [f"{names[label]}{crowd}" for label, crowd in zip(labels, crowds, strict=True)]
        present = sorted({*labels.tolist(), *found.labels.tolist()})
        return Pair(
            _with_boxes(pixels, record["boxes"], labels, there),
            _with_boxes(pixels, found.boxes[shown], found.labels[shown], texts[shown]),
            prediction.path,
            f"{len(labels)} there, {len(texts)} found with a score of {_THRESHOLD:.0%} or more",
            tuple((names[label], drawing.box_color(label)) for label in present),
        )
    assert prediction.mask is not None  # it is not damaged
    truth, mask = record["mask"], prediction.mask
    counted = truth != IGNORED
    agreeing = float((truth == mask)[counted].mean()) if counted.any() else float("nan")
    clear = _clear(names)
    present = [n for n in np.union1d(truth, mask).tolist() if n not in clear]
    colors = drawing.palette()
    return Pair(
        _smaller(drawing.overlay(pixels, truth, clear=clear)),
        _smaller(drawing.overlay(pixels, mask, clear=clear)),
        prediction.path,
        f"{agreeing:.1%} of the pixels are of the right class",
        tuple((names[n], tuple(colors[n].tolist())) for n in present),
    )


def _clear(names: Sequence[str]) -> list[int]:
    """Returns the classes of a mask that get no color."""
    return [IGNORED, *([0] if names[0].strip("_") == BACKGROUND else [])]


def _with_boxes(pixels: np.ndarray, boxes: np.ndarray, labels: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Returns an image with boxes, at the size of a picture, so that texts can be read."""
    small = _smaller(pixels)
    scale = np.asarray([small.shape[1] / pixels.shape[1], small.shape[0] / pixels.shape[0]] * 2)
    return drawing.draw_boxes(small, boxes * scale, labels, texts, least_side=SIDE - 1)


def _smaller(pixels: np.ndarray) -> np.ndarray:
    """Returns an image whose longer side has at most `SIDE` pixels."""
    picture = drawing.to_image(pixels)
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)


def drawn_views(images: np.ndarray, views: Mapping[str, Any], names: Sequence[str]) -> list[np.ndarray]:
    """Returns training images with their boxes or masks.

    Args:
        images: (n, height, width, channels) uint8.
        views: `boxes` and `box_labels`, or `segmentation`, of each.
        names: of the classes.
    """
    drawn = []
    for row, pixels in enumerate(images):
        if "segmentation" in views:
            mask = np.asarray(views["segmentation"][row], np.uint8)
            drawn.append(_smaller(drawing.overlay(pixels, mask, clear=_clear(names))))
            continue
        labels = np.asarray(views["box_labels"][row])
        there = labels >= 0
        texts = [names[label] for label in labels[there].tolist()]
        drawn.append(_with_boxes(pixels, np.asarray(views["boxes"][row])[there], labels[there], texts))
    return drawn


def pictures(found: Found) -> list[Markup]:
    """Returns the images, with what is there on the left and what was found on the right."""
    weights = "the moving average (EMA) of the weights" if found.is_ema else "the weights (there is no EMA)"
    about = (
        f"Step {found.step}, {found.choice}: {weights}. Images of the split {found.split}, drawn at random but always "
        "the same: on the left what is there, on the right what was found."
    )
    figures = [_figure(pair) for pair in found.pairs]
    return [element("p", about, class_="quiet"), element("div", *figures, class_="images views")]


def _figure(pair: Pair) -> Markup:
    truth = image(pair.truth, f"What is there: {pair.caption}.", SIDE)
    both = element("div", truth, image(pair.found, "What was found.", SIDE), class_="row")
    colors = [
        element("span", element("span", "\N{BLACK SQUARE}", style=f"color:rgb{color}"), f" {name} ")
        for name, color in pair.classes
    ]
    caption = element("figcaption", pair.caption, element("br"), *colors, element("small", pair.description))
    return element("figure", both, caption)


def check_table(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a table of tables.jsonl that an evaluation of boxes or masks wrote.

    Raises:
        DataError: if something is missing in it, or does not fit together.
    """
    names = values.get("classes")
    columns = [name for name in values if name != "classes"]
    fitting = isinstance(names, list) and all(
        isinstance(values[name], list)
        and len(values[name]) == len(names)
        and all(x is None or isinstance(x, int | float) for x in values[name])
        for name in columns
    )
    if not fitting or not columns:
        raise DataError("A table of classes is damaged: it takes names, and a number of each class in every column.")
    return values


def class_table(values: Mapping[str, Any]) -> Markup:
    """Returns the table of the classes; the arguments are as `check_table` returns them."""
    columns = [name for name in values if name != "classes"]

    def cell(value: Any) -> Markup:
        if value is None or value < 0:  # COCO's -1: there is nothing to measure
            return number(None, "-")
        return number(value, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")

    rows = [[name, *(cell(values[column][i]) for column in columns)] for i, name in enumerate(values["classes"])]
    return table("Classes", ["class", *columns], rows)
