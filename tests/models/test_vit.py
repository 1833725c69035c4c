import argparse
import functools
import itertools
import logging
import math
import pathlib
import pickle
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import fill

import vision_jax
from vision_jax import pretrained
from vision_jax.errors import ConfigError, DataError
from vision_jax.models import registry
from vision_jax.models.intermediates import apply_with_intermediates
from vision_jax.models.positions import sincos2d
from vision_jax.models.transformer import PatchEmbed, resample_positions
from vision_jax.models.vit import RelativePositionBias

# A name and a few options make a model that compiles in seconds.
VIT, DEIT3, DISTILLED = "vit_tiny_patch16_224", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224"
SMALL = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 12, "num_classes": 5}
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def weights(name: str, **options: object) -> dict[str, np.ndarray]:
    """A state dict of a small model."""
    model = vision_jax.create_model(name, **SMALL | options)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images(model.img_size), train=False))
    names = pretrained.to_torch(name, jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes))
    return {key: fill(key, value.shape) for key, value in names.items()}


def images(size: int = 12, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(size).standard_normal((batch, size, size, 3), dtype=np.float32)


def apply(name: str, state: dict[str, np.ndarray], x: np.ndarray, method: str = "__call__", **options: object):
    """The result of a small model in evaluation mode."""
    options = SMALL | options
    variables = pretrained.from_torch(name, state, **options)
    model = vision_jax.create_model(name, **options)
    return quick(lambda v, x: model.apply(v, x, train=False, method=method))(variables, x)


def test_patches_are_projected_as_by_a_convolution():
    x = np.random.default_rng(0).standard_normal((2, 8, 12, 3), dtype=np.float32)
    model = PatchEmbed(4, 5)
    variables = model.init(jax.random.key(0), x)
    kernel = variables["params"]["proj"]["kernel"]
    assert kernel.shape == (4, 4, 3, 5)
    expected = jax.lax.conv_general_dilated(x, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(model.apply(variables, x), expected, atol=1e-5)
    with pytest.raises(ValueError, match="images of 8 x 10 pixels cannot be divided into patches of 4 x 4"):
        model.init(jax.random.key(0), x[:, :, :10])


@pytest.mark.parametrize(("name", "remat"), [(VIT, True), (DEIT3, False)])
def test_scanned_blocks_compute_the_same(name: str, remat: bool):
    state = weights(name)
    variables = pretrained.from_torch(name, state, **SMALL, scan_blocks=True)
    assert variables["params"]["blocks"]["attn"]["qkv"]["kernel"].shape == (2, 16, 48)
    back = pretrained.to_torch(name, variables)
    assert back.keys() == state.keys()
    assert all((back[key] == state[key]).all() for key in state)
    np.testing.assert_allclose(
        apply(name, state, images(), scan_blocks=True, remat=remat), apply(name, state, images()), atol=1e-5
    )


@pytest.mark.parametrize("scan_blocks", [False, True])
def test_all_branches_are_dropped_as_often(scan_blocks: bool):
    """Of two blocks with two branches each, which make for 16 results."""
    options = SMALL | {"drop_path_rate": 0.5, "drop_path_uniform": True, "scan_blocks": scan_blocks}
    variables = pretrained.from_torch(VIT, weights(VIT), **options)
    model = vision_jax.create_model(VIT, **options)
    x = np.repeat(images(batch=1), 400, axis=0)
    rngs = {"dropout": jax.random.key(0)}
    logits = quick(lambda v, x: model.apply(v, x, train=True, rngs=rngs))(variables, x)
    _, counts = np.unique(np.round(logits, 3), axis=0, return_counts=True)
    assert len(counts) == 16
    assert counts.min() > 8  # 25 are expected of each


@pytest.mark.parametrize(("scan_blocks", "remat"), [(False, False), (True, True)])
def test_later_branches_are_dropped_more_often(scan_blocks: bool, remat: bool):
    """Of two blocks, the first keeps both branches and the second drops each for half of the examples."""
    options = SMALL | {"drop_path_rate": 0.5, "scan_blocks": scan_blocks, "remat": remat}
    variables = pretrained.from_torch(VIT, weights(VIT), **options)
    model = vision_jax.create_model(VIT, **options)
    x = np.repeat(images(batch=1), 200, axis=0)

    @quick
    def train(v, x):
        return model.apply(v, x, train=True, rngs={"dropout": jax.random.key(0)})

    _, counts = np.unique(np.round(train(variables, x), 3), axis=0, return_counts=True)
    assert len(counts) == 4
    assert counts.min() > 30  # 50 are expected of each


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (VIT, {}),
        (VIT, {"scan_blocks": True, "proj_drop_rate": 0.1, "drop_path_rate": 0.1}),
        (VIT, {"global_pool": "avg", "num_registers": 2, "layer_scale": 1e-5}),
        (VIT, {"global_pool": "avg", "class_token": False, "positions": "sincos2d", "norm_after_pooling": False}),
        (DISTILLED, {"remat": True, "drop_rate": 0.1}),
    ],
)
@pytest.mark.exhaustive
def test_gradients_reach_every_parameter(name: str, options: dict[str, object]):
    model = vision_jax.create_model(name, **SMALL | options)
    params = pretrained.from_torch(name, weights(name, **options), **SMALL, **options)["params"]

    @quick
    def gradients(params, x):
        def loss(params):
            logits = model.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(0)})
            return jnp.sum(jnp.square(logits - 1))

        return jax.grad(loss)(params)

    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients(params, images())):
        assert np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


