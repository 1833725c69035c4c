"""What explanations share: the network that is explained, the score of a class, and images of one color."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.attacks.base import classifier, normalize
from vision_jax.errors import ConfigError
from vision_jax.models.layers import ImageModel

Apply = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Network:
    """A model with its weights, as a function of images in [0, 1].

    Attributes:
        model: such as `vision_jax.create_model` returns, with a classifier.
        variables: its `params`, and `batch_stats` if it has them.
        mean, std: of the normalization of images, one number or one for each channel; the model's preprocessing.
    """

    model: ImageModel
    variables: Mapping[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def apply(self) -> Apply:
        """Images in [0, 1], (batch, height, width, channels), -> logits (batch, classes)."""
        return classifier(self.model, self.variables, self.mean, self.std)

    def normalize(self, images: jax.Array) -> jax.Array:
        """Returns what the model takes, of images in [0, 1]."""
        return normalize(images, self.mean, self.std)


def of_class(values: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the values of one class of each image, (batch, ...) float32; 0 for a class that does not exist.

    Args:
        values: (batch, ..., classes), such as logits.
        targets: (batch,) integers.
    """
    chosen = targets.reshape(-1, *(1,) * (values.ndim - 1)) == np.arange(values.shape[-1])
    return jnp.where(chosen, values.astype(jnp.float32), 0).sum(-1)


def probability(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the probability (softmax) of a class of each image; see `of_class`."""
    return of_class(jax.nn.softmax(logits.astype(jnp.float32)), targets)


def scores(apply: Apply, images: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the logit of the target of each image, (batch,) float32.

    Args:
        apply: images in [0, 1] -> logits (batch, classes).
        images: (batch, height, width, channels) in [0, 1].
        targets: (batch,) integers.
    """
    return of_class(apply(images), targets)


def check_targets(targets: Any, classes: int) -> None:
    """Checks the classes that are to be explained.

    Args:
        targets: one integer or several.
        classes: how many the model has.

    Raises:
        ConfigError: if one of them does not exist, or is no whole number.
    """
    given = np.asarray(targets)
    if not np.issubdtype(given.dtype, np.integer):
        raise ConfigError(f"The target classes are {given.dtype}: give integers.")
    if (wrong := given[(given < 0) | (given >= classes)]).size:
        raise ConfigError(f"The target class is {wrong.flat[0]}: the model has the classes 0 to {classes - 1}.")


def color(value: float | str, mean: Sequence[float]) -> np.ndarray:
    """Returns the color that stands for nothing, of one channel or of all, as it is broadcast to images in [0, 1].

    Args:
        value: a number, such as 0 for black; or "mean", which the normalization makes zero.
        mean: of the normalization.
    """
    return np.asarray(mean if value == "mean" else value, np.float32)
