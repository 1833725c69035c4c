"""What is exported: a function of images, in the form in which programs without JAX are to call it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import augment, build
from vision_jax.build import TrainedModel
from vision_jax.data.dense import DenseTransform
from vision_jax.dense import postprocess
from vision_jax.dense.compose import AUX_HEAD
from vision_jax.dense.postprocess import Selection
from vision_jax.errors import ConfigError

LAYOUTS = ("nchw", "nhwc")


@dataclasses.dataclass(frozen=True)
class Options:
    """In which form a model is exported.

    Attributes:
        batch: number of images; 0: any.
        with_preprocessing: it takes uint8 pixels, (batch, height, width, channels), and normalizes them; else float32
            that are normalized already.
        layout: of normalized images: "nchw", (batch, channels, height, width), or "nhwc".
        dtype: what it computes in.
        size: of a detector or segmenter, height and width of the images; None: its first canvas in evaluation.
        with_nms: of a detector, it gives boxes after non-maximum suppression, of one image; see `FoundSubject`.
    """

    batch: int = 0
    with_preprocessing: bool = False
    layout: str = "nchw"
    dtype: str = "float32"
    size: tuple[int, int] | None = None
    with_nms: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A trained model in the form in which it is exported.

    Attributes:
        trained: the model.
        options: the form.
    """

    trained: TrainedModel
    options: Options

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what a file gives."""
        return ("logits",) if self.trained.num_classes else ("features",)

    @property
    def traced(self) -> tuple[str, ...]:
        """The names of what the function gives, of which a file may make more; of several it is a tuple."""
        return self.outputs

    @property
    def scales(self) -> tuple[float, ...] | None:
        """What differences of several outputs are divided by, in comparisons; None: see `check.difference`."""
        return None

    @property
    def channels_first(self) -> bool:
        """Whether images are (batch, channels, height, width)."""
        return self.options.layout == "nchw" and not self.options.with_preprocessing

    @property
    def dtype(self) -> np.dtype:
        """Of the images."""
        return np.dtype(np.uint8 if self.options.with_preprocessing else np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the images; 0: any number."""
        height, width = self.canvas
        channels = self.trained.config.data.channels
        image = (channels, height, width) if self.channels_first else (height, width, channels)
        return (self.options.batch, *image)

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the images."""
        size = self.trained.preprocessing.transform.size
        return size, size

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of pixels in [0, 1]."""
        data = self.trained.config.data
        return tuple(data.mean), tuple(data.std)

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        """The model's own variables, as arrays of NumPy."""
        found = build.without_heads(self.trained.objective, self.trained.variables)
        return jax.tree.map(np.asarray, jax.device_get(dict(found)))

    def apply(self, variables: Any, images: Any, dtype: str | None = None) -> Any:
        """Returns the logits of images, or what `outputs` says.

        Args:
            variables: of the model.
            images: as `shape` and `dtype` say.
            dtype: what to compute in; None: as the options say.
        """
        model: Any = self.trained.model.clone(dtype=jnp.dtype(dtype or self.options.dtype))
        return model.apply(variables, self.as_model_takes(images), train=False)

    def as_model_takes(self, images: Any) -> jax.Array:
        """Returns images as the model takes them, normalized and NHWC."""
        if self.options.with_preprocessing:
            return augment.normalize(images, *self.normalization)
        return images.transpose(0, 2, 3, 1) if self.channels_first else images

    def __call__(self, images: Any) -> Any:
        """Returns the logits of images, by the variables that the function contains."""
        return self.apply(self.variables, images)

    @functools.cached_property
    def reference(self) -> Any:
        """The function of images that JAX computes in float32 on the CPU."""
        cpu = jax.devices("cpu")[0]
        variables = jax.device_put(self.variables, cpu)
        compiled = jax.jit(lambda variables, images: self.apply(variables, images, "float32"))

        def reference(images: np.ndarray) -> Any:
            with jax.default_matmul_precision("highest"):
                return to_numpy(compiled(variables, jax.device_put(images, cpu)))

        return reference

    def random_images(self, count: int, seed: int = 0) -> np.ndarray:
        """Returns random images: noise around the mean with the deviation of the normalization."""
        rng = np.random.default_rng(seed)
        shape = (count, *self.shape[1:])
        if self.options.with_preprocessing:
            return rng.integers(0, 256, shape, np.uint8)
        return rng.normal(size=shape).astype(np.float32)

    def of_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Returns images as the function takes them.

        Args:
            pixels: (count, height, width, channels) uint8.
        """
        if self.options.with_preprocessing:
            return pixels
        images = np.asarray(augment.normalize(jnp.asarray(pixels), *self.normalization))
        return images.transpose(0, 3, 1, 2) if self.channels_first else images


@dataclasses.dataclass(frozen=True, eq=False)
class DenseSubject(Subject):
    """A detector, which gives what its heads say of each anchor, or a segmenter, which gives the logits of pixels.

    `cls_logits` (batch, anchors, classes), `bbox_regression` (batch, anchors, 4) and for FCOS `bbox_ctrness` (batch,
    anchors, 1); or `out`, (batch, classes, height, width) where images are so, else with classes last. float32.
    """

    @classmethod
    def make(cls, trained: TrainedModel, options: Options) -> "DenseSubject":
        """Returns the subject, after checking that the options fit.

        Raises:
            ConfigError: if not.
        """
        made = cls(trained, options)
        if options.with_preprocessing and made.transform.resizing.kind != "squash":
            raise ConfigError(
                "with_preprocessing normalizes whole canvases, and this model was trained on images that are padded "
                "after they are normalized: leave it out, and give 0 there."
            )
        return made

    @property
    def outputs(self) -> tuple[str, ...]:
        if self.trained.dense == "masks":
            return ("out",)
        centered = self._network(None).head.centerness
        return ("cls_logits", "bbox_regression", *(["bbox_ctrness"] if centered else []))

    @property
    def transform(self) -> DenseTransform:
        """Of images, in evaluation."""
        transform = build.make_eval_transform(self.trained.config)
        assert isinstance(transform, DenseTransform)  # as the objective is of boxes or masks
        return transform

    @property
    def canvas(self) -> tuple[int, int]:
        return self.options.size or self.transform.canvases[0]

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        given = jax.device_get(dict(self.trained.variables))
        return {
            name: {key: jax.tree.map(np.asarray, values) for key, values in tree.items() if key != AUX_HEAD}
            for name, tree in given.items()
        }

    def _network(self, dtype: str | None) -> Any:
        """Returns the network that computes in a dtype, without what only training needs."""
        objective: Any = self.trained.objective
        model = objective.setup.model.clone(dtype=jnp.dtype(dtype or self.options.dtype))
        objective = dataclasses.replace(objective, setup=dataclasses.replace(objective.setup, model=model))
        network = objective.network
        return network if self.trained.dense == "boxes" else dataclasses.replace(network, aux_head=None)

    def apply(self, variables: Any, images: Any, dtype: str | None = None) -> Any:
        found, _ = self._network(dtype).apply(variables, self.as_model_takes(images), train=False)
        if self.trained.dense == "masks":
            return found["out"].transpose(0, 3, 1, 2) if self.channels_first else found["out"]
        return tuple(output for output in found if output is not None)


@dataclasses.dataclass(frozen=True, eq=False)
class FoundSubject(DenseSubject):
    """A detector that gives what it finds in one image, of the scores and boxes of all anchors.

    The function gives these: `all_scores` (1, anchors, classes) and `all_boxes` (1, anchors, 4), x1, y1, x2 and y2 in
    pixels of the canvas, float32. A file makes of them what `detections.append` says.
    """

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("boxes", "scores", "labels")

    @property
    def traced(self) -> tuple[str, ...]:
        return ("all_scores", "all_boxes")

    @property
    def scales(self) -> tuple[float, ...]:
        """Most scores are nearly 0, so that they are compared as they are."""
        return 1.0, float(max(self.canvas))

    @property
    def padded(self) -> bool:
        """Whether images are smaller than the canvas, so that a file is to be told by how much."""
        return self.transform.resizing.kind != "squash"

    @property
    def selection(self) -> Selection:
        """What is taken for a detection."""
        return self._objective.selection

    @property
    def counts(self) -> tuple[int, ...]:
        """How many anchors each level has."""
        return tuple(map(len, self._levels))

    @property
    def _objective(self) -> Any:
        return self.trained.objective

    @functools.cached_property
    def _levels(self) -> tuple[np.ndarray, ...]:
        return self._objective.levels(*self.canvas)

    def apply(self, variables: Any, images: Any, dtype: str | None = None) -> Any:
        outputs, _ = self._network(dtype).apply(variables, self.as_model_takes(images), train=False)
        return postprocess.decoded(self.selection, outputs, self._levels)

    def part(self) -> np.ndarray:
        """Returns height and width of the part of the canvas that a check takes for the image, (1, 2) int64."""
        height, width = self.canvas
        return np.array([[max(1, height * 3 // 4), max(1, width * 7 // 8)] if self.padded else [height, width]])

    def select(self, scores: np.ndarray, boxes: np.ndarray) -> postprocess.Detections:
        """Returns what JAX finds of the scores and boxes of all anchors, of an image of `part`, on the CPU."""
        with jax.default_device(jax.devices("cpu")[0]):
            return _select(self.selection, self.counts, scores, boxes, self.part())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _select(
    selection: Selection, counts: tuple[int, ...], scores: jax.Array, boxes: jax.Array, sizes: jax.Array
) -> postprocess.Detections:
    return postprocess.select(selection, scores, boxes, counts, sizes)


def to_numpy(results: Any) -> Any:
    """Returns an array of JAX, or a tuple of them, as arrays of NumPy."""
    return tuple(map(np.asarray, results)) if isinstance(results, tuple) else np.asarray(results)


def make(trained: TrainedModel, options: Options) -> Subject:
    """Returns a model in the form in which it is to be exported.

    Raises:
        ConfigError: for options that cannot work.
    """
    if options.layout not in LAYOUTS:
        raise ConfigError(f"layout is {options.layout!r}: give one of {', '.join(LAYOUTS)}.")
    if options.batch < 0:
        raise ConfigError(f"batch is {options.batch}: give a number of images, or 0 for any.")
    if not options.with_nms:
        return DenseSubject.make(trained, options) if trained.dense else Subject(trained, options)
    if trained.dense != "boxes":
        raise ConfigError(f"with_nms is for detectors, and {trained.name} finds no boxes: leave it out.")
    if options.batch != 1:
        number = options.batch or "any number"
        raise ConfigError(
            f"batch is {number}, and with_nms gives the boxes of one image, as their number differs: --batch=1."
        )
    return FoundSubject.make(trained, options)