def test_features_and_maps_of_either_pooling():
    options = {"num_registers": 2, "norm_after_pooling": False}
    state = weights(VIT, **options)
    assert state["pos_embed"].shape == (1, 1 + 2 + 9, 16)
    maps = apply(VIT, state, images(), "feature_maps", **options)
    assert {stride: x.shape for stride, x in maps.items()} == {4: (2, 3, 3, 16)}
    averages = apply(VIT, state, images(), "features", **options, global_pool="avg")
    np.testing.assert_allclose(averages, maps[4].mean((1, 2)), atol=1e-5)
    token = apply(VIT, state, images(), "features", **options)
    logits = token @ state["head.weight"].T + state["head.bias"]
    np.testing.assert_allclose(apply(VIT, state, images(), **options), logits, atol=1e-4)
    assert np.abs(token - averages).max() > 0.1


@pytest.mark.parametrize("scan_blocks", [False, True])
def test_features_of_several_blocks(scan_blocks: bool):
    """Class tokens behind the last norm, by NumPy, from the first of the last blocks to the last; then the average."""
    options = {"depth": 3, "scan_blocks": scan_blocks}
    state = weights(VIT, depth=3)
    model = vision_jax.create_model(VIT, **SMALL | options)
    variables = pretrained.from_torch(VIT, state, **SMALL | options)
    names = [f"blocks/{i}" for i in range(3)]
    found = quick(lambda v, x: apply_with_intermediates(model, v, x, names)[1])(variables, images())
    tokens = [np.asarray(found[name], np.float64) for name in names[1:]]
    normed = [(x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) for x in tokens]
    normed = [x * state["norm.weight"] + state["norm.bias"] for x in normed]
    expected = np.concatenate([normed[0][:, 0], normed[1][:, 0], normed[1][:, 1:].mean(1)], axis=1)
    ours = apply(VIT, state, images(), "features", **options, feature_blocks=2, global_pool="token+avg", num_classes=0)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert np.abs(expected[:, :16] - expected[:, 16:32]).max() > 0.1


def test_a_norm_before_the_classifier():
    """Without parameters; the batch's mean and biased variance in training, running ones in evaluation."""
    model = vision_jax.create_model(VIT, **SMALL, norm_before_head=True)
    x = np.random.default_rng(0).standard_normal((6, 16), dtype=np.float32) * 3 + 1
    variables = model.init(jax.random.key(0), x, train=False, method="logits")
    assert variables["batch_stats"].keys() == {"head_norm"}
    assert "head_norm" not in variables["params"]
    kernel = np.asarray(variables["params"]["head"]["kernel"], np.float64)
    logits, after = model.apply(variables, x, train=True, method="logits", mutable=["batch_stats"])
    np.testing.assert_allclose(logits, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6) @ kernel, atol=1e-5)
    statistics = after["batch_stats"]["head_norm"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * x.var(0, ddof=1), rtol=1e-5)
    logits = model.apply({**variables, **after}, x, train=False, method="logits")
    expected = (x - statistics["mean"]) / np.sqrt(np.asarray(statistics["var"]) + 1e-6) @ kernel
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_where_positions_are_added():
    for options, length in (({}, 10), ({"no_embed_class": True}, 9), ({"class_token": False, "global_pool": "avg"}, 9)):
        assert weights(VIT, **options)["pos_embed"].shape == (1, length, 16)
    fixed = weights(VIT, positions="sincos2d")
    assert "pos_embed" not in fixed
    learned = {**fixed, "pos_embed": sincos2d(3, 3, 16)}
    np.testing.assert_allclose(
        apply(VIT, fixed, images(), positions="sincos2d"),
        apply(VIT, learned, images(), no_embed_class=True),
        atol=1e-5,
    )


