"""All models: against torch's logits, published counts, and the promises that every model makes."""

import collections
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.interpreters import partial_eval

import vision_jax
from vision_jax import pretrained
from vision_jax.commands import models as models_main
from vision_jax.errors import ConfigError
from vision_jax.models import registry
from vision_jax.models.layers import DropPath, avg_pool, drop_path_rates, max_pool
from vision_jax.models.resnet import BasicBlock, ResNet

PUBLISHED = json.loads((pathlib.Path(__file__).parent / "published.json").read_text())
# On CPUs, optimizing a program takes longer than running it once.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def count(tree: object) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def shapes(name: str, size: int = 0, **options: object):
    """A model, the shapes of its variables, and of two images."""
    model = vision_jax.create_model(name, **options)
    size = size or registry.entry(name).input.size
    images = jax.ShapeDtypeStruct((2, size, size, model.in_channels), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return model, {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}, images


# Large ones that share all code with smaller ones.
LARGE = ("torchvision.vgg11", "timm.wide_resnet50_2", "timm.resnext50_32x4d")


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(path.stem, marks=[pytest.mark.exhaustive] if path.stem in LARGE else [])
        for path in sorted(reference.PARITY.glob("*.*.npz"))
    ],
)
def test_logits_are_torchs(file: str):
    """Through `from_torch`; and `to_torch` gives back the same bits."""
    library, _, name = file.partition(".")
    state, images, expected, parameters = reference.load(file)
    variables = pretrained.from_torch(name, state)
    assert count(variables["params"]) == parameters
    model = vision_jax.create_model(name)
    logits = quick(lambda v, x: model.apply(v, x, train=False))(variables, images)
    assert np.abs(logits - expected).max() < 0.002 * np.std(expected[0] - expected[1])
    back = pretrained.to_torch(name, variables, library=library)
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert np.array_equal(back[key].view(np.uint32), value.view(np.uint32)), key


def published(name: str) -> dict:
    """Counts of timm's or torchvision's documentation."""
    found = PUBLISHED.get(f"{registry.entry(name).library}:{name}") or PUBLISHED.get(f"torchvision:{name}")
    return found or {}


def by_size(names: list[str], giga_multiply_adds: float = 0.6) -> list:
    """Cases of a test, of which those of large models, which take long to trace, are left to the exhaustive run."""
    large = [float(published(name)["gmacs"][0].split("@")[0]) > giga_multiply_adds for name in names]
    return [
        pytest.param(name, marks=[pytest.mark.exhaustive] * is_large)
        for name, is_large in zip(names, large, strict=True)
    ]


@pytest.mark.parametrize("name", by_size([name for name in vision_jax.list_models() if published(name)]))
def test_published_counts(name: str):
    """Parameters and running statistics."""
    _, variables, _ = shapes(name)
    facts = published(name)
    assert count(variables["params"]) == facts["parameters"] == models_main.facts(name)["parameters"]
    if facts.get("buffers") is not None and not name.startswith("swin"):  # its buffers are indices, no statistics
        assert count(variables["batch_stats"]) == facts["buffers"]


# The smallest of each kind of model, at a small size where the kind allows it.
SMALL = {
    **{"lenet5": 32, "alexnet": 64, "squeezenet1_1": 64, "googlenet": 64, "resnet18": 64, "resnetv2_50x1_bit": 64},
    **{"shufflenet_v2_x0_5": 64, "mobilenetv3_small_050": 64, "regnety_002": 64, "convnextv2_atto": 64},
    **{"vit_tiny_patch16_224": 32, "deit_tiny_distilled_patch16_224": 32, "swin_tiny_patch4_window7_224": 64},
    **{"mixer_s32_224": 64, "wrn_16_4": 32, "resnet9": 32},
}
# Those that compile quickly; of the others, the exhaustive run checks that they depend on all parameters.
QUICK = ["lenet5", "squeezenet1_1", "resnet18"]


