"""Masks of the weights with the largest magnitudes: of each array, of all at once, or N of M consecutive inputs.

A mask is boolean: True where a weight is kept. Ties are broken by position, the first ones being pruned, so that the
number of pruned weights is exact, and the same on any number of devices.

Nothing is sorted: the threshold is found by bisection over the bits of the magnitudes, which for numbers that are not
negative are ordered as the numbers are. That takes 31 counts of all weights, and as many at most to break ties; each of
them is added up on the devices that hold parts of an array.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

LARGEST = 2**31 - 1  # weights among which one threshold can be found: they are counted in int32


def keep_largest(
    arrays: Sequence[jax.Array],
    sparsity: jax.Array | float,
    *,
    stacked: Sequence[bool] | None = None,
    together: bool = False,
) -> list[jax.Array]:
    """Returns masks that prune the smallest weights: round(sparsity * n) of n, computed in float32.

    Args:
        arrays: float32, of any shapes.
        sparsity: the share that is pruned, from 0 to 1; it may be traced.
        stacked: for each, whether the first axis counts blocks, each of which is then an array of its own; None: none.
        together: whether there is one threshold for all arrays; else each has its own.

    Returns:
        for each array, a bool array of its shape: True where a weight is kept.
    """
    stacked = [False] * len(arrays) if stacked is None or together else stacked
    bits = [_ordered_bits(x) for x in arrays]
    axes = [tuple(range(int(blocks), x.ndim)) for x, blocks in zip(arrays, stacked, strict=True)]
    total = sum(x.size for x in arrays)
    sizes = [total if together else math.prod(x.shape[i] for i in axis) for x, axis in zip(arrays, axes, strict=True)]
    wanted = [jnp.clip(jnp.round(jnp.float32(sparsity) * n).astype(jnp.int32), 0, n) for n in sizes]
    starts = [sum(x.size for x in arrays[:i]) if together else 0 for i in range(len(arrays))]
    places = [_positions(x.shape, axis, start) for x, axis, start in zip(arrays, axes, starts, strict=True)]

    def count(chosen: list[jax.Array]) -> list[jax.Array]:
        sums = [x.sum(axis, dtype=jnp.int32, keepdims=True) for x, axis in zip(chosen, axes, strict=True)]
        if not together:
            return sums
        everything = sum(x.reshape(()) for x in sums)
        return [jnp.broadcast_to(everything, x.shape) for x in sums]

    def below(limits: list[jax.Array]) -> list[jax.Array]:
        return count([x < limit for x, limit in zip(bits, limits, strict=True)])

    def ties(ends: list[jax.Array]) -> list[jax.Array]:
        triples = zip(bits, limits, places, ends, strict=True)
        return count([(x == limit) & (place < end) for x, limit, place, end in triples])

    zeros = count([jnp.zeros_like(x, bool) for x in bits])
    # The largest limits with no more than that many magnitudes below them.
    limits = _bisect(below, wanted, zeros, 31)
    left = [n - found for n, found in zip(wanted, below(limits), strict=True)]
    ends = _bisect(ties, left, zeros, max(sizes).bit_length())
    quadruples = zip(bits, limits, places, ends, strict=True)
    return [(x > limit) | ((x == limit) & (place >= end)) for x, limit, place, end in quadruples]


def keep_n_of_m(x: jax.Array, m: int, kept: jax.Array | int) -> jax.Array:
    """Returns a mask that keeps the largest of every m consecutive inputs of each output.

    Inputs are the last axis but one: a dense kernel is (inputs, outputs), and that of a convolution (height, width,
    inputs, outputs), where a group has one position. These are the groups of NVIDIA's sparse tensor cores (Mishra et
    al. 2021, arXiv:2104.08378), by which apex/contrib/sparsity groups the weights of convolutions too, along their
    input channels; and those of torch.sparse.to_sparse_semi_structured for the weights of torch's linear layers.

    Args:
        x: (..., inputs, outputs) float32, with inputs divisible by m.
        m: the size of a group.
        kept: how many of a group are kept; it may be traced.

    Returns:
        a bool array of the shape of x.
    """
    *rest, inputs, outputs = x.shape
    groups = _ordered_bits(x).reshape(*rest, inputs // m, m, outputs)
    # A weight comes after those of its group that are larger, or as large and later.
    mine, others = groups[..., :, None, :], groups[..., None, :, :]
    later = (jnp.arange(m)[None, :] > jnp.arange(m)[:, None])[:, :, None]
    rank = ((others > mine) | ((others == mine) & later)).sum(-2, dtype=jnp.int32)
    return (rank < kept).reshape(x.shape)


def _ordered_bits(x: jax.Array) -> jax.Array:
    """Returns int32 that are ordered as the magnitudes are."""
    return jax.lax.bitcast_convert_type(jnp.abs(x.astype(jnp.float32)), jnp.int32)


def _bisect(
    count: Callable[[list[jax.Array]], list[jax.Array]], most: list[jax.Array], zeros: list[jax.Array], bits: int
) -> list[jax.Array]:
    """Returns the largest integers of so many bits for which counts, which rise with them, are not above `most`."""

    def body(number: jax.Array, values: list[jax.Array]) -> list[jax.Array]:
        candidates = [value | (jnp.int32(1) << (bits - 1 - number)) for value in values]
        counts = count(candidates)
        return [jnp.where(n <= limit, c, v) for n, limit, c, v in zip(counts, most, candidates, values, strict=True)]

    return jax.lax.fori_loop(0, bits, body, zeros)


def _positions(shape: tuple[int, ...], axes: Sequence[int], start: int) -> jax.Array:
    """Returns the positions of elements, counted along these axes from `start` on, as int32.

    They are made of one counter an axis, since an array that is reshaped might not stay divided over devices.
    """
    place = jnp.full(shape, start, jnp.int32)
    for axis in axes:
        place += jax.lax.broadcasted_iota(jnp.int32, shape, axis) * math.prod(shape[axis + 1 :])
    return place
