"""How boxes and masks of images are written: as JSON lines, as COCO's list of results, and as pictures."""

import argparse
import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from vision_jax.commands import coco_results, common, predictions
from vision_jax.errors import ConfigError, DataError, check_folder, check_no_url, reason

if TYPE_CHECKING:
    import PIL.Image

    from vision_jax.build import TrainedModel
    from vision_jax.data.images import ImageSource
    from vision_jax.predict_dense import DensePrediction, DensePredictor

    Write = Callable[[DensePrediction, dict[str, str]], object]

FLAGS = ("threshold", "draw", "annotations")
COCO = "coco"
FORMATS = {**predictions.FORMATS, ".json": COCO}
THRESHOLD = 0.3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that are for detectors and segmenters alone."""
    group = parser.add_argument_group("detectors and segmenters", "Of these --batch_size is 8 by default.")
    group.add_argument(
        "--threshold",
        type=float,
        help=f"least score of boxes, which detectors have cut already (default: {THRESHOLD}; 0 with --annotations)",
    )
    group.add_argument(
        "--annotations",
        metavar="FILE",
        help="COCO's JSON with the ids of images and categories: --output=FILE.json becomes COCO's list of results",
    )
    group.add_argument("--draw", metavar="DIR", help="a folder for pictures; it is made if there is none")


def check_arguments(arguments: argparse.Namespace) -> pathlib.Path | None:
    """Returns the folder for pictures, None for none, after checking the flags of `add_arguments`.

    Raises:
        ConfigError: for flags that cannot work.
    """
    if arguments.threshold is not None and not 0 <= arguments.threshold <= 1:
        raise ConfigError(f"--threshold is {arguments.threshold:g}: give a score, from 0 to 1.")
    if (arguments.annotations is not None) != (_format(arguments) == COCO):
        raise ConfigError(
            "--annotations=FILE, whose ids they have, and COCO's results go together: --output=FILE.json, or "
            "--format=coco and another --output."
        )
    if arguments.annotations is not None and arguments.output is None:
        raise ConfigError("COCO's results are a file: name it by --output=FILE.json.")
    if arguments.draw is None:
        return None
    check_no_url("--draw", arguments.draw)
    directory = pathlib.Path(arguments.draw).expanduser()
    check_folder("--draw", directory)
    if directory.is_dir() and any(directory.iterdir()) and not arguments.overwrite:
        raise ConfigError(f"--draw is {directory}, a folder with files: give an empty or a new one, or --overwrite.")
    return directory


def predict(
    trained: "TrainedModel",
    source: "ImageSource",
    arguments: argparse.Namespace,
    output: pathlib.Path | None,
    directory: pathlib.Path | None,
) -> int:
    """Predicts and writes the boxes or masks of all images, and returns the exit status.

    Args:
        trained: the model.
        source: the images.
        arguments: the flags of `predict`.
        output: the file for lines; None: the terminal.
        directory: the folder for pictures; None: there are none.

    Raises:
        ConfigError: for flags that are for other models.
        DataError: if something cannot be written.
    """
    from vision_jax.predict_dense import BATCH_SIZE, DensePredictor
    from vision_jax.runtime.writers import Progress

    common.refuse(arguments, ("topk",), "for classes of whole images")
    if trained.dense != "boxes":
        common.refuse(arguments, ("threshold", "annotations"), "for detectors")
    if (kind := _format(arguments)) not in ("jsonl", COCO):
        raise ConfigError(f"The format is {kind}, and {trained.dense} are written as JSON lines: --format=jsonl.")
    threshold = arguments.threshold
    if threshold is None:
        threshold = 0.0 if kind == COCO else THRESHOLD
    predictor = DensePredictor(trained, batch_size=arguments.batch_size or BATCH_SIZE)
    pictures = None if directory is None else _Pictures(predictor, source, directory, threshold)
    damaged = 0
    with (
        _writing(arguments, output, predictor, source, threshold) as write,
        Progress(len(source), description="predict", leave=False, enabled=output is not None) as progress,
    ):
        for number, prediction in enumerate(predictor.stream(source)):
            drawn = {}
            if prediction.error is not None:
                damaged += 1
            elif pictures is not None:
                drawn = pictures.write(number, prediction)
            write(prediction, drawn)
            progress.update({})
    if damaged:
        print(f"{damaged} of {len(source)} images are damaged, as named above.", file=sys.stderr)
    return common.DAMAGED if damaged else 0


def as_dict(prediction: "DensePrediction", names: list[str], threshold: float) -> dict[str, Any]:
    """Returns what a line of JSON has.

    That is `image`, and `error` if it is damaged; or of a detector `boxes`, `scores`, `labels` and `names`, the best
    first; or of a segmenter `size`, (height, width), and `classes`, those that are there with the `share` of the pixels
    that each has, the largest first.

    Args:
        prediction: of an image.
        names: of the classes.
        threshold: the least score of boxes.
    """
    if prediction.boxes is not None:
        found = prediction.boxes.above(threshold)
        labels = found.labels.tolist()
        rounded = [[round(side, 2) for side in box] for box in found.boxes.tolist()]
        scores = [round(score, 6) for score in found.scores.tolist()]
        of_boxes = {"boxes": rounded, "scores": scores, "labels": labels, "names": [names[label] for label in labels]}
        return {"image": prediction.path, **of_boxes}
    if prediction.mask is not None:
        counts = np.bincount(prediction.mask.reshape(-1))
        order = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
        shares = [counts[number] / prediction.mask.size for number in order]
        classes = [
            {"class": n, "name": names[n], "share": round(float(x), 6)} for n, x in zip(order, shares, strict=True)
        ]
        return {"image": prediction.path, "size": list(prediction.mask.shape), "classes": classes}
    return {"image": prediction.path, "error": prediction.error}


class _Pictures:
    """Draws what is found into a folder: NAME.png of boxes, or of a mask NAME.png and NAME.overlay.png."""

    def __init__(self, predictor: "DensePredictor", source: "ImageSource", directory: pathlib.Path, threshold: float):
        self._predictor, self._source = predictor, source
        self._directory, self._threshold = directory, threshold
        self._taken: set[str] = set()
        self._images = {os.path.realpath(source.describe(number)) for number in range(len(source))}

    def write(self, number: int, prediction: "DensePrediction") -> dict[str, str]:
        """Writes the pictures of an image, and returns their paths.

        Raises:
            DataError: if they cannot be written.
        """
        from vision_jax.data.boxes import BACKGROUND
        from vision_jax.data.decode import decode
        from vision_jax.dense import drawing

        names = self._predictor.class_names
        pixels = decode(self._source[number]["image"], 3, max_pixels=self._predictor.max_pixels)
        name = self._name(prediction.path)
        if prediction.boxes is not None:
            found = prediction.boxes.above(self._threshold)
            texts = [f"{names[label]} {score:.0%}" for label, score in zip(found.labels, found.scores, strict=True)]
            # The best one comes last, over the others.
            drawn = drawing.draw_boxes(pixels, found.boxes[::-1], found.labels[::-1], texts[::-1])
            return {"picture": self._save(drawing.to_image(drawn), f"{name}.png")}
        assert prediction.mask is not None  # it is not damaged
        clear = [0] if names[0].strip("_") == BACKGROUND else []
        over = drawing.to_image(drawing.overlay(pixels, prediction.mask, clear=clear))
        return {
            "mask": self._save(drawing.palette_image(prediction.mask), f"{name}.png"),
            "overlay": self._save(over, f"{name}.overlay.png"),
        }

    def _name(self, path: str) -> str:
        """Returns the name of an image without its suffix, and with a number if another image has it already."""
        stem = pathlib.PurePath(path).stem
        name, count = stem, 1
        while name in self._taken:
            count += 1
            name = f"{stem}-{count}"
        self._taken.add(name)
        return name

    def _save(self, image: "PIL.Image.Image", name: str) -> str:
        path = self._directory / name
        if os.path.realpath(path) in self._images:
            raise DataError(f"{path} is one of the images themselves: give another folder for --draw.")
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            image.save(path, "PNG")
        except OSError as error:
            raise DataError(
                f"Cannot write {path}: {reason(error)}. Make room, or give another folder for --draw."
            ) from error
        return os.fspath(path)


def _format(arguments: argparse.Namespace) -> str:
    """Returns the format that the flags ask for; what they do not say is JSON lines."""
    suffix = pathlib.PurePath(arguments.output or "").suffix
    return arguments.format or FORMATS.get(suffix, "jsonl")


@contextlib.contextmanager
def _writing(
    arguments: argparse.Namespace,
    output: pathlib.Path | None,
    predictor: "DensePredictor",
    source: "ImageSource",
    threshold: float,
) -> Iterator["Write"]:
    """Gives what writes the prediction of an image, and, of JSON lines, the paths of its pictures."""
    if arguments.annotations is not None:
        assert output is not None  # it was checked
        path = pathlib.Path(arguments.annotations).expanduser()
        ids = coco_results.CocoIds(path, source, predictor.class_names)
        with coco_results.writing(output) as write_row:
            yield lambda prediction, drawn: [write_row(row) for row in ids.rows(prediction, threshold)]
        return
    with _lines(output) as file:
        yield lambda prediction, drawn: print(
            json.dumps(as_dict(prediction, predictor.class_names, threshold) | drawn), file=file
        )


@contextlib.contextmanager
def _lines(output: pathlib.Path | None) -> Iterator[TextIO]:
    """Gives the file for lines; what is written stays, however the command ends."""
    if output is None:
        yield sys.stdout
        return
    try:
        with output.open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise DataError(f"Cannot write {output}: {reason(error)}. Make room, or give another --output.") from error
