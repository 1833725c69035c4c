"""Masks, their schedule, and what the optimizer does with them, against NumPy."""

import dataclasses
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vision_jax import optim
from vision_jax.errors import ConfigError
from vision_jax.optim import Pruning, magnitude
from vision_jax.optim.masks import STEM

SHAPES = {
    "conv1": {"kernel": (3, 3, 3, 8)},
    "layer1": {"conv": {"kernel": (3, 3, 8, 6)}, "norm": {"scale": (6,)}},
    "mlp": {"kernel": (12, 5), "bias": (5,)},
    "fc": {"kernel": (8, 4)},
}


def tree(seed: int, shapes: Any = SHAPES, decimals: int = 1) -> Any:
    """Returns parameters, of which many have the same magnitude."""
    random = np.random.RandomState(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(random.standard_normal(shape).round(decimals), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def smallest(values: np.ndarray, sparsity: float) -> np.ndarray:
    """Returns which are kept if the smallest are pruned, the first of those with the same magnitude before others."""
    kept = np.ones(values.size, bool)
    kept[np.argsort(np.abs(values).ravel(), kind="stable")[: int(np.round(np.float32(sparsity) * values.size))]] = False
    return kept.reshape(values.shape)


def n_of_m(values: np.ndarray, n: int, m: int) -> np.ndarray:
    """Returns which are kept of each group of inputs, the last axis but one, by NumPy's partition."""
    inputs_last = np.abs(np.moveaxis(values, -2, -1)).reshape(-1, m)
    kept = np.zeros_like(inputs_last, bool)
    np.put_along_axis(kept, np.argpartition(inputs_last, m - n, axis=1)[:, m - n :], True, axis=1)
    return np.moveaxis(kept.reshape(np.moveaxis(values, -2, -1).shape), -1, -2)


@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.8, 0.999])
def test_masks_keep_the_largest(sparsity: float):
    params = tree(0)
    arrays = [params["layer1"]["conv"]["kernel"], params["mlp"]["kernel"]]
    alone, together = jax.jit(lambda s: [magnitude.keep_largest(arrays, s, together=t) for t in (False, True)])(
        sparsity
    )
    for found, values in zip(alone, arrays, strict=True):
        np.testing.assert_array_equal(found, smallest(np.asarray(values), sparsity))
    joined = np.concatenate([np.ravel(x) for x in arrays])
    np.testing.assert_array_equal(np.concatenate([np.ravel(x) for x in together]), smallest(joined, sparsity))


def test_stacked_blocks_have_thresholds_of_their_own():
    blocks = tree(1, {"kernel": (3, 8, 4)})["kernel"] * jnp.array([1.0, 10, 100])[:, None, None]
    (found,) = magnitude.keep_largest([blocks], 0.5, stacked=[True])
    for block, mask in zip(np.asarray(blocks), found, strict=True):
        np.testing.assert_array_equal(mask, smallest(block, 0.5))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4)])
