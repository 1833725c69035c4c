"""Optimizers against what torch and timm computed, and against formulas written out in numpy."""

import functools
import json
import math
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vision_jax.errors import ConfigError
from vision_jax.optim import (
    GroupRules,
    clip_adaptive,
    create_optimizer,
    create_schedule,
    list_optimizers,
    merge,
    optimizer_arguments,
)

PARITY = pathlib.Path(__file__).parent.parent / "parity"
REFERENCES = [np.load(PARITY / name) for name in ("optimizers.npz", "optimizers_more.npz")]
CASES = [(i, name) for i, reference in enumerate(REFERENCES) for name in json.loads(str(reference["cases"]))]
SHAPES = {"w": (16, 8), "b": (8,)}
QUICK = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
MASK = {"w": True, "b": False}
NAMES = {"torch.SGD": "sgd", "torch.Adam": "adam", "torch.AdamW": "adamw", "torch.RMSprop": "rmsprop"}
NAMES |= {"timm.rmsproptf": "rmsprop_tf", "timm.adafactorbv": "adafactor"}
ARGUMENTS = {"alpha": "decay", "trust_coeff": "trust_coefficient", "momentum_dtype": "mu_dtype", "beta2_cap": "b2_cap"}


@functools.cache
def value(name: str, step: int) -> np.ndarray:
    """The gradient of a step, or the parameter at step 0, as the reference has it."""
    seed = zlib.crc32(f"{name}.{step}".encode())
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(SHAPES[name], dtype=np.float32)


def reference_optimizer(case: list) -> optax.GradientTransformation:
    library_name, learning_rate, weight_decay, arguments, clip = case
    kwargs = {}
    for key, argument in arguments.items():
        if key == "betas":
            kwargs |= {f"b{i + 1}": beta for i, beta in enumerate(argument)}
        elif key in ("decoupled_decay", "no_prox"):
            kwargs["decay_form"] = "decoupled"
        elif (key, argument) == ("momentum", None):
            kwargs["momentum"] = 0.0
        else:
            kwargs[ARGUMENTS.get(key, key)] = argument
    name = NAMES.get(library_name, library_name.removeprefix("timm."))
    return create_optimizer(
        name, learning_rate, weight_decay=weight_decay, decay_mask=MASK, clip_global_norm=clip, **kwargs
    )


def run(optimizer: optax.GradientTransformation, steps: int) -> list[dict[str, np.ndarray]]:
    """The parameters after each step."""
    params = {name: jnp.asarray(value(name, 0)) for name in SHAPES}
    state = optimizer.init(params)
    step = QUICK(optimizer.update)
    history = []
    for t in range(1, steps + 1):
        updates, state = step({name: value(name, t) for name in SHAPES}, state, params)
        params = optax.apply_updates(params, updates)
        history.append(jax.device_get(params))
    return history


@pytest.mark.parametrize(("index", "name"), CASES)
def test_follows_torch_and_timm(index: int, name: str):
    reference = REFERENCES[index]
    history = run(reference_optimizer(json.loads(str(reference["cases"]))[name]), 20)
    for step in (1, 2, 5, 20):
        for tensor in SHAPES:
            np.testing.assert_allclose(
                history[step - 1][tensor], reference[f"{name}/{tensor}/{step}"], rtol=1e-5, atol=1e-6
            )


def test_decay_relative_to_the_schedule():
    """p -= lr * m + lr / peak * wd * p, as composer's DecoupledSGDW, with a learning rate that falls."""
    schedule = create_schedule("linear", 0.5, total_steps=4)
    optimizer = create_optimizer(
        *("sgd", schedule),
        **{
            "weight_decay": 0.1,
            "decay_mask": MASK,
            "decay_form": "relative",
            "peak_learning_rate": 0.5,
            "momentum": 0.9,
        },
    )
    p, m = {name: value(name, 0).astype(np.float64) for name in SHAPES}, dict.fromkeys(SHAPES, 0.0)
    for t, params in enumerate(run(optimizer, 4)):
        share = 1 - t / 4
        for name in SHAPES:
            m[name] = 0.9 * m[name] + value(name, t + 1)
            p[name] = p[name] - 0.5 * share * m[name] - share * 0.1 * MASK[name] * p[name]
            np.testing.assert_allclose(params[name], p[name], rtol=1e-5, atol=1e-6)


