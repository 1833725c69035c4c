"""What single operations become: onnxruntime gives what JAX gives, with batches of two sizes from one graph."""

import pathlib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import lax

from vision_jax.errors import ConfigError
from vision_jax.export import onnx_file
from vision_jax.export.graph import Graph
from vision_jax.export.jaxpr import trace
from vision_jax.export.optimize import optimize
from vision_jax.models.layers import BatchNorm, avg_pool, gelu, max_pool

SHAPE = (6, 5, 4)  # of an image: height, width, channels
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 4, 8)).astype(np.float32)
MATRIX = RNG.normal(size=(4, 3)).astype(np.float32)
TENSOR = RNG.normal(size=(4, 3, 2)).astype(np.float32)
CHANNELS = RNG.normal(size=4).astype(np.float32)
MASK = np.where(np.arange(4) == 2, -np.inf, 0).astype(np.float32)
NHWC = ("NHWC", "HWIO", "NHWC")
STATISTICS = {"mean": CHANNELS + 2, "var": CHANNELS**2 + 1}
IMAGE = RNG.normal(size=SHAPE).astype(np.float32)


def conv(x: jax.Array, **options) -> jax.Array:
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options}
    return lax.conv_general_dilated(x, KERNEL, **options)


def looped(x: jax.Array) -> jax.Array:
    """Loops over weights and over parts of the images, with a result of each step, forwards and backwards."""

    def step(carry: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.tanh(carry * weights[..., None, None, :]), carry.sum((1, 2))

    carry, each = lax.scan(step, x, jnp.arange(1.0, 4.0)[:, None] * CHANNELS)
    carry, other = lax.scan(step, carry, x[:, :2, 0].swapaxes(0, 1), reverse=True)
    return carry.mean((1, 2)) + each[1] - other[0]


def layer_norm(x: jax.Array) -> jax.Array:
    return nn.LayerNorm(use_fast_variance=False).bind({"params": {"scale": CHANNELS, "bias": CHANNELS + 1}})(x)


def pooled_norm(x: jax.Array) -> jax.Array:
    """Batch norm behind pooling, with scales of both signs."""
    norm = BatchNorm().bind({"params": {"scale": CHANNELS, "bias": CHANNELS}, "batch_stats": STATISTICS})
    return norm(conv(x)[..., :4] + CHANNELS, train=False, pool=lambda x: max_pool(x, 2, 2))[1]


FUNCTIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "activations": lambda x: nn.relu(x) + nn.relu6(3 * x) * nn.sigmoid(x) - jnp.tanh(x) + nn.silu(x) + nn.hard_swish(x),
    "adaptive": lambda x: jnp.einsum("bhwc,ih,jw->bijc", x, np.ones((2, 6), np.float32), np.ones((3, 5), np.float32)),
    "attention": lambda x: jnp.einsum("bhqk,bkhc->bqhc", nn.softmax(jnp.einsum("bqhc,bkhc->bhqk", x, x)), x),
    "average": lambda x: avg_pool(x, 3, 2, padding=1),
    "average, uncounted": lambda x: avg_pool(x, 3, 2, padding=1, count_include_pad=False),
    "batch in two dimensions": lambda x: x.reshape(-1, 4) @ MATRIX,
    "between": lambda x: jnp.where(x > 0, jnp.minimum(x, 0.5), lax.clamp(-0.5, x, 2.0)) * (x != 0) * (x >= -1),
    "broadcast": lambda x: jnp.concatenate([jnp.broadcast_to(CHANNELS, (x.shape[0], 1, 5, 4)), x], 1),
    "ceiling": lambda x: max_pool(x, 3, 2, padding=1, ceil=True),
    "concatenation": lambda x: jnp.concatenate([conv(x), x, jnp.broadcast_to(IMAGE, x.shape)], -1),
    "constant on the left": lambda x: jnp.einsum("cd,bhwc->dbhw", MATRIX, x),
    "convolution": lambda x: conv(x, window_strides=(2, 1), padding=((0, 1), (2, 0)), rhs_dilation=(1, 2)),
    "convolution of another layout": lambda x: lax.conv_general_dilated(
        x.transpose(3, 0, 1, 2),
        KERNEL.transpose(3, 2, 0, 1),
        (1, 1),
        "VALID",
        dimension_numbers=("CNHW", "OIHW", "HWNC"),
    ),
    "errors": lambda x: lax.erf(x) + lax.erfc(x / 2),
    "gathering": lambda x: x[:, :, jnp.array([3, 0, 0])] + x[:, 2:3, 1:4] + x[:, -1:, None, 0, -1:],
    "groups": lambda x: lax.conv_general_dilated(
        x, KERNEL[:, :, :2], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    ),
    "layer norm": layer_norm,
    "layer norm of channels in front": lambda x: layer_norm(conv(x)[..., 4:]) + x,
    "gelu": lambda x: gelu(conv(x)),
    "looped": looped,
    "mask": lambda x: nn.softmax((x + MASK) * 2),
    "max pooling": lambda x: max_pool(conv(x), 3, 2, padding=1),
    "nothing of the images": lambda x: jnp.broadcast_to(CHANNELS, (x.shape[0], 4)),
    "norm behind pooling": pooled_norm,
    "norm behind pooling, of a convolution with a bias": lambda x: max_pool(conv(x) + 1, 2, 2) * 2 + 3,
    "padding": lambda x: lax.pad(x, 1.5, ((0, 0, 0), (1, 2, 0), (-1, -2, 0), (0, 1, 0))),
    "powers": lambda x: x**2 + x**3 + lax.rsqrt(x**2 + 1) + jnp.sqrt(jnp.abs(x)) + jnp.exp(-x) / 3 + 1 / (2 + x * x),
    "products": lambda x: jnp.einsum("bhwc,cde,bhwf->bdef", x, TENSOR, x),
    "reductions": lambda x: (
        x.max(1) * x.min((1, 2))[:, None] + x.sum(-1, keepdims=True).mean(1) - x.sum((1, 2, 3))[:, None, None]
    ),
    "shapes": lambda x: (
        x.transpose(0, 3, 1, 2).reshape(-1, 2, 2, 30).swapaxes(1, 2).reshape(-1, 4, 6, 5)[:, None].squeeze(1)
    ),
    "shuffle": lambda x: conv(x).reshape(*x.shape[:3], 2, 4).swapaxes(3, 4).reshape(*x.shape[:3], 8),
    "slices": lambda x: sum(jnp.split(x[:, 1:6:2, :4], 2, axis=2)),
    "subtraction": lambda x: CHANNELS - (2 - conv(x)[..., :4] * CHANNELS) / 3,
    "windows": lambda x: x[:, :6, :4].reshape(-1, 2, 3, 2, 2, 4).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 6, 4).sum(1),
}


