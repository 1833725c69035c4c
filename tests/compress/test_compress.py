"""What smaller files of a trained network lose: by onnxruntime, against JAX's own evaluation and formulas."""

import json
import pathlib

import numpy as np
import onnx
import pytest
import small_resnet
from conftest import records

from vision_jax import build, train
from vision_jax.commands import compress, export
from vision_jax.compress import measure, quantize
from vision_jax.errors import DataError
from vision_jax.export.onnx_model import OnnxModel
from vision_jax.predict import Predictor
from vision_jax.serve.backends import JaxBackend, OnnxBackend


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A residual network that has learned the digits."""
    config = small_resnet.get_config()
    config.total_steps, config.eval.every_steps = 200, 200
    config.optimizer.learning_rate, config.ema_decay = 1.0, 0.9
    config.schedule.warmup_epochs, config.augment.flip = 0.5, 0.0
    workdir = tmp_path_factory.mktemp("run")
    train.train_and_evaluate(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def smaller(run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    output = tmp_path_factory.mktemp("smaller") / "files"
    assert compress.main([f"--workdir={run}", f"--output={output}"]) == 0
    return output


def test_what_smaller_files_lose(run: pathlib.Path, smaller: pathlib.Path):
    rows = {row["method"]: row for row in json.loads((smaller / "compress.json").read_text())["rows"]}
    assert list(rows) == ["float32", "float16", "weights8", "int8"]
    evaluated = next(line for line in records(run) if "val/ema_top1" in line)
    assert rows["float32"]["top1"] == pytest.approx(evaluated["val/ema_top1"], abs=1e-6)
    assert rows["float32"]["loss"] == pytest.approx(evaluated["val/ema_loss"], rel=1e-3)
    assert rows["float32"]["top1"] > 0.95
    assert {row["count"] for row in rows.values()} == {360}
    for name, share in (("float16", 0.6), ("weights8", 0.4), ("int8", 0.4)):
        assert rows[name]["top1"] >= rows["float32"]["top1"] - 0.006
        assert rows[name]["bytes"] == (smaller / f"{name}.onnx").stat().st_size < share * rows["float32"]["bytes"]
    # 3x3 convolutions: 8x8 positions, of 1 to 64 and twice 64 to 64 channels; after a stride of 2, twice to 128 and a
    # 1x1 one beside; and the classifier.
    first, second = 64 * 9 * (64 + 2 * 64 * 64), 16 * (9 * (64 * 128 + 128 * 128) + 64 * 128)
    assert rows["float32"]["multiply_adds"] == first + second + 1280
    assert rows["float32"]["relative_time"] == 1
    assert all(row["milliseconds"] > 0 for row in rows.values())


def test_int8_is_what_computes(smaller: pathlib.Path):
    """Every convolution has quantized images and weights, of which each output channel has its own scale."""
    graph = onnx.load(str(smaller / "int8.onnx")).graph
    makers = {name: node for node in graph.node for name in node.output}
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        images, weights = (makers[name] for name in node.input[:2])
        assert images.op_type == weights.op_type == "DequantizeLinear"
        stored, scale = values[weights.input[0]], values[weights.input[1]]
        assert stored.dtype == np.int8
        assert np.abs(stored).max() <= 64  # seven bits
        assert scale.shape == stored.shape[:1]


def test_weights_of_eight_bits_are_near(smaller: pathlib.Path):
    """By half a step of the channel's scale, and nothing else has changed."""
    full, small = (onnx.load(str(smaller / f"{name}.onnx")).graph for name in ("float32", "weights8"))
    before, after = (
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer} for graph in (full, small)
    )
    converted = [name for name in before if name not in after]
    assert len(converted) >= 5
    for name in converted:
        stored, scale = after[f"{name}:int8"], after[f"{name}:scale"]
        axis = next(node.attribute[0].i for node in small.node if list(node.output) == [name])
        scale = scale.reshape([-1 if i == axis else 1 for i in range(stored.ndim)])
        assert np.abs(stored).max() == 127
        assert (np.abs(stored * scale - before[name]) <= 0.5001 * scale).all()
    for name in before.keys() & after.keys():
        np.testing.assert_array_equal(before[name], after[name])


def test_the_axis_of_output_channels():
    make = onnx.helper.make_node
    assert quantize._output_axis(make("Conv", ["x", "w"], ["y"])) == 0
    assert quantize._output_axis(make("MatMul", ["x", "w"], ["y"])) == -1
    assert quantize._output_axis(make("Gemm", ["x", "w"], ["y"], transB=1)) == 0
    assert quantize._output_axis(make("Gemm", ["x", "w"], ["y"], transB=0)) == -1
    assert quantize._output_axis(make("Add", ["x", "w"], ["y"])) is None


@pytest.mark.parametrize("flags", [[], ["--batch=3"], ["--with_preprocessing"], ["--layout=nhwc"]])
def test_a_file_answers_as_the_run_does(run: pathlib.Path, tmp_path: pathlib.Path, flags: list[str]):
    """It has all that is needed: preprocessing, names; of any form."""
    file = tmp_path / "model.onnx"
    assert export.main([f"--workdir={run}", "--format=onnx", *flags, str(file)]) == 0
    model, trained = OnnxModel.open(file), build.from_workdir(run)
    assert model.transform == trained.preprocessing.transform
    assert model.class_names == trained.class_names
    pixels, _ = next(measure.batches(trained, build.create_source(trained.config, train=False), 7))
    theirs = OnnxBackend(model, 3, 10_000)(pixels)
    ours = JaxBackend("x", Predictor.of(trained, topk=3), 10_000)(pixels)
    np.testing.assert_array_equal(theirs.classes, ours.classes)
    np.testing.assert_allclose(theirs.probabilities, ours.probabilities, atol=1e-5)


def test_files_that_are_no_model_of_ours(tmp_path: pathlib.Path):
    with pytest.raises(DataError, match="There is no file"):
        OnnxModel.open(tmp_path / "nowhere.onnx")
    (tmp_path / "x.onnx").write_bytes(b"hello")
    with pytest.raises(DataError, match="is no model that onnxruntime can run"):
        OnnxModel.open(tmp_path / "x.onnx")
    make, image = onnx.helper, onnx.helper.make_tensor_value_info("x", 1, [1, 2])
    graph = make.make_graph(
        [make.make_node("Relu", ["x"], ["y"])], "g", [image], [make.make_tensor_value_info("y", 1, [1, 2])]
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8), str(tmp_path / "y.onnx"))
    with pytest.raises(DataError, match="does not say what images it takes"):
        OnnxModel.open(tmp_path / "y.onnx")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods=int4"], "--methods has 'int4': did you mean int8"),
        (["--calibration_images=0"], "--calibration_images is 0: give 1 or more"),
        (["--examples=-1"], "--examples is -1"),
        ([], "is there already: give another --output, or --overwrite"),
    ],
)
def test_flags_that_cannot_work(
    run: pathlib.Path, smaller: pathlib.Path, capsys: pytest.CaptureFixture, flags: list[str], message: str
):
    assert compress.main([f"--workdir={run}", f"--output={smaller}", *flags]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    (tmp_path / "taken").touch()
    for output in ("taken", "taken/below"):
        assert compress.main([f"--workdir={run}", f"--output={tmp_path / output}", "--methods=weights8"]) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith(f"error: Cannot make the folder {tmp_path / output}: ")


def test_calibration_without_images(run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    flags = ["--methods=int8", "--config.data.source=folder", f"--config.data.dir={tmp_path}"]
    assert compress.main([f"--workdir={run}", f"--output={tmp_path / 'out'}", *flags]) == 1
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
