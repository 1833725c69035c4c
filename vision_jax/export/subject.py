"""What is exported: a function of images, in the form in which programs without JAX are to call it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import augment, build
from vision_jax.build import TrainedModel
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
    """

    batch: int = 0
    with_preprocessing: bool = False
    layout: str = "nchw"
    dtype: str = "float32"


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
    def output(self) -> str:
        """The name of what the function gives."""
        return "logits" if self.trained.num_classes else "features"

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
        transform = self.trained.preprocessing.transform
        size, channels = transform.size, transform.channels
        image = (channels, size, size) if self.channels_first else (size, size, channels)
        return (self.options.batch, *image)

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        """The model's own variables, as arrays of NumPy."""
        found = build.without_heads(self.trained.objective, self.trained.variables)
        return jax.tree.map(np.asarray, jax.device_get(dict(found)))

    def apply(self, variables: Any, images: Any, dtype: str | None = None) -> jax.Array:
        """Returns the logits of images.

        Args:
            variables: of the model.
            images: as `shape` and `dtype` say.
            dtype: what to compute in; None: as the options say.
        """
        model: Any = self.trained.model.clone(dtype=jnp.dtype(dtype or self.options.dtype))
        if self.options.with_preprocessing:
            images = augment.normalize(images, self.trained.preprocessing.mean, self.trained.preprocessing.std)
        elif self.channels_first:
            images = images.transpose(0, 2, 3, 1)
        return model.apply(variables, images, train=False)

    def __call__(self, images: Any) -> jax.Array:
        """Returns the logits of images, by the variables that the function contains."""
        return self.apply(self.variables, images)

    @functools.cached_property
    def reference(self) -> Any:
        """The function of images that JAX computes in float32 on the CPU."""
        cpu = jax.devices("cpu")[0]
        variables = jax.device_put(self.variables, cpu)
        compiled = jax.jit(lambda variables, images: self.apply(variables, images, "float32"))

        def reference(images: np.ndarray) -> np.ndarray:
            with jax.default_matmul_precision("highest"):
                return np.asarray(compiled(variables, jax.device_put(images, cpu)))

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
            pixels: (count, size, size, channels) uint8.
        """
        if self.options.with_preprocessing:
            return pixels
        preprocessing = self.trained.preprocessing
        images = np.asarray(augment.normalize(jnp.asarray(pixels), preprocessing.mean, preprocessing.std))
        return images.transpose(0, 3, 1, 2) if self.channels_first else images


def make(trained: TrainedModel, options: Options) -> Subject:
    """Returns a model in the form in which it is to be exported.

    Raises:
        ConfigError: for options that cannot work.
    """
    if options.layout not in LAYOUTS:
        raise ConfigError(f"layout is {options.layout!r}: give one of {', '.join(LAYOUTS)}.")
    if options.batch < 0:
        raise ConfigError(f"batch is {options.batch}: give a number of images, or 0 for any.")
    return Subject(trained, options)