def test_initial_weights_of_mocov3():
    """Uniform within the bounds of its official code, where queries, keys and values are a matrix each."""
    model = vision_jax.create_model(VIT, depth=1, embed_dim=64, num_heads=4, weight_init="mocov3", positions="mocov3")
    params = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))()["params"]
    block = params["blocks"]["0"]
    for kernel, summed in (
        (params["patch_embed"]["proj"]["kernel"], 3 * 16 * 16 + 64),
        (block["attn"]["qkv"]["kernel"], 64 + 64),
        (block["attn"]["proj"]["kernel"], 64 + 64),
        (block["mlp"]["fc1"]["kernel"], 64 + 256),
    ):
        bound = math.sqrt(6 / summed)
        assert 0.97 * bound < np.abs(kernel).max() <= bound
        assert np.std(kernel) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert 0 < np.abs(params["cls_token"]).max() < 1e-5
    assert not any(np.any(x) for path, x in jax.tree.leaves_with_path(params) if path[-1].key == "bias")


def test_heads_divide_the_features():
    with pytest.raises(ConfigError, match="num_heads is 5, which does not divide the 192 features"):
        vision_jax.create_model(VIT, num_heads=5)


def test_fixed_positions():
    positions = sincos2d(2, 3, 8)
    assert positions.shape == (1, 6, 8)
    assert positions.dtype == np.float32
    np.testing.assert_allclose(positions[0, 0], [0, 0, 1, 1, 0, 0, 1, 1])
    row, column = 1, 2
    angles = np.array([column, column / 1e4, row, row / 1e4])
    expected = [*np.sin(angles[:2]), *np.cos(angles[:2]), *np.sin(angles[2:]), *np.cos(angles[2:])]
    np.testing.assert_allclose(positions[0, 1 * 3 + 2], expected, rtol=1e-6)
    with pytest.raises(ConfigError, match="in fours, at least 8; there are 10"):
        sincos2d(2, 3, 10)


# What timm's `resample_abs_pos_embed` makes of the grid of `default_rng(0).standard_normal((1, 2 + old * old, 1))`.
ENLARGED = [
    [0.710301, 0.464152, 0.014402, -0.444362, -0.697536],
    [0.586537, 0.634165, 0.640529, 0.262434, 0.010502],
    [0.29047, 0.708122, 1.304, 1.114466, 0.920144],
    [-0.344978, -0.344951, -0.310516, -0.111429, 0.016889],
    [-0.733179, -1.053091, -1.45934, -1.023702, -0.687637],
]
REDUCED = [[0.355155, -0.667329, 0.412051], [-0.77595, -0.625041, -0.267841], [-0.144119, 0.719888, 0.096412]]


@pytest.mark.parametrize(("old", "expected"), [(3, ENLARGED), (5, REDUCED)])
def test_positions_are_interpolated_as_timm_does(old: int, expected: list[list[float]]):
    positions = np.random.default_rng(0).standard_normal((1, 2 + old * old, 1)).astype(np.float32)
    new = len(expected)
    result = resample_positions(positions, 2 + new * new)
    np.testing.assert_array_equal(result[:, :2], positions[:, :2])
    np.testing.assert_allclose(result[0, 2:, 0].reshape(new, new), expected, atol=2e-6)