def test_relative_is_decoupled_over_the_peak():
    relative = run(create_optimizer("adamw", 0.01, weight_decay=0.002, decay_form="relative"), 5)
    decoupled = run(create_optimizer("adamw", 0.01, weight_decay=0.2), 5)
    np.testing.assert_allclose(relative[-1]["w"], decoupled[-1]["w"], rtol=1e-6)
    coupled = run(create_optimizer("adamw", 0.01, weight_decay=0.2, decay_form="coupled"), 5)
    np.testing.assert_array_equal(coupled[-1]["w"], run(create_optimizer("adam", 0.01, weight_decay=0.2), 5)[-1]["w"])


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lars", "adan"])
def test_scheduled_weight_decay(name: str):
    """Of a function that is constant comes what of the number does; of one that begins at zero, no decay at first."""
    kwargs = {"decay_mask": MASK}
    constant = run(create_optimizer(name, 0.1, weight_decay=lambda t: 0.05, **kwargs), 3)
    number = run(create_optimizer(name, 0.1, weight_decay=0.05, **kwargs), 3)
    for tensor in SHAPES:
        np.testing.assert_allclose(constant[-1][tensor], number[-1][tensor], rtol=1e-6, atol=1e-7)
    rising = run(create_optimizer(name, 0.1, weight_decay=lambda t: 0.05 * t, **kwargs), 2)
    almost = run(create_optimizer(name, 0.1, weight_decay=1e-30, **kwargs), 2)
    np.testing.assert_allclose(rising[0]["w"], almost[0]["w"], rtol=1e-6)
    assert np.abs(rising[1]["w"] - almost[1]["w"]).max() > 1e-5
    np.testing.assert_allclose(rising[1]["b"], almost[1]["b"], rtol=1e-6)


def test_rmsprop_tf_keeps_the_learning_rate_in_its_momentum():
    """m = 0.9 * m + lr_t * g / sqrt(v + eps): where the learning rate falls to zero, parameters move on."""
    optimizer = create_optimizer("rmsprop_tf", lambda t: jnp.where(t < 1, 0.1, 0.0), momentum=0.9, eps=1e-3)
    history = run(optimizer, 3)
    v = 0.9 + 0.1 * value("w", 1).astype(np.float64) ** 2
    first = 0.1 * value("w", 1) / np.sqrt(v + 1e-3)
    np.testing.assert_allclose(history[2]["w"], value("w", 0) - (1 + 0.9 + 0.81) * first, rtol=1e-5, atol=1e-6)


def test_lars_clips_against_the_scheduled_rate():
    """r = min(ratio / lr, 1); in the second step lr is half."""
    optimizer = create_optimizer("lars", lambda t: 0.01 / (1 + t), weight_decay=0.1, trust_clip=True)
    p = value("w", 0).astype(np.float64)
    for t, params in enumerate(run(optimizer, 2)):
        g, lr = value("w", t + 1).astype(np.float64), 0.01 / (1 + t)
        p_norm, g_norm = np.linalg.norm(p), np.linalg.norm(g)
        ratio = 0.001 * p_norm / (g_norm + 0.1 * p_norm + 1e-8)
        p = p - lr * min(ratio / lr, 1) * (g + 0.1 * p)
        np.testing.assert_allclose(params["w"], p, rtol=1e-5, atol=1e-6)


LARS = {"weight_decay": 1e-6, "momentum": 0.9, "decay_mask": {"w": True, "b": False}}


def test_lars_by_rank_worked_out_by_hand():
    """Ratio 0.001 * 5 / sqrt(0.3) = 0.009128651, then 0.009098307; LARC's, of |g| + wd * |p|, is 0.009128626."""
    params = {"w": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "b": jnp.array([1.0, 2.0])}
    grads = {"w": jnp.array([[0.1, 0.2], [0.3, 0.4]]), "b": jnp.array([0.1, -0.1])}
    optimizer = create_optimizer("lars", 4.8, by_rank=True, **LARS)
    state = optimizer.init(params)
    for w, b in (
        ([[2.995618, -0.008764], [-0.013145, 3.982473]], [0.52, 2.48]),
        ([[2.987307, -0.025385], [-0.038078, 3.949229]], [0.52 - 0.912, 2.48 + 0.912]),
    ):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["w"], w, atol=2e-6)
        np.testing.assert_allclose(params["b"], b, rtol=1e-6)
    larc = create_optimizer("lars", 1.0, always_adapt=True, **LARS | {"decay_mask": None, "momentum": 0.0})
    first = {"w": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "b": jnp.array([1.0, 2.0])}
    updates, _ = larc.update(grads, larc.init(first), first)
    np.testing.assert_allclose(-updates["w"], 0.009128626 * (grads["w"] + 1e-6 * first["w"]), rtol=1e-6)
    assert (np.abs(updates["b"]) < 0.03).all()  # which is adapted too


