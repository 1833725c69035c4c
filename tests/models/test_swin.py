import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vision_jax
from vision_jax import pretrained
from vision_jax.errors import DataError
from vision_jax.models import swin

NAME = "swin_tiny_patch4_window7_224"
SMALL = {"embed_dim": 8, "depths": (1, 2, 1, 2), "num_heads": (1, 2, 2, 4), "num_classes": 5}
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_relative_position_index_numbers_the_offsets_in_order(window: int):
    positions = list(itertools.product(range(window), range(window)))
    offsets = [[(a[0] - b[0], a[1] - b[1]) for b in positions] for a in positions]
    rows = sorted({offset for row in offsets for offset in row})
    assert len(rows) == (2 * window - 1) ** 2
    expected = [[rows.index(offset) for offset in row] for row in offsets]
    assert swin.relative_position_index(window).tolist() == expected


@pytest.mark.parametrize(
    ("height", "width", "window", "shift"), [(4, 4, 2, 1), (6, 9, 3, 1), (4, 8, 4, 2), (5, 5, 5, 2)]
)
def test_shift_mask_hides_what_was_not_beside_it(height: int, width: int, window: int, shift: int):
    ys, xs = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    # Of each position in the shifted map, where it was before.
    origins = np.roll(np.stack([ys, xs]), (-shift, -shift), (1, 2))
    expected = []
    for top, left in itertools.product(range(0, height, window), range(0, width, window)):
        places = list(itertools.product(range(top, top + window), range(left, left + window)))
        expected.append(
            [
                [
                    0.0 if np.array_equal(origins[:, *a] - origins[:, *b], np.subtract(a, b)) else swin.MASKED
                    for b in places
                ]
                for a in places
            ]
        )
    np.testing.assert_array_equal(swin.shift_mask(height, width, window, shift), expected)