@pytest.mark.parametrize("name", [VIT, DEIT3, DISTILLED])
def test_weights_for_another_image_size(name: str):
    state = weights(name)
    variables = pretrained.from_torch(name, state, **SMALL | {"img_size": 20})
    expected = resample_positions(state["pos_embed"], state["pos_embed"].shape[1] - 9 + 25)
    np.testing.assert_array_equal(variables["params"]["pos_embed"], expected)
    with pytest.raises(DataError, match=r"the other \d+ are not a square grid"):  # a token more
        pretrained.from_torch(name, state, **SMALL | {"img_size": 20, "no_embed_class": name != DEIT3})


@pytest.mark.parametrize(("img_size", "tokens"), [(20, 141), (12, 141), (20, 9)])
def test_positions_of_no_square_grid_are_refused(img_size: int, tokens: int, caplog: pytest.LogCaptureFixture):
    """Such as those of 14 x 10 patches, and before anything is said to be interpolated."""
    caplog.set_level(logging.INFO, "vision_jax")
    state = weights(VIT) | {"pos_embed": np.ones((1, tokens, 16), np.float32)}
    with pytest.raises(
        DataError, match=f"There are {tokens} positions, and without the model's 1 .* other {tokens - 1}"
    ):
        pretrained.from_torch(VIT, state, **SMALL | {"img_size": img_size})
    assert not caplog.text


@pytest.mark.parametrize("img_size", [12, 24])
def test_positions_of_a_rectangle_are_refused_where_the_file_tells(img_size: int, tmp_path: pathlib.Path):
    """The 36 of 4 x 9 patches are not those of 6 x 6, whether they would be interpolated or not."""
    state = weights(VIT) | {"pos_embed": np.ones((1, 37, 16), np.float32)}
    for size, path in (([3, 24, 24], tmp_path / "square.pth"), ([3, 16, 36], tmp_path / "rectangle.pth")):
        content = {"state_dict": state, "args": argparse.Namespace(input_size=size)}
        with zipfile.ZipFile(path, "w") as archive:  # as torch lays it out
            archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
    options = SMALL | {"img_size": img_size}
    assert pretrained.load(VIT, tmp_path / "square.pth", **options)["params"]["pos_embed"].shape[2] == 16
    with pytest.raises(DataError, match="These weights are for images of 16 x 36 pixels: only square ones"):
        pretrained.load(VIT, tmp_path / "rectangle.pth", **options)