# Those that trace slowly, and of which `test_every_model` sees the same in the exhaustive run.
SLOW = ("googlenet", "regnety_002", "resnetv2_50x1_bit", "shufflenet_v2_x0_5")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in SLOW)) for name in SMALL]
)
def test_options_and_methods(name: str):
    check_options_and_methods(name, SMALL[name])


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", vision_jax.list_models())
def test_every_model(name: str):
    check_options_and_methods(name, registry.entry(name).input.size)
    model, variables, images = shapes(name)
    assert count(variables["params"]) == models_main.facts(name)["parameters"]
    for dtype, train in (("float32", True), ("bfloat16", False)):  # the other two have been checked
        run = functools.partial(
            vision_jax.create_model(name, dtype=dtype).apply,
            train=train,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        logits, _ = jax.eval_shape(run, variables, images)
        assert (logits.shape, logits.dtype) == ((2, model.num_classes), jnp.float32)


def check_options_and_methods(name: str, size: int) -> None:
    """Other numbers of channels and classes, features, maps, both modes and dtypes; nothing depends on no parameter."""
    options = {"img_size": size} if "img_size" in registry.option_names(name) else {}
    options |= {"num_classes": 7, "in_channels": 2}
    model, variables, images = shapes(name, size, **options)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def evaluate(variables, images):
        features = model.apply(variables, images, train=False, method="features")
        maps = model.apply(variables, images, train=False, method="feature_maps")
        return model.apply(variables, images, train=False), features, maps

    logits, features, maps = jax.eval_shape(evaluate, variables, images)
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    assert (features.ndim, features.dtype) == (2, jnp.float32)
    for stride, values in maps.items():
        assert -5 <= values.shape[1] - size / stride <= 1, stride
        assert values.shape[1] == values.shape[2]

    drop = {"drop_rate": 0.1} | ({"drop_path_rate": 0.1} if model.residual else {})
    half = vision_jax.create_model(name, dtype="bfloat16", **options, **drop)

    def train(params, batch_stats, images):
        rngs = {"dropout": jax.random.key(0)}
        variables = {"params": params, "batch_stats": batch_stats}
        return half.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)

    jaxpr, (logits, updates) = jax.make_jaxpr(train, return_shape=True)(*variables.values(), images)
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    assert jax.tree.map(jnp.shape, updates.get("batch_stats", {})) == jax.tree.map(jnp.shape, variables["batch_stats"])
    # Without products and sums that do not reach the logits, every parameter is still used.
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])]
    _, used = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] + [False] * (len(jaxpr.jaxpr.outvars) - 1))
    assert [path for path, is_used in zip(paths, used, strict=False) if not is_used] == []

    headless, without, _ = shapes(name, size, **{**options, "num_classes": 0})
    assert jax.eval_shape(lambda v, x: headless.apply(v, x, train=False), without, images).shape == features.shape
    assert 0 < count(variables["params"]) - count(without["params"]) <= 2 * (features.shape[-1] + 1) * 7
    with pytest.raises(ValueError, match="set in_channels"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 5)), train=False))


@pytest.mark.parametrize("name", QUICK)
def test_gradients_reach_every_parameter(name: str):
    """Those of the smallest model of each kind, as numbers."""
    size = SMALL[name]
    options = {"img_size": size} if "img_size" in registry.option_names(name) else {}
    options |= {"zero_init_last": False} if "zero_init_last" in registry.option_names(name) else {}
    model, shape, images = shapes(name, size, num_classes=7, **options)
    random = np.random.RandomState(0)
    params = jax.tree_util.tree_map_with_path(functools.partial(value_of, random), shape["params"])
    batch_stats = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shape["batch_stats"])

    @quick
    def gradients(params, images):
        def loss(params):
            variables, rngs = {"params": params, "batch_stats": batch_stats}, {"dropout": jax.random.key(0)}
            logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
            return jnp.sum(jnp.square(logits - jnp.arange(7.0)))

        return jax.grad(loss)(params)

    images = random.standard_normal((4, *images.shape[1:])).astype(np.float32)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients(params, images)):
        assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)
        assert np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


