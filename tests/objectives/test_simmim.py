import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from masked import check_devices_and_parts, check_masks, check_padding, initialized, objective, views_of, vit

import vision_jax
from vision_jax import pretrained
from vision_jax.assembly.states import heads_alone
from vision_jax.errors import ConfigError
from vision_jax.objectives.simmim import PixelDecoder, hidden_error


def swin(**options: Any) -> Any:
    sizes = {"img_size": 16, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "window_size": 2, "num_classes": 0}
    return vision_jax.create_model("swin_base_patch4_window7_224", **{**sizes, **options})


def simmim(model: Any = None, **options: Any) -> Any:
    return objective("simmim", vit() if model is None else model, **{"mask_size": 8, **options})


@pytest.mark.parametrize("model", [vit, pytest.param(swin, marks=pytest.mark.exhaustive)])
def test_padding_does_not_count(model: Any):
    check_padding(simmim(model()))


@pytest.mark.exhaustive
@pytest.mark.parametrize("model", [vit, pytest.param(swin, marks=pytest.mark.exhaustive)])
def test_a_step_on_other_devices_and_in_parts(model: Any):
    check_devices_and_parts(simmim(model()))


def test_masks_are_keyed_by_position():
    mine = simmim(mask_size=4)
    assert mine.count == 10  # of 16, of which 0.6 are 9.6
    check_masks(mine, mine._hidden)


def test_the_loss_by_hand():
    """Pixels are off by 1/2, -1 and 2 in three channels, which is 7/6 in the mean, where the diagonal is hidden."""
    errors = jnp.abs(jnp.broadcast_to(jnp.array([0.5, -1, 2]), (1, 4, 4, 3)))
    total, count = hidden_error(errors, jnp.eye(2, dtype=bool)[None])
    assert count.tolist() == [8]
    assert float(total[0] / count[0]) == pytest.approx(7 / 6)


@pytest.mark.parametrize("model", [vit, functools.partial(vit, positions="relative", layer_scale=0.1), swin])
def test_what_is_hidden_is_not_seen(model: Any):
    """The loss of an image whose hidden pixels are others differs by these alone."""
    mine = simmim(model())
    variables = initialized(mine)
    views = views_of(mine)
    hidden = mine._hidden(views["order"])
    token = variables["params"]["decoder"]["mask_token"][0, 0]
    pixels = hidden.repeat(8, 1).repeat(8, 2)[..., None]

    @jax.jit
    def encode(images: Any) -> Any:
        patches = mine._patches(hidden)
        return mine._model.apply(variables, images, patches, token, train=False, method="encode_hidden")

    found = encode(views["image"])
    np.testing.assert_array_equal(encode(views["image"] + 3 * pixels), found)
    assert np.abs(encode(views["image"] + 3 * ~pixels) - found).max() > 1e-3


def test_pixels_are_shuffled_as_in_torch():
    """Feature c * 4 + 2 * i + j of a position is pixel (i, j) of its channel c."""
    decoder = PixelDecoder(embed_dim=4, image_size=4, channels=3)
    features = jnp.arange(48.0).reshape(1, 2, 2, 12)
    params = {"0": {"kernel": jnp.eye(12)[None, None], "bias": jnp.zeros(12)}, "mask_token": jnp.zeros((1, 1, 4))}
    image = decoder.apply({"params": params}, features, train=False)
    for row in range(2):
        for column in range(2):
            square = image[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            expected = np.asarray(features)[0, row, column].reshape(3, 2, 2).transpose(1, 2, 0)
            np.testing.assert_array_equal(square, expected)


def test_official_weights_of_swin(tmp_path: Any):
    """Those of the encoder, and the token and decoder beside it."""
    mine = simmim(swin())
    options = {key: getattr(swin(), key) for key in ("img_size", "embed_dim", "depths", "num_heads", "window_size")}
    made = jax.device_get(initialized(mine))
    backbone = {key: value for key, value in made["params"].items() if key != "decoder"}
    state = pretrained.to_torch("swin_base_patch4_window7_224", {"params": backbone})
    decoder = made["params"]["decoder"]
    saved = {f"model.encoder.{name}": value for name, value in state.items()}
    saved["model.encoder.mask_token"] = decoder["mask_token"] + 1
    saved["model.decoder.0.weight"] = decoder["0"]["kernel"].transpose(3, 2, 0, 1)
    saved["model.decoder.0.bias"] = decoder["0"]["bias"] + 2
    np.savez(tmp_path / "simmim.npz", **saved)
    loaded = pretrained.load("swin_base_patch4_window7_224", tmp_path / "simmim.npz", num_classes=0, **options)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"], backbone)
    heads = pretrained.load_heads(tmp_path / "simmim.npz", heads_alone(mine), mine.official).heads["params"]["decoder"]
    np.testing.assert_array_equal(heads["mask_token"], decoder["mask_token"] + 1)
    np.testing.assert_array_equal(heads["0"]["kernel"], decoder["0"]["kernel"])
    np.testing.assert_array_equal(heads["0"]["bias"], 2)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("lenet5", {}, "hides patches of vision transformers and Swin, not of LeNet"),
        ({"global_pool": "avg"}, {}, "leave model.global_pool at token"),
        ({}, {"mask_size": 6}, "objective.mask_size is 6: it must be a multiple of the model's patches, of 4 pixels"),
        ({}, {"mask_size": 32}, "and divide data.image_size=16"),
        ({}, {"mask_ratio": 0.0}, "objective.mask_ratio is 0.0: of 4 squares it hides 0"),
        ({}, {"mask_ratio": 0.9}, "objective.mask_ratio is 0.9: of 4 squares it hides 4"),
    ],
)
def test_wrong_options(model: Any, options: dict[str, Any], message: str):
    made = vit(**model) if isinstance(model, dict) else vision_jax.create_model(model, num_classes=0)
    with pytest.raises(ConfigError, match=message):
        simmim(made, **options)
