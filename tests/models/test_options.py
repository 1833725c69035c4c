"""Options that several families have: blur pooling, the bias of the classifier, what remat keeps."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vision_jax
from vision_jax.errors import ConfigError
from vision_jax.models.layers import maybe_remat
from vision_jax.models.resnet import BasicBlock, BlurConv, ResNet, blur

KEY = jax.random.key(0)
FILTER = np.outer([1, 2, 1], [1, 2, 1]) / 16
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize(("height", "width", "stride"), [(6, 8, 1), (6, 8, 2), (7, 5, 2), (1, 2, 2)])
def test_blur_is_a_filter_over_zeros(height: int, width: int, stride: int):
    """Window by window."""
    x = np.random.RandomState(0).standard_normal((2, height, width, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = [
        [np.einsum("bijc,ij->bc", padded[:, i : i + 3, j : j + 3], FILTER) for j in range(0, width, stride)]
        for i in range(0, height, stride)
    ]
    np.testing.assert_allclose(blur(x, stride), np.moveaxis(expected, 2, 0), atol=1e-6)


def test_blur_in_bfloat16_is_rounded_once():
    x = jnp.asarray(np.random.RandomState(0).standard_normal((1, 8, 8, 2)), jnp.bfloat16)
    np.testing.assert_array_equal(blur(x), blur(x.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.parametrize(("channels", "strides"), [(16, 2), (16, 1), (15, 2)])
def test_convolutions_that_blur(channels: int, strides: int):
    """An impulse before a strided 1x1 convolution: without a blur, one that is at an odd place is lost."""
    x = np.zeros((1, 8, 8, channels), np.float32)
    x[0, 3, 5, 0] = 16
    conv = BlurConv(1, (1, 1), strides=strides, use_bias=False, kernel_init=jax.nn.initializers.ones)
    y, _ = conv.init_with_output(KEY, x)
    expected = np.zeros((8, 8))
    if channels >= 16 and strides == 2:
        expected[2:5, 4:7] = 16 * FILTER
    else:
        expected[3, 5] = 16
    np.testing.assert_allclose(y[0, :, :, 0], expected[::strides, ::strides])


def test_where_a_resnet_blurs(monkeypatch: pytest.MonkeyPatch):
    """Before the 3x3 convolution and the shortcut of three blocks each, never before the stem; after max pooling."""
    seen = []

    def record(x: jax.Array, stride: int = 1) -> jax.Array:
        seen.append((x.shape[1], x.shape[-1], stride))
        return blur(x, stride)

    monkeypatch.setattr("vision_jax.models.resnet.blur", record)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = {}
    for blur_pool, expected in {
        "": [],
        "conv": [(16, 64, 1)] * 2 + [(8, 128, 1)] * 2 + [(4, 256, 1)] * 2,
        "conv+pool": [(32, 64, 2)] + [(16, 64, 1)] * 2 + [(8, 128, 1)] * 2 + [(4, 256, 1)] * 2,
    }.items():
        model = ResNet(block=BasicBlock, depths=(1, 1, 1, 1), blur_pool=blur_pool, num_classes=3)
        shapes[blur_pool] = jax.eval_shape(lambda x, m=model: m.init(KEY, x, train=False), images)
        assert seen == expected
        seen.clear()
    assert shapes[""] == shapes["conv"] == shapes["conv+pool"]
    small = vision_jax.create_model("resnet18", blur_pool="conv+pool", small_stem=True)
    jax.eval_shape(lambda x: small.init(KEY, x, train=False), images)
    assert len(seen) == 6
    with pytest.raises(ConfigError, match=r"blur_pool is 'pool': did you mean conv\+pool"):
        vision_jax.create_model("resnet18", blur_pool="pool")


SMALL_TRANSFORMER = {"embed_dim": 16, "depth": 2, "img_size": 32}


@pytest.mark.parametrize(
    ("name", "options", "heads"),
    [
        ("resnet18", {}, ["fc"]),
        ("vit_tiny_patch16_224", SMALL_TRANSFORMER | {"num_heads": 2}, ["head"]),
        ("deit_tiny_distilled_patch16_224", SMALL_TRANSFORMER | {"num_heads": 2}, ["head", "head_dist"]),
        ("mixer_s16_224", SMALL_TRANSFORMER, ["head"]),
        ("resmlp_12_224", SMALL_TRANSFORMER, ["head"]),
        ("resnetv2_50x1_bit", {}, ["head/fc"]),
    ],
)
def test_biases_of_classifiers_begin_where_they_are_told_to(name: str, options: dict[str, object], heads: list[str]):
    def biases(**more: float) -> list[jax.Array]:
        model = vision_jax.create_model(name, num_classes=5, **options, **more)

        @quick  # compiled, only what is asked for is computed
        def initialize() -> list[jax.Array]:
            params = model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False)["params"]
            return [functools.reduce(lambda tree, key: tree[key], [*head.split("/"), "bias"], params) for head in heads]

        return initialize()

    for bias in biases(head_bias=-6.9):
        np.testing.assert_array_equal(bias, np.full(5, -6.9, np.float32))
    for bias in biases():
        np.testing.assert_array_equal(bias, np.zeros(5, np.float32))


class Block(nn.Module):
    """Two dense layers, as blocks are called."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return x + nn.Dense(4)(jnp.sin(nn.Dense(4)(x)))


def test_what_remat_keeps():
    """Gradients are the same; of four products in the forward pass, `full` computes some anew, and `dots` none."""
    x = np.random.RandomState(0).standard_normal((3, 4)).astype(np.float32)

    def gradients(remat: bool | str):
        first, second = maybe_remat(Block, remat)(), maybe_remat(Block, remat)()
        params = [first.init(jax.random.key(i), x, True) for i in range(2)]

        def loss(params):
            return jnp.sum(jnp.cos(second.apply(params[1], first.apply(params[0], x, True), True)))

        function = jax.value_and_grad(loss)
        return functools.partial(quick(function), params), str(jax.make_jaxpr(function)(params)).count("dot_general[")

    expected, products = gradients(False)
    for remat, more in (("dots", False), ("full", True)):
        run, count = gradients(remat)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), run(), expected())
        assert (count > products) == more, remat
    assert gradients(True)[1] == count
    assert all(maybe_remat(Block, remat) is Block for remat in (False, "", None))
    with pytest.raises(ConfigError, match="remat is 'dot': did you mean dots"):
        maybe_remat(Block, "dot")
