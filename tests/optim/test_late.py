"""Parameters that are frozen at first, and the clipping of each parameter, against their formulas in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax import optim
from vision_jax.errors import ConfigError
from vision_jax.optim import GroupRules, begin_late, clip_parameters, create_optimizer, shift_schedule

SHAPES = {"body": {"kernel": (3, 4), "bias": (4,)}, "last": {"kernel": (4, 2)}}


def tree(seed: int) -> Any:
    random = np.random.RandomState(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(random.standard_normal(shape), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def rate(step: Any) -> Any:
    return 0.1 / (1 + jnp.asarray(step, jnp.float32))


def adamw(p: np.ndarray, grads: list[np.ndarray], first: int, decay: float) -> np.ndarray:
    """AdamW as torch has it for a parameter whose first gradient is that of step `first`."""
    p, m, v = np.float64(p), 0.0, 0.0
    for step in range(first, len(grads)):
        g, lr, t = np.float64(grads[step]), 0.1 / (1 + step), step - first + 1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        p = p * (1 - lr * decay * (1 + step)) - lr * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return p


def test_what_begins_late_is_trained_as_if_the_optimizer_began():
    """Adam's moments are corrected for their own start, while learning rate and decay are those of the run."""
    params, grads = tree(0), [tree(seed) for seed in range(1, 6)]
    rules = GroupRules(decay="kernels", frozen_until=(("^last/", 2),), multipliers=(("bias", 1.0),))
    rows = {row.path: row for row in rules.table(params)}
    assert {path: row.begins for path, row in rows.items()} == {"body/bias": 0, "body/kernel": 0, "last/kernel": 2}
    assert "from step 2" in optim.format_table(list(rows.values()))

    def create(start: int):
        decay = shift_schedule(lambda step: 0.3 * (1 + step), start)
        return create_optimizer("adamw", shift_schedule(rate, start), weight_decay=decay, decay_mask=rules.decay_mask)

    optimizer = begin_late(create, {path: row.begins for path, row in rows.items()})
    state, found, update = optimizer.init(params), params, jax.jit(optimizer.update)
    for number, grad in enumerate(grads):
        updates, state = update(grad, state, found)
        found = jax.tree.map(jnp.add, found, updates)
        if number == 1:
            np.testing.assert_array_equal(found["last"]["kernel"], params["last"]["kernel"])
            assert not any(np.any(x) for x in jax.tree.leaves(state.inner[1]))  # no moments either
    for module, leaf, first, decay in (
        ("body", "kernel", 0, 0.3),
        ("body", "bias", 0, 0.0),
        ("last", "kernel", 2, 0.3),
    ):
        expected = adamw(params[module][leaf], [grad[module][leaf] for grad in grads], first, decay)
        np.testing.assert_allclose(found[module][leaf], expected, rtol=1e-5, atol=1e-6)


def test_an_optimizer_of_the_loss_itself_gets_all_parameters():
    params = tree(0)
    paths = ("body/bias", "body/kernel", "last/kernel")
    optimizer = begin_late(lambda start: create_optimizer("sophia", 0.1), dict(zip(paths, (0, 0, 1), strict=True)))

    def loss(params: Any) -> jax.Array:
        return sum(jnp.square(x).sum() for x in jax.tree.leaves(params)) * params["last"]["kernel"].sum()

    updates, _ = optimizer.update(jax.grad(loss)(params), optimizer.init(params), params, obj_fn=loss)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert not updates["last"]["kernel"].any()
    assert updates["body"]["kernel"].any()


def test_without_late_parameters_the_state_is_that_of_the_optimizer():
    plain = create_optimizer("sgd", 0.1, momentum=0.9)
    wrapped = begin_late(lambda start: plain, {"body/bias": 0, "body/kernel": 0, "last/kernel": 0})
    assert wrapped is plain


def test_rules_that_cannot_hold():
    with pytest.raises(ConfigError, match=r"optimizer.frozen_until: the pattern 'lost' matches no parameter"):
        GroupRules(frozen_until=(("lost", 2),)).table(tree(0))
    stacked = {"blocks": {"mlp": {"kernel": jnp.zeros((3, 4, 4))}}}
    with pytest.raises(ConfigError, match="frozen_until matches only some of the blocks stacked in blocks/mlp/kernel"):
        GroupRules(frozen_until=((r"blocks/0/", 2),)).table(stacked)
    assert [row.begins for row in GroupRules(frozen_until=(("blocks", 2), ("kernel", 5))).table(stacked)] == [5]


def test_each_gradient_is_clipped_by_its_own_norm():
    """g *= min(1, c / (|g| + 1e-6)) of facebookresearch/dino, and so of each block that a scan has stacked."""
    grads = {"small": jnp.array([0.3, 0.4]), "large": jnp.array([[3.0], [4.0]]), "zero": jnp.zeros(2)}
    found, _ = clip_parameters(1.0).update(grads, clip_parameters(1.0).init(grads))
    np.testing.assert_allclose(found["small"], [0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(found["large"], [[3 / 5.000001], [4 / 5.000001]], rtol=1e-6)
    np.testing.assert_array_equal(found["zero"], 0)
    blocks = {"blocks": {"fc": {"bias": jnp.array([[3.0, 4.0], [0.3, 0.4]])}}}
    found, _ = clip_parameters(1.0).update(blocks, clip_parameters(1.0).init(blocks))
    np.testing.assert_allclose(found["blocks"]["fc"]["bias"], [[0.6, 0.8], [0.3, 0.4]], rtol=1e-5)
    sgd = create_optimizer("sgd", 1.0, clip_parameter_norm=1.0, clip_global_norm=1.0)  # in this order
    updates, _ = sgd.update(grads, sgd.init(grads), grads)
    assert float(np.sqrt(sum(np.square(x).sum() for x in updates.values()))) == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_allclose(updates["large"], -np.array([[0.6], [0.8]]) / np.sqrt(1.25), rtol=1e-5)
