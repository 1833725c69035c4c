"""What attacks share: the attacked function, random keys, balls of perturbations, and the result."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.attacks.losses import LEAST_CLASSES, without_class
from vision_jax.errors import ConfigError, suggest

Apply = Callable[..., jax.Array]
NORMS = ("linf", "l2")


class Attacked(NamedTuple):
    """The result of an attack.

    Attributes:
        images: (batch, height, width, channels) float32 in [0, 1].
        fooled: (batch,) bool, whether the class of each image is another than its label.
        loss: (batch,) float32, what the attack maximizes, at these images.
    """

    images: jax.Array
    fooled: jax.Array
    loss: jax.Array


@dataclasses.dataclass(frozen=True)
class _Forward:
    """A model's logits of images in [0, 1]; equal ones share compiled programs."""

    model: Any  # a Flax module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
        return self.model.apply(variables, normalize(images, self.mean, self.std), train=False)


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns (images - mean) / std of images in [0, 1], one number for all channels or one for each."""
    return (images - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def classifier(
    model: nn.Module, variables: Mapping[str, Any], mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)
) -> Apply:
    """Returns what attacks take as `apply`: the logits of a model in evaluation mode, of images in [0, 1].

    It is a pytree that holds the variables: attacks of the same model with other weights are not compiled again, and
    within a compiled training step the variables may be those that are trained.

    Args:
        model: such as `vision_jax.create_model` returns, with a classifier.
        variables: its `params`, and `batch_stats` if it has them.
        mean, std: of the normalization of images, one number or one for each channel; the model's preprocessing.
    """
    forward = _Forward(model, tuple(map(float, mean)), tuple(map(float, std)))
    return jax.tree_util.Partial(forward, variables)


_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(*static: str) -> Callable[[_F], _F]:
    """Compiles an attack, a function whose first argument is `apply`: a pytree, or any function of images.

    Args:
        *static: names of arguments that choose a program.
    """

    def compile_attack(attack: _F) -> _F:
        program = jax.jit(attack, static_argnames=static)

        @functools.wraps(attack)
        def call(apply: Apply, *arguments: Any, **options: Any) -> Any:
            return program(as_pytree(apply), *arguments, **options)

        return cast(_F, call)

    return compile_attack


def as_pytree(apply: Apply) -> Apply:
    """Returns a function that compiled functions take as an argument."""
    return apply if isinstance(apply, jax.tree_util.Partial) else jax.tree_util.Partial(apply)


def check_norm(norm: str, norms: Sequence[str] = NORMS) -> None:
    """Checks the name of a norm.

    Raises:
        ConfigError: if the attack does not know it.
    """
    if norm not in norms:
        raise ConfigError(f"The norm is {norm!r}: {suggest(norm, norms)}")


@functools.lru_cache(maxsize=64)
def _count_classes(structure: Any, leaves: tuple[Any, ...], *inputs: jax.ShapeDtypeStruct) -> int:
    variables = [jax.ShapeDtypeStruct(*leaf) for leaf in leaves]
    shape = jax.eval_shape(lambda given, *rest: jax.tree.unflatten(structure, given)(*rest), variables, *inputs).shape
    if len(shape) != 2 or shape[0] != inputs[0].shape[0]:
        raise ConfigError(
            f"The attacked function returns an array of shape {shape} for {inputs[0].shape[0]} images: attacks need "
            "its logits, (batch, classes)."
        )
    return shape[1]


def count_classes(apply: Apply, images: jax.Array | np.ndarray, *more: Any) -> int:
    """Returns the number of classes, without computing anything.

    Args:
        apply: images -> (batch, classes).
        images: (batch, height, width, channels).
        *more: further arguments, such as a key.

    Raises:
        ConfigError: if what the function returns are no logits.
    """
    leaves, structure = jax.tree.flatten(as_pytree(apply))
    shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    inputs = [jax.ShapeDtypeStruct(jnp.shape(images), jnp.float32)]
    return _count_classes(structure, shapes, *inputs, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in more))


def check_loss(loss: str, classes: int) -> None:
    """Checks that a loss is known and defined.

    Raises:
        ConfigError: if it is unknown, or needs more classes.
    """
    if loss not in LEAST_CLASSES:
        raise ConfigError(f"The loss of the attack is {loss!r}: {suggest(loss, LEAST_CLASSES)}")
    if classes < LEAST_CLASSES[loss]:
        raise ConfigError(
            f"The loss {loss} needs {LEAST_CLASSES[loss]} classes or more, and the model has {classes}: attack it with "
            "ce."
        )


def keys_of(key: jax.Array, batch: int) -> jax.Array:
    """Returns one random key for each image, (batch,).

    An image's key depends on its number alone, so that the other images of a batch, and the devices that it is divided
    over, change nothing.

    Args:
        key: one key, or one for each image, which are returned as they are.
        batch: the number of images.
    """
    if key.ndim:
        return key
    return numbered_keys(key, np.arange(batch))


@jax.jit
def numbered_keys(key: jax.Array, numbers: jax.Array | np.ndarray) -> jax.Array:
    """Returns the keys of images by their numbers, (batch,) integers."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


