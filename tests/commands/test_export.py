import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import PIL.Image
import pytest
import safetensors.numpy
from conftest import picture

import vision_jax
from vision_jax import build, pretrained
from vision_jax import config as config_lib
from vision_jax.commands import export, predict


@pytest.mark.parametrize(
    ("arguments", "what"),
    [(["--workdir=gs://b/run", "x.safetensors"], "--workdir"), (["--workdir=x", "gs://b/run"], "FILE")],
)
def test_urls_are_refused(arguments: list[str], what: str, capsys: pytest.CaptureFixture):
    assert export.main(arguments) == 1
    message = f"error: {what} is 'gs://b/run': URLs are not supported here; mount the bucket (gcsfuse, s3fs, ...)"
    assert capsys.readouterr().err == f"{message} and give its path.\n"
    assert not pathlib.Path("gs:").exists()


def test_other_suffixes_are_refused(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    assert export.main([f"--workdir={tmp_path}", "x.pth"]) == 1
    assert "FILE is 'x.pth': it is written as safetensors" in capsys.readouterr().err


def test_heads_beside_the_backbone_are_left_out():
    """Of what a training without labels has, timm knows the model alone."""
    config = config_lib.default_config()
    config.model.name, config.data.image_size = "resnet18", 32
    config.objective.name = "rotation"
    objective = build.make_objective(config, 10)
    variables = build.abstract_variables(objective)
    assert "rotation" in variables["params"]
    model = build.without_heads(objective, variables)
    assert model["params"].keys() == variables["params"].keys() - {"rotation"}
    assert model["batch_stats"] == variables["batch_stats"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Those of a LeNet, as a file."""
    model = vision_jax.create_model("lenet5", num_classes=10)
    variables = jax.jit(lambda: model.init(jax.random.key(1), jnp.zeros((1, 28, 28, 1)), train=False))()
    path = tmp_path_factory.mktemp("weights") / "lenet5.safetensors"
    safetensors.numpy.save_file(pretrained.to_torch("lenet5", jax.device_get(variables)), path)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format=onnx", "x.safetensors"], "FILE is 'x.safetensors': it is written as onnx, so its name must end in"),
        (["--format=onnx", "x.onnx"], "Which model?"),
        (["--format=onnx", "--model=lenet5", "--pretrained=x", "--batch=0", "x.onnx"], "--batch is '0'"),
        (["--format=onnx", "--model=lenet5", "--pretrained=x", "--batch=many", "x.onnx"], "--batch is 'many'"),
        (["--format=onnx", "--model=lenet5", "--pretrained=x", "--batch=²", "x.onnx"], "--batch is '²'"),
        (["--format=onnx", "--model=lenet5", "--pretrained=x", "--size=0", "x.onnx"], "--size is 0"),
        (["--format=onnx", "--model=lenet5", "--pretrained=x", "--tolerance=nan", "x.onnx"], "--tolerance is nan"),
        (
            ["--model=lenet5", "--pretrained=x", "--dtype=float16", "x.safetensors"],
            "--dtype is 'float16', which is for",
        ),
        (["--format=stablehlo", "--opset=18", "x.stablehlo"], "--opset is 18, which is for --format=onnx"),
        (
            ["--format=onnx", "--with_preprocessing", "--layout=nchw", "x.onnx"],
            "--layout=nchw is for normalized images",
        ),
        (["--format=onnx", "--model=lenet5", "--pretrained=WEIGHTS", "--opset=9", "NEW.onnx"], "opset is 9: give one"),
        (["--format=onnx", "--model=lenet5", "--pretrained=WEIGHTS", "--size=4", "NEW.onnx"], "cannot take images"),
        (["--format=onnx", "--model=lenet5", "--pretrained=WEIGHTS", "OLD.onnx"], "OLD.onnx is there already"),
        (
            ["--format=onnx", "--model=lenet5", "--pretrained=WEIGHTS", "--images=no.jpg", "NEW.onnx"],
            "There is no no.jpg",
        ),
        (["--model=lenet5", "--pretrained=WEIGHTS", "NEW.safetensors"], "timm has no lenet5"),
    ],
)
def test_what_cannot_be_exported(
    arguments: list[str], message: str, weights: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
    (tmp_path / "OLD.onnx").write_text("mine")
    replaced = {"WEIGHTS": str(weights), "NEW": str(tmp_path / "new"), "OLD": str(tmp_path / "OLD")}
    for name, value in replaced.items():
        arguments = [argument.replace(name, value) for argument in arguments]
    assert export.main(arguments) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["OLD.onnx"]


def test_published_weights_as_onnx(
    weights: pathlib.Path, tmp_path: pathlib.Path, image_folder: pathlib.Path, capsys: pytest.CaptureFixture
):
    """The file says what `predict` says."""
    path = tmp_path / "a.onnx"
    model = ["--model=lenet5", f"--pretrained={weights}", "--config.dtype=bfloat16"]
    flags = ["--format=onnx", "--with_preprocessing", "--opset=20", f"--images={image_folder}", *model]
    assert export.main([*flags, str(path)]) == 0
    out = capsys.readouterr().out
    assert f"{path}: lenet5, {weights}, 10 classes, float32, opset 20" in out
    assert "(1 random image), " in out
    assert "(8 real)" in out
    photo = PIL.Image.fromarray(picture(28, 28)[:, :, 0])
    photo.save(tmp_path / "a.png")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": np.asarray(photo)[None, :, :, None]})
    assert predict.main([*model[:2], "--topk=10", "--format=jsonl", str(tmp_path / "a.png")]) == 0
    classes = json.loads(capsys.readouterr().out)["classes"]
    found = dict.fromkeys(range(10), 0.0) | {entry["class"]: entry["probability"] for entry in classes}
    shares = np.exp(logits[0] - logits[0].max())
    np.testing.assert_allclose(list(found.values()), shares / shares.sum(), atol=1e-5)


def test_a_missing_package_is_one_line(
    weights: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    flags = ["--format=onnx", "--model=lenet5", f"--pretrained={weights}", str(tmp_path / "a.onnx")]
    assert export.main(flags) == 1
    assert "error: ONNX files need onnx and onnxruntime: pip install 'vision_jax[onnx]'" in capsys.readouterr().err
