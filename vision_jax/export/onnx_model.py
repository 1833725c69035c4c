"""A file that `export --format=onnx` has written, run by onnxruntime: from pixels to logits."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from vision_jax.data.transforms import EvalTransform, SquareTransform
from vision_jax.errors import DataError
from vision_jax.export.onnx_file import import_onnx


@dataclasses.dataclass(frozen=True, eq=False)
class OnnxModel:
    """A model in ONNX, with what its file says of the images that it takes.

    Attributes:
        name: of the model.
        class_names: one for each class; (): unknown, or it has no classifier.
        num_classes: how many logits there are; 0: it gives features.
        transform: of encoded images.
        mean, std: what pixels are normalized by, unless the graph does that.
    """

    name: str
    class_names: tuple[str, ...]
    num_classes: int
    transform: EvalTransform
    mean: tuple[float, ...]
    std: tuple[float, ...]
    _inside: bool
    _channels_first: bool
    _batch: int
    _session: Any

    @classmethod
    def open(cls, path: pathlib.Path, *, threads: int = 0) -> Self:
        """Opens a file.

        Args:
            path: of it.
            threads: that compute; 0: one for each core.

        Raises:
            ConfigError: if onnxruntime is not installed.
            DataError: if it cannot be read, or was not written by `export`.
        """
        import_onnx()
        import onnxruntime

        if not path.is_file():
            raise DataError(f"There is no file {path}: write one by `python -m vision_jax export --format=onnx`.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # of what its optimizer thinks of a graph, a user can do nothing
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no base but this
            reason = str(error).splitlines()[0].rstrip(".")
            raise DataError(
                f"{path} is no model that onnxruntime can run: {reason}. Write it by `python -m vision_jax export "
                "--format=onnx`."
            ) from error
        said = session.get_modelmeta().custom_metadata_map
        if kind := said.get("finds"):
            raise DataError(f"{path} is a model of {kind}, and this is for models of whole images.")
        try:
            return cls._of(session, said)
        except (KeyError, ValueError) as error:
            raise DataError(
                f"{path} does not say what images it takes: it was not written by `python -m vision_jax export`."
            ) from error

    @classmethod
    def _of(cls, session: Any, said: Mapping[str, str]) -> Self:
        inside, channels_first = json.loads(said["preprocessing_inside"]), said["layout"] == "nchw"
        shape = session.get_inputs()[0].shape
        kind = SquareTransform if json.loads(said["square"]) else EvalTransform
        channels = shape[1] if channels_first else shape[3]
        return cls(
            said["model"],
            tuple(json.loads(said["class_names"])),
            int(said["num_classes"]),
            kind(int(said["size"]), int(said["resize"]), channels, said["interpolation"], copied=()),
            tuple(json.loads(said["mean"])),
            tuple(json.loads(said["std"])),
            inside,
            channels_first,
            shape[0] if isinstance(shape[0], int) else 0,
            session,
        )

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the logits, or features, of images.

        Args:
            pixels: (batch, size, size, channels) uint8, by `transform`.

        Returns:
            (batch, classes) float32.
        """
        images = self.images(pixels)
        if not self._batch:
            return self.run(images)
        rows = -(-len(images) // self._batch) * self._batch
        padded = np.concatenate([images, np.zeros((rows - len(images), *images.shape[1:]), images.dtype)])
        parts = [self.run(padded[i : i + self._batch]) for i in range(0, rows, self._batch)]
        return np.concatenate(parts)[: len(images)]

    def images(self, pixels: np.ndarray) -> np.ndarray:
        """Returns pixels in the form that the graph takes."""
        if self._inside:
            return pixels
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        images = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if self._channels_first else images

    def run(self, images: np.ndarray) -> np.ndarray:
        """Returns what the graph gives for images in its form."""
        return self._session.run(None, {self._session.get_inputs()[0].name: images})[0].astype(np.float32)