def value_of(random: np.random.RandomState, path: tuple, x: jax.ShapeDtypeStruct) -> np.ndarray:
    """A value that lets signals through: nothing starts at zero."""
    noise = random.standard_normal(x.shape).astype(np.float32)
    if path[-1].key == "kernel":
        return noise * np.float32((1.5 / max(1, np.prod(x.shape[:-1]))) ** 0.5)
    return (path[-1].key in ("scale", "gamma")) + 0.1 * noise


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_remat_changes_nothing(name: str):
    size = SMALL[name]
    options = {"img_size": size} if "img_size" in registry.option_names(name) else {}
    _, variables, images = shapes(name, size, **options)
    _, same, _ = shapes(name, size, remat=True, **options)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, same)
    model = vision_jax.create_model(name, remat=True, **options)
    jaxpr = jax.make_jaxpr(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})[0]
    )(variables, images)
    assert any(equation.primitive.name.startswith(("remat", "checkpoint")) for equation in walk(jaxpr.jaxpr))


def walk(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                yield from walk(inner.jaxpr)


MULTIPLY_ADDS = (
    *("vgg11", "squeezenet1_1", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x1_0", "mobilenetv2_100"),
    *("efficientnet_b0", "regnety_004", "convnext_tiny", "vit_base_patch16_224", "swin_tiny_patch4_window7_224"),
    "mixer_b16_224",
)


@pytest.mark.parametrize("name", by_size(list(MULTIPLY_ADDS)))
def test_multiply_adds(name: str):
    """Within 1 % of published ones, as we count and as XLA does."""
    giga, size = published(name)["gmacs"][0].split("@")
    assert models_main.multiply_adds(name, int(size)) == pytest.approx(1e9 * float(giga), rel=0.01)
    model, variables, _ = shapes(name, int(size))
    image = jax.ShapeDtypeStruct((1, int(size), int(size), 3), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, image)
    products = collections.Counter(map(product_of, walk(jaxpr.jaxpr)))
    flops = sum(times * flops_of(*product) for product, times in products.items() if product)
    assert flops / 2 == pytest.approx(1e9 * float(giga), rel=0.01)


def product_of(equation) -> tuple | None:
    """A convolution or a product of matrices: its primitive, parameters and the shapes of what it multiplies."""
    if equation.primitive.name not in ("conv_general_dilated", "dot_general"):
        return None
    shapes = tuple((v.aval.shape, v.aval.dtype) for v in equation.invars)
    return equation.primitive, tuple(sorted(equation.params.items(), key=str)), *shapes


def flops_of(primitive, params: tuple, left: tuple, right: tuple) -> float:
    """XLA's cost of a product. It does not count those with padding, so that here the padding is part of the input."""
    params, shape = dict(params), list(left[0])
    if "padding" in params:
        for axis, (low, high) in zip(params["dimension_numbers"].lhs_spec[2:], params["padding"], strict=True):
            shape[axis] += low + high
        params["padding"] = ((0, 0),) * len(params["padding"])
    operands = jax.ShapeDtypeStruct(tuple(shape), left[1]), jax.ShapeDtypeStruct(*right)
    return jax.jit(lambda a, b: primitive.bind(a, b, **params)).lower(*operands).cost_analysis()["flops"]


def test_number_of_parameters_of_lenet5():
    _, variables, _ = shapes("lenet5")
    layers = (5 * 5 * 1 * 6 + 6) + (5 * 5 * 6 * 16 + 16) + (256 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10)
    assert count(variables["params"]) == layers == 44_426


def test_zero_init_makes_blocks_start_as_the_identity():
    model = ResNet(block=BasicBlock, depths=(1, 1, 1, 1))
    params = quick(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))()["params"]
    assert (params["layer1"]["0"]["bn2"]["scale"] == 0).all()
    assert (params["layer1"]["0"]["bn1"]["scale"] == 1).all()


def test_small_stem_keeps_the_resolution():
    model, variables, images = shapes("resnet18", 32, small_stem=True)
    assert variables["params"]["conv1"]["kernel"].shape == (3, 3, 3, 64)
    maps = jax.eval_shape(lambda v, x: model.apply(v, x, train=False, method="feature_maps"), variables, images)
    assert {stride: x.shape[1] for stride, x in maps.items()} == {1: 32, 2: 16, 4: 8, 8: 4}


def test_drop_path_drops_branches_of_whole_examples():
    x = jnp.ones((4000, 3, 2))
    y = DropPath(0.25).apply({}, x, True, rngs={"dropout": jax.random.key(0)})
    kept = np.asarray(y[:, 0, 0] > 0)
    np.testing.assert_allclose(y, np.where(kept[:, None, None], 1 / 0.75, 0) * x)
    assert kept.mean() == pytest.approx(0.75, abs=0.03)
    np.testing.assert_array_equal(DropPath(0.25).apply({}, x, False), x)
    assert drop_path_rates(0.3, (1, 3)) == [[0.0], pytest.approx([0.1, 0.2, 0.3])]


@pytest.mark.parametrize("length", [5, 6, 7, 8, 13])
@pytest.mark.parametrize(
    ("size", "stride", "padding", "ceil"), [(3, 2, 0, True), (3, 2, 1, False), (2, 2, 0, True), (3, 2, 1, True)]
)
def test_pooling_is_torchs(length: int, size: int, stride: int, padding: int, ceil: bool):
    """By the formula of torch's documentation, window by window."""
    x = np.random.RandomState(0).standard_normal((1, length, length, 1)).astype(np.float32)
    count = (length + 2 * padding - size) / stride + 1
    count = int(np.ceil(count)) if ceil else int(count)
    if (count - 1) * stride >= length + padding:
        count -= 1
    windows = [slice(max(0, i * stride - padding), i * stride - padding + size) for i in range(count)]
    expected = [[x[0, rows, columns, 0].max() for columns in windows] for rows in windows]
    np.testing.assert_array_equal(max_pool(x, size, stride, padding=padding, ceil=ceil)[0, :, :, 0], expected)
    if not (ceil and padding):
        pooled = avg_pool(x, size, stride, padding=padding, ceil=ceil, count_include_pad=False)
        expected = [[x[0, rows, columns, 0].mean() for columns in windows] for rows in windows]
        np.testing.assert_allclose(pooled[0, :, :, 0], expected, rtol=1e-5, atol=1e-6)


def test_listing_and_unknown_names():
    assert vision_jax.list_models("resnet1??") == ["resnet101", "resnet152", "resnet18d"]
    assert vision_jax.create_model("vit_b_16") == vision_jax.create_model("vit_base_patch16_224")
    assert registry.entry("vit_b_16").input.mean != registry.entry("vit_base_patch16_224").input.mean
    with pytest.raises(ConfigError, match="no model 'resnet5o': did you mean resnet50"):
        vision_jax.create_model("resnet5o")
    with pytest.raises(ConfigError, match="no option 'num_class': did you mean num_classes"):
        vision_jax.create_model("resnet50", num_class=10)
    for options, message in (
        ({"num_classes": -1}, "num_classes is -1: give a whole number, or 0"),
        ({"num_classes": "10"}, "num_classes is '10'"),
        ({"drop_path_rate": 2.0}, "drop_path_rate is 2.0: it is a probability"),
        ({"dtype": "foo"}, "dtype is 'foo': give float32, bfloat16 or float16"),
    ):
        with pytest.raises(ConfigError, match=message):
            vision_jax.create_model("resnet50", **options)
    with pytest.raises(ConfigError, match="no residual branches"):
        vision_jax.create_model("lenet5", drop_path_rate=0.1)


def test_the_table(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["models", "resnet50"])
    assert models_main.main() == 0
    assert "25,557,032" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["models", "nothing*"])
    assert models_main.main() == 1
    assert "No model matches 'nothing*'" in capsys.readouterr().err