@pytest.mark.parametrize("shape", [(16, 5), (3, 3, 8, 6), (2, 8, 4)])
def test_n_of_m_consecutive_inputs_are_kept(shape: tuple[int, ...], n: int, m: int):
    values = tree(2, shape, decimals=9)
    found = np.asarray(jax.jit(lambda x: magnitude.keep_n_of_m(x, m, n))(values))
    np.testing.assert_array_equal(found, n_of_m(np.asarray(values), n, m))
    # Of those with the same magnitude too.
    assert (magnitude.keep_n_of_m(jnp.ones(shape), m, n).sum(-2) == shape[-2] * n // m).all()


def test_a_dense_kernel_has_the_groups_of_torch():
    """torch's weights are (outputs, inputs), and its tensors groups of four along a row."""
    torch = pytest.importorskip("torch")
    values = tree(3, (16, 32), decimals=9)
    pruned = np.where(magnitude.keep_n_of_m(values, 4, 2), values, 0)
    weights = torch.from_numpy(pruned.T.copy())
    assert ((weights.reshape(32, -1, 4) != 0).sum(-1) == 2).all()


def test_schedule_is_that_of_zhu_and_gupta():
    pruning = Pruning(sparsity=0.9, initial=0.1, begin=20, end=100, every=10)
    for step in range(20, 101):
        expected = 0.9 + (0.1 - 0.9) * (1 - (step - 20) / (8 * 10)) ** 3
        assert float(pruning.sparsity_at(step)) == pytest.approx(expected, rel=1e-6)
    assert float(pruning.sparsity_at(10**6)) == pytest.approx(0.9)
    assert [step for step in range(130) if pruning.is_due(jnp.int32(step))] == list(range(20, 101, 10))
    uneven = Pruning(sparsity=0.5, begin=3, end=10, every=4)
    assert [step for step in range(30) if uneven.is_due(jnp.int32(step))] == [3, 7, 10]
    at_once = Pruning(sparsity=0.5, begin=6, end=6)
    assert [step for step in range(30) if at_once.is_due(jnp.int32(step))] == [6]
    assert float(at_once.sparsity_at(6)) == 0.5


def test_what_is_pruned():
    pruned, dense = Pruning(sparsity=0.5, spared=("fc/kernel",)).paths(tree(0))
    assert (pruned, dense) == (["layer1/conv/kernel", "mlp/kernel"], ["conv1/kernel", "fc/kernel"])
    pruned, dense = Pruning(sparsity=0.5, pattern=(4, 8), exclude=()).paths(tree(0))
    assert (pruned, dense) == (["fc/kernel", "layer1/conv/kernel"], ["conv1/kernel", "mlp/kernel"])
    depthwise = tree(0, {"dw": {"kernel": (3, 3, 1, 8)}, "pw": {"kernel": (1, 1, 8, 8)}})
    assert Pruning(sparsity=0.5).paths(depthwise) == (["pw/kernel"], ["dw/kernel"])


@pytest.mark.parametrize(
    ("path", "found"),
    [
        *((f"{stem}/kernel", True) for stem in ("conv1", "conv1/0", "stem/conv", "stem/0", "conv_stem", "features/0")),
        *(
            (f"{stem}/kernel", True)
            for stem in ("features/conv0", "patch_embed/proj", "prep/conv", "Conv2d_1a_3x3/conv")
        ),
        *((f"{stem}/kernel", True) for stem in ("visual/conv1", "visual/patch_embed/proj")),
        *((f"{block}/kernel", False) for block in ("layer1/0/conv1", "features/10", "stages/0/blocks/0/conv_dw")),
        *(
            (f"{block}/kernel", False)
            for block in ("blocks/0/attn/qkv", "conv10", "features/denseblock1/denselayer1/conv1")
        ),
    ],
)
def test_first_convolutions(path: str, found: bool):
    assert (re.search(STEM, path) is not None) == found


def run(pruning: Pruning, steps: int, optimizer: Any = None, **extra: Any) -> list[tuple[Any, Any]]:
    """Returns parameters and state after each step, the first ones included."""
    pruning = dataclasses.replace(pruning, spared=("fc/kernel",))
    optimizer = optim.prune(optimizer or optax.sgd(0.1, momentum=0.9), pruning)
    params = tree(0)
    state = optimizer.init(params)
    params = optim.apply_masks(params, optim.masks_of(state))
    found, update = [(params, state)], jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(tree(step + 1), state, params, **extra)
        params = optax.apply_updates(params, updates)
        found.append((params, state))
    return found


def zeros(params: Any) -> float:
    """Returns the share of zeros in the two kernels that are pruned."""
    values = np.concatenate([np.ravel(params["layer1"]["conv"]["kernel"]), np.ravel(params["mlp"]["kernel"])])
    return float((values == 0).mean())


@pytest.mark.parametrize("masked", ["zero", "held", "updated"])
@pytest.mark.parametrize("scope", ["array", "global"])
def test_masked_weights_are_zero_after_each_update(masked: str, scope: str):
    pruning = Pruning(sparsity=0.8, begin=2, end=6, every=2, scope=scope, masked=masked)
    states = run(pruning, 9)
    for number, (params, state) in enumerate(states):
        share = float(optim.sparsity_of(state.masks))
        due = max((step for step in (2, 4, 6) if step <= number), default=None)
        assert share == pytest.approx(0.0 if due is None else float(pruning.sparsity_at(due)), abs=5e-3)
        for name in ("layer1", "mlp"):
            values, masks = (jax.tree.leaves(x[name])[0 if name == "layer1" else -1] for x in (params, state.masks))
            assert (np.asarray(values)[~np.asarray(masks)] == 0).all()
    last = [jax.tree.leaves(state.masks) for _, state in states[6:]]
    assert all((a == b).all() for masks in last for a, b in zip(masks, last[0], strict=True))
    # Nothing else is touched: as if there were no pruning.
    plain = run(Pruning(sparsity=0.0, begin=100, end=100), 9)
    for name in ("conv1", "fc"):
        np.testing.assert_array_equal(states[-1][0][name]["kernel"], plain[-1][0][name]["kernel"])


def test_masks_grow_unless_weights_come_back():
    def comes_back(masked: str) -> bool:
        states = run(Pruning(sparsity=0.6, initial=0.5, begin=0, end=8, every=1, masked=masked), 8)
        masks = [np.asarray(state.masks["mlp"]["kernel"]) for _, state in states]
        return any((later & ~earlier).any() for earlier, later in itertools.pairwise(masks))

    assert not comes_back("zero")
    assert comes_back("held")
    assert comes_back("updated")


def test_updated_weights_are_those_of_training_on_the_gradients_of_the_pruned_network():
    """Dense weights w with the update of SGD; the network has mask * w (arXiv:2006.07253)."""
    pruning = Pruning(sparsity=0.5, begin=0, end=4, every=2, masked="updated")
    dense = np.asarray(tree(0)["mlp"]["kernel"], np.float64)
    for step, (params, state) in enumerate(run(pruning, 6, optax.sgd(0.1))):
        if step:
            dense = dense - 0.1 * np.asarray(tree(step)["mlp"]["kernel"])
        mask = np.asarray(state.masks["mlp"]["kernel"])
        np.testing.assert_allclose(params["mlp"]["kernel"], mask * dense, atol=1e-6)
        np.testing.assert_allclose(state.hidden["mlp"]["kernel"], ~mask * dense, atol=1e-6)


def test_held_weights_have_no_updates():
    """A weight is what it was when it was masked, and so it comes back (Zhu and Gupta)."""
    pruning = Pruning(sparsity=0.5, begin=0, end=4, every=1, masked="held")
    held = np.asarray(tree(0)["mlp"]["kernel"], np.float64)
    mask = np.ones_like(held, bool)
    for step, (params, state) in enumerate(run(pruning, 6, optax.sgd(0.1))):
        if step:
            held = np.where(mask, held - 0.1 * np.asarray(tree(step)["mlp"]["kernel"]), held)
        mask = np.asarray(state.masks["mlp"]["kernel"])
        np.testing.assert_allclose(params["mlp"]["kernel"], mask * held, atol=1e-6)


def test_weights_that_are_given_are_pruned_before_the_first_step():
    (params, state), *_ = run(Pruning(sparsity=0.5, pattern=(2, 4)), 0)
    given = tree(0)
    for path in (("layer1", "conv"), ("mlp",)):
        kernel, before, mask = params, given, state.masks
        for name in path:
            kernel, before, mask = kernel[name], before[name], mask[name]
        expected = magnitude.keep_n_of_m(before["kernel"], 4, 2)
        np.testing.assert_array_equal(mask["kernel"], expected)
        np.testing.assert_array_equal(kernel["kernel"], np.where(expected, before["kernel"], 0))


def test_a_pattern_comes_step_by_step():
    states = run(Pruning(sparsity=0.5, pattern=(2, 4), begin=1, end=5, every=1), 6)
    kept = [int(np.asarray(state.masks["mlp"]["kernel"]).reshape(3, 4, 5).sum(1).max()) for _, state in states]
    assert kept == [4, 4, 3, 3, 3, 2, 2]
    assert all(zeros(params) >= 1 - number / 4 for (params, _), number in zip(states, kept, strict=True))


def test_a_skipped_step_leaves_masks_and_weights():
    pruning = Pruning(sparsity=0.5, begin=1, end=3, every=1)
    optimizer = optim.guard(optim.prune(optax.sgd(0.1), pruning))
    params = tree(0)
    state = optimizer.init(params)
    updates, state = optimizer.update(tree(1), state, params, loss=jnp.float32(1))
    params = optax.apply_updates(params, updates)
    updates, after = optimizer.update(tree(2), state, params, loss=jnp.float32(jnp.nan))
    assert not any(np.any(x) for x in jax.tree.leaves(updates))
    assert int(after.inner.step) == int(state.inner.step) == 1
    for a, b in zip(jax.tree.leaves(optim.masks_of(after)), jax.tree.leaves(optim.masks_of(state)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sharpness_aware_minimization_perturbs_live_weights_alone():
    masks = {"w": jnp.array([True, False])}
    seen = []

    def gradients(params: Any) -> Any:
        seen.append(np.asarray(params["w"]))
        return {"w": jnp.array([3.0, 4.0])}, None

    params = {"w": jnp.array([1.0, 0.0])}
    optim.sam_gradients(gradients, params, 0.5, live=lambda grads: optim.apply_masks(grads, masks))
    np.testing.assert_allclose(seen[1], [1.5, 0.0])


def test_pruning_that_cannot_work():
    with pytest.raises(ConfigError, match=r"prune.exclude: the pattern 'lost' matches no parameter"):
        Pruning(sparsity=0.5, exclude=("lost",)).paths(tree(0))
    with pytest.raises(ConfigError, match="There is nothing to prune"):
        Pruning(sparsity=0.5, exclude=("kernel",)).paths(tree(0))
    with pytest.raises(ConfigError, match="inputs that 7 does not divide"):
        Pruning(sparsity=3 / 7, pattern=(4, 7)).paths(tree(0))
    with pytest.raises(ConfigError, match=r"prune.exclude matches only some of the blocks stacked in blocks/fc/kernel"):
        Pruning(sparsity=0.5, exclude=("blocks/0",)).paths({"blocks": {"fc": {"kernel": jnp.zeros((3, 4, 4))}}})
    with pytest.raises(ConfigError, match="too many for one threshold"):
        Pruning(sparsity=0.5).paths({"fc1": {"kernel": jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)}})
    with pytest.raises(ConfigError, match="scope of pruning is 'layer'"):
        Pruning(sparsity=0.5, scope="layer")
    with pytest.raises(ConfigError, match=r"from a sparsity of 0.0 to 1.0"):
        Pruning(sparsity=1.0)
    with pytest.raises(ConfigError, match=r"prune.exclude has '\(', no regular expression"):
        Pruning(sparsity=0.5, exclude=("(",))
