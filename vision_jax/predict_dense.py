"""Boxes and masks of images of one's own, by a trained detector or segmenter; as `predict` does it for classes."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import build, pretrained
from vision_jax.build import TrainedModel
from vision_jax.config.plan import eval_kind, eval_options
from vision_jax.data.decode import image_size
from vision_jax.data.dense import DenseTransform
from vision_jax.data.loader import batch_fields
from vision_jax.data.resizing import Canvas
from vision_jax.data.sources import Source, SubsetSource
from vision_jax.devices import sharding
from vision_jax.errors import CheckpointError, ConfigError
from vision_jax.evaluators.per_class import class_names
from vision_jax.evaluators.segmentation import SegmentationEvaluator, predict_classes
from vision_jax.objectives.dense import Dense, predictor
from vision_jax.predict import load_batches

log = logging.getLogger(__name__)

BATCH_SIZE = 8
_WINDOW = 8  # batches of images that are sorted by their canvases at once


@dataclasses.dataclass(frozen=True)
class Boxes:
    """What a detector finds in an image, best first.

    Attributes:
        boxes: (n, 4) float32, x1, y1, x2, y2 in pixels of the image as it is stored.
        scores: (n,) float32.
        labels: (n,) int32, numbers of classes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def above(self, threshold: float) -> "Boxes":
        """Returns those whose scores are at least a threshold."""
        kept = self.scores >= threshold
        return Boxes(self.boxes[kept], self.scores[kept], self.labels[kept])


@dataclasses.dataclass(frozen=True)
class DensePrediction:
    """What a model says of an image.

    Attributes:
        path: of the image; within an archive, ARCHIVE/MEMBER.
        boxes: of a detector; None: it is none, or the image is damaged.
        mask: of a segmenter, (height, width) uint8, a class for each pixel of the image as it is stored; or None.
        error: why there is neither; None: there is one.
    """

    path: str
    boxes: Boxes | None = None
    mask: np.ndarray | None = None
    error: str | None = None


