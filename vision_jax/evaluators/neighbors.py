"""The nearest neighbors of features, found exactly, on all devices of this process; and their votes for classes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vision_jax.errors import DataError

_matmul = functools.partial(jnp.matmul, precision="highest")
_EACH, _ALL = PartitionSpec("queries"), PartitionSpec()  # a device has a part of the rows, or all


def normalize(features: jax.Array) -> jax.Array:
    """Returns features, (n, dim), divided by their Euclidean norms, in float32; zeros remain zeros."""
    features = jnp.asarray(features, jnp.float32)
    norms = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.where(norms > 0, norms, 1)


@functools.partial(jax.jit, static_argnames=("k", "cosine", "mesh"))
def _merge(
    best: tuple[jax.Array, jax.Array],
    queries: jax.Array,
    items: jax.Array,
    start: jax.Array,
    *,
    k: int,
    cosine: bool,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """Merges the neighbors found so far, (similarities, numbers), with those among more items, numbered from `start`.

    Those found so far are first, so that of equally similar items the first remains the nearer one. Every device does
    this for its own queries.
    """

    def merge(best: Any, queries: jax.Array, items: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        if cosine:
            queries, items = normalize(queries), normalize(items)
        similarities = _matmul(jnp.asarray(queries, jnp.float32), jnp.asarray(items, jnp.float32).T)
        numbers = jnp.broadcast_to(start + jnp.arange(len(items), dtype=jnp.int32), similarities.shape)
        similarities = jnp.concatenate([best[0], similarities], -1)
        similarities, order = jax.lax.top_k(similarities, k)
        return similarities, jnp.take_along_axis(jnp.concatenate([best[1], numbers], -1), order, -1)

    divided = jax.shard_map(merge, mesh=mesh, in_specs=(_EACH, _EACH, _ALL, _ALL), out_specs=_EACH)
    return divided(best, queries, items, start)


def nearest(
    queries: jax.Array | np.ndarray,
    items: jax.Array | np.ndarray,
    k: int,
    *,
    cosine: bool = False,
    query_block: int = 1024,
    item_block: int = 16384,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k nearest items of each query by the inner product, or by the cosine.

    The search is exact: every query is compared with every item, in float32, which takes 2 * queries * items * dim
    operations and the choice of the k best among as many similarities. Queries are taken `query_block` for each of this
    process's devices at a time, which share that work. A device holds these, a block of items, and query_block *
    item_block similarities a few times: with the default sizes, some hundred MB. Items may stay in the memory of the
    host, from where a block is copied when it is needed.

    Args:
        queries: (queries, dim) float.
        items: (items, dim) float; of these and of queries, only slices are read.
        k: number of neighbors; all items if there are fewer.
        cosine: divide queries and items by their norms first.
        query_block, item_block: rows per matrix product.

    Returns:
        similarities, (queries, k) float32, and the numbers of the items, (queries, k) int32, the nearest first; of
        equally similar items, the first is the nearer one.

    Raises:
        DataError: if k is not positive, or there are no items.
    """
    k = min(k, len(items))
    if k < 1:
        raise DataError(f"{k} neighbors among {len(items)} items cannot be found: there must be at least one of each.")
    devices = jax.local_devices()[: -(-len(queries) // query_block)]
    mesh = Mesh(np.array(devices), ("queries",))
    each, everywhere = NamedSharding(mesh, _EACH), NamedSharding(mesh, _ALL)
    found = []
    for row in range(0, len(queries), query_block * len(devices)):
        part = np.asarray(queries[row : row + query_block * len(devices)])
        count = len(part)
        part = jax.device_put(np.pad(part, ((0, -count % len(devices)), (0, 0))), each)
        best = jax.device_put(
            (np.full((len(part), k), -np.inf, np.float32), np.full((len(part), k), -1, np.int32)), each
        )
        for start in range(0, len(items), item_block):
            before, block = best, jax.device_put(items[start : start + item_block], everywhere)
            best = _merge(best, part, block, jnp.int32(start), k=k, cosine=cosine, mesh=mesh)
            jax.block_until_ready(before)  # so that no more than two blocks are on their way
        found.append([values[:count] for values in jax.device_get(best)])
    similarities, numbers = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return similarities, numbers


@functools.partial(jax.jit, static_argnames="num_classes")
def neighbor_votes(
    similarities: jax.Array, labels: jax.Array, num_classes: int, temperature: float | jax.Array = 0.07
) -> jax.Array:
    """Returns the votes of neighbors for their classes, each weighing exp(similarity / temperature).

    These are the weights of DINO (Caron et al. 2021, arXiv:2104.14294), and, before it, Wu et al. (2018,
    arXiv:1805.01978); an infinite temperature counts neighbors. Votes are divided by the largest weight of their
    query, which changes no order, so that no temperature overflows.

    Args:
        similarities: (queries, k) float, the largest first; cosines in the paper.
        labels: (queries, k) integers, classes of the neighbors.
        num_classes: number of classes.
        temperature: a positive number.

    Returns:
        (queries, num_classes) float32.
    """
    weights = jnp.exp((similarities - similarities[:, :1]) / temperature)
    rows = jnp.arange(len(labels))[:, None]
    return jnp.zeros((len(labels), num_classes), jnp.float32).at[rows, labels].add(weights)
