"""What an export leaves on the disk: the file, its weights, its card; and nothing if it is wrong."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest
from stored_features import random_model

from vision_jax.errors import CheckpointError, ConfigError, DataError
from vision_jax.export import card, check, onnx_file, program
from vision_jax.export.program import Target
from vision_jax.export.subject import Options, make

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)


def files(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("options", "shape", "kind"),
    [
        (Options(), ["batch", 1, 28, 28], onnx.TensorProto.FLOAT),
        (Options(layout="nhwc"), ["batch", 28, 28, 1], onnx.TensorProto.FLOAT),
        (Options(batch=2, with_preprocessing=True), [2, 28, 28, 1], onnx.TensorProto.UINT8),
        (Options(dtype="float16"), ["batch", 1, 28, 28], onnx.TensorProto.FLOAT),
    ],
)
def test_forms_of_the_input(options: Options, shape: list, kind: int, tmp_path: pathlib.Path):
    trained = dataclasses.replace(random_model(), class_names=tuple("abcdefghij"))
    path = tmp_path / "made" / "a.onnx"
    found = program.export_onnx(trained, Target(path), options, pixels=PIXELS)
    assert [one.images for one in found] == (
        ["2 random images", "2 real"] if options.batch else ["1 random image", "8 random images", "3 real"]
    )
    assert max(one.relative for one in found) < check.TOLERANCES[options.dtype]
    assert files(path.parent) == ["a.onnx", "a.onnx.md"]
    model = onnx.load(path)
    (images,), (logits,) = model.graph.input, model.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    assert [size.dim_param or size.dim_value for size in images.type.tensor_type.shape.dim] == shape
    assert images.type.tensor_type.elem_type == kind
    assert logits.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about["class_names"]) == list("abcdefghij")
    assert (about["model"], about["opset"], json.loads(about["mean"])) == ("lenet5", "18", [0.3])
    assert about["onnxruntime"] == onnxruntime.__version__
    half = [tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    assert bool(half) == (options.dtype == "float16")

    # The same as JAX with the same pixels, however they are given.
    normalized = (PIXELS / np.float32(255) - np.float32(0.3)) / np.float32(0.35)
    expected = trained.model.apply(jax.device_get(dict(trained.variables)), normalized, train=False)
    given = PIXELS if options.with_preprocessing else normalized
    given = given.transpose(0, 3, 1, 2) if shape[1] == 1 else given
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    count = options.batch or 3
    (result,) = session.run(["logits"], {"images": given[:count]})
    assert check.difference(result, np.asarray(expected)[:count]) < check.TOLERANCES[options.dtype]


def test_without_a_classifier_it_gives_features(tmp_path: pathlib.Path):
    trained = random_model(objective="rotation")
    program.export_onnx(trained, Target(tmp_path / "a.onnx"), Options())
    (output,) = onnx.load(tmp_path / "a.onnx").graph.output
    assert output.name == "features"
    assert [size.dim_param or size.dim_value for size in output.type.tensor_type.shape.dim] == ["batch", 84]
    assert "no classifier" in (tmp_path / "a.onnx.md").read_text()


def test_nothing_is_left_of_what_is_wrong(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """A program that computes something else, one that computes no numbers, and a disk that is full."""
    trained, target = random_model(), Target(tmp_path / "a.onnx")
    load = onnx_file.load
    for wrong, by in ((lambda logits: logits * 1.001, "0.00"), (lambda logits: logits * np.nan, "inf")):
        monkeypatch.setattr(onnx_file, "load", lambda path, wrong=wrong: lambda images: wrong(load(path)(images)))
        with pytest.raises(DataError, match=rf"a.onnx was not written: it differs from JAX by {by}.*0.0001 is allowed"):
            program.export_onnx(trained, target, Options())
        assert not files(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_file, "write", full)
    with pytest.raises(CheckpointError, match=r"Cannot write .*a.onnx: .*No space left on device"):
        program.export_onnx(trained, target, Options())
    assert not files(tmp_path)


def test_files_that_are_there_stay(tmp_path: pathlib.Path):
    """Also a card, whose license someone has filled in, and weights beside another file."""
    trained = random_model()
    for name in ("a.onnx", "a.onnx.md", "a.onnx.data"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ConfigError, match=f"{name} is there already: give another name, or --overwrite"):
            program.export_onnx(trained, Target(tmp_path / "a.onnx"), Options())
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "a.onnx").write_text("mine")
    target = Target(tmp_path / "a.onnx", overwrite=True, license="CC0")
    found = program.export_onnx(trained, target, Options(batch=2), largest=100_000)
    assert len(found) == 1
    assert files(tmp_path) == ["a.onnx", "a.onnx.data", "a.onnx.md"]
    assert (tmp_path / "a.onnx.data").stat().st_size > 100_000 > (tmp_path / "a.onnx").stat().st_size
    assert "## License\n\nCC0" in (tmp_path / "a.onnx.md").read_text()


@pytest.mark.parametrize(
    ("options", "opset", "message"),
    [
        (Options(), 16, "opset is 16: give one from 17 to 23"),
        (Options(dtype="bfloat16"), 18, "dtype is 'bfloat16': give float32 or float16 for ONNX"),
        (Options(layout="hwcn"), 18, "layout is 'hwcn': give one of nchw, nhwc"),
        (Options(batch=-1), 18, "batch is -1"),
    ],
)
def test_options_that_cannot_work(options: Options, opset: int, message: str, tmp_path: pathlib.Path):
    with pytest.raises(ConfigError, match=message):
        program.export_onnx(random_model(), Target(tmp_path / "a.onnx"), options, opset=opset)
    assert not files(tmp_path)


def test_the_card_quotes_what_was_measured_of_the_checkpoint(tmp_path: pathlib.Path):
    lines = [
        {"step": 2, "val/top1": 0.5, "val/ema_top1": 0.6},
        {"step": 4, "train/loss": 1.0, "val/top1": 0.7, "val/ema_top1": 0.8, "val/ema_loss": 1.5},
        {"step": 4, "mode": "eval", "val/ema_top1": 0.81, "val/ema_top5": 0.9},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert card.accuracy(tmp_path, 4, averaged=False) == {"val/top1": 0.7}
    assert card.accuracy(tmp_path, 4, averaged=True) == {"val/ema_top1": 0.81, "val/ema_top5": 0.9}
    trained = dataclasses.replace(random_model(), step=4, averaged=True, class_names=tuple("abcdefghij"))
    text = card.card(trained, "a.onnx", {}, program.measured(trained, Target(tmp_path / "a", workdir=tmp_path)), {})
    assert "| val/ema_top1 | 81.00 % |" in text
    assert "mean (0.3) and std (0.35)" in text
    assert "9. j" in text
    assert '"name": "lenet5"' in text
    assert card.LICENSE in text


def test_the_examples_of_the_documentation(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    text = (pathlib.Path(__file__).parents[2] / "docs" / "export.md").read_text()
    of_onnx, of_stablehlo = (block.partition("```")[0] for block in text.split("```python\n")[1:])
    trained = dataclasses.replace(random_model(), class_names=tuple("abcdefghij"))
    options = Options(with_preprocessing=True)
    program.export_onnx(trained, Target(tmp_path / "digits.onnx"), options)
    program.export_stablehlo(trained, Target(tmp_path / "digits.stablehlo"), options)
    PIL.Image.fromarray(PIXELS[0, :, :, 0]).save(tmp_path / "digit.png")
    monkeypatch.chdir(tmp_path)
    logits = make(trained, options).reference(np.concatenate([PIXELS[:1], np.zeros_like(PIXELS[:1])]))
    capsys.readouterr()
    exec(of_onnx, {})
    assert capsys.readouterr().out == f"{'abcdefghij'[logits[0].argmax()]}\n"
    exec(of_stablehlo, {})
    assert capsys.readouterr().out == f"[{logits[1].argmax()} {logits[1].argmax()}]\n"


def test_a_difference_is_a_part_of_the_spread():
    expected = np.array([[1.0, 3.0]])  # whose deviation is 1
    assert check.difference(np.array([[1.0, 3.5]]), expected) == 0.5
    assert check.difference(expected, expected) == 0
    assert check.difference(np.array([[2.0, 2.0]]), np.array([[2.0, 2.0]])) == 0
    for wrong in (np.array([[1.0, np.nan]]), np.array([1.0, 3.0])):
        assert check.difference(wrong, expected) == np.inf
    assert check.difference(np.array([[2.0, 2.1]]), np.array([[2.0, 2.0]])) == np.inf


def test_real_images_are_those_of_evaluation(image_folder: pathlib.Path, tmp_path: pathlib.Path):
    trained = random_model()
    paths = [str(image_folder / "validation")]
    pixels = program.read_pixels(trained, paths)
    assert pixels.shape == (program.REAL, 28, 28, 1)
    assert pixels.std() > 20
    subject = make(trained, Options(layout="nhwc"))
    np.testing.assert_allclose(subject.of_pixels(pixels), (pixels / 255 - 0.3) / 0.35, rtol=1e-5, atol=1e-5)
    assert program.read_pixels(trained) is None
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    with pytest.raises(DataError, match=r"An image to check the export with, .*damaged.png, is damaged"):
        program.read_pixels(trained, [str(tmp_path / "damaged.png")])
