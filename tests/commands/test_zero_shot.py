"""Classes by their names, of a tiny CLIP with made-up weights: by the command, and by a few lines of NumPy."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
from conftest import picture

from vision_jax.commands import common, zero_shot
from vision_jax.models import clip_variants
from vision_jax.models.clip import Clip, ImageTower, TextTower, Transformer
from vision_jax.models.registry import InputSpec
from vision_jax.predict import Predictor
from vision_jax.pretrained import clip as weights
from vision_jax.text import read_tokenizer
from vision_jax.zero_shot import program

SIZE, CONTEXT = 16, 24
NAMES = ("ant", "bumble bee", "cat")
TEMPLATES = ("a photo of a {}.", "the {}")


def make_tiny(*, dtype: Any = jnp.float32, activation: str = "gelu", img_size: int = SIZE) -> Clip:
    blocks = Transformer(1, 2, 32, activation, 1e-5, dtype=dtype)
    return Clip(ImageTower(img_size, 8, 16, blocks, 12, dtype=dtype), TextTower(520, CONTEXT, 16, blocks, 12))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    """Weights of a model by the name of `tiny`, with their tokenizer beside them."""
    spec = InputSpec(SIZE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.2), crop_pct=1.0)
    monkeypatch.setitem(clip_variants._VARIANTS, "tiny", clip_variants.Variant("tiny", make_tiny, spec, False, "clip"))
    model = make_tiny()
    tensors = weights.model_tensors(model)
    random = np.random.RandomState(0)
    state = {each.name: random.standard_normal(each.shape).astype(np.float32) for each in tensors}
    folder = tmp_path / "weights"
    folder.mkdir()
    state["logit_scale"] = np.float32(1.5)
    safetensors.numpy.save_file({name: np.asarray(value) for name, value in state.items()}, folder / "tiny.safetensors")
    (folder / "merges.txt").write_text("#version: 0.2\na n\nc a\nca t</w>\n")
    return folder / "tiny.safetensors"


def expected(path: pathlib.Path, image: pathlib.Path) -> np.ndarray:
    """The probabilities of the classes."""
    model = make_tiny()
    variables = weights.load(model, path)
    tokenizer = read_tokenizer("clip", path.with_name("merges.txt"), CONTEXT)

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def embed(values: Any, method: str) -> np.ndarray:
        return np.asarray(model.apply(variables, jnp.asarray(values), train=False, method=method), np.float64)

    classes = []
    for name in NAMES:
        texts = embed(tokenizer([template.replace("{}", name) for template in TEMPLATES]), "encode_texts")
        classes.append(unit(unit(texts).mean(0)))
    pixels = (np.asarray(PIL.Image.open(image), np.float32)[None] / 255 - (0.5, 0.4, 0.3)) / (0.2, 0.3, 0.2)
    logits = np.exp(1.5) * unit(embed(pixels.astype(np.float32), "encode_images")) @ np.array(classes).T
    return np.asarray(jax.nn.softmax(logits[0]))


@pytest.fixture
def photos(tmp_path: pathlib.Path) -> pathlib.Path:
    """Labelled images, one of which is damaged; one class has none."""
    folder = tmp_path / "photos"
    for label, name in enumerate(("n01", "n02")):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            PIL.Image.fromarray(picture(SIZE, SIZE, seed=10 * label + i)).save(folder / name / f"{i}.png")
    (folder / "n02" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    return folder


@pytest.fixture
def flags(tiny: pathlib.Path, tmp_path: pathlib.Path) -> list[str]:
    (tmp_path / "classes.txt").write_text("n01\tant\nn02\tbumble  bee\ncat\n\n")
    (tmp_path / "templates.txt").write_text("\n".join(TEMPLATES))
    files = f"--classes={tmp_path}/classes.txt", f"--templates={tmp_path}/templates.txt"
    return ["--model=tiny", f"--pretrained={tiny}", *files, "--batch_size=4"]


def test_classes_by_their_names(flags: list[str], tiny: pathlib.Path, photos: pathlib.Path, tmp_path: pathlib.Path):
    output = tmp_path / "found.jsonl"
    assert zero_shot.main([*flags, f"--output={output}", str(photos)]) == common.DAMAGED
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["image"][-9:] for line in lines] == [f"n0{c}/{i}.png" for c in (1, 2) for i in range(3)]
    assert "damaged" not in lines[0]
    assert "error" in lines[4]
    right = {"n01": 0, "n02": 1}
    best = []
    for line in lines[:4] + lines[5:]:
        found = {each["name"]: each["probability"] for each in line["classes"]}
        probabilities = expected(tiny, pathlib.Path(line["image"]))
        np.testing.assert_allclose([found[name] for name in NAMES], probabilities, rtol=1e-4)
        best.append(probabilities.argmax() == right[pathlib.Path(line["image"]).parent.name])
    accuracy = tmp_path / "accuracy.json"
    assert zero_shot.main([*flags, f"--labelled={photos}", f"--json={accuracy}"]) == common.DAMAGED
    written = json.loads(accuracy.read_text())
    assert written == {"count": 5, "top1": pytest.approx(np.mean(best)), "top5": 1.0, "damaged": 1}


def test_a_suite_gets_the_same_classifier(tiny: pathlib.Path, photos: pathlib.Path):
    words = program.load("tiny", str(tiny))
    folders = ("n01", "n02", "n03")
    trained = program.as_trained(words, "tiny", str(tiny), (NAMES, folders), TEMPLATES)
    assert (trained.num_classes, trained.class_names, trained.name) == (3, folders, "tiny")
    assert trained.preprocessing == words.preprocessing
    image = photos / "n01" / "0.png"
    (found,) = Predictor.of(trained, topk=3).predict([image])
    probabilities = expected(tiny, image)
    assert [each.name for each in found.classes] == [folders[i] for i in np.argsort(-probabilities)]
    np.testing.assert_allclose([c.probability for c in found.classes], np.sort(probabilities)[::-1], rtol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("--classes=cat,,dog", "class 2 is empty"),
        ("--classes=cat,dog,cat", "names 'cat' 2 times"),
        ("--classes= ", "class 1 is empty"),
        ("--classes={}/none.txt", "there is no such file"),
        ("--classes={}", "there is no such file"),
        (f"--classes={'a cat,' * 100}", "...', where class 101 is empty"),
        ("--templates={}/none", "cannot be read"),
        ("--templates={}/plain.txt", "write {} once"),
        ("--templates={}/empty.txt", "is empty"),
        ("--model=tinny", "did you mean tiny"),
        ("--activation=relu", "did you mean gelu"),
        ("--tokenizer={}/none", "There is no tokenizer"),
        ("--topk=0", "give 1 or more"),
        ("--labelled={}", "is none of the 3 classes"),
        ("--labelled={}/none", "is no folder"),
        ("--json=x.json", "which is for --labelled"),
    ],
)
def test_what_cannot_be_done_is_one_line(flags: list[str], changed: str, message: str, photos, tmp_path, capsys):
    (tmp_path / "plain.txt").write_text("a photo\n")
    (tmp_path / "empty.txt").write_text("\n")
    images = [] if changed.startswith("--labelled") else [str(photos)]
    assert zero_shot.main([*flags, changed.replace("{}", str(tmp_path)), *images]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_weights_without_their_tokenizer(flags: list[str], tiny: pathlib.Path, photos: pathlib.Path, capsys):
    tiny.with_name("merges.txt").unlink()
    assert zero_shot.main([*flags, str(photos)]) == 1
    assert "there is no tokenizer, without which texts have no tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("open_clip_config.json", {"model_cfg": {"quick_gelu": True}}),
        ("config.json", {"model_type": "clip", "vision_config": {"hidden_act": "quick_gelu"}}),
    ],
)
def test_weights_of_another_activation(flags, tiny, photos, capsys, name: str, content: dict):
    tiny.with_name(name).write_text(json.dumps(content))
    assert zero_shot.main([*flags, str(photos)]) == 1
    assert "was trained with the activation quick_gelu, and tiny has gelu" in capsys.readouterr().err


def test_models_are_listed(capsys):
    assert zero_shot.main(["--model=list"]) == 0
    names = capsys.readouterr().out.split()
    assert {"ViT-B-32", "ViT-B-32-quickgelu", "RN50-quickgelu", "ViT-B-16-SigLIP"} <= set(names)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("ViT-B/16", 149.62),
        pytest.param("RN50", 102.01, marks=pytest.mark.exhaustive),
        ("ViT-B-16-SigLIP", 203.16),
        pytest.param("ViT-H-14", 986.11, marks=pytest.mark.exhaustive),
        pytest.param("ViT-L-14-336", 427.94, marks=pytest.mark.exhaustive),
        pytest.param("RN50x64", 623.26, marks=pytest.mark.exhaustive),
        pytest.param("ViT-SO400M-14-SigLIP-384", 877.96, marks=pytest.mark.exhaustive),
        pytest.param("ViT-L-16-SigLIP-256", 652.15, marks=pytest.mark.exhaustive),
    ],
)
def test_published_sizes(name: str, millions: float):
    """mlfoundations/open_clip, docs/model_profile.csv."""
    tensors = weights.model_tensors(clip_variants.create(name))
    count = sum(np.prod(each.shape, dtype=int) for each in tensors if each.path[0] == "params")
    assert count / 1e6 == pytest.approx(millions, abs=0.006)
