"""Class activation maps: the activations of a layer, each weighted by what the score's gradient says of it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vision_jax.errors import ConfigError
from vision_jax.explain.base import Network, of_class
from vision_jax.models.intermediates import apply_with_intermediates, as_map, shapes_of

EPSILON = 1e-6  # of Grad-CAM++'s denominator in jacobgil/pytorch-grad-cam


def gradcam(network: Network, images: jax.Array, targets: jax.Array, layer: str | None = None) -> jax.Array:
    """Returns Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) at the layer's own size, before the ReLU.

    Each feature's weight is the mean of the score's gradient over positions. Tokens become a map, without those before
    the patches.

    Args:
        network: what is explained.
        images: (batch, height, width, channels) float32 in [0, 1].
        targets: (batch,) integers.
        layer: a name of `vision_jax.models.intermediates`; None: the model's `gradcam_layer`.

    Returns:
        (batch, rows, columns) float32; see `to_image`.

    Raises:
        ConfigError: if there is no such layer, or it has no positions.
    """
    activations, gradients = activations_and_gradients(network, images, targets, layer)
    return _weighted(activations, gradients.mean((1, 2)))


def gradcam_pp(
    network: Network,
    images: jax.Array,
    targets: jax.Array,
    layer: str | None = None,
    *,
    epsilon: float = EPSILON,
) -> jax.Array:
    """Returns Grad-CAM++ (Chattopadhay et al. 2018, arXiv:1710.11063) at the layer's own size.

    The weight of a feature is the sum over positions of a * ReLU(g), where g is the gradient and
    a = g^2 / (2 g^2 + sum(A) g^3 + epsilon), A being the feature's activations. The paper's exp(score) cancels out.

    Args:
        network, images, targets, layer: as for `gradcam`.
        epsilon: pytorch-grad-cam's by default; where gradients are far below its root, the map depends on it.

    Returns:
        (batch, rows, columns) float32, before the ReLU, which matters only where activations may be negative.

    Raises:
        ConfigError: as for `gradcam`.
    """
    activations, g = activations_and_gradients(network, images, targets, layer)
    total = activations.sum((1, 2), jnp.float32, keepdims=True)
    # Divided by g^2, so that small gradients do not underflow.
    safe = jnp.where(g == 0, 1, g)
    denominator = 2 + total * safe + epsilon / safe / safe
    shares = jnp.where((g == 0) | (denominator == 0), 0, 1 / denominator)
    return _weighted(activations, (shares * jax.nn.relu(g)).sum((1, 2)))


def activations_and_gradients(
    network: Network, images: jax.Array, targets: jax.Array, layer: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the activations of a layer as maps, and the gradient of the score with respect to them.

    Args:
        network, images, targets, layer: as for `gradcam`.

    Returns:
        (batch, rows, columns, features) in the model's dtype, and the same in float32.

    Raises:
        ConfigError: as for `gradcam`.
    """
    model, inputs = network.model, network.normalize(images)
    known = shapes_of(model, network.variables, inputs)
    name = find_layer(model, layer, known)

    def score(perturbation: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, found = apply_with_intermediates(
            model, network.variables, inputs, [name], perturbations={name: perturbation}
        )
        return of_class(logits, targets).sum(), found[name]

    zeros = jnp.zeros(known[name].shape, jnp.float32)
    gradients, activations = jax.grad(score, has_aux=True)(zeros)
    return as_map(model, activations, images.shape[1:]), as_map(model, gradients, images.shape[1:])


def find_layer(model: Any, layer: str | None, known: Mapping[str, jax.ShapeDtypeStruct]) -> str:
    """Returns the name of a layer with positions.

    Args:
        model: the module.
        layer: its name, also with dots as torch's modules have them; None: the model's `gradcam_layer`.
        known: the shapes of the model's activations by name.

    Raises:
        ConfigError: if there is none of that name, or it has no positions.
    """
    name = model.gradcam_layer if layer is None else layer.replace(".", "/")
    usable = [other for other, x in known.items() if x.ndim in (3, 4) and not other.endswith("attn")]
    if name in usable:
        return name
    what = "has no positions" if name in known else "is not there"
    raise ConfigError(f"The layer {layer!r} {what}: the model has {', '.join(ranges(usable))}.")


def ranges(names: Sequence[str]) -> list[str]:
    """Returns names in fewer words: those that differ in a number are one, as in blocks/{0..11}/norm1."""
    found = [tuple(re.split(r"(\d+)(?=/|$)", name)) for name in names]
    for place in range(max(map(len, found), default=0) - 2, 0, -2):  # numbers are at odd places
        groups: dict[tuple[str, ...], list[str]] = {}
        for parts in found:
            groups.setdefault((*parts[:place], "", *parts[place + 1 :]), []).extend(parts[place : place + 1])
        found = [
            (*parts[:place], number, *parts[place + 1 :]) if numbers else parts
            for parts, numbers in groups.items()
            for number in (_joined(numbers) if numbers else [""])
        ]
    return ["".join(parts) for parts in found]


def _joined(numbers: list[str]) -> list[str]:
    """Returns one range of numbers that follow each other, else the numbers."""
    if len(numbers) < 2 or not all(number.isdigit() for number in numbers):
        return numbers
    first, last = int(numbers[0]), int(numbers[-1])
    return [f"{{{first}..{last}}}"] if list(map(int, numbers)) == list(range(first, last + 1)) else numbers


def to_image(maps: jax.Array, image_shape: tuple[int, ...]) -> jax.Array:
    """Returns class activation maps of the images' size, in [0, 1], as jacobgil/pytorch-grad-cam makes them.

    They are cut off at zero, scaled, enlarged bilinearly, and scaled again.

    Args:
        maps: (batch, rows, columns).
        image_shape: (height, width, ...).

    Returns:
        (batch, height, width) float32.
    """
    return scale(enlarge(scale(jax.nn.relu(maps)), image_shape))


def scale(maps: jax.Array) -> jax.Array:
    """Returns maps from 0 to 1, each for itself; 0 where a map has one value alone."""
    maps = maps - maps.min((1, 2), keepdims=True)
    return maps / (1e-7 + maps.max((1, 2), keepdims=True))


def enlarge(maps: jax.Array, image_shape: tuple[int, ...]) -> jax.Array:
    """Returns maps of the images' size, interpolated bilinearly between the centers of their pixels."""
    return jax.image.resize(maps, (len(maps), *image_shape[:2]), "linear", antialias=False)


def _weighted(activations: jax.Array, weights: jax.Array) -> jax.Array:
    return jnp.einsum("bhwc,bc->bhw", activations, weights, preferred_element_type=jnp.float32)