class DensePredictor:
    """Finds boxes or masks in image files.

    Images are preprocessed as in evaluation: resized and laid into the canvas that holds them. Masks are resized back
    by nearest neighbors. A segmenter that is evaluated in windows, or with mirrored images, predicts so too.

    Args:
        trained: a model of boxes or masks.
        batch_size: images that are computed at once; fewer if there are fewer.
        num_threads: that decode; None: as the configuration says.

    Attributes:
        trained: the model.
        class_names: what to call each class before a person.

    Raises:
        ConfigError: if it is a model of whole images.
        CheckpointError: if its weights are not finite, so that it would find nothing.
    """

    def __init__(self, trained: TrainedModel, *, batch_size: int = BATCH_SIZE, num_threads: int | None = None):
        if not isinstance(trained.objective, Dense):
            raise ConfigError(f"{trained.origin} is a model of whole images, which finds neither boxes nor masks.")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: give 1 or more.")
        if not _are_finite(trained.variables):
            raise CheckpointError(f"The weights of {trained.origin} are not finite: take an earlier checkpoint.")
        self.trained, self._objective = trained, trained.objective
        self.class_names = pretrained.display_names(class_names(trained.class_names, trained.num_classes))
        transform = build.make_eval_transform(trained.config)
        assert isinstance(transform, DenseTransform)  # that of an objective of boxes or masks
        self._transform = dataclasses.replace(transform, boxes=False, masks=False)  # which images of one's own lack
        self._batch_size = batch_size
        self._num_threads = num_threads or trained.config.data.num_threads
        self._options = _segmenting(trained) if trained.dense == "masks" else {}
        self._compiled: dict[tuple[Canvas, int], Any] = {}

    @property
    def max_pixels(self) -> int:
        """Larger images are refused before they are decoded."""
        return self._transform.max_pixels

    def stream(self, source: Source) -> Iterator[DensePrediction]:
        """Yields the predictions of a source's images in their order, as they are computed."""
        shards = sharding.batch_shards(self.trained.mesh)
        size = -(-min(self._batch_size, len(source)) // shards) * shards
        for first in range(0, len(source), size * _WINDOW):
            yield from self._window(source, np.arange(first, min(first + size * _WINDOW, len(source))), size)

    def _window(self, source: Source, numbers: np.ndarray, size: int) -> Iterator[DensePrediction]:
        """Yields the predictions of some images in their order; those of a canvas are computed together."""
        found: dict[int, DensePrediction] = {}
        of_canvas: dict[Canvas, list[int]] = {}
        canvases = self._transform.canvases
        for number in numbers.tolist():
            try:
                height, width = image_size(source[number]["image"], self._transform.max_pixels)
            except ValueError as error:
                log.warning("%s is damaged: %s. It is left out.", source.describe(number), error)
                found[number] = DensePrediction(source.describe(number), error=str(error))
                continue
            canvas = canvases[self._transform.resizing.canvas_of(height, width, canvases)]
            of_canvas.setdefault(canvas, []).append(number)
        for canvas, chosen in of_canvas.items():
            found |= self._on_canvas(source, canvas, np.asarray(chosen), size)
        yield from (found[number] for number in numbers.tolist())

    def _on_canvas(self, source: Source, canvas: Canvas, numbers: np.ndarray, size: int) -> dict[int, DensePrediction]:
        """Returns the predictions of images that one canvas is for, by their numbers."""
        step, part = self._compile(canvas, size), SubsetSource(source, numbers)
        transform, mesh = self._transform.on(canvas), self.trained.mesh
        found = {}
        with contextlib.closing(load_batches(part, transform, mesh, size, self._num_threads)) as batches:
            for first, (batch, problems) in zip(range(0, len(numbers), size), batches, strict=True):
                rows = {name: np.asarray(x) for name, x in jax.device_get(step(self.trained.variables, batch)).items()}
                for row, number in enumerate(numbers[first : first + size].tolist()):
                    path, problem = source.describe(number), problems.get(first + row)
                    if problem is not None:
                        found[number] = DensePrediction(path, error=problem)
                    else:
                        found[number] = _prediction(path, {name: values[row] for name, values in rows.items()})
        return found

    def _compile(self, canvas: Canvas, size: int) -> Any:
        """Returns the compiled step for batches on a canvas: rows of `Boxes`, or of masks on canvases."""
        key = canvas, size
        if key not in self._compiled:
            mesh = self.trained.mesh
            batch = sharding.abstract_batch(mesh, size, batch_fields(self._transform.on(canvas)))
            jitted = jax.jit(self._step, out_shardings=sharding.replicated(mesh))
            self._compiled[key] = sharding.compile_on(mesh, jitted, self.trained.variables, batch)
        return self._compiled[key]

    def _step(self, variables: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        objective: Any = self._objective
        if objective.dense == "boxes":
            return objective.detect(variables, batch)._asdict()
        outputs = predictor(objective, variables)
        mask = predict_classes(outputs, objective.normalized(batch), batch["size"], **self._options)
        return {"mask": mask.astype(jnp.uint8), "size": batch["size"], "original": batch["original"]}


def resize_mask(mask: np.ndarray, size: Sequence[int], original: Sequence[int]) -> np.ndarray:
    """Returns the mask of a resized image for the original one, by nearest neighbors.

    Args:
        mask: (height, width) uint8, of a canvas.
        size: height and width of its valid part.
        original: those of the original image.

    Returns:
        (original height, original width) uint8.
    """
    valid = np.ascontiguousarray(mask[: size[0], : size[1]])
    return cv2.resize(valid, (int(original[1]), int(original[0])), interpolation=cv2.INTER_NEAREST_EXACT)


def _prediction(path: str, row: Mapping[str, np.ndarray]) -> DensePrediction:
    if "mask" in row:
        return DensePrediction(path, mask=resize_mask(row["mask"], row["size"].tolist(), row["original"].tolist()))
    there = row["labels"] >= 0
    return DensePrediction(path, boxes=Boxes(row["boxes"][there], row["scores"][there], row["labels"][there]))


def _segmenting(trained: TrainedModel) -> dict[str, Any]:
    """Returns how the first evaluation of masks predicts, as `predict_classes` takes it."""
    config = trained.config
    for name in config.evals:
        if eval_kind(config, name) == "segmentation":
            options: Any = SegmentationEvaluator(context=None, **eval_options(config, name))  # type: ignore[arg-type]
            window = None if options.window is None else (options.window, options.window_stride)
            return {"flip": options.flip, "window": window}
    return {}


@jax.jit
def _all_finite(variables: Any) -> jax.Array:
    return jnp.all(jnp.asarray([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)]))


def _are_finite(variables: Any) -> bool:
    return bool(_all_finite(dict(variables)))
