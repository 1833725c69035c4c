"""Explains image files, as the command does."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import numpy as np

from vision_jax import pretrained
from vision_jax.data.decode import DecodeError
from vision_jax.data.images import ImageSource
from vision_jax.data.loader import Transform
from vision_jax.data.sources import Source
from vision_jax.errors import DataError, reason
from vision_jax.explanations.explainer import DEFAULT, PREDICTED, Explanation, ImageExplainer, parse_methods
from vision_jax.predict import Predictor


def explain_images(
    predictor: Predictor,
    paths: Sequence[str | os.PathLike[str]],
    methods: str = DEFAULT,
    *,
    target: str | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> list[Explanation]:
    """Returns what a model has looked at in images, one explanation for each in their order.

    Args:
        predictor: of the model.
        paths: of images, of folders and of archives; see `ImageSource.find`.
        methods: such as "gradcam,ig:steps=64"; see `explain.parse_method`.
        target: the class that is explained, by name or number; None: the one that is predicted, for each image.
        batch_size: images that are computed at once.
        seed: of methods that draw random numbers.

    Raises:
        DataError: if a path does not exist, or holds no image.
        ConfigError: if a method is unknown or cannot explain this model, or there is no such class.
    """
    number = PREDICTED if target is None else find_target(predictor, target)
    source = ImageSource.find(list(paths))
    batch_size = min(batch_size, len(source))
    explainer = ImageExplainer(predictor, parse_methods(methods), batch_size=batch_size, seed=seed)
    return list(stream(explainer, source, number))


def find_target(predictor: Predictor, text: str) -> int:
    """Returns the number of a class; see `pretrained.find_class`.

    Raises:
        ConfigError: if there is no such class.
    """
    return pretrained.find_class(text, predictor.given_names, len(predictor.class_names))


def stream(explainer: ImageExplainer, source: ImageSource, target: int = PREDICTED) -> Iterator[Explanation]:
    """Yields the explanations of a source's images in their order, as they are computed.

    Args:
        explainer: with the methods.
        source: the images; damaged ones are told by `Explanation.error`.
        target: the class that is explained; `PREDICTED`: the one that is predicted, for each image.
    """
    size = explainer.batch_size
    with contextlib.closing(explainer.predictor.batches(source, size)) as batches:
        for number, (batch, problems) in enumerate(batches):
            numbers = range(number * size, min((number + 1) * size, len(source)))
            paths = [source.describe(n) for n in numbers]
            found = explainer.batch(batch["image"], paths, [target] * len(paths), numbers.start)
            for n, explanation in zip(numbers, found, strict=True):
                if n in problems:
                    explanation = Explanation(source.describe(n), explanation.image, error=problems[n])
                yield explanation


def read_images(source: Source, transform: Transform, numbers: Sequence[int]) -> list[np.ndarray]:
    """Reads some images of a source, as a model sees them before they are normalized.

    Args:
        source: of the images.
        transform: as in evaluation.
        numbers: of the records.

    Returns:
        (height, width, channels) uint8 each.

    Raises:
        DataError: if an image cannot be read or decoded.
    """
    found = []
    for number in numbers:
        out = {name: np.zeros((1, *field.shape), field.dtype) for name, field in transform.fields().items()}
        try:
            transform([source[number]], np.array([number], np.int64), np.zeros(1, np.int64), out)
        except (OSError, DecodeError) as error:
            raise DataError(f"Cannot read {source.describe(number)} again: {reason(error)}.") from error
        found.append(out["image"][0])
    return found
