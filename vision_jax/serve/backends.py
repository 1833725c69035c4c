"""What computes the classes of a batch of images: a model in JAX, or an ONNX file."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from vision_jax import pretrained
from vision_jax.data.transforms import EvalTransform
from vision_jax.errors import ConfigError
from vision_jax.export.onnx_model import OnnxModel
from vision_jax.predict import Predictor


class Best(NamedTuple):
    """The most probable classes of a batch, the best first.

    Attributes:
        probabilities: (batch, k) float32.
        classes: (batch, k) integers.
    """

    probabilities: np.ndarray
    classes: np.ndarray


class Backend(Protocol):
    """What computes. It is called by one thread at a time.

    Attributes:
        name: of the model.
        class_names: one for each class.
        topk: classes of an image that it gives.
        transform: makes the pixels of an encoded image; on threads.
    """

    name: str
    class_names: Sequence[str]
    topk: int
    transform: EvalTransform

    def prepare(self, max_batch: int) -> None:
        """Does beforehand what calls with up to `max_batch` images would wait for."""

    def __call__(self, images: np.ndarray) -> Best:
        """Returns the classes of (batch, size, size, channels) uint8 pixels."""


class JaxBackend:
    """A model in JAX. Batches are padded to a power of two, so that few programs are compiled.

    Args:
        name: of the model.
        predictor: of it, whose `topk` is what is answered at most.
        max_pixels: of an image; larger ones are refused.
    """

    def __init__(self, name: str, predictor: Predictor, max_pixels: int):
        self.name, self._predictor = name, predictor
        self.class_names: Sequence[str] = predictor.class_names
        self.topk = predictor.topk
        self.transform = dataclasses.replace(predictor.preprocessing.transform, max_pixels=max_pixels)

    def prepare(self, max_batch: int) -> None:
        size = 1
        while size < 2 * max_batch:
            self(np.zeros((min(size, max_batch), *self.transform.fields()["image"].shape), np.uint8))
            size *= 2

    def __call__(self, images: np.ndarray) -> Best:
        return Best(*self._predictor.classify(images))


class OnnxBackend:
    """A file of `export --format=onnx`, or a smaller one of `compress`.

    Args:
        model: of the file.
        topk: how many classes of an image it gives at most.
        max_pixels: of an image; larger ones are refused.

    Raises:
        ConfigError: if it has no classifier.
    """

    def __init__(self, model: OnnxModel, topk: int, max_pixels: int):
        if not model.num_classes:
            raise ConfigError(f"The model, {model.name}, has no classifier: it cannot tell classes apart.")
        self.name, self._model, self.topk = model.name, model, min(topk, model.num_classes)
        names = pretrained.display_names(model.class_names)
        self.class_names: Sequence[str] = names or [str(n) for n in range(model.num_classes)]
        self.transform = dataclasses.replace(model.transform, max_pixels=max_pixels)

    def prepare(self, max_batch: int) -> None:
        self(np.zeros((max_batch, *self.transform.fields()["image"].shape), np.uint8))

    def __call__(self, images: np.ndarray) -> Best:
        logits = self._model(images)
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = shifted / shifted.sum(1, keepdims=True)
        classes = np.argsort(-probabilities, axis=1, kind="stable")[:, : self.topk]  # of equal ones, the lower number
        return Best(np.take_along_axis(probabilities, classes, 1), classes)
