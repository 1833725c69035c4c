import functools
import math
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from vision_jax import config as config_lib
from vision_jax.devices import flops, sharding
from vision_jax.models import transformer
from vision_jax.models.layers import BatchNorm, dot_after_gelu, gelu, max_pool
from vision_jax.models.transformer import attention


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


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("group_size", "dtype"), [(0, "float32"), (2, "float32"), (0, "bfloat16")])
def test_pooling_before_the_norm_is_pooling_after_it(case, group_size: int, dtype: str, train: bool):
    """To the bit, where scales are negative or 0 too; and the gradients, where no two values become the same one."""
    x, variables = case
    x = jnp.asarray(x, dtype)
    variables["params"]["scale"] = jnp.array([-1.5, 0.5, 0.0, -0.25])
    norm = BatchNorm(group_size=group_size, dtype=dtype)
    pool = functools.partial(max_pool, size=3, stride=2, padding=1)
    mutable = ["batch_stats"] if train else []

    def after(variables, x):
        y, updates = norm.apply(variables, x, train=train, mutable=mutable)
        return pool(nn.relu(y)), (y, updates)

    def before(variables, x):
        (y, pooled), updates = norm.apply(variables, x, train=train, pool=pool, mutable=mutable)
        return nn.relu(pooled), (y, updates)

    jax.tree.map(np.testing.assert_array_equal, after(variables, x), before(variables, x))
    if dtype == "float32":
        variables["params"]["scale"] = jnp.array([-1.5, 0.5, 1.0, -0.25])
        weights = jnp.asarray(np.random.RandomState(1).standard_normal((8, 2, 3, 4)))
        expected, found = (
            jax.jit(jax.grad(lambda variables, x, f=f: (f(variables, x)[0] * weights).sum(), (0, 1)))(variables, x)
            for f in (after, before)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), expected, found)


@pytest.mark.parametrize("group_size", [0, 2])
def test_the_norm_of_a_product_is_that_of_its_factors(case, group_size: int):
    """Values and statistics to the bit; first and second derivatives as differentiation gives them."""
    x, variables = case
    random = np.random.RandomState(1)
    inputs = nn.relu(jnp.asarray(x) - 1)
    kernel = jnp.asarray(random.standard_normal((4, 12)), jnp.float32)
    weights = jnp.asarray(random.standard_normal((8, 3, 5, 12)), jnp.float32)
    norm, repeat = BatchNorm(group_size=group_size), functools.partial(jnp.tile, reps=3)
    arguments = (jax.tree.map(repeat, variables["params"]), inputs, kernel)
    along = jax.tree.map(lambda a: jnp.asarray(random.standard_normal(a.shape), jnp.float32), arguments)

    def run(factorized: bool):
        def loss(params, inputs, kernel):
            all_variables = {"params": params, "batch_stats": jax.tree.map(repeat, variables["batch_stats"])}
            factors = (inputs, kernel[None, None]) if factorized else None
            y, stats = norm.apply(all_variables, inputs @ kernel, train=True, factors=factors, mutable=["batch_stats"])
            return (jnp.sin(y) * weights).sum(), (y, stats)

        def slope(*arguments):
            gradients, _ = jax.grad(loss, (0, 1, 2), has_aux=True)(*arguments)
            return jax.tree.reduce(jnp.add, jax.tree.map(lambda g, u: (g * u).sum(), gradients, along))

        (_, values), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*arguments)
        return values, (gradients, jax.grad(slope, (0, 1, 2))(*arguments))

    (values, ours), (plain, expected) = run(True), run(False)
    jax.tree.map(np.testing.assert_array_equal, values, plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), ours, expected)


