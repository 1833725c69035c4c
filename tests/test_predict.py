"""Predictions of image files, by function and by command."""

import csv
import json
import os
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
import safetensors.numpy
from conftest import Command, picture

import vision_jax
from vision_jax import pretrained
from vision_jax.commands import common
from vision_jax.commands import predict as command_line
from vision_jax.data.transforms import EvalTransform, Preprocessing
from vision_jax.errors import ConfigError, DataError
from vision_jax.models import registry
from vision_jax.predict import Predictor, published_preprocessing

SIZE = 28
MODEL = vision_jax.create_model("lenet5", num_classes=10)


@pytest.fixture(scope="module")
def variables() -> dict:
    return dict(jax.jit(lambda: MODEL.init(jax.random.key(1), jnp.zeros((1, SIZE, SIZE, 1)), train=False))())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """21 images of the model's size, and a damaged one, the eleventh by name."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(22):
        PIL.Image.fromarray(picture(SIZE, SIZE, seed=i)[:, :, 0]).save(folder / f"{i:02d}.png")
    (folder / "10.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    return folder


def expected(variables: dict, path: pathlib.Path) -> np.ndarray:
    """Returns the probabilities of the classes, from Pillow's pixels."""
    spec = registry.entry("lenet5").input
    pixels = (np.asarray(PIL.Image.open(path), np.float32)[None, :, :, None] / 255 - spec.mean) / spec.std
    logits = np.asarray(MODEL.apply(variables, jnp.asarray(pixels), train=False))[0].astype(np.float64)
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def test_classes_probabilities_and_damage(variables: dict, photos: pathlib.Path):
    assert registry.entry("lenet5").input.size == SIZE
    found = Predictor(MODEL, variables, topk=3, batch_size=8).predict([photos])
    assert [prediction.path for prediction in found] == [f"{photos}/{i:02d}.png" for i in range(22)]
    for i, prediction in enumerate(found):
        if i == 10:
            assert prediction.error
            assert not prediction.classes
            continue
        probabilities = expected(variables, photos / f"{i:02d}.png")
        assert [c.number for c in prediction.classes] == np.argsort(-probabilities)[:3].tolist()
        np.testing.assert_allclose([c.probability for c in prediction.classes], np.sort(probabilities)[:-4:-1], 1e-4)
        assert [c.name for c in prediction.classes] == [str(c.number) for c in prediction.classes]


def test_one_image_is_predicted_as_among_many(variables: dict, photos: pathlib.Path):
    predictor = Predictor(MODEL, variables)
    alone, among = predictor.predict([photos / "03.png"])[0], predictor.predict([photos])[3]
    assert [c.number for c in alone.classes] == [c.number for c in among.classes]
    np.testing.assert_allclose([c.probability for c in alone.classes], [c.probability for c in among.classes], 1e-5)


def test_logits_that_are_not_finite(variables: dict, photos: pathlib.Path):
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), variables)
    assert Predictor(MODEL, broken).predict([photos / "03.png"])[0].error == "the model's logits are not finite"


def test_what_a_model_expects():
    resnet = published_preprocessing(vision_jax.create_model("resnet18", num_classes=3, in_channels=1))
    assert resnet == Preprocessing(
        EvalTransform(224, 235, 1, "bicubic", copied=()), registry.InputSpec().mean, registry.InputSpec().std
    )
    larger = published_preprocessing(vision_jax.create_model("deit3_small_patch16_224", img_size=384))
    assert (larger.transform.size, larger.transform.resize) == (384, 384)
    with pytest.raises(ConfigError, match="one of deit_tiny_patch16_224, vit_tiny_patch16_224"):
        published_preprocessing(vision_jax.create_model("vit_tiny_patch16_224"))  # they are normalized differently


def test_models_that_tell_no_classes_apart(variables: dict):
    with pytest.raises(ConfigError, match="has no classifier"):
        Predictor(MODEL.clone(num_classes=0), variables)
    with pytest.raises(ConfigError, match="3 names of classes, and the model has 10"):
        Predictor(MODEL, variables, class_names=["a", "b", "c"])
    with pytest.raises(DataError, match="There is no"):
        Predictor(MODEL, variables).predict(["/nowhere"])


def test_imagenet_classes_have_words():
    names = pretrained.display_names(["n01440764", "n15075141", "my class"])
    assert names == ["tench", "toilet tissue", "my class"]
    assert len(set(pretrained.display_names(pretrained.imagenet_classes()))) == 1000


