"""The activations of a model by name, and the gradients with respect to them.

One forward pass gives them beside the logits, for what looks into a model (Grad-CAM, attention rollout, linear probes)
or learns from it (distillation of features). Names are paths of timm's modules where it has them:

    stem                     what the stages see, before pooling; in convolutional networks
    layer2, layer2/0         a stage, and a block of it: ResNet, Wide ResNet
    s2, s2/b1                RegNet
    stage2, stage2/0         ShuffleNet, which has `maxpool` and `conv5` too
    stages/1, stages/1/blocks/0   ConvNeXt, ResNetV2
    blocks/1, blocks/1/0     EfficientNet, MobileNet; `conv_head`: the last convolution
    features/denseblock1, features/denseblock1/denselayer1, features/transition1   DenseNet; `features/norm0`, `norm5`
    features/4               VGG, AlexNet, SqueezeNet: activations and poolings, by torch's number of the layer
    inception3a, Mixed_5b    GoogLeNet and Inception, with their convolutions before: `conv1`, `Conv2d_1a_3x3`
    patch_embed, blocks/3, norm   vision transformers: (batch, tokens, features), the class token and registers first;
                             `blocks/3/norm1` and `norm2` are what a block's attention and its MLP see. Mixers have
                             `stem` for `patch_embed`
    layers/1, layers/1/blocks/0   Swin, whose tokens are maps; blocks have a `norm1` and `norm2` too
    blocks/3/attn            the probabilities of attention, (batch, heads, queries, keys) float32; in Swin,
                             `layers/1/blocks/0/attn`: (batch, windows, heads, queries, keys)
    norm                     the last norm, and the activation behind it, where there is one before pooling
    features, logits         what the classifier sees, and what it gives

Maps are (batch, height, width, features), after the activation and after the sum with the shortcut, as the next layer
sees them. Blocks that a scan computes have the same names. Who applies a model by flax alone finds all of it in the
collections `intermediates` and `attention`, if they are mutable.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.errors import ConfigError, suggest
from vision_jax.models.layers import ATTENTION, INTERMEDIATES, PERTURBATIONS, ImageModel


def names(model: ImageModel, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Returns the names of a model's activations, in the order of its layers; probabilities of attention come last.

    Args:
        model: the module.
        image_shape: (height, width, channels) of its images.
    """
    return tuple(shapes(model, image_shape))


