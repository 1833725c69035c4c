"""Exports of detectors and segmenters: by onnxruntime, JAX alone and torchvision's names."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
import tiny_dense
from jax import export as jax_export

from vision_jax import build, recipes
from vision_jax.commands import export
from vision_jax.dense import weights
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError, DataError
from vision_jax.export import check_detections, program
from vision_jax.export.onnx_model import OnnxModel
from vision_jax.export.subject import FoundSubject, Options


def expected_of(workdir: pathlib.Path, images: np.ndarray) -> list[np.ndarray]:
    """The outputs of the network for NHWC images."""
    trained = build.from_workdir(workdir)
    network = trained.objective.network
    outputs, _ = jax.jit(lambda variables, images: network.apply(variables, images, train=False))(
        trained.variables, images
    )
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


def detector_of(name: str) -> build.TrainedModel:
    """A detector that takes every pair of anchor and class for a detection, with random weights."""
    of = tiny_dense.objective(name)
    chosen = dataclasses.replace(of.selected, score_threshold=0.0, candidates=60, detections=40)
    kind = type("Eager", (type(of),), {"selected": chosen})
    options = {**tiny_dense.SMALL, **({"version": 2} if name == "retinanet" else {})}  # whose norms spread the scores
    of = kind(setup=of.setup, num_classes=tiny_dense.CLASSES, **options)
    variables = tiny_dense.spread(jax.jit(lambda: of.init(jax.random.key(0), {}))())
    config = recipes.dense(tiny_dense.BACKBONE, name, **options)
    config.data.dense.update({"resize": "fit", "shorter": (48,), "longer": 64, "canvases": ((48, 64), (64, 48))})
    mesh = sharding.make_mesh(config.mesh)
    return build.TrainedModel(config, of, variables, ("ant", "bee", "cat"), "random weights", mesh)


@pytest.mark.parametrize("name", ["retinanet", pytest.param("fcos", marks=pytest.mark.exhaustive)])
def test_boxes_after_nms(name: str, tmp_path: pathlib.Path):
    """Those of `detect`, in the valid part of a canvas."""
    trained = detector_of(name)
    path = tmp_path / "a.onnx"
    target = program.Target(path, tolerance=1e-3)  # the weights are such that scores differ much
    program.export_onnx(trained, target, Options(batch=1, layout="nhwc", with_nms=True))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.onnx", "a.onnx.md"]
    session = onnxruntime.InferenceSession(str(path))
    assert [(value.name, value.shape) for value in session.get_outputs()] == [
        ("boxes", ["detections", 4]),
        ("scores", ["detections"]),
        ("labels", ["detections"]),
    ]
    of, rows = trained.objective, tiny_dense.rows("retinanet")
    detect = jax.jit(lambda rows: of.detect(trained.variables, {**rows, "original": rows["size"]}))
    images = np.asarray(of.normalized(rows))
    for number in range(tiny_dense.BATCH):
        given = {"images": images[number : number + 1], "sizes": rows["size"][number : number + 1].astype(np.int64)}
        boxes, scores, labels = session.run(None, given)
        expected = detect({key: value[number : number + 1] for key, value in rows.items()})
        assert len(boxes) == 40
        assert set(labels.tolist()) <= {0, 1, 2}
        # Scores that are nearly equal may be in another order.
        np.testing.assert_allclose(scores, expected.scores[0], atol=1e-5)
        far = np.abs(scores[:, None] - scores[None]) + np.eye(40) > 1e-4
        alone = far.all(1)
        assert alone.sum() > 10
        np.testing.assert_array_equal(labels[alone], expected.labels[0][alone])
        np.testing.assert_allclose(boxes[alone], expected.boxes[0][alone], atol=1e-2)
    card = path.with_name("a.onnx.md").read_text()
    assert "`sizes`, (1, 2) int64" in card
    assert '"sizes": np.array([[height, width]])' in card
    assert "at an IoU of" in card


def test_no_boxes_after_nms(dense_runs: dict[str, pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    """Two steps of training find nothing; of squashed images, the whole canvas is the image."""
    arguments = ["--format=onnx", "--with_nms", f"--workdir={dense_runs['boxes']}"]
    path = tmp_path / "a.onnx"
    assert export.main([*arguments, "--with_preprocessing", str(path)]) == 0
    session = onnxruntime.InferenceSession(str(path))
    assert [value.name for value in session.get_inputs()] == ["images"]
    found = session.run(None, {"images": np.zeros((1, 64, 64, 3), np.uint8)})
    assert [array.shape for array in found] == [(0, 4), (0,), (0,)]
    capsys.readouterr()
    for batch in ("2", "dynamic"):
        assert export.main([*arguments, f"--batch={batch}", f"{tmp_path}/b.onnx"]) == 1
        assert "--with_nms gives the boxes of one image, as their number differs" in capsys.readouterr().err
    assert export.main([*arguments[:2], f"--workdir={dense_runs['masks']}", f"{tmp_path}/b.onnx"]) == 1
    assert "with_nms is for detectors" in capsys.readouterr().err
    assert export.main(["--format=stablehlo", *arguments[1:], f"{tmp_path}/b.stablehlo"]) == 1
    assert "--with_nms" in capsys.readouterr().err
    target, trained = program.Target(tmp_path / "b.stablehlo"), detector_of("retinanet")
    with pytest.raises(ConfigError, match="with_nms is for ONNX"):
        program.export_stablehlo(trained, target, Options(batch=1, with_nms=True))
    with pytest.raises(ConfigError, match="batch is any number, and with_nms"):
        program.export_onnx(trained, target, Options(with_nms=True))


def test_detections_that_differ_are_an_error():
    trained = detector_of("retinanet")
    made = FoundSubject.make(trained, Options(batch=1, with_nms=True))
    random = np.random.default_rng(0)
    scores = random.uniform(0, 1, (1, sum(made.counts), 3)).astype(np.float32)
    boxes = random.uniform(0, 48, (1, sum(made.counts), 4)).astype(np.float32)
    found = made.select(scores, boxes)
    rows = int((found.labels >= 0).sum())
    right = [np.asarray(array)[0, :rows] for array in found]
    check_detections._compare(made, tuple(right), scores, boxes, "images")
    for wrong in ([right[0] + 1, *right[1:]], [array[:-1] for array in right], [array[::-1] for array in right]):
        with pytest.raises(DataError, match="was not written"):
            check_detections._compare(made, tuple(wrong), scores, boxes, "images")


@pytest.mark.exhaustive
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