def test_lars_with_the_rate_in_its_momentum():
    """As in SimCLR's code, v = 0.9 v + lr r (g + wd p), p -= v; equal to the other form for a rate that is constant."""
    rate = lambda t: 0.1 / (1 + t)  # noqa: E731
    found = run(create_optimizer("lars", rate, by_rank=True, classic_momentum=True, **LARS), 3)
    other = run(create_optimizer("lars", rate, by_rank=True, **LARS), 3)
    p = {name: value(name, 0).astype(np.float64) for name in SHAPES}
    v = dict.fromkeys(SHAPES, 0.0)
    for t, params in enumerate(found):
        for name in SHAPES:
            g = value(name, t + 1).astype(np.float64)
            if name == "w":
                g = g + 1e-6 * p[name]
                g = 0.001 * np.linalg.norm(p[name]) / np.linalg.norm(g) * g
            v[name] = 0.9 * v[name] + 0.1 / (1 + t) * g
            p[name] = p[name] - v[name]
            np.testing.assert_allclose(params[name], p[name], rtol=1e-5, atol=1e-6)
    assert np.abs(found[2]["b"] - other[2]["b"]).max() > 1e-2
    constant = [
        run(create_optimizer("lars", 0.1, by_rank=True, classic_momentum=classic, **LARS), 3)[-1]["w"]
        for classic in (True, False)
    ]
    np.testing.assert_allclose(*constant, rtol=1e-6)


@pytest.mark.parametrize("name", list_optimizers())
def test_bfloat16_momentum(name: str):
    """It halves the state of the first moment and changes little; the second moment stays in float32."""
    optimizer = create_optimizer(
        name, 0.01, mu_dtype="bfloat16", **({"momentum": 0.9} if "momentum" in optimizer_arguments(name) else {})
    )
    params = {name: jnp.asarray(value(name, 0)) for name in SHAPES}

    def kinds_of(optimizer: optax.GradientTransformation) -> set[str]:
        leaves = jax.tree.leaves(jax.eval_shape(optimizer.init, params))
        return {x.dtype.name for x in leaves if x.ndim and x.dtype != jnp.uint32}  # which are random keys

    assert kinds_of(optimizer) in ({"bfloat16"}, {"bfloat16", "float32"})
    full = create_optimizer(
        name, 0.01, mu_dtype="float32", **({"momentum": 0.9} if "momentum" in optimizer_arguments(name) else {})
    )
    assert kinds_of(full) == {"float32"}
    if name in ("sgd", "nadamw"):
        one, two = run(full, 5)[-1]["w"], run(optimizer, 5)[-1]["w"]
        assert 0 < np.linalg.norm(one - two) < 0.02 * np.linalg.norm(one - value("w", 0))


@pytest.mark.parametrize("frozen", [(), ("^b",)])
def test_sophia_divides_by_curvatures(frozen: tuple[str, ...]):
    """Of a loss whose Hessian is diagonal, whatever the random signs are; also where a part is frozen."""
    curvature = {"w": np.linspace(0.5, 40, 128).reshape(16, 8), "b": np.full(8, 3.0)}

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        return sum(0.5 * (curvature[name] * jnp.square(params[name])).sum() for name in SHAPES)

    rules = GroupRules(decay="all", frozen=frozen)
    params = {name: jnp.asarray(value(name, 0)) for name in SHAPES}
    optimizer = rules.wrap(
        create_optimizer("sophia", 0.1, weight_decay=0.2, gamma=0.5, update_interval=2, decay_mask=rules.decay_mask),
        params,
    )
    expected = {name: value(name, 0).astype(np.float64) for name in SHAPES}
    mu, h = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    trained, rest = rules.split(params)
    whole = lambda trained: loss(merge(trained, rest))  # noqa: E731
    state = optimizer.init(trained)
    step = QUICK(lambda grads, state, params: optimizer.update(grads, state, params, obj_fn=whole))
    for t in range(1, 7):
        updates, state = step(jax.grad(whole)(trained), state, trained)
        trained = optax.apply_updates(trained, updates)
        params = merge(trained, rest)
        for name in SHAPES if not frozen else ("w",):
            mu[name] = 0.965 * mu[name] + 0.035 * curvature[name] * expected[name]
            direction = np.clip(mu[name] / (1 - 0.965**t) / np.maximum(0.5 * h[name], 1e-8), -1, 1)
            if t % 2 == 1:
                h[name] = 0.99 * h[name] + 0.01 * curvature[name]
            expected[name] = expected[name] - 0.1 * (direction + 0.2 * expected[name])
        for name in SHAPES:
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-4, atol=1e-6)


