"""Attention of a plain vision transformer within windows: against numpy, one window after another, and the whole."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vision_jax import pretrained
from vision_jax.dense.networks import create_detector
from vision_jax.errors import ConfigError
from vision_jax.models import registry
from vision_jax.models.vit import Block, VisionTransformer
from vision_jax.models.windows import Windows, evenly_spaced

FEATURES, HEADS, HIDDEN = 8, 2, 12


def model_of(**options: Any) -> VisionTransformer:
    small = {"patch_size": 4, "embed_dim": FEATURES, "depth": 4, "num_heads": HEADS, "img_size": 16, "num_classes": 0}
    several = {"class_token": False, "global_pool": "avg", "interpolate_positions": True}
    return VisionTransformer(**{**small, **several, **options})


def random_like(tree: Any, seed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: random.normal(0, 0.5, x.shape).astype(np.float32), tree)


def params_of(model: VisionTransformer, images: np.ndarray) -> Any:
    """Random parameters."""
    init = lambda: model.init(jax.random.key(0), images, train=False, method="feature_maps")  # noqa: E731
    return random_like(jax.eval_shape(init)["params"])


def test_global_blocks_are_evenly_spaced():
    """Those of ViTDet's ViT-B, L and H."""
    assert evenly_spaced(12, 4) == (2, 5, 8, 11)
    assert evenly_spaced(24, 4) == (5, 11, 17, 23)
    assert evenly_spaced(32, 4) == (7, 15, 23, 31)
    assert evenly_spaced(5, 0) == ()


@pytest.mark.parametrize(("rows", "columns", "side"), [(4, 6, 2), (3, 5, 2), (7, 2, 3), (2, 3, 9)])
def test_windows_are_cut_and_joined(rows: int, columns: int, side: int):
    windows = Windows(rows, columns, side)
    x = np.random.default_rng(0).normal(size=(2, rows * columns, 3)).astype(np.float32)
    cut = np.asarray(windows.cut(x))
    height, width = min(side, rows), min(side, columns)
    expected = []
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            window = np.zeros((2, height, width, 3), np.float32)
            part = x.reshape(2, rows, columns, 3)[:, top : top + height, left : left + width]
            window[:, : part.shape[1], : part.shape[2]] = part
            expected.append(window.reshape(2, -1, 3))
    np.testing.assert_array_equal(cut, np.stack(expected, 2))
    np.testing.assert_array_equal(windows.join(cut), x)


def layer_norm(x: np.ndarray, of: Any) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * of["scale"] + of["bias"]


def dense(x: np.ndarray, of: Any) -> np.ndarray:
    return x @ of["kernel"] + of["bias"]


def block_by_numpy(x: np.ndarray, params: Any, rows: int, columns: int, side: int) -> np.ndarray:
    """A block on one map, (rows, columns, features), whose windows are padded with zeros behind the norm."""
    normed, attended = layer_norm(x, params["norm1"]), np.zeros_like(x)
    for top in range(0, rows, side):
        for left in range(0, columns, side):
            tokens = np.zeros((side, side, FEATURES))
            part = normed[top : top + side, left : left + side]
            tokens[: part.shape[0], : part.shape[1]] = part
            qkv = dense(tokens.reshape(-1, FEATURES), params["attn"]["qkv"]).reshape(side**2, 3, HEADS, -1)
            found = []
            for head in range(HEADS):
                query, key, value = qkv[:, 0, head], qkv[:, 1, head], qkv[:, 2, head]
                shares = scipy.special.softmax(query @ key.T / np.sqrt(FEATURES / HEADS), axis=-1)
                found.append(shares @ value)
            result = dense(np.concatenate(found, -1), params["attn"]["proj"]).reshape(side, side, FEATURES)
            attended[top : top + side, left : left + side] = result[: part.shape[0], : part.shape[1]]
    x = x + attended
    hidden = dense(layer_norm(x, params["norm2"]), params["mlp"]["fc1"])
    return x + dense(hidden * scipy.special.ndtr(hidden), params["mlp"]["fc2"])


