import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import vision_jax
from vision_jax.errors import ConfigError
from vision_jax.models.resnet import BasicBlock, Bottleneck, ResNet

# torchvision's and timm's documented counts; LeNet-5 counted by hand.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


def shapes(name: str, image: tuple[int, int, int] = (224, 224, 3), **options: object):
    model = vision_jax.create_model(name, **options)
    images = jax.ShapeDtypeStruct((2, *image), jnp.float32)
    return model, jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images), images


def count(tree: object) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_number_of_parameters(name: str, parameters: int):
    _, variables, _ = shapes(name)
    assert count(variables["params"]) == parameters


def test_number_of_parameters_of_lenet5():
    _, variables, _ = shapes("lenet5", (28, 28, 1))
    layers = (5 * 5 * 1 * 6 + 6) + (5 * 5 * 6 * 16 + 16) + (256 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10)
    assert count(variables["params"]) == layers == 44_426


@pytest.mark.parametrize("name", ["timm.resnet18", "timm.resnet50"])
def test_resnet_gives_timms_logits(name: str):
    state, images, expected, parameters = reference.load(name)
    variables = reference.variables_of(state)
    model = vision_jax.create_model(name.partition(".")[2])
    initial = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, initial)
    assert count(variables["params"]) == parameters
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    spread = np.std(expected[0] - expected[1])
    assert np.abs(logits - expected).max() < 0.002 * spread


@pytest.mark.parametrize("name", vision_jax.list_models())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_model_in_both_modes(name: str, dtype: str):
    """Shapes and dtypes in training and evaluation, features, and no classifier."""
    model, variables, images = shapes(name, (64, 64, 3), num_classes=7, dtype=dtype)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def train(v, x):
        return model.apply(v, x, train=True, mutable=["batch_stats"])

    def evaluate(v, x):
        return model.apply(v, x, train=False), model.apply(v, x, train=False, method="features")

    logits, updates = jax.eval_shape(train, variables, images)
    assert jax.tree.map(jnp.shape, updates.get("batch_stats", {})) == jax.tree.map(
        jnp.shape, variables.get("batch_stats", {})
    )
    same, features = jax.eval_shape(evaluate, variables, images)
    assert logits.shape == same.shape == (2, 7)
    assert logits.dtype == same.dtype == features.dtype == jnp.float32
    headless, without, _ = shapes(name, (64, 64, 3), num_classes=0, dtype=dtype)
    assert jax.eval_shape(lambda v, x: headless.apply(v, x, train=False), without, images).shape == features.shape
    assert count(variables["params"]) - count(without["params"]) == (features.shape[-1] + 1) * 7


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (vision_jax.create_model("lenet5", num_classes=5), (28, 28, 1)),
        (ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5, zero_init_last=False), (32, 32, 3)),
        (ResNet(Bottleneck, (1, 1, 1, 1), num_classes=5, zero_init_last=False), (32, 32, 3)),
    ],
    ids=["lenet5", "basic", "bottleneck"],
)
def test_gradients_reach_every_parameter(model: nn.Module, shape: tuple[int, int, int]):
    images = jax.random.normal(jax.random.key(1), (4, *shape))
    quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    variables = quick(lambda: model.init(jax.random.key(0), images, train=False))()

    @quick
    def gradients(params):
        def loss(params):
            logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.square(logits - 1))

        return jax.grad(loss)(params)

    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients(variables["params"])):
        assert np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


def test_zero_init_makes_blocks_start_as_the_identity():
    model = ResNet(BasicBlock, (1, 1, 1, 1))
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)["params"]
    assert (params["layer1"]["0"]["bn2"]["scale"] == 0).all()
    assert (params["layer1"]["0"]["bn1"]["scale"] == 1).all()


def giga_multiply_adds(name: str, size: int, **options: object) -> float:
    model, variables, _ = shapes(name, (size, size, 3), **options)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    cost = jax.jit(lambda v, x: model.apply(v, x, train=False)).lower(variables, image).cost_analysis()
    return cost["flops"] / 2e9


@pytest.mark.parametrize(("name", "published"), [("resnet18", 1.814), ("resnet50", 4.089), ("resnet152", 11.514)])
def test_multiply_adds_are_torchvisions(name: str, published: float):
    # XLA does not count products with padding, which are a few percent.
    assert 0.92 * published < giga_multiply_adds(name, 224) < published


def test_small_stem_keeps_the_resolution():
    _, variables, _ = shapes("resnet18", (32, 32, 3), small_stem=True)
    assert variables["params"]["conv1"]["kernel"].shape == (3, 3, 3, 64)
    # 32 pixels with the small stem are what 128 are with the other, behind the stem.
    assert giga_multiply_adds("resnet18", 32, small_stem=True) == pytest.approx(
        giga_multiply_adds("resnet18", 128), rel=0.1
    )


def test_listing_and_unknown_names():
    assert vision_jax.list_models("resnet1*") == ["resnet101", "resnet152", "resnet18"]
    with pytest.raises(ConfigError, match="did you mean resnet50"):
        vision_jax.create_model("resnet5o")
    with pytest.raises(ConfigError, match="no option 'num_class': did you mean num_classes"):
        vision_jax.create_model("resnet50", num_class=10)
