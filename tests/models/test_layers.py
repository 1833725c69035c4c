import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax import config as config_lib
from vision_jax.devices import sharding
from vision_jax.models.layers import BatchNorm


def torch_batch_norm(x: np.ndarray, scale, bias, mean, var, momentum: float = 0.1, eps: float = 1e-5):
    """torch.nn.BatchNorm2d in training, by the formulas of its documentation, in float64 and NHWC."""
    x = x.astype(np.float64)
    batch_mean, batch_var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    n = x.size / x.shape[-1]
    normalized = (x - batch_mean) / np.sqrt(batch_var + eps) * scale + bias
    return (
        normalized,
        (1 - momentum) * mean + momentum * batch_mean,
        (1 - momentum) * var + momentum * batch_var * n / (n - 1),
    )


@pytest.fixture(name="case")
def make_case():
    random = np.random.RandomState(0)
    x = (random.standard_normal((8, 3, 5, 4)) * [1, 2, 3, 4] + [0, 1, 2, 3]).astype(np.float32)
    params = {"scale": random.uniform(0.5, 2, 4), "bias": random.standard_normal(4)}
    stats = {"mean": random.standard_normal(4), "var": random.uniform(0.5, 2, 4)}
    as_float32 = lambda tree: jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), tree)  # noqa: E731
    return x, as_float32({"params": params, "batch_stats": stats})


@pytest.mark.parametrize("group_size", [0, 2, 4, 8, 100])
def test_training_equals_torch_on_each_group(case, group_size: int):
    x, variables = case
    y, updates = BatchNorm(group_size=group_size).apply(variables, x, train=True, mutable=["batch_stats"])
    size = min(group_size or 8, 8)
    groups = [
        torch_batch_norm(x[i : i + size], **variables["params"], **variables["batch_stats"]) for i in range(0, 8, size)
    ]
    np.testing.assert_allclose(y, np.concatenate([group[0] for group in groups]), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], np.mean([g[1] for g in groups], 0), rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["var"], np.mean([g[2] for g in groups], 0), rtol=1e-5)


@pytest.mark.parametrize("group_size", [0, 2])
def test_eight_devices_normalize_as_one(case, group_size: int):
    """Values, statistics and gradients."""
    x, variables = case
    mesh = sharding.make_mesh(config_lib.default_config().mesh, jax.devices())

    @jax.jit
    def run(variables, x):
        def loss(params, x):
            norm = BatchNorm(group_size=group_size)
            y, updates = norm.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), (y, updates)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)

    one = run(variables, x)
    eight = run(jax.device_put(variables, sharding.replicated(mesh)), jax.device_put(x, sharding.along_batch(mesh)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, eight)


def test_evaluation_uses_the_running_statistics(case):
    x, variables = case
    y = BatchNorm().apply(variables, x, train=False)
    p, s = variables["params"], variables["batch_stats"]
    np.testing.assert_allclose(
        y, (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"], rtol=1e-5, atol=1e-5
    )


def test_statistics_are_float32_in_bfloat16(case):
    x, variables = case
    norm = BatchNorm(dtype=jnp.bfloat16)
    y, updates = norm.apply(variables, jnp.asarray(x, jnp.bfloat16), train=True, mutable=["batch_stats"])
    exact = torch_batch_norm(
        np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32), **variables["params"], **variables["batch_stats"]
    )
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), exact[0], rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], exact[1], rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["var"], exact[2], rtol=1e-5)


def test_groups_must_divide_the_batch(case):
    x, variables = case
    with pytest.raises(ValueError, match="8 examples cannot be normalized in groups of 3"):
        BatchNorm(group_size=3).apply(variables, x, train=True, mutable=["batch_stats"])