def big_vision(state: dict[str, np.ndarray], prefix: str, attention: str, mlp: str, norm: str) -> dict[str, np.ndarray]:
    """The inverse of what is tested, by hand, for blocks of 2 heads of 8 features."""
    arrays = {
        "embedding/kernel": np.einsum("oihw->hwio", state["patch_embed.proj.weight"]),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(2):
        block = {key.removeprefix(f"blocks.{i}."): v for key, v in state.items() if key.startswith(f"blocks.{i}.")}
        there = f"Transformer/encoderblock_{i}/"
        for j, part in enumerate(("query", "key", "value")):
            rows = slice(16 * j, 16 * (j + 1))  # outputs: first head, second head
            kernel = np.stack([block["attn.qkv.weight"][rows][:8].T, block["attn.qkv.weight"][rows][8:].T], axis=1)
            arrays[f"{there}{attention}/{part}/kernel"] = kernel  # (inputs, heads, features)
            arrays[f"{there}{attention}/{part}/bias"] = block["attn.qkv.bias"][rows].reshape(2, 8)
        out = block["attn.proj.weight"]
        arrays[f"{there}{attention}/out/kernel"] = np.stack([out[:, :8].T, out[:, 8:].T])  # (heads, features, outputs)
        arrays[f"{there}{attention}/out/bias"] = block["attn.proj.bias"]
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", norm)):
            arrays[f"{there}{theirs}/scale"] = block[f"{ours}.weight"]
            arrays[f"{there}{theirs}/bias"] = block[f"{ours}.bias"]
        for j in range(2):
            arrays[f"{there}{mlp}/Dense_{j}/kernel"] = block[f"mlp.fc{j + 1}.weight"].T
            arrays[f"{there}{mlp}/Dense_{j}/bias"] = block[f"mlp.fc{j + 1}.bias"]
    return {prefix + key: value for key, value in arrays.items()}


def same(variables: dict, state: dict[str, np.ndarray]) -> None:
    back = pretrained.to_torch(VIT, variables)
    assert back.keys() == state.keys()
    for key in state:
        np.testing.assert_array_equal(back[key], state[key], err_msg=key)


def test_npz_of_vision_transformer(tmp_path: pathlib.Path):
    """The first generation, as augreg's files, with the optimizer's state beside the weights."""
    state = weights(VIT)
    arrays = big_vision(state, "opt/target/", "MultiHeadDotProductAttention_1", "MlpBlock_3", "LayerNorm_2")
    arrays["opt/target/Transformer/posembed_input/pos_embedding"] = state["pos_embed"]
    arrays["opt/target/pre_logits/kernel"] = np.zeros((16, 16), np.float32)
    arrays["opt/state/step"] = np.zeros((), np.int32)
    np.savez(tmp_path / "weights.npz", **arrays)
    same(pretrained.load(VIT, tmp_path / "weights.npz", **SMALL), state)


@pytest.mark.parametrize("stacked", [False, True])
def test_npz_of_big_vision(tmp_path: pathlib.Path, stacked: bool):
    """Positions are added to patches alone there, which is a position of zero for the class token."""
    state = weights(VIT)
    arrays = big_vision(state, "params/", "MultiHeadDotProductAttention_0", "MlpBlock_0", "LayerNorm_1")
    arrays["params/pos_embedding"] = state["pos_embed"][:, 1:]
    if stacked:
        for key in [key for key in arrays if "encoderblock_0" in key]:
            layers = np.stack([arrays.pop(key), arrays.pop(key.replace("encoderblock_0", "encoderblock_1"))])
            arrays[key.replace("encoderblock_0", "encoderblock")] = layers
    np.savez(tmp_path / "weights.npz", **arrays)
    state["pos_embed"][:, 0] = 0
    same(pretrained.load(VIT, tmp_path / "weights.npz", **SMALL), state)
    del arrays["params/cls"]
    np.savez(tmp_path / "weights.npz", **arrays)
    with pytest.raises(DataError, match=r"1 missing \(cls_token"):
        pretrained.load(VIT, tmp_path / "weights.npz", **SMALL)


def test_names_of_torchvision():
    known = registry.entry("vit_b_16")
    assert known.name == "vit_base_patch16_224"
    block = "encoder.layers.encoder_layer_11."
    for ours, theirs in {
        "cls_token": "class_token",
        "pos_embed": "encoder.pos_embedding",
        "patch_embed.proj.weight": "conv_proj.weight",
        "blocks.11.norm1.weight": block + "ln_1.weight",
        "blocks.11.attn.qkv.weight": block + "self_attention.in_proj_weight",
        "blocks.11.attn.qkv.bias": block + "self_attention.in_proj_bias",
        "blocks.11.attn.proj.bias": block + "self_attention.out_proj.bias",
        "blocks.11.norm2.bias": block + "ln_2.bias",
        "blocks.11.mlp.fc1.weight": block + "mlp.0.weight",
        "blocks.11.mlp.fc2.bias": block + "mlp.3.bias",
        "norm.bias": "encoder.ln.bias",
        "head.weight": "heads.head.weight",
    }.items():
        assert known.torchvision(ours, (1, 2)) == (theirs, (1, 2))


def test_distilled_model_averages_two_heads():
    state = weights(DISTILLED)
    first, second = apply(DISTILLED, state, images(), "heads")
    np.testing.assert_allclose(apply(DISTILLED, state, images()), (first + second) / 2, atol=1e-6)
    assert np.abs(first - second).max() > 0.1
    features = apply(DISTILLED, state, images(), "features")
    headless = apply(DISTILLED, state, images(), num_classes=0)  # both heads are left out
    np.testing.assert_array_equal(features, headless)
    params = pretrained.from_torch(DISTILLED, state, **SMALL | {"num_classes": 7})["params"]  # two new heads
    assert params["head"]["kernel"].shape == params["head_dist"]["kernel"].shape == (16, 7)


def test_options_that_do_not_go_together():
    with pytest.raises(ConfigError, match="Without class_token, global_pool must be avg"):
        vision_jax.create_model(VIT, class_token=False)
    with pytest.raises(ConfigError, match="global_pool is 'max'"):
        vision_jax.create_model(VIT, global_pool="max")
    with pytest.raises(ConfigError, match="feature_blocks is 13, and the model has 12 blocks"):
        vision_jax.create_model(VIT, feature_blocks=13)
    with pytest.raises(ConfigError, match="set global_pool to token or token"):
        vision_jax.create_model(VIT, feature_blocks=2, global_pool="avg")
    with pytest.raises(ConfigError, match="positions is 'none'"):
        vision_jax.create_model(VIT, positions="none")
    with pytest.raises(ConfigError, match="leave global_pool at token"):
        vision_jax.create_model(DISTILLED, global_pool="avg")
    model = vision_jax.create_model(VIT)
    with pytest.raises(ValueError, match="the images have 64 x 64 pixels, and there are positions for 224 x 224"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), images(64), train=False))