def made(function: Callable, opset: int = 18, batch: int = 0, simplify: bool = True) -> Graph:
    graph = trace(function, (batch, *SHAPE), np.float32, opset, "tiny", "y")
    if simplify:
        optimize(graph)
    return graph


def results(graph: Graph, path: pathlib.Path, *inputs: np.ndarray) -> list[np.ndarray]:
    onnx_file.write(graph, path, {}, external=False)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [session.run(["y"], {"images": x})[0] for x in inputs]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations(name: str, tmp_path: pathlib.Path):
    batches = [RNG.normal(size=(count, *SHAPE)).astype(np.float32) for count in (1, 3)]
    for opset, simplify in ((17, True), (23, True), (18, False)):
        graph = made(FUNCTIONS[name], opset, simplify=simplify)
        for batch, result in zip(batches, results(graph, tmp_path / "a.onnx", *batches), strict=True):
            expected = np.asarray(FUNCTIONS[name](jnp.asarray(batch)))
            np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-5)


def operators(function: Callable, opset: int = 18) -> list[str]:
    return [node.op for node in made(function, opset).nodes]


def test_no_more_operators_than_are_needed():
    """Layouts, norms, means and activations need none of their own."""

    def block(x: jax.Array) -> jax.Array:
        norm = BatchNorm().bind({"params": {"scale": CHANNELS**2, "bias": CHANNELS}, "batch_stats": STATISTICS})
        return norm(lax.conv_general_dilated(x, KERNEL[..., :4], (1, 1), "SAME", dimension_numbers=NHWC), train=False)

    def pooled(x: jax.Array) -> jax.Array:
        norm = BatchNorm().bind({"params": {"scale": CHANNELS, "bias": CHANNELS}, "batch_stats": STATISTICS})
        y = lax.conv_general_dilated(x, KERNEL[..., :4], (1, 1), "SAME", dimension_numbers=NHWC)
        return norm(y, train=False, pool=lambda x: max_pool(x, 2, 2))[1]

    def first(function: Callable) -> Callable:
        return lambda x: function(x).transpose(0, 3, 1, 2)  # the order of ONNX

    assert operators(first(lambda x: nn.relu(block(nn.relu6(block(x)))))) == [
        "Transpose",
        "Conv",
        "Clip",
        "Conv",
        "Relu",
    ]
    assert operators(first(pooled)) == ["Transpose", "Conv", "MaxPool"]
    assert operators(first(lambda x: max_pool(conv(x) + 1, 2, 2) * 2 + 3)) == ["Transpose", "Conv", "MaxPool"]
    assert operators(lambda x: conv(x).mean((1, 2)) @ np.eye(8, dtype=np.float32) + 1) == [
        *("Transpose", "Conv", "GlobalAveragePool", "Reshape", "Gemm")
    ]
    assert operators(nn.softmax) == ["Softmax"]
    assert operators(layer_norm) == ["LayerNormalization"]
    assert operators(lambda x: layer_norm(conv(x)[..., :4]) @ MATRIX) == [
        *("Transpose", "Conv", "Slice", "Transpose", "LayerNormalization", "MatMul")
    ]
    assert operators(first(lambda x: layer_norm(block(x)))) == [
        *("Transpose", "Conv", "Transpose", "LayerNormalization", "Transpose")
    ]
    assert operators(gelu, 20) == ["Gelu"]
    assert operators(lambda x: (x + 1) * 1 - 1) == ["Identity"]
    assert operators(lambda x: 3 - (2 * x - CHANNELS) / 4) == ["Mul", "Add"]
    assert operators(lambda x: (x + MASK + 1) * 2) == ["Add", "Mul", "Add"]