def test_the_norm_of_a_product_in_bfloat16():
    """Its gradients are at least as near to those in float32 as differentiation's."""
    random = np.random.RandomState(0)
    inputs = nn.relu(jnp.asarray(random.standard_normal((16, 8, 8, 32)), jnp.bfloat16))
    kernel = jnp.asarray(random.standard_normal((32, 128)) / 6, jnp.bfloat16).astype(jnp.float32)
    weights = jnp.asarray(random.standard_normal((16, 8, 8, 128)), jnp.bfloat16)
    params = {"scale": jnp.asarray(random.uniform(0.5, 2, 128), jnp.float32), "bias": jnp.zeros(128)}

    def gradients(dtype: str, factorized: bool):
        def loss(params, inputs, kernel):
            x = inputs @ kernel.astype(dtype)
            factors = (inputs, kernel) if factorized else None
            stats = {"mean": jnp.zeros(128), "var": jnp.ones(128)}
            y, _ = BatchNorm(dtype=dtype).apply(
                {"params": params, "batch_stats": stats}, x, train=True, factors=factors, mutable=["batch_stats"]
            )
            return (nn.relu(y) * weights).sum(dtype=jnp.float32)

        return jax.jit(jax.grad(loss, (0, 1, 2)))(params, inputs.astype(dtype), kernel)

    exact, plain, ours = gradients("float32", False), gradients("bfloat16", False), gradients("bfloat16", True)

    def error(tree):
        return jax.tree.map(lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)), tree, exact)

    for ours_, plain_ in zip(jax.tree.leaves(error(ours)), jax.tree.leaves(error(plain)), strict=True):
        assert ours_ < 1.1 * plain_ + 1e-4, (error(ours), error(plain))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_gelu_and_its_derivative(dtype: str, tolerance: float):
    """By the formulas, in float64: x times the normal distribution's share below x, and that share plus x's density."""
    x = np.concatenate([np.linspace(-12, 12, 481), [-40.0, 0.0, 40.0]])
    share = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])
    density = np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    rounded = jnp.asarray(x, dtype)
    tight = {"atol": tolerance, "rtol": tolerance}
    np.testing.assert_allclose(np.float64(gelu(rounded)), x * share, **tight)
    slopes = jax.vmap(jax.grad(gelu))(rounded)
    assert slopes.dtype == dtype
    np.testing.assert_allclose(np.float64(slopes), share + x * density, **tight)


