"""CLIP, SigLIP, their losses, preprocessing and tokenizers, and zero-shot classification; see README.md.

Each case of references/dense is one test.
"""

import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import encode
from references import common

from vision_jax import augment, losses
from vision_jax.models import clip, clip_variants
from vision_jax.models.clip import Clip, ImageTower, TextTower, Transformer
from vision_jax.models.clip_resnet import ModifiedResNet
from vision_jax.pretrained import clip as weights
from vision_jax.text import clean_for_clip, clean_for_siglip, clip_bpe
from vision_jax.zero_shot import preprocessing

read = common.read_dense


def close_to_spread(found: Any, expected: np.ndarray, tolerance: float) -> None:
    """Asserts that the largest error is so small beside the standard deviation of what is expected."""
    found = np.asarray(found, np.float64)
    assert found.shape == expected.shape
    error = np.abs(found - expected).max() / expected.std()
    assert error <= tolerance, f"off by {error:.2e} of the spread, more than {tolerance}"


def clip_model(config: dict[str, Any], **_: Any) -> Clip:
    """A CLIP of a case."""
    activation = "quick_gelu" if config.get("quick_gelu", True) else "gelu"

    def blocks(tower: str) -> Transformer:
        width = config[f"{tower}_width"]
        return Transformer(config[f"{tower}_layers"], config[f"{tower}_heads"], 4 * width, activation, 1e-5)

    width, size = config["vision_width"], config["image_size"]
    visual: Any
    if "head_width" in config:
        depths = tuple(config["vision_layers"])
        visual = ModifiedResNet(size, width, depths, 32 * width // config["head_width"], config["embed_dim"])
    else:
        visual = ImageTower(size, config["patch_size"], width, blocks("vision"), config["embed_dim"])
    text_sizes = config["vocab_size"], config["context_length"], config["text_width"]
    text = TextTower(*text_sizes, blocks("text"), config["embed_dim"], pool=config.get("text_pool", "argmax"))
    return Clip(visual, text)


def siglip_model(config: dict[str, Any]) -> Clip:
    """A SigLIP of a case."""
    activation = config["activation"].replace("pytorch_", "")
    width = config["width"]
    blocks = Transformer(config["layers"], config["heads"], config["mlp"], activation, config["eps"])
    visual = ImageTower(config["image_size"], config["patch_size"], width, blocks, width, "map")
    text_sizes = config["vocab_size"], config["context_length"], width
    text = TextTower(*text_sizes, blocks, width, causal=False, pool="last", head_bias=True)
    return Clip(visual, text, initial_bias=-10.0)


def torch_state(case: dict[str, Any], state: str = "state") -> dict[str, np.ndarray]:
    variances = case.get("variances", {})
    return {
        name: common.fill(name, shape, variances.get(name.rpartition(".")[0], 1.0))
        for name, shape in case[state].items()
    }


def big_vision_state(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a case; where layers are stacked, their scales have two dimensions."""
    return {
        name: common.fill(name, shape) + np.float32(len(shape) == 2 and name.endswith("/scale"))
        for name, shape in case["state"].items()
    }


def in_other_names(case: dict[str, Any], state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights as transformers has them."""
    found = {}
    for name, (source, how) in case["hf_mapping"].items():
        parts = [state[part] for part in source.split(" + ")]
        value = np.concatenate(parts) if len(parts) > 1 else parts[0]
        if how == "transpose":
            value = value.T
        elif how.startswith("third"):
            value = np.split(value, 3)[int(how[-1])]
        found[name] = value.reshape(case["hf_state"][name])
    return found


def check_network(model: Clip, case: dict[str, Any], state: dict[str, np.ndarray], tolerance: float) -> None:
    variables = weights.from_tensors(model, state)
    if "hf_mapping" in case:
        others = weights.from_tensors(model, in_other_names(case, state))
        jax.tree.map(np.testing.assert_array_equal, variables, others)
    count = sum(math.prod(shape) for shape in case["state"].values())
    statistics = sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"]))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == case.get("parameters", count - statistics)

    @jax.jit
    def run(variables: Any, images: jax.Array, tokens: jax.Array) -> tuple[jax.Array, ...]:
        features, texts = model.apply(variables, images, tokens, train=False, method="encode")
        classes = clip.unit(texts).T
        return features, texts, model.apply(variables, features, classes, method="logits_of_classes")

    images = np.moveaxis(case["pixels"], 1, -1)
    features, texts, logits = run(variables, images, case["tokens"].astype(np.int32))
    close_to_spread(features, case["image_features"], tolerance)
    close_to_spread(texts, case["text_features"], tolerance)
    close_to_spread(logits, case["logits_per_image"], tolerance)


def check_clip(case: dict[str, Any]) -> None:
    check_network(clip_model(case["config"]), case, torch_state(case), 1e-4)


def check_clip_resnet(case: dict[str, Any]) -> None:
    check_network(clip_model(case["config"]), case, torch_state(case), 2e-4)


def check_siglip(case: dict[str, Any]) -> None:
    check_network(siglip_model(case["config"]), case, torch_state(case), 1e-4)


def check_siglip_big_vision(case: dict[str, Any]) -> None:
    check_network(siglip_model(case["config"]), case, big_vision_state(case), 1e-4)


def check_losses(case: dict[str, Any], number: int, kind: str) -> None:
    about = case["cases"][number]

    def mean(images: jax.Array, texts: jax.Array, log_scale: jax.Array, bias: jax.Array) -> jax.Array:
        if kind == "clip":
            return losses.clip_loss(images, texts, log_scale).mean()
        return losses.siglip_loss(images, texts, log_scale, bias).mean()

    arguments = case[f"image_{number}"], case[f"text_{number}"], about["log_scale"], about["bias"] or 0.0
    value, gradients = jax.jit(jax.value_and_grad(mean, argnums=(0, 1, 2, 3)))(
        *(jnp.asarray(argument, jnp.float32) for argument in arguments)
    )
    expected = about[kind]
    common.near(value, expected["loss"], 1e-5)
    common.near_largest(gradients[0], case[f"{kind}_grad_image_{number}"], 1e-5)
    common.near_largest(gradients[1], case[f"{kind}_grad_text_{number}"], 1e-5)
    common.near(gradients[2], expected["grad_log_scale"], 1e-5)
    if expected["grad_bias"] is not None:
        common.near(gradients[3], expected["grad_bias"], 1e-5)


def check_preprocess(case: dict[str, Any], number: int, kind: str) -> None:
    image, size = case[f"image_{number}"], case["cases"][number]["size"]
    name = {"clip": "ViT-B-32", "siglip": "ViT-B-16-SigLIP"}[kind]
    prepared = preprocessing(clip_variants.variant(name), size)
    out = {"image": np.zeros((1, size, size, 3), np.uint8)}
    prepared.transform([{"image": encode(image, "PNG")}], np.zeros(1), np.zeros(1), out)
    found = augment.normalize(jnp.asarray(out["image"]), prepared.mean, prepared.std)
    np.testing.assert_allclose(np.moveaxis(np.asarray(found)[0], -1, 0), case[f"{kind}_{number}"], atol=1e-6)


def check_zero_shot(case: dict[str, Any]) -> None:
    found = clip.class_weights(jnp.asarray(case["prompts"]))
    common.near(found, case["weights"], 1e-5)
    logits = 100 * jnp.matmul(clip.unit(jnp.asarray(case["images"])), found, precision="highest")
    assert np.abs(np.asarray(logits) - case["logits"]).max() <= 1e-5 * 100
    np.testing.assert_array_equal(jnp.argmax(logits, -1), case["top1"])


def check_bpe(case: dict[str, Any], row: dict[str, Any]) -> None:
    merges = {(left, right): 512 + rank for rank, left, right in case["merges"]}
    tokenizer = clip_bpe(merges, case["start"], case["end"], case["context_length"])
    assert clean_for_clip(row["text"]) == row["cleaned"]
    assert tokenizer.encode(row["text"]) == row["ids"]
    np.testing.assert_array_equal(tokenizer([row["text"]])[0], row["padded"])


def check_canonical_text(rows: list[list[str]]) -> None:
    for text, expected in rows:
        assert clean_for_siglip(text) == expected


# By what a file's name begins with, up to the first dot.
NETWORKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "clip": check_clip,
    "clip_resnet": check_clip_resnet,
    "siglip": check_siglip,
    "siglip_open_clip": check_siglip,
    "siglip_big_vision": check_siglip_big_vision,
    "zero_shot": check_zero_shot,
}


def find_cases() -> dict[str, Callable[[], None]]:
    """What checks each case, by what its test is called; a file of an unknown kind has a test that fails."""
    found: dict[str, Callable[[], None]] = {}
    for path, kind in common.dense_files("test_clip"):
        if path.suffix == ".npz" and kind in NETWORKS:
            found[path.name] = lambda path=path, kind=kind: NETWORKS[kind](read(path))
        elif path.suffix == ".npz" and kind in ("clip_losses", "clip_preprocess"):
            check = check_losses if kind == "clip_losses" else check_preprocess
            content = read(path)
            for number in range(len(content["cases"])):
                for of in ("clip", "siglip"):
                    if kind == "clip_preprocess" or of in content["cases"][number]:
                        name = f"{path.name}:{number}:{of}"
                        found[name] = lambda c=content, n=number, of=of, check=check: check(c, n, of)
        elif path.suffix == ".json" and kind == "bpe":
            content = read(path)
            for number, row in enumerate(content["texts"]):
                found[f"{path.name}:{number}"] = lambda content=content, row=row: check_bpe(content, row)
        elif path.suffix == ".json" and kind == "siglip_canonical_text":
            found[path.name] = lambda path=path: check_canonical_text(read(path))
        else:
            found[path.name] = lambda path=path: pytest.fail(f"{path} is of a kind that is not known.")
    return found


CASES = find_cases()
assert CASES, "There is no case at all."


@pytest.mark.parametrize("name", CASES)
def test_case(name: str):
    CASES[name]()


def test_a_file_of_an_unknown_kind_fails(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "dense").mkdir()
    for name in ("clip_audio.npz", "anchors.npz", "README.md", "bpe.npz", "anchors_3d.npz"):
        (tmp_path / "dense" / name).write_bytes(b"")
    monkeypatch.setenv("VISION_JAX_REFERENCES", str(tmp_path))
    cases = find_cases()
    assert cases.keys() == {"clip_audio.npz", "bpe.npz", "anchors_3d.npz"}
    for check in cases.values():
        with pytest.raises(pytest.fail.Exception, match="not known"):
            check()


def test_the_scale_begins_where_it_is_published():
    model = clip_variants.create("ViT-B-16-SigLIP")
    assert (model.initial_scale, model.initial_bias) == (10, -10)
    assert math.log(clip_variants.create("ViT-B-32").initial_scale) == pytest.approx(2.6593, abs=1e-4)