def newton_schulz(x: np.ndarray) -> np.ndarray:
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[0] > x.shape[1]
    x = (x.T if tall else x) / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x.T if tall else x


def test_muon_orthogonalizes_kernels_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    shapes = {
        "conv": {"kernel": (3, 3, 4, 32), "bias": (32,)},
        "blocks": {"kernel": (2, 8, 6)},
        "head": {"kernel": (8, 4)},
    }
    draw = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    is_leaf = lambda x: isinstance(x, tuple)  # noqa: E731
    params, grads = (jax.tree.map(draw, shapes, is_leaf=is_leaf) for _ in range(2))
    optimizer = create_optimizer(
        "muon", 0.1, weight_decay=0.5, decay_mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    )
    updates, _ = QUICK(optimizer.update)(grads, optimizer.init(params), params)
    adam = create_optimizer("adamw", 0.1, weight_decay=0.5, decay_mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
    by_adam, _ = QUICK(adam.update)(grads, adam.init(params), params)

    g, p = np.asarray(grads["conv"]["kernel"], np.float64), np.asarray(params["conv"]["kernel"])
    direction = newton_schulz(g.reshape(36, 32)).reshape(g.shape)  # more inputs than outputs: no factor
    np.testing.assert_allclose(updates["conv"]["kernel"], -0.1 * (direction + 0.5 * p), atol=2e-5)
    for i in range(2):
        g, p = np.asarray(grads["blocks"]["kernel"][i], np.float64), np.asarray(params["blocks"]["kernel"][i])
        np.testing.assert_allclose(updates["blocks"]["kernel"][i], -0.1 * (newton_schulz(g) + 0.5 * p), atol=2e-5)
    singular = np.linalg.svd(direction.reshape(36, 32))[1]
    assert (singular > 0.6).all()
    assert (singular < 1.3).all()
    by_rms = create_optimizer("muon", 0.1, consistent_rms=0.2)
    updates_by_rms, _ = QUICK(by_rms.update)(grads, by_rms.init(params), params)
    np.testing.assert_allclose(updates_by_rms["conv"]["kernel"], -0.1 * 0.2 * 6 * direction, atol=2e-5)
    np.testing.assert_allclose(updates["conv"]["bias"], by_adam["conv"]["bias"], rtol=1e-5)
    np.testing.assert_allclose(updates["head"]["kernel"], by_adam["head"]["kernel"], rtol=1e-5)


@pytest.mark.parametrize(("name", "options"), [("lamb", {}), ("lars", {}), ("lars", {"by_rank": True}), ("muon", {})])
def test_stacked_blocks_are_updated_as_blocks_on_their_own(name: str, options: dict):
    rng = np.random.default_rng(0)
    params, grads = ({"kernel": rng.standard_normal((3, 4, 6)), "bias": rng.standard_normal((3, 6))} for _ in range(2))
    for i in range(3):
        grads["kernel"][i] *= 10.0**i  # ratios of their own
    optimizer = create_optimizer(name, 0.1, weight_decay=0.1, clip_adaptive=0.05, **options)

    def apart(tree: dict) -> dict:
        blocks = {str(i): {"mlp": {k: jnp.asarray(v[i], jnp.float32) for k, v in tree.items()}} for i in range(3)}
        return {"blocks": blocks}

    def stacked(tree: dict) -> dict:
        return {"blocks": {"mlp": {k: jnp.asarray(v, jnp.float32) for k, v in tree.items()}}}

    one, _ = QUICK(optimizer.update)(apart(grads), optimizer.init(apart(params)), apart(params))
    two, _ = QUICK(optimizer.update)(stacked(grads), optimizer.init(stacked(params)), stacked(params))
    for i in range(3):
        for leaf in ("kernel", "bias"):
            np.testing.assert_allclose(
                one["blocks"][str(i)]["mlp"][leaf], two["blocks"]["mlp"][leaf][i], rtol=1e-4, atol=1e-5
            )


def test_adaptive_clipping():
    """Against the paper's formula, unit by unit, in torch's layout, in which units are along the first axis."""
    rng = np.random.default_rng(0)
    params = {
        "conv": {"kernel": rng.standard_normal((3, 3, 4, 5)), "bias": np.zeros(5)},
        "fc": {"kernel": 0.01 * rng.standard_normal((6, 7))},
        "pos_embed": rng.standard_normal((1, 9, 4)),
        "stem": {"kernel": 100 * rng.standard_normal((3, 3, 1, 2))},
    }
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    grads = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), params)
    transformation = clip_adaptive(0.1, 1e-3)
    updates, _ = QUICK(transformation.update)(grads, transformation.init(params), params)

    def expected(p: np.ndarray, g: np.ndarray, axis: int | None) -> np.ndarray:
        if axis is None:
            return g * min(1, 0.1 * max(np.linalg.norm(p), 1e-3) / np.linalg.norm(g))
        p, g = np.moveaxis(p, axis, 0), np.moveaxis(g, axis, 0)
        units = [expected(p[i], g[i], None) for i in range(len(p))]
        return np.moveaxis(np.stack(units), 0, axis)

    for path, axis in {("conv", "kernel"): -1, ("conv", "bias"): None, ("fc", "kernel"): -1, ("pos_embed",): 0}.items():
        p, g, u = params, grads, updates
        for key in path:
            p, g, u = p[key], g[key], u[key]
        np.testing.assert_allclose(u, expected(p, g, axis), rtol=1e-5)
        assert np.abs(u - g).max() > 0.01
    np.testing.assert_array_equal(updates["stem"]["kernel"], grads["stem"]["kernel"])  # small against its parameter
    masked = clip_adaptive(0.1, mask=lambda p: {k: jax.tree.map(lambda _, k=k: k != "fc", v) for k, v in p.items()})
    updates, _ = QUICK(masked.update)(grads, masked.init(params), params)
    np.testing.assert_array_equal(updates["fc"]["kernel"], grads["fc"]["kernel"])