def test_a_fixed_batch_needs_no_symbol(tmp_path: pathlib.Path):
    x = RNG.normal(size=(3, *SHAPE)).astype(np.float32)
    graph = made(FUNCTIONS["broadcast"], batch=3)
    assert graph.inputs[0].shape == (3, *SHAPE)
    np.testing.assert_array_equal(results(graph, tmp_path / "a.onnx", x)[0], FUNCTIONS["broadcast"](jnp.asarray(x)))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.sort(x), r"tiny cannot be exported: there is no ONNX operator for it here \(sort in a/block\)"),
        (lambda x: lax.while_loop(lambda y: y.sum() < 9, lambda y: y + 1, x), "operator for it here .while in a/block"),
        (lambda x: x[jnp.argmax(x[:, 0, 0, 0])], "there is no ONNX operator for it here .argmax in a/block"),
        (
            lambda x: lax.conv_transpose(x, KERNEL, (2, 2), "SAME"),
            "it is a transposed convolution .conv_general_dilated",
        ),
        (lambda x: (x[None] * x[:, None]).reshape(-1, 4), "a dimension is .*, which is no multiple of the batch"),
        (lambda x: x * x.shape[0], "it computes with the number of images, which has to be fixed, by --batch"),
    ],
)
def test_what_cannot_be_exported_is_named(function: Callable, message: str):
    def inside(x: jax.Array) -> jax.Array:
        with jax.named_scope("a"), jax.named_scope("block"):
            return jax.jit(function)(x)

    with pytest.raises(ConfigError, match=message):
        made(inside)


def test_large_weights_are_beside_the_file(tmp_path: pathlib.Path):
    weights = RNG.normal(size=(120, 300)).astype(np.float32)
    graph = made(lambda x: x.reshape(-1, 120) @ weights)
    assert not onnx_file.is_large(graph)
    assert onnx_file.is_large(graph, largest=weights.nbytes - 1)
    onnx_file.write(graph, tmp_path / "a.onnx", {"model": "tiny"}, external=True)
    assert (tmp_path / "a.onnx").stat().st_size < 2000
    assert (tmp_path / "a.onnx.data").stat().st_size >= weights.nbytes
    x = RNG.normal(size=(2, *SHAPE)).astype(np.float32)
    result = onnx_file.load(tmp_path / "a.onnx")(x)
    np.testing.assert_allclose(result, x.reshape(-1, 120) @ weights, rtol=1e-4, atol=1e-5)
    assert {p.key: p.value for p in onnx.load(tmp_path / "a.onnx").metadata_props} == {"model": "tiny"}
