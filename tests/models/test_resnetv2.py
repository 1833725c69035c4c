import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vision_jax
from vision_jax import pretrained
from vision_jax.errors import DataError
from vision_jax.models import registry
from vision_jax.models.resnetv2 import BigTransfer, StdConv

NAME = "resnetv2_50x1_bit"


def batch_normalized(kernel: np.ndarray, epsilon: float = 1e-8) -> np.ndarray:
    """What torch's batch norm makes of a kernel, (out, in, height, width), where each output is a channel."""
    rows = kernel.astype(np.float64).reshape(len(kernel), -1)
    rows = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + epsilon)
    return rows.reshape(kernel.shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("deviation", [1.0, 1e-4])
def test_kernels_are_standardized(dtype: str, deviation: float):
    random = np.random.RandomState(0)
    kernel = (deviation * random.standard_normal((6, 4, 3, 3)) + 5 * deviation).astype(np.float32)
    x = random.standard_normal((2, 5, 5, 4)).astype(np.float32)
    conv = StdConv(6, 3, dtype=jnp.dtype(dtype))
    y = conv.apply({"params": {"kernel": jnp.asarray(kernel.transpose(2, 3, 1, 0))}}, x)
    assert y.dtype == dtype
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    expected = np.einsum("bhwcij,ocij->bhwo", windows, batch_normalized(kernel))
    tolerance = 1e-4 if dtype == "float32" else 0.02  # of a deviation of about 6
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=tolerance, atol=6 * tolerance)


def test_padding_of_the_pooling_is_zero():
    model = BigTransfer(depths=(1, 1, 1, 1))
    negative = -jnp.ones((1, 4, 4, 1))
    pooled = model.apply({}, negative, method="pool")
    np.testing.assert_array_equal(pooled[0, :, :, 0], [[0, 0], [0, -1]])


@functools.cache
def published() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The arrays of an npz file as Big Transfer's are named, and the state dict that they are."""
    model = vision_jax.create_model(NAME)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    random = np.random.Generator(np.random.PCG64(0))
    fill = lambda leaf: random.standard_normal(leaf.shape, dtype=np.float32)  # noqa: E731
    state = pretrained.to_torch(NAME, jax.tree.map(fill, variables))
    arrays = {}
    for name, value in state.items():
        *path, leaf = name.split(".")
        kernel = value.ndim == 4
        if path[0] == "stages":
            place = f"resnet/block{int(path[1]) + 1}/unit{int(path[3]) + 1:02d}"
            letter = "a/proj" if path[4] == "downsample" else "abc"[int(path[4][-1]) - 1]
            module = f"{place}/{letter}/{'standardized_conv2d' if kernel else 'group_norm'}"
        else:
            layers = {"stem": "root_block/standardized_conv2d", "norm": "group_norm", "head": "head/conv2d"}
            module = f"resnet/{layers[path[0]]}"
        of_conv = kernel or path[0] == "head"
        theirs = {"weight": "kernel", "bias": "bias"} if of_conv else {"weight": "gamma", "bias": "beta"}
        arrays[f"{module}/{theirs[leaf]}"] = value.transpose(2, 3, 1, 0) if kernel else value
    return arrays, state


def test_published_files_are_read(tmp_path: pathlib.Path):
    arrays, state = published()
    assert arrays["resnet/block3/unit06/b/standardized_conv2d/kernel"].shape == (3, 3, 256, 256)
    assert arrays["resnet/block2/unit01/a/proj/standardized_conv2d/kernel"].shape == (1, 1, 256, 512)
    assert arrays["resnet/head/conv2d/kernel"].shape == (1, 1, 2048, 1000)
    assert arrays["resnet/block1/unit01/c/group_norm/gamma"].shape == (64,)
    np.savez(tmp_path / "BiT.npz", **arrays)
    back = pretrained.to_torch(NAME, pretrained.load(NAME, tmp_path / "BiT.npz"))
    assert back.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value)


def test_other_spellings_of_published_files():
    """Numbered convolutions, and the names and shapes of big_vision's own checkpoints."""
    convert = registry.entry(NAME).big_vision
    assert convert is not None
    kernel = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    state = convert(
        {
            "resnet/block4/unit02/c/standardized_conv2d_14/kernel": kernel,
            "params/root_block/conv_root/kernel": kernel,
            "params/block1/unit01/conv_proj/kernel": kernel,
            "params/block3/unit10/gn2/scale": np.ones((1, 1, 1, 5)),
            "params/norm-pre-head/bias": np.ones((1, 1, 1, 4)),
            "params/head/kernel": kernel[0, 0],
        }
    )
    assert {key: value.shape for key, value in state.items()} == {
        "stages.3.blocks.1.conv3.weight": (3, 2, 1, 1),
        "stem.conv.weight": (3, 2, 1, 1),
        "stages.0.blocks.0.downsample.conv.weight": (3, 2, 1, 1),
        "stages.2.blocks.9.norm2.weight": (5,),
        "norm.bias": (4,),
        "head.fc.weight": (3, 2, 1, 1),
    }
    np.testing.assert_array_equal(state["head.fc.weight"][:, :, 0, 0], kernel[0, 0].T)


def test_incomplete_files_are_refused():
    arrays, _ = published()
    arrays = {key: value for key, value in arrays.items() if "block2/unit03/b/group_norm/gamma" not in key}
    convert = registry.entry(NAME).big_vision
    assert convert is not None
    with pytest.raises(DataError, match=r"stages\.1\.blocks\.2\.norm2\.weight") as error:
        pretrained.from_torch(NAME, convert({**arrays, "resnet/else": np.ones(2)}))
    assert "resnet/else" in str(error.value)