def test_clipping_is_by_value_then_adaptive_then_by_norm():
    params, grads = {"w": jnp.asarray([3.0, 4.0])}, {"w": jnp.asarray([30.0, -1.0])}
    both = create_optimizer("sgd", 1.0, clip_value=2.0, clip_global_norm=1.0)
    updates, _ = QUICK(both.update)(grads, both.init(params), params)
    np.testing.assert_allclose(updates["w"], np.asarray([-2, 1]) / math.sqrt(5), rtol=1e-6)
    adaptive = create_optimizer("sgd", 1.0, clip_value=2.0, clip_adaptive=0.1)  # to 0.1 of the parameter's norm, 5
    updates, _ = QUICK(adaptive.update)(grads, adaptive.init(params), params)
    np.testing.assert_allclose(updates["w"], 0.5 * np.asarray([-2, 1]) / math.sqrt(5), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("sdg", {}, "no optimizer 'sdg': did you mean sgd"),
        ("sgd", {"b3": 0.9}, "'b3': it takes momentum, mu_dtype, nesterov"),
        ("adamw", {"b1": 1.0}, "b1 of the optimizer 'adamw' is 1.0"),
        ("adamw", {"mu_dtype": "float8"}, "mu_dtype is 'float8': there are float32 and bfloat16"),
        ("lars", {"decay_form": "decoupled"}, "no form 'decoupled': there are coupled"),
        ("sgd", {"learning_rate": lambda t: 0.1, "decay_form": "relative"}, "needs peak_learning_rate"),
    ],
)
def test_wrong_arguments(name: str, kwargs: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        create_optimizer(name, **{"learning_rate": 0.1, **kwargs})


def test_lists_arguments():
    assert optimizer_arguments("sgd") == {"momentum": 0.0, "nesterov": False, "mu_dtype": None}
    assert optimizer_arguments("adafactor")["mu_dtype"] == "bfloat16"
    for name in list_optimizers():
        create_optimizer(name, 0.1, **optimizer_arguments(name))
