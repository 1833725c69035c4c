"""Digests of arrays, by which a restored checkpoint is compared with the state that was saved.

They are computed on the devices, do not depend on how an array is sharded, and are stored in each checkpoint together
with the version of the digest, so that checkpoints of earlier versions can still be verified.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

VERSION = 2  # of the digest in new checkpoints


def digest(x: jax.Array) -> jax.Array:
    """Returns a () uint32 that depends on every bit and its position, and not on how the array is sharded.

    The bits of each element are combined with its position and mixed by the finalizer of MurmurHash3 (Appleby, 2011),
    in which flipping any input bit flips each output bit with a probability of about one half. The results are added
    modulo 2^32: a sum of integers is the same in any order. Without the mixing, the highest bits would affect only the
    highest bits of the sum, where an even number of changes cancels.
    """
    bits = _words(x)
    h = bits ^ (_positions(bits.shape) * jnp.uint32(0x9E3779B9))
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)


def first_digest(x: jax.Array) -> jax.Array:
    """Returns version 1 of the digest, () uint32, used by checkpoints that record no version.

    It is the sum of each element's bits times an odd number derived from its position. For example, it does not detect
    an even number of flipped signs.
    """
    bits = _words(x)
    return jnp.sum(bits * ((_positions(bits.shape) * jnp.uint32(2654435761)) | jnp.uint32(1)), dtype=jnp.uint32)


DIGESTS: Mapping[int, Callable[[jax.Array], jax.Array]] = {1: first_digest, VERSION: digest}


def _words(x: jax.Array) -> jax.Array:
    """Returns the bits of an array as uint32: one per element, or two for 64-bit elements."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if x.dtype.itemsize >= 4:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)


def _positions(shape: tuple[int, ...]) -> jax.Array:
    """Returns the position of each element in row-major order, modulo 2^32, in that shape."""
    position = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return position


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree under names such as `model/params/conv1/kernel`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def describe(tree: Any, version: int = VERSION) -> dict[str, list[Any]]:
    """Returns [shape, dtype, digest] of each array, by name. Every process must call it.

    Args:
        tree: the arrays.
        version: of the digest, a key of `DIGESTS`.
    """
    leaves = named_leaves(tree)
    digests = _digests(list(leaves.values()), version)
    return {
        name: [list(leaf.shape), str(leaf.dtype), int(digest)]
        for (name, leaf), digest in zip(leaves.items(), digests, strict=True)
    }


def _digests(leaves: Sequence[jax.Array], version: int) -> np.ndarray:
    """Returns the digest of each array, (n,) uint32, the same in all processes whatever the shardings."""
    layout = leaves[0].sharding
    if isinstance(layout, NamedSharding):
        layout = NamedSharding(layout.mesh, PartitionSpec())
    return np.asarray(_digests_on(layout, version)(leaves))


@functools.cache
def _digests_on(layout: jax.sharding.Sharding, version: int) -> Callable[[Sequence[jax.Array]], jax.Array]:
    function = DIGESTS[version]
    return jax.jit(lambda leaves: jnp.stack([function(leaf) for leaf in leaves]), out_shardings=layout)