@jax.jit
def fold_in(keys: jax.Array, number: int | jax.Array) -> jax.Array:
    """Returns other keys, one for each; see `jax.random.fold_in`."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def expand(values: jax.Array, images: jax.Array) -> jax.Array:
    """Returns one value for each image, (batch,), in the shape (batch, 1, ...) that is broadcast to images."""
    return values.reshape(-1, *(1,) * (images.ndim - 1))


def size(perturbation: jax.Array, norm: str) -> jax.Array:
    """Returns the norm of each perturbation, (batch,)."""
    flat = jnp.abs(perturbation.reshape(len(perturbation), -1))
    if norm == "linf":
        return flat.max(1)
    return flat.sum(1) if norm == "l1" else jnp.sqrt(jnp.square(flat).sum(1))


def unit(vectors: jax.Array, norm: str) -> jax.Array:
    """Returns vectors of norm 1 in the same directions; zero remains zero."""
    return vectors / (expand(size(vectors, norm), vectors) + 1e-12)


def ascent(gradient: jax.Array, norm: str) -> jax.Array:
    """Returns the direction of steepest ascent under a norm: the sign, or the gradient divided by its l2 norm."""
    return jnp.sign(gradient) if norm == "linf" else unit(gradient, norm)


def project(images: jax.Array, perturbed: jax.Array, eps: jax.Array | float, norm: str) -> jax.Array:
    """Returns perturbed images brought back into the ball of radius `eps` around `images`, then into [0, 1]."""
    if norm == "linf":
        inside = jnp.clip(perturbed, images - eps, images + eps)
    else:
        perturbation = perturbed - images
        inside = images + unit(perturbation, norm) * expand(jnp.minimum(size(perturbation, norm), eps), images)
    return jnp.clip(inside, 0, 1)


def random_direction(keys: jax.Array, images: jax.Array, norm: str) -> jax.Array:
    """Returns noise for each image: uniform in [-1, 1) for linf, and normal for l2 and l1, of any length."""
    if norm == "linf":
        return jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], minval=-1.0))(keys)
    return jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)


def prefer(condition: jax.Array, new: Attacked, old: Attacked) -> Attacked:
    """Returns `new` for the images where `condition`, (batch,) bool, holds, and `old` for the others."""
    return Attacked(
        jnp.where(expand(condition, new.images), new.images, old.images),
        jnp.where(condition, new.fooled, old.fooled),
        jnp.where(condition, new.loss, old.loss),
    )


def keep_first(new: Attacked, kept: Attacked) -> Attacked:
    """Returns what fooled the model first, or else what has the higher loss."""
    return prefer(~kept.fooled & (new.fooled | (new.loss > kept.loss)), new, kept)


def nothing_yet(images: jax.Array) -> Attacked:
    """Returns what precedes a first attempt, to which every other is preferred."""
    none = jnp.zeros(len(images), bool)
    return Attacked(images, none, jnp.full(len(images), -jnp.inf))


@functools.partial(jax.jit, static_argnames="count")
def others_by_logit(logits: jax.Array, labels: jax.Array, count: int) -> jax.Array:
    """Returns the `count` classes besides the label with the largest logits, the largest first.

    Args:
        logits: (batch, classes).
        labels: (batch,) integers.
        count: how many, fewer than there are classes.

    Returns:
        (batch, count) int32.
    """
    return jax.lax.top_k(without_class(logits, labels), count)[1]
