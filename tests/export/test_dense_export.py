"""Exports of detectors and segmenters: by onnxruntime, JAX alone and torchvision's names."""

import json
import pathlib

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
from jax import export as jax_export

from vision_jax import build
from vision_jax.commands import export
from vision_jax.dense import weights
from vision_jax.errors import DataError
from vision_jax.export.onnx_model import OnnxModel


def expected_of(workdir: pathlib.Path, images: np.ndarray) -> list[np.ndarray]:
    """The outputs of the network for NHWC images."""
    trained = build.from_workdir(workdir)
    outputs, _ = trained.objective.network.apply(trained.variables, images, train=False)
    found = [outputs["out"]] if isinstance(outputs, dict) else outputs
    return [np.asarray(output) for output in found if output is not None]


def test_onnx_of_a_detector(dense_runs: dict[str, pathlib.Path], tmp_path: pathlib.Path):
    path = tmp_path / "a.onnx"
    workdir = dense_runs["boxes"]
    assert export.main(["--format=onnx", f"--workdir={workdir}", "--size=64x96", str(path)]) == 0
    session = onnxruntime.InferenceSession(str(path))
    assert [output.name for output in session.get_outputs()] == ["cls_logits", "bbox_regression"]
    assert session.get_inputs()[0].shape == ["batch", 3, 64, 96]
    images = np.random.default_rng(0).normal(size=(3, 64, 96, 3)).astype(np.float32)
    found = session.run(None, {"images": images.transpose(0, 3, 1, 2)})
    for one, expected in zip(found, expected_of(workdir, images), strict=True):
        np.testing.assert_allclose(one, expected, atol=1e-4)
    said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert said["finds"] == "boxes"
    assert (said["height"], said["width"]) == ("64", "96")
    assert json.loads(said["class_names"]) == [str(digit) for digit in range(10)]
    card = path.with_name("a.onnx.md").read_text()
    assert card.startswith("# retinanet_resnet18\n")
    assert "a detector of 10 classes" in card
    assert "Canvases of 64 x 64 pixels" in card
    assert "8 x 12, 4 x 6, 2 x 3, 1 x 2, 1 x 1 positions of 9 anchors" in card
    assert "| val/AP |" in card
    with pytest.raises(DataError, match="is a model of boxes"):
        OnnxModel.open(path)


def test_programs_of_a_segmenter(dense_runs: dict[str, pathlib.Path], tmp_path: pathlib.Path):
    workdir = dense_runs["masks"]
    assert (
        export.main(
            ["--format=onnx", "--batch=2", "--with_preprocessing", f"--workdir={workdir}", f"{tmp_path}/a.onnx"]
        )
        == 0
    )
    assert export.main(["--format=stablehlo", f"--workdir={workdir}", f"{tmp_path}/a.stablehlo"]) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    data = build.from_workdir(workdir).config.data
    images = ((pixels / 255 - np.array(data.mean)) / np.array(data.std)).astype(np.float32)
    (expected,) = expected_of(workdir, images)
    session = onnxruntime.InferenceSession(f"{tmp_path}/a.onnx")
    (found,) = session.run(["out"], {"images": pixels})
    np.testing.assert_allclose(found, expected, atol=1e-3)
    exported = jax_export.deserialize(bytearray((tmp_path / "a.stablehlo").read_bytes()))
    with jax.default_device(jax.devices("cpu")[0]):
        np.testing.assert_allclose(exported.call(images), expected, atol=1e-3)


def test_weights_have_names_of_torchvision(
    dense_runs: dict[str, pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
    for kind, names in (
        ("boxes", ("backbone.body.conv1.weight", "head.classification_head.cls_logits.weight")),
        ("masks", ("backbone.conv1.weight", "classifier.4.weight")),
    ):
        path = tmp_path / f"{kind}.safetensors"
        assert export.main(["--format=torchvision", f"--workdir={dense_runs[kind]}", str(path)]) == 0
        state = safetensors.numpy.load_file(path)
        assert set(names) <= state.keys()
        trained = build.from_workdir(dense_runs[kind])
        read = weights.from_torch(trained.objective.network, state)
        jax.tree.map(np.testing.assert_array_equal, read, jax.device_get(dict(trained.variables)))
    capsys.readouterr()
    assert export.main([f"--workdir={dense_runs['boxes']}", f"{tmp_path}/timm.safetensors"]) == 1
    assert "timm has no detectors and segmenters: --format=torchvision" in capsys.readouterr().err


def test_padding_is_not_normalized_in_the_graph(
    dense_runs: dict[str, pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
    overrides = ["--config.data.dense.resize=fit", "--config.data.dense.shorter=(64,)", "--config.data.dense.longer=64"]
    arguments = ["--format=onnx", "--with_preprocessing", f"--workdir={dense_runs['boxes']}", *overrides]
    assert export.main([*arguments, f"{tmp_path}/a.onnx"]) == 1
    assert "with_preprocessing normalizes whole canvases" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "a", "1x2x3", "64x", "-3"])
def test_sizes_that_are_none(size: str, capsys: pytest.CaptureFixture):
    assert export.main(["--format=onnx", f"--size={size}", "--workdir=runs", "a.onnx"]) == 1
    assert capsys.readouterr().err == f"error: --size is {size}: give a number of pixels, or HEIGHTxWIDTH.\n"