def test_a_product_of_gelu_keeps_its_argument_alone():
    random = np.random.RandomState(0)
    x, kernel = (jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ((6, 5), (5, 3)))
    dimensions = (((1,), (0,)), ((), ()))

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sin(dot_after_gelu(x, kernel, dimensions)).sum()

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sin(jax.nn.gelu(x, approximate=False) @ kernel).sum()

    (value, pull), (expected, plain_pull) = jax.vjp(loss, x, kernel), jax.vjp(plain, x, kernel)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for actual, wanted in zip(pull(1.0), plain_pull(1.0), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)
    assert [kept.shape for kept in jax.tree.leaves(pull)].count(x.shape) == 1
    assert [kept.shape for kept in jax.tree.leaves(plain_pull)].count(x.shape) > 1


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 4e-2)])
@pytest.mark.parametrize(
    ("bias_shape", "recompute"), [(None, False), (None, True), ((1, 3, 7, 7), False), ((2, 1, 1, 7), True)]
)
def test_attention_and_its_derivative(
    bias_shape: tuple[int, ...] | None, recompute: bool, dtype: str, tolerance: float
):
    """As JAX's own and what differentiating that gives, in float32."""
    random = np.random.RandomState(0)
    query, key, value, weights = (jnp.asarray(random.standard_normal((2, 7, 3, 8)), dtype) for _ in range(4))
    bias = None if bias_shape is None else jnp.asarray(random.standard_normal(bias_shape), jnp.float32)

    def loss(function, arguments):
        return (function(*arguments).astype(jnp.float32) * weights).sum()

    arguments = (query, key, value, bias)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), arguments)
    ours = jax.value_and_grad(lambda a: loss(functools.partial(attention, recompute=recompute), a))(arguments)
    expected = jax.value_and_grad(lambda a: loss(jax.nn.dot_product_attention, a))(wide)
    leaves = zip(*map(jax.tree.leaves, (ours[1], expected[1], arguments)), strict=True)
    for actual, wanted, argument in leaves:
        assert actual.dtype == argument.dtype
        np.testing.assert_allclose(np.float32(actual), wanted, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(ours[0], expected[0], rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("recompute", [False, True])
def test_attention_that_is_recomputed_keeps_no_map(recompute: bool):
    heads = jax.ShapeDtypeStruct((2, 64, 3, 8), jnp.float32)
    function = functools.partial(attention, bias=None, recompute=recompute)
    kept = jax.eval_shape(lambda *arguments: jax.vjp(function, *arguments)[1], heads, heads, heads)
    assert any(x.shape[-2:] == (64, 64) for x in jax.tree.leaves(kept)) != recompute


def a_gpu(version: str = "PJRT C API\ncuda 12090", capability: str = "9.0", kind: str = "cpu") -> SimpleNamespace:
    client = SimpleNamespace(platform_version=version)
    return SimpleNamespace(platform="gpu", client=client, compute_capability=capability, device_kind=kind)


@pytest.mark.parametrize(
    ("device", "dtype", "features", "biased", "chosen"),
    [
        (a_gpu(), "bfloat16", 64, False, True),
        (a_gpu(), "float16", 128, False, True),
        (a_gpu(), "float32", 64, False, False),
        (a_gpu(), "bfloat16", 64, True, False),
        (a_gpu(), "bfloat16", 20, False, False),
        (a_gpu(), "bfloat16", 136, False, False),
        (a_gpu(capability="7.5"), "bfloat16", 64, False, False),
        (a_gpu("rocm 60000"), "bfloat16", 64, False, False),
        (a_gpu(kind="NVIDIA H100 80GB HBM3"), "bfloat16", 64, False, False),  # and the mesh is of CPUs
        (None, "bfloat16", 64, False, False),
    ],
)
def test_which_attention_cudnn_computes(
    device, dtype: str, features: int, biased: bool, chosen: bool, monkeypatch: pytest.MonkeyPatch
):
    """As lowered for CUDA, which needs no GPU. The operations that MFU counts stay the same."""
    mesh = sharding.make_mesh(config_lib.default_config().mesh, jax.devices()[:1])
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    heads = jax.ShapeDtypeStruct((8, 14, 3, features), dtype)
    bias = jax.ShapeDtypeStruct((1, 3, 14, 14), "float32") if biased else None

    def traced(*arguments):
        loss = jax.grad(lambda *arguments: attention(*arguments).astype(jnp.float32).sum(), (0, 1, 2))
        with jax.set_mesh(mesh):
            return jax.jit(lambda *arguments: loss(*arguments)).trace(*arguments)

    of_fused = flops.count(traced(heads, heads, heads, bias).jaxpr)
    if device is not None:
        monkeypatch.setattr(jax, "local_devices", lambda: [device])
    step = traced(heads, heads, heads, bias)
    assert ("__cudnn$fmha" in step.lower(lowering_platforms=("cuda",)).as_text()) == chosen
    assert flops.count(step.jaxpr) == of_fused == 6 * 2 * 8 * 3 * 14 * 14 * features


@pytest.mark.parametrize(
    "function",
    [transformer._flash, functools.partial(attention, bias=None, recompute=True)],
    ids=["of a kernel that has none", "of what is recomputed"],
)
def test_the_second_derivative_of_attention(function: Any, monkeypatch: pytest.MonkeyPatch):
    @jax.custom_vjp
    def kernel(*arguments):
        return jax.nn.dot_product_attention(*arguments)

    def backward(arguments, gradient):
        def on_host(arguments, gradient):
            return jax.vjp(jax.nn.dot_product_attention, *map(jnp.asarray, arguments))[1](jnp.asarray(gradient))

        return jax.pure_callback(on_host, arguments, arguments, gradient)  # which cannot be differentiated

    kernel.defvjp(lambda *arguments: (kernel(*arguments), arguments), backward)
    monkeypatch.setattr(transformer, "_flash_kernel", kernel)
    random = np.random.RandomState(0)
    query, key, value, weights, *along = (
        jnp.asarray(random.standard_normal((2, 7, 3, 8)), jnp.float32) for _ in range(7)
    )

    def curvature(function):
        loss = lambda *arguments: (function(*arguments) * weights).sum()  # noqa: E731

        def slope(*arguments):
            return sum((g * u).sum() for g, u in zip(jax.grad(loss, (0, 1, 2))(*arguments), along, strict=True))

        return jax.grad(slope, (0, 1, 2))(query, key, value)

    by_jax = jax.jit(lambda: curvature(jax.nn.dot_product_attention))()
    for ours, expected in zip(curvature(function), by_jax, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
