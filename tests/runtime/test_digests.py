"""Digests see what happens to arrays in files and in memory, wherever the arrays are."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax import config as config_lib
from vision_jax.devices import sharding
from vision_jax.runtime import digests


def mixed_sum(x: np.ndarray) -> int:
    """The digest as its docstring has it, in NumPy, of elements of at most 32 bits."""
    mask = np.uint64(2**32 - 1)
    bits = x.reshape(-1).view(f"uint{8 * x.dtype.itemsize}").astype(np.uint64)
    h = bits ^ (np.arange(x.size, dtype=np.uint64) * np.uint64(0x9E3779B9) & mask)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> np.uint64(shift))) * np.uint64(factor) & mask
    return int((h ^ (h >> np.uint64(16))).sum() & mask)


digest = jax.jit(digests.digest)


def example(dtype: str, shape: tuple[int, ...] = (64, 32)) -> np.ndarray:
    values = np.random.RandomState(0).standard_normal(shape) * 50
    return np.asarray(jnp.asarray(values).astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8", "uint8"])
def test_formula_on_any_layout(dtype: str):
    x = example(dtype)
    assert int(digest(x)) == mixed_sum(x)
    mesh = sharding.make_mesh(config_lib.default_config().mesh)
    assert int(digest(jax.device_put(x, sharding.along_batch(mesh)))) == mixed_sum(x)
    assert int(digest(x.reshape(-1))) == mixed_sum(x)


def flip_bits(x: np.ndarray, bit: int, *places: int) -> np.ndarray:
    bits = x.reshape(-1).view(f"uint{8 * x.dtype.itemsize}").copy()
    bits[list(places)] ^= bits.dtype.type(1 << bit)
    return bits.view(x.dtype).reshape(x.shape)


def swap(x: np.ndarray, first: int, second: int) -> np.ndarray:
    y = x.reshape(-1).copy()
    y[[first, second]] = y[[second, first]]
    return y.reshape(x.shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8"])
@pytest.mark.parametrize(
    "change",
    [
        lambda x, top: -x,
        lambda x, top: flip_bits(x, top, 0),
        lambda x, top: swap(x, 3, 1029),
        lambda x, top: np.roll(x, 1),
        lambda x, top: x.T,
        lambda x, top: np.zeros_like(x),
    ],
    ids=["negated", "sign", "swap", "shift", "transposed", "zeros"],
)
def test_changes(dtype: str, change: Callable[[np.ndarray, int], np.ndarray]):
    x = example(dtype)
    assert int(digest(change(x, 8 * x.dtype.itemsize - 1).copy())) != int(digest(x))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_pairs_of_changes_do_not_cancel(dtype: str):
    """Two flips of the same bit in random places, of each of the highest bits, and x and -x that change places."""
    x = example(dtype)
    top = 8 * x.dtype.itemsize - 1
    expected, random = int(digest(x)), np.random.RandomState(1)
    for bit in (top, top - 1, top - 2):
        for _ in range(40):
            places = random.choice(x.size, 2, replace=False)
            assert int(digest(flip_bits(x, bit, *places))) != expected, (bit, places)
    mirrored = x.reshape(-1).copy()
    mirrored[1029] = -mirrored[3]
    assert int(digest(swap(mirrored, 3, 1029))) != int(digest(mirrored))


def test_elements_of_64_bits_and_booleans():
    with jax.enable_x64(True):
        x = example("float64")
        for place in (0, 31, 32, 63):
            bits = x.view(np.uint64).copy()
            bits[5, 7] ^= np.uint64(1 << place)
            assert int(digests.digest(jnp.asarray(bits.view(np.float64)))) != int(digests.digest(jnp.asarray(x)))
    flags = np.array([True, False, True])
    assert int(digest(flags)) != int(digest(flags[[1, 0, 2]]))
    assert int(digest(flags)) == mixed_sum(flags.astype(np.uint32))


def test_the_digest_that_it_replaces_is_blind_to_signs():
    x = jnp.asarray(example("float32"))
    assert int(digests.first_digest(-x)) == int(digests.first_digest(x))