@pytest.mark.parametrize("shift", [0, 1])
def test_attention_agrees_with_one_position_at_a_time_where_the_map_is_padded(shift: int):
    height, width, window, heads, features = 4, 5, 3, 2, 6
    x = np.random.default_rng(0).standard_normal((2, height, width, features)).astype(np.float32)
    layer = swin.WindowAttention(heads, window, shift, jnp.float32)
    params = layer.init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda p: jax.random.normal(jax.random.key(p.size), p.shape), params)
    got = layer.apply({"params": params}, x)

    table = np.asarray(params["relative_position_bias_table"]).reshape(2 * window - 1, 2 * window - 1, heads)
    padded = np.zeros((2, 6, 6, features), np.float32)
    padded[:, :height, :width] = np.roll(x, (-shift, -shift), (1, 2))
    qkv = padded @ params["qkv"]["kernel"] + params["qkv"]["bias"]
    q, k, v = np.asarray(qkv).reshape(2, 6, 6, 3, heads, features // heads).transpose(3, 0, 1, 2, 4, 5)
    mixed = np.zeros((2, 6, 6, heads, features // heads))
    for example, y, z, head in itertools.product(range(2), range(6), range(6), range(heads)):
        seen = [  # in the same window, and on the same side of where the edges of the padded map have come to lie
            (i, j)
            for i, j in itertools.product(range(6), range(6))
            if (i // window, j // window) == (y // window, z // window)
            and (i >= 6 - shift, j >= 6 - shift) == (y >= 6 - shift, z >= 6 - shift)
        ]
        logits = [
            q[example, y, z, head] @ k[example, i, j, head] / (features // heads) ** 0.5
            + table[y - i + window - 1, z - j + window - 1, head]
            for i, j in seen
        ]
        weights = np.exp(logits) / np.exp(logits).sum()
        mixed[example, y, z, head] = sum(w * v[example, i, j, head] for w, (i, j) in zip(weights, seen, strict=True))
    expected = mixed.reshape(2, 6, 6, features) @ params["proj"]["kernel"] + params["proj"]["bias"]
    expected = np.roll(expected[:, :height, :width], (shift, shift), (1, 2))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_windows_are_no_larger_than_the_maps_of_img_size():
    model = vision_jax.create_model(NAME, img_size=64, **SMALL)
    images = jnp.zeros((1, 64, 64, 3))
    layers = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))["params"]["layers"]
    rows = [len(layers[str(i)]["blocks"]["0"]["attn"]["relative_position_bias_table"]) for i in range(4)]
    assert rows == [13**2, 13**2, 7**2, 3**2]  # of maps of 16, 8, 4 and 2 positions a side


def test_images_of_another_size_than_img_size():
    model = vision_jax.create_model(NAME, **SMALL)
    variables = quick(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False))()
    shape = (2, 72, 100, 3)  # neither windows nor the merging of patches come out even
    images = jax.random.normal(jax.random.key(1), shape)
    maps = quick(lambda x: model.apply(variables, x, train=False, method="feature_maps"))(images)
    assert {stride: x.shape for stride, x in maps.items()} == {
        4: (2, 18, 25, 8),
        8: (2, 9, 13, 16),
        16: (2, 5, 7, 32),
        32: (2, 3, 4, 64),
    }
    assert all(np.isfinite(x).all() for x in maps.values())


def test_resampling_keeps_the_centre_and_reaches_the_edge():
    old = np.random.default_rng(0).standard_normal((13, 13, 2)).astype(np.float32)
    new = swin.resample("table", old.reshape(169, 2), (23**2, 2)).reshape(23, 23, 2)
    np.testing.assert_allclose(new[10:13, 10:13], old[5:8, 5:8], atol=1e-5)
    np.testing.assert_allclose(new[::22, ::22], old[::12, ::12], atol=1e-4)


def test_weights_for_another_image_size_are_resampled():
    state = pretrained.to_torch(NAME, _variables())
    variables = pretrained.from_torch(NAME, state, img_size=64, **SMALL)
    last = variables["params"]["layers"]["3"]["blocks"]["0"]["attn"]["relative_position_bias_table"]
    assert last.shape == (9, 4)
    table = state["layers.3.blocks.0.attn.relative_position_bias_table"]
    np.testing.assert_allclose(last[4], table[84], atol=1e-6)  # the bias of no offset


def test_weights_for_another_window_are_resampled():
    """As from 192 pixels in windows of 6 to 224 in windows of 7, where no table depends on the size of the images."""
    state = pretrained.to_torch(NAME, _variables())
    variables = pretrained.from_torch(NAME, state, window_size=5, **SMALL)
    table = state["layers.0.blocks.0.attn.relative_position_bias_table"]
    first = variables["params"]["layers"]["0"]["blocks"]["0"]["attn"]["relative_position_bias_table"]
    np.testing.assert_allclose(first, swin.resample("table", table, (81, 1)))
    again = pretrained.adapt_variables(NAME, _variables(), {"window_size": 5, **SMALL})
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_tables_of_windows_that_are_not_square_are_refused():
    state = pretrained.to_torch(NAME, _variables())
    name = "layers.3.blocks.0.attn.relative_position_bias_table"
    for rows in (13 * 21, 12 * 12):  # of 7 x 11; of no window
        state[name] = np.ones((rows, 4), np.float32)
        with pytest.raises(DataError, match=f"{name} has {rows} rows, which are not those of a square window"):
            pretrained.from_torch(NAME, state, img_size=64, **SMALL)


def test_torchvisions_state_dict_has_its_buffers():
    variables = _variables()
    state = pretrained.to_torch("swin_t", variables, library="torchvision")
    index = state["features.3.1.attn.relative_position_index"]
    assert index.dtype == np.int64
    np.testing.assert_array_equal(index, swin.relative_position_index(7).flatten())
    assert sum(name.endswith("index") for name in state) == sum(SMALL["depths"])
    back = pretrained.from_torch("swin_t", state, **SMALL)
    jax.tree.map(np.testing.assert_array_equal, back["params"], variables["params"])


@functools.cache
def _variables():
    model = vision_jax.create_model(NAME, **SMALL)
    init = quick(lambda key: model.init(key, jnp.zeros((1, 224, 224, 3)), train=False))
    return jax.device_get(init(jax.random.key(0)))
