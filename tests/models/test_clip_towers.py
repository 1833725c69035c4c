"""What the references do not show of models of images and words: their masks, sizes, and files of other shapes."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.errors import ConfigError, DataError
from vision_jax.models import clip_variants
from vision_jax.models.clip import Clip, ImageTower, TextTower, Transformer
from vision_jax.models.transformer import resample_positions
from vision_jax.pretrained import clip as weights
from vision_jax.pretrained import files

CONTEXT = 6


def model(siglip: bool = False, *, img_size: int = 16, dtype: Any = jnp.float32, remat: bool = False) -> Clip:
    blocks = Transformer(1, 2, 16, "gelu", 1e-5, remat, dtype)
    visual = ImageTower(img_size, 8, 8, blocks, 8, "map" if siglip else "token", dtype=dtype)
    options: dict[str, Any] = {"causal": False, "pool": "last", "head_bias": True} if siglip else {}
    text = TextTower(20, CONTEXT, 8, blocks, 8, dtype=dtype, **options)
    return Clip(visual, text, initial_bias=-10.0 if siglip else None)


def state(of: Clip) -> dict[str, np.ndarray]:
    """Made-up tensors, under this project's own names."""
    random = np.random.RandomState(0)
    return {x.name: random.standard_normal(x.shape).astype(np.float32) / 4 for x in weights.model_tensors(of)}


def test_what_a_text_is_read_from():
    """CLIP's tokens do not see those behind them, and the first of the largest ones is the end; SigLIP's see all."""
    tokens = np.array([[18, 3, 4, 19, 0, 0], [18, 3, 4, 19, 7, 19], [18, 5, 4, 19, 0, 0]], np.int32)
    for siglip in (False, True):
        each = model(siglip)
        variables = weights.from_tensors(each, state(each))
        embed = jax.jit(lambda v, t, each=each: each.apply(v, t, train=False, method="encode_texts"))
        found = np.asarray(embed(variables, tokens))
        assert np.allclose(found[0], found[1], atol=1e-6) != siglip
        assert not np.allclose(found[0], found[2], atol=1e-3)


def test_half_precision_and_rematerialization():
    each = model()
    variables = weights.from_tensors(each, state(each))
    images, tokens = jax.random.normal(jax.random.key(0), (2, 16, 16, 3)), jnp.asarray([[18, 3, 19, 0, 0, 0]] * 2)
    full, half, again = (
        jax.jit(lambda v, each=each: each.apply(v, images, tokens, train=False, method="encode"))(variables)
        for each in (each, model(dtype=jnp.bfloat16), model(remat=True))
    )
    for a, b, c in zip(full, half, again, strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.03 * float(jnp.abs(a).max()))
        np.testing.assert_allclose(a, c, atol=1e-6)


def test_pixels_beyond_the_last_patch_are_not_seen():
    """As those of SigLIP's SO400M at 384 pixels, whose patches of 14 cover 378."""
    each = model(img_size=20)
    variables = weights.from_tensors(each, state(each))
    images = np.random.RandomState(1).standard_normal((1, 20, 20, 3)).astype(np.float32)
    other = images.copy()
    other[:, 16:] = other[:, :, 16:] = 0
    embed = jax.jit(lambda images: each.apply(variables, images, train=False, method="encode_images"))
    np.testing.assert_array_equal(embed(images), embed(other))


def test_other_image_sizes():
    given = state(model())
    found = weights.from_tensors(model(img_size=32), given)["params"]["visual"]["pos_embed"]
    np.testing.assert_array_equal(found, resample_positions(given["visual.pos_embed"], 17))
    siglip = state(model(True))
    found = weights.from_tensors(model(True, img_size=32), siglip)["params"]["visual"]["pos_embed"]
    assert found.shape == (1, 16, 8)


def test_wrapped_and_stacked_names():
    each = model()
    given = state(each)
    plain = weights.from_tensors(each, given)
    wrapped = {f"state_dict.module.{name}": value for name, value in given.items() if name != "visual.pos_embed"}
    wrapped["state_dict.module.visual.positional_embedding"] = given["visual.pos_embed"][0]
    wrapped["state_dict.module.context_length"] = np.int64(77)
    jax.tree.map(np.testing.assert_array_equal, plain, weights.from_tensors(each, wrapped))
    path = pathlib.Path(__file__).parents[1] / "references/dense/siglip_big_vision.layers.npz"
    shapes = json.loads(str(np.load(path)["state"]))
    random = np.random.RandomState(2)
    layers = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    stacked = {name: value for name, value in layers.items() if "/encoderblock_" not in name}
    for name in layers:
        if "/encoderblock_0/" in name:
            both = [layers[name.replace("encoderblock_0", f"encoderblock_{i}")] for i in range(2)]
            stacked[name.replace("/encoderblock_0/", "/encoderblock/")] = np.stack(both)
    expected, found = weights.to_own_names(layers), weights.to_own_names(stacked)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_weights_of_another_model():
    given = state(model())
    del given["visual.norm.weight"]
    given["text.head.bias"] = np.zeros(8, np.float32)
    given["logit_scale"] = np.zeros(3, np.float32)
    with pytest.raises(DataError, match=r"1 missing \(visual.norm.weight.*1 left over.*1 of another shape") as error:
        weights.from_tensors(model(), given)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="are none of OpenAI's"):
        weights.from_tensors(model(), {"conv1.weight": np.zeros(3)})


def test_options_and_names():
    with pytest.raises(ConfigError, match="did you mean ViT-B-32"):
        clip_variants.create("ViTB32")
    with pytest.raises(ConfigError, match="has no option 'depth'"):
        clip_variants.create("ViT-B-32", depth=3)
    with pytest.raises(ConfigError, match="there are token and map"):
        ImageTower(16, 8, 8, Transformer(1, 1, 8, "gelu", 1e-5), 8, "mean")
    assert clip_variants.create("ViT-B/32").text.transformer.activation == "quick_gelu"
    assert clip_variants.create("ViT-B-16-SigLIP").text.transformer.activation == "gelu_tanh"


def test_what_lies_beside_weights(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "merges.txt").write_text("")
    names = ("tokenizer.json", "merges.txt")
    assert files.find_beside(tmp_path / "x.safetensors", names) == tmp_path / "merges.txt"
    assert files.find_beside(tmp_path / "x.safetensors", ("none",)) is None
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(repository: str, file: str, revision: str | None) -> str:
        asked.append((repository, file, revision))
        if file == "tokenizer.json":
            raise huggingface_hub.errors.EntryNotFoundError("404")
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert files.find_beside("hf://laion/model@main/open_clip_model.safetensors", names) == tmp_path / "merges.txt"
    assert asked == [("laion/model", name, "main") for name in names]
