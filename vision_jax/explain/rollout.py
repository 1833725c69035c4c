"""Attention rollout (Abnar and Zuidema 2020, arXiv:2005.00928): the product of all blocks' attention."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import ConfigError, suggest
from vision_jax.explain.base import Network
from vision_jax.models.intermediates import apply_with_intermediates, shapes_of
from vision_jax.models.layers import ImageModel

FUSIONS: Mapping[str, Callable[..., jax.Array]] = {"mean": jnp.mean, "max": jnp.max, "min": jnp.min}


def rollout(network: Network, images: jax.Array, *, fusion: str = "mean", discard: float = 0.0) -> jax.Array:
    """Returns how much of each patch reaches what the classifier sees, the largest being 1.

    That is the class token, or, where the model averages the patches, the mean of theirs.

    Args:
        network: a vision transformer.
        images: (batch, height, width, channels) float32 in [0, 1].
        fusion, discard: as for `product`.

    Returns:
        (batch, rows, columns) float32, by patches.

    Raises:
        ConfigError: if the model has no attention between all tokens; see `attention_names`.
    """
    model, inputs = network.model, network.normalize(images)
    names = attention_names(model, shapes_of(model, network.variables, inputs))
    _, found = apply_with_intermediates(model, network.variables, inputs, names)
    total = product([found[name] for name in names], fusion=fusion, discard=discard)
    before = model.num_prefix_tokens
    seen = total[:, before:].mean(1) if model.global_pool == "avg" else total[:, 0]
    size = model.patch_size
    maps = seen[:, before:].reshape(len(images), images.shape[1] // size, images.shape[2] // size)
    return maps / maps.max((1, 2), keepdims=True)


def product(attentions: Sequence[jax.Array], *, fusion: str = "mean", discard: float = 0.0) -> jax.Array:
    """Returns the product of the attention of all blocks, each with its shortcut, the last one first.

    Of each block, the heads are fused, the smallest entries set to zero, the identity added for the shortcut, and each
    row divided by its sum. jacobgil/vit-explain divides by other sums once entries are set to zero; this is what it is
    meant to do.

    Args:
        attentions: (batch, heads, tokens, tokens) each, from the first block to the last; rows are queries.
        fusion: of the heads: "mean", "max" or "min".
        discard: the share of the entries, of the whole matrix, that are set to zero, but for the first one.

    Returns:
        (batch, tokens, tokens) float32, whose rows sum to 1.

    Raises:
        ConfigError: if the fusion is unknown, or the share not in [0, 1).
    """
    if fusion not in FUSIONS:
        raise ConfigError(f"The fusion of heads is {fusion!r}: {suggest(fusion, FUSIONS)}")
    if not 0 <= discard < 1:
        raise ConfigError(f"The share of attention that is discarded is {discard}: give one from 0 to below 1.")
    tokens = attentions[0].shape[-1]
    total = identity = jnp.eye(tokens)
    for attention in attentions:
        fused = FUSIONS[fusion](attention.astype(jnp.float32), 1)
        if count := int(tokens**2 * discard):
            fused = _without_smallest(fused, count)
        mixed = fused + identity
        mixed = mixed / mixed.sum(-1, keepdims=True)
        total = jnp.matmul(mixed, total, precision=jax.lax.Precision.HIGHEST)
    return total


def attention_names(model: ImageModel, known: Mapping[str, jax.ShapeDtypeStruct]) -> list[str]:
    """Returns the names of the attention of all blocks, in their order.

    Args:
        model: the module.
        known: the shapes of its activations by name.

    Raises:
        ConfigError: if there is none, or it is within windows.
    """
    names = [name for name in known if name.split("/")[-1] == "attn"]
    if not names:
        raise ConfigError(f"{type(model).__name__} has no attention, which rollout multiplies: use gradcam instead.")
    if any(known[name].ndim != 4 for name in names):
        raise ConfigError(
            f"The attention of {type(model).__name__} is within windows, and rollout multiplies one between all "
            "patches: use gradcam instead."
        )
    return names


def _without_smallest(matrices: jax.Array, count: int) -> jax.Array:
    """Returns matrices whose `count` smallest entries, but for the first one, are zero. Equal ones stay together."""
    flat = matrices.reshape(len(matrices), -1)
    kept = (flat >= jnp.sort(flat)[:, count][:, None]) | (np.arange(flat.shape[1]) == 0)
    return jnp.where(kept, flat, 0).reshape(matrices.shape)