@pytest.fixture(scope="module")
def weights(variables: dict, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("weights") / "lenet5.safetensors"
    names = {"class_names": json.dumps([f"digit {i}" for i in range(10)])}
    safetensors.numpy.save_file(pretrained.to_torch("lenet5", jax.device_get(variables)), path, names)
    return path


def test_the_classes_of_weights(weights: pathlib.Path):
    assert pretrained.classes_of("lenet5", weights) == (10, tuple(f"digit {i}" for i in range(10)))
    with pytest.raises(DataError, match="has no classifier of resnet18"):
        pretrained.classes_of("resnet18", weights)


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "parquet"])
def test_files_of_predictions(kind: str, variables: dict, weights: pathlib.Path, photos: pathlib.Path, tmp_path):
    output = tmp_path / f"found.{kind}"
    arguments = ["--model=lenet5", f"--pretrained={weights}", "--topk=2", f"--output={output}", str(photos)]
    assert command_line.main(arguments) == common.DAMAGED
    best = [int(np.argmax(expected(variables, photos / f"{i:02d}.png"))) if i != 10 else None for i in range(22)]
    match kind:
        case "csv":
            rows = list(csv.DictReader(output.open()))
            found = [row["name1"].removeprefix("digit ") for row in rows]
            assert rows[10]["error"]
            assert list(rows[0]) == [
                "image",
                "class1",
                "name1",
                "probability1",
                "class2",
                "name2",
                "probability2",
                "error",
            ]
        case "txt":
            lines = output.read_text().splitlines()
            assert lines[0].startswith(f"{photos}/00.png: digit ")
            assert lines[10].startswith(f"{photos}/10.png: damaged: ")
            found = [line.split("digit ")[1].split()[0] if "damaged" not in line else "" for line in lines]
        case "jsonl" | "parquet":
            if kind == "parquet":
                lines = pyarrow.parquet.read_table(output).to_pylist()
            else:
                lines = [json.loads(line) for line in output.read_text().splitlines()]
            assert lines[10]["error"]
            found = [str(line["classes"][0]["class"]) if line.get("classes") else "" for line in lines]
    assert found == ["" if i is None else str(i) for i in best]
    before = output.read_bytes()
    assert command_line.main(arguments) == 1  # it is there already
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.jpg"], "Which model?"),
        (["--model=lenet5", "x.jpg"], "--model=lenet5 needs its weights"),
        (["--model=lenet5", "--pretrained=x", "--step=3", "x.jpg"], "--step is '3', which is for --workdir"),
        (["--workdir=.", "x.jpg"], "--workdir is ., which is not the workdir of a run"),
        (["--workdir=gs://x", "x.jpg"], "--workdir is 'gs://x': URLs"),
        (["--model=lenet5", "--pretrained=WEIGHTS", "x.jpg"], "There is no x.jpg"),
        (["--model=lenet5", "--pretrained=WEIGHTS", ""], "One of the names of images is empty"),
        (["--model=lenet", "--pretrained=WEIGHTS", "PHOTOS"], "There is no model 'lenet'"),
        (["--model=lenet5", "--pretrained=WEIGHTS", "--topk=0", "PHOTOS"], "--topk is 0"),
        (["--model=lenet5", "--pretrained=WEIGHTS", "--output=x.doc", "PHOTOS"], "--output is x.doc: end its name in"),
        (["--model=lenet5", "--pretrained=WEIGHTS", "--format=parquet", "PHOTOS"], "--format=parquet is a file"),
        (["--model=lenet5", "--pretrained=WEIGHTS", "--config.data.eval_sise=3", "PHOTOS"], "eval_size"),
        (["--model=lenet5", "--pretrained=WEIGHTS", "--classes=NAMES", "PHOTOS"], "There are 2 names of classes"),
    ],
)
def test_what_cannot_be_predicted(
    arguments: list[str], message: str, weights: pathlib.Path, photos: pathlib.Path, tmp_path: pathlib.Path, capsys
):
    (tmp_path / "names").write_text("a\nb\n")
    replaced = {"WEIGHTS": str(weights), "PHOTOS": str(photos), "NAMES": str(tmp_path / "names")}
    for name, value in replaced.items():
        arguments = [argument.replace(name, value) for argument in arguments]
    assert command_line.main(arguments) == 1
    out, err = capsys.readouterr()
    assert message in err.splitlines()[-1]
    assert not out


def test_a_line_is_a_line_whatever_a_file_is_called(weights: pathlib.Path, photos: pathlib.Path, tmp_path, capsys):
    name, shown = "a\nb \x1b[31mé.png", "a\\nb \\x1b[31mé.png"
    (tmp_path / name).write_bytes((photos / "00.png").read_bytes())
    (tmp_path / f"damaged {name}").write_bytes((photos / "10.png").read_bytes())
    assert command_line.main(["--model=lenet5", f"--pretrained={weights}", str(tmp_path)]) == common.DAMAGED
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert first.startswith(f"{tmp_path}/{shown}: digit ")
    assert second.startswith(f"{tmp_path}/damaged {shown}: damaged: ")
    assert "\x1b" not in err
    assert any(f"damaged {shown}: " in line for line in err.splitlines())


def test_the_commands_predictions_have_the_accuracy_of_the_evaluation(command: Command, tmp_path: pathlib.Path):
    """Of a short training on the digits, whose validation images are then predicted from an archive."""
    workdir = tmp_path / "run"
    flags = ["--config=configs/quickstart.py", f"--workdir={workdir}", "--config.epochs=2"]
    command(*flags, "--config.schedule.warmup_epochs=0", "--config.log.tensorboard=False")
    accuracy = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["val/ema_top1"]
    from vision_jax import build
    from vision_jax import config as config_lib

    config = config_lib.from_dict(json.loads((workdir / "config.json").read_text()))
    os.environ["XDG_CACHE_HOME"] = command.environment["XDG_CACHE_HOME"]
    source = build.create_source(config, train=False)
    with zipfile.ZipFile(tmp_path / "digits.zip", "w") as archive:
        for i in range(len(source)):
            record = source[i]
            archive.writestr(f"{record['label']}/{i:03d}.jpg", record["image"])
    out = command(
        *("predict", f"--workdir={workdir}", str(tmp_path / "digits.zip"), "--format=jsonl"), module="vision_jax"
    )
    found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    correct = [int(line["image"].split("/")[-2]) == line["classes"][0]["class"] for line in found]
    assert len(correct) == 360
    assert np.mean(correct) == pytest.approx(accuracy, abs=1e-9)