def shapes(
    model: ImageModel, image_shape: tuple[int, int, int], batch_size: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of a model's activations by name; nothing is computed. See `names`."""
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return shapes_of(model, variables, images)


def shapes_of(
    model: ImageModel, variables: Mapping[str, Any], images: jax.Array | jax.ShapeDtypeStruct
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns what `shapes` does, where there are variables and images, or their shapes."""
    leaves, structure = jax.tree.flatten((variables, images))
    return dict(_shapes(model, structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)))


@functools.lru_cache(maxsize=32)
def _shapes(model: ImageModel, structure: Any, leaves: tuple[Any, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    order: list[str] = []

    def run(variables: Mapping[str, Any], images: jax.Array) -> list[jax.Array]:
        _, updates = model.apply(variables, images, train=False, mutable=[INTERMEDIATES, ATTENTION])
        found = _by_name(model, updates)
        order.extend(found)
        return list(found.values())

    arrays = jax.eval_shape(run, *jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves]))
    return dict(zip(order, arrays, strict=True))


def apply_with_intermediates(
    model: ImageModel,
    variables: Mapping[str, Any],
    images: jax.Array,
    names: Sequence[str],
    *,
    train: bool = False,
    rngs: Mapping[str, jax.Array] | None = None,
    perturbations: Mapping[str, jax.Array] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Applies a model, and returns some of its activations beside the logits.

    Under `jax.jit` only what is returned is kept. The gradient with respect to an activation is that with respect to
    its perturbation, at zero. Grad-CAM of class 3, for example:

        name = model.gradcam_layer
        zeros = jnp.zeros(shapes(model, images.shape[1:], len(images))[name].shape)

        def score(perturbation):
            logits, found = apply_with_intermediates(
                model, variables, images, [name], perturbations={name: perturbation}
            )
            return logits[:, 3].sum(), found[name]

        gradients, maps = jax.grad(score, has_aux=True)(zeros)

    Args:
        model: the module.
        variables: its parameters and statistics.
        images: (batch, height, width, channels), normalized.
        names: of the activations that are wanted.
        train: see `ImageModel.feature_maps`. The new batch statistics are not returned: a training step applies the
            model itself, with `mutable=["batch_stats", *collections(names)]`, and takes the activations by `pick`.
        rngs: keys of what drops units in training.
        perturbations: what is added to activations, by name: arrays of their shapes.

    Returns:
        the logits, (batch, num_classes) float32, and the activations by name.

    Raises:
        ConfigError: if the model has no activation of one of the names, or its logits do not depend on one that is
            perturbed.
    """
    wanted = (*names, *(perturbations or {}))
    if perturbations:
        variables = {**variables, PERTURBATIONS: _by_path(model, perturbations)}
    mutable = [*collections(wanted), *(["batch_stats"] if train else [])]
    logits, updates = model.apply(variables, images, train=train, rngs=dict(rngs or {}), mutable=mutable)
    found = pick(model, updates, wanted)
    return logits, {name: found[name] for name in names}


def collections(names: Sequence[str]) -> list[str]:
    """Returns the collections of variables that are to be mutable so that activations of these names are captured."""
    attention = [name for name in names if name.split("/")[-1] == "attn"]
    return [INTERMEDIATES] * (len(attention) < len(names)) + [ATTENTION] * bool(attention)


def pick(model: ImageModel, updates: Mapping[str, Any], names: Sequence[str]) -> dict[str, jax.Array]:
    """Returns activations by name from the collections that `model.apply` gave.

    Raises:
        ConfigError: if one of the names is not there.
    """
    found = _by_name(model, updates)
    if missing := [name for name in names if name not in found]:
        raise ConfigError(
            f"The model has no intermediate {missing[0]!r}: {suggest(missing[0], found, 'models.intermediates.names')}"
        )
    return {name: found[name] for name in names}


def as_map(model: ImageModel, x: jax.Array, image_shape: tuple[int, ...]) -> jax.Array:
    """Returns an activation with positions as a map; what comes before the patches, such as a class token, is left out.

    Args:
        model: the module.
        x: (batch, height, width, features), which is returned as it is, or (batch, tokens, features).
        image_shape: (height, width, ...) of the images.

    Returns:
        (batch, height, width, features).

    Raises:
        ValueError: if x has no positions.
    """
    if x.ndim == 4:
        return x
    if x.ndim != 3:
        raise ValueError(f"an activation of shape {x.shape} has no positions")
    size = model.patch_size
    return x[:, model.num_prefix_tokens :].reshape(len(x), image_shape[0] // size, image_shape[1] // size, -1)


def _by_name(model: nn.Module, updates: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns what was captured by name; what is stacked by a scan, apart."""
    found: dict[str, jax.Array] = {}
    for collection in (INTERMEDIATES, ATTENTION):
        stacked: dict[str, jax.Array] = {}
        for path, x in _leaves(updates.get(collection, {})):
            if _scanned(model) and path[0] == "blocks":
                stacked["/".join(path[1:])] = x
                continue
            found |= _unstack(stacked)
            stacked = {}
            found["/".join(path)] = x
        found |= _unstack(stacked)
    return found


def _unstack(stacked: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns what was captured in each block by name, the block's own result last."""
    depth = len(next(iter(stacked.values()))) if stacked else 0
    inside = sorted(stacked, key=lambda rest: rest == "")
    return {f"blocks/{i}/{rest}".rstrip("/"): stacked[rest][i] for i in range(depth) for rest in inside}


def _leaves(tree: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], jax.Array]]:
    """Yields the path and the value of each activation, in the order in which they were captured."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*before, key))
        else:
            own, _, name = key.partition(":")
            assert own == "output", key
            yield ((*before, name) if name else before), value


def _by_path(model: nn.Module, perturbations: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Returns perturbations as a collection of variables, in both places where `capture` may look for a name."""
    tree: dict[str, Any] = {}

    def put(path: tuple[str, ...], x: jax.Array) -> None:
        for modules, key in ((path[:-1], f"output:{path[-1]}"), (path, "output")):
            node = tree
            for module in modules:
                node = node.setdefault(module, {})
            node[key] = x

    stacked: dict[tuple[str, ...], dict[int, jax.Array]] = {}
    for name, x in perturbations.items():
        path = tuple(name.split("/"))
        if _scanned(model) and path[0] == "blocks" and len(path) > 1 and path[1].isdigit():
            stacked.setdefault(("blocks", *path[2:]), {})[int(path[1])] = x
        else:
            put(path, x)
    for path, by_block in stacked.items():
        nothing = jnp.zeros_like(next(iter(by_block.values())))
        put(path, jnp.stack([by_block.get(i, nothing) for i in range(model.depth)]))
    return tree


def _scanned(model: nn.Module) -> bool:
    return getattr(model, "scan_blocks", False)