@pytest.mark.parametrize(("rows", "columns", "side"), [(4, 6, 2), (3, 5, 2)])
def test_a_block_of_windows_is_that_of_numpy(rows: int, columns: int, side: int):
    block = Block(HEADS, HIDDEN, None, 0.0, 0.0, jnp.float32, windows=Windows(rows, columns, side))
    x = np.random.default_rng(1).normal(size=(2, rows * columns, FEATURES)).astype(np.float32)
    params = random_like(jax.eval_shape(lambda: block.init(jax.random.key(0), x, False))["params"])
    found = jax.jit(lambda params, x: block.apply({"params": params}, x, False))(params, x)
    for one, given in zip(found, x, strict=True):
        expected = block_by_numpy(given.reshape(rows, columns, FEATURES), params, rows, columns, side)
        np.testing.assert_allclose(one, expected.reshape(-1, FEATURES), atol=1e-4)


def test_a_window_that_covers_the_image_is_the_whole():
    """Outputs, and gradients of all parameters."""
    images = np.random.default_rng(2).normal(size=(2, 12, 20, 3)).astype(np.float32)
    several = ({"norm_after_pooling": False}, {"attention_window": 14, "global_blocks": 1})
    models = [model_of(depth=2, **options) for options in several]
    params = params_of(models[0], images)

    def loss(params: Any, model: VisionTransformer) -> Any:
        maps = model.apply({"params": params}, images, train=False, method="feature_maps")[4]
        return jnp.sum(maps**2), maps

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (found, slopes), (expected, whole) = (
        (maps, grads) for grads, maps in (gradient(params, model) for model in models)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(jax.tree.leaves(slopes), jax.tree.leaves(whole), strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(other).max())


@pytest.mark.parametrize("global_blocks", [0, 1])
def test_what_a_patch_sees(global_blocks: int):
    """Its window alone, unless a block sees all; and what it sees has gradients."""
    model = model_of(depth=2, attention_window=2, global_blocks=global_blocks)
    images = np.random.default_rng(3).normal(size=(1, 16, 24, 3)).astype(np.float32)
    params = params_of(model, images)

    def corner(images: jax.Array) -> jax.Array:
        return model.apply({"params": params}, images, train=False, method="feature_maps")[4][0, 0, 0].sum()

    seen = np.abs(jax.jit(jax.grad(corner))(images))[0].reshape(4, 4, 6, 4, 3).max((1, 3, 4)) > 0
    expected = np.ones((4, 6), bool)
    if not global_blocks:
        expected[2:], expected[:, 2:] = False, False
    np.testing.assert_array_equal(seen, expected)


def test_a_detector_of_windows():
    backbone = model_of(patch_size=16, img_size=64, attention_window=2, global_blocks=2)
    detector = create_detector("retinanet", num_classes=3, backbone=backbone, channels=8)
    assert detector.map_sizes(96, 128)[:3] == ((12, 16), (6, 8), (3, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_token": True}, "windows have no place for cls_token: set class_token to False"),
        ({"num_registers": 2}, "windows have no place for reg_token"),
        ({"scan_blocks": True}, "does not go with scan_blocks"),
        ({"positions": "relative", "interpolate_positions": False}, "does not go with positions='relative'"),
        ({"global_blocks": 5}, "global_blocks is 5, and the model has 4 blocks"),
        ({"attention_window": 0}, "attention_window is 0"),
    ],
)
def test_what_windows_do_not_go_with(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        model_of(**{"attention_window": 2, **options})


def test_patches_that_are_encoded_alone_have_no_windows():
    model, images = model_of(attention_window=2), jnp.zeros((1, 16, 16, 3))
    kept = jnp.zeros((1, 3), jnp.int32)
    with pytest.raises(ValueError, match="some alone are not encoded"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False, kept=kept, method="encode"))


def test_weights_with_a_class_token():
    """All but that token, and its position, are those of a file of a classifier."""
    name = "vit_tiny_patch16_224"
    classifier = registry.create_model(name)
    images = jnp.zeros((1, 224, 224, 3))
    theirs = random_like(jax.eval_shape(lambda: classifier.init(jax.random.key(0), images, train=False)))
    state = pretrained.to_torch(name, theirs, library="timm")
    options = {"class_token": False, "global_pool": "avg", "attention_window": 14, "num_classes": 0}
    params = pretrained.from_torch(name, {k: v for k, v in state.items() if "head" not in k}, **options)["params"]
    expected = {k: v for k, v in theirs["params"].items() if k not in ("cls_token", "head")}
    expected["pos_embed"] = expected["pos_embed"][:, 1:]
    jax.tree.map(np.testing.assert_array_equal, params, expected)