def test_the_bias_of_relative_positions():
    """Of each pair, by loops over the offsets of the query from the key; tokens before the patches have three more."""
    table = jax.random.normal(jax.random.key(0), (5**2 + 3, 2))
    for before in (0, 1, 2):
        module = RelativePositionBias(num_heads=2, grid=3, num_prefix_tokens=before)
        rows = table if before else table[:-3]
        found = np.asarray(module.apply({"params": {"relative_position_bias_table": rows}}))
        assert found.shape == (1, 2, 9 + before, 9 + before)
        for query, key in itertools.product(range(9 + before), repeat=2):
            if query < before or key < before:
                row = 27 if query < before and key < before else 25 if query < before else 26
            else:
                (y, x), (v, u) = divmod(query - before, 3), divmod(key - before, 3)
                row = (y - v + 2) * 5 + (x - u + 2)
            np.testing.assert_allclose(found[0, :, query, key], table[row], rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"scan_blocks": True, "remat": True}])
def test_blocks_see_by_relative_positions_alone(options: dict[str, Any]):
    """Where all biases but those of a patch itself and above are low, a change reaches a patch and the one below."""
    model = vision_jax.create_model(
        "vit_tiny_patch16_224",
        **{"num_classes": 0, "img_size": 12, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
        positions="relative",
        **options,
    )
    images = jax.random.normal(jax.random.key(0), (1, 12, 12, 3))
    other = images.at[:, 4:8, 4:8].add(1.0)

    @quick
    def compute() -> Any:
        variables = model.init(jax.random.key(1), images, train=False)
        shapes = jax.tree.map(jnp.shape, variables["params"]["rel_pos_bias"])
        seen = jnp.array([2 * 5 + 2, 3 * 5 + 2, 27])  # offsets of (0, 0) and (1, 0); and the class by itself
        table = jnp.full((28, 2), -1e4).at[seen].set(0.0)
        params = {**variables["params"], "rel_pos_bias": {"relative_position_bias_table": table}}

        def maps(x: Any) -> Any:
            return model.apply({"params": params}, x, train=False, method="encode")

        def slope(table: Any) -> Any:
            with_table = {**params, "rel_pos_bias": {"relative_position_bias_table": table}}
            before, patches = model.apply({"params": with_table}, images, train=True, method="encode")
            return jnp.sin(before).sum() + jnp.sin(patches).sum()

        return shapes, maps(images), maps(other), jax.grad(slope)(jnp.zeros((28, 2)))

    shapes, (token, patches), (same, changed), slope = compute()
    assert shapes == {"relative_position_bias_table": (28, 2)}
    np.testing.assert_array_equal(token, same)
    moved = np.abs(patches - changed).max((0, 3)) > 1e-4
    assert moved.tolist() == [[False, False, False], [False, True, False], [False, True, False]]
    assert np.abs(slope).min() > 0


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"interpolate_positions": True}, 16, "positions is 'relative', which are for one size of images"),
        ({}, 32, "positions for 16 x 16: set img_size\n"),
    ],
)
def test_relative_positions_are_for_one_size(options: dict[str, Any], size: int, message: str):
    def make() -> None:
        model = vision_jax.create_model("vit_tiny_patch16_224", img_size=16, positions="relative", **options)
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False))

    with pytest.raises((ConfigError, ValueError), match=message):
        make()
