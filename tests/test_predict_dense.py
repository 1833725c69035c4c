"""Boxes and masks of images of one's own, against the networks applied by hand."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import encode, picture

from vision_jax import build, predict_dense
from vision_jax.build import TrainedModel
from vision_jax.data.images import ImageSource
from vision_jax.dense import postprocess
from vision_jax.errors import CheckpointError, ConfigError
from vision_jax.predict_dense import DensePredictor


def bold(trained: TrainedModel) -> TrainedModel:
    """Returns a detector that is sure of all that it sees: one that has hardly been trained would find nothing."""
    variables = jax.tree.map(lambda x: x, dict(trained.variables))
    head = variables["params"]["head"]["classification_head"]["cls_logits"]
    head["bias"] = head["bias"] + 4.0
    head["kernel"] = head["kernel"] * 30
    return dataclasses.replace(trained, variables=variables)


@pytest.fixture(scope="module")
def detector(dense_runs: dict[str, pathlib.Path]) -> TrainedModel:
    return bold(build.from_workdir(dense_runs["boxes"]))


@pytest.fixture(scope="module")
def segmenter(dense_runs: dict[str, pathlib.Path]) -> TrainedModel:
    return build.from_workdir(dense_runs["masks"])


@pytest.fixture
def images(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    """Of several sizes; the second is damaged, and the fourth ends too early."""
    sizes = [(64, 64), None, (40, 96), (80, 50), (96, 40), (33, 33)]
    paths = []
    for number, size in enumerate(sizes):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(b"\xff\xd8nothing" if size is None else encode(picture(*size, seed=number), "PNG"))
    paths[3].write_bytes(paths[3].read_bytes()[:200])
    return paths


def pixels_of(trained: TrainedModel, image: np.ndarray) -> jax.Array:
    mean, std = (np.asarray(values, np.float32) for values in (trained.config.data.mean, trained.config.data.std))
    return jnp.asarray((image[None] / np.float32(255) - mean) / std)


def test_boxes_are_those_of_the_network(detector: TrainedModel, tmp_path: pathlib.Path):
    """An image as large as the canvas, so that nothing is resized, and one twice as large."""
    image = picture(64, 64, seed=1)
    (tmp_path / "a.png").write_bytes(encode(image, "PNG"))
    (tmp_path / "b.png").write_bytes(encode(image.repeat(2, 0).repeat(2, 1), "PNG"))
    found = list(DensePredictor(detector).stream(ImageSource.find([tmp_path])))
    assert [each.error for each in found] == [None, None]
    objective = detector.objective

    @jax.jit
    def detect(variables: Any, pixels: jax.Array) -> Any:
        outputs, _ = objective.network.apply(variables, pixels, train=False)
        size = jnp.array([[64, 64]], jnp.int32)
        return postprocess.detections(objective.selection, outputs, objective.levels(64, 64), size)

    expected = detect(detector.variables, pixels_of(detector, image))
    count = int((expected.labels[0] >= 0).sum())
    assert count > 20
    assert len(found[0].boxes.boxes) == count
    np.testing.assert_allclose(found[0].boxes.boxes, expected.boxes[0][:count], atol=0.02)
    np.testing.assert_allclose(found[0].boxes.scores, expected.scores[0][:count], atol=1e-4)
    assert found[1].boxes.boxes.max() > 100  # pixels of the image as it is stored, 128x128
    assert found[1].boxes.boxes.max() <= 128
    high = found[0].boxes.above(float(found[0].boxes.scores[3]))
    np.testing.assert_array_equal(high.boxes, found[0].boxes.boxes[:4])


@pytest.mark.parametrize("resize", [pytest.param("squash", marks=pytest.mark.exhaustive), "fit"])
def test_images_keep_their_order(resize: str, dense_runs: dict[str, pathlib.Path], images: list[pathlib.Path]):
    """Canvases take turns, and damaged images are told; what is said of an image is what is said of it alone."""
    overrides = []
    if resize == "fit":
        overrides = ["--config.data.dense.resize=fit", "--config.data.dense.shorter=(40,)"]
        overrides += ["--config.data.dense.longer=64", "--config.data.dense.canvases=((40, 64), (64, 40))"]
    trained = build.from_workdir(dense_runs["masks"], overrides=overrides)
    predictor = DensePredictor(trained, batch_size=8)
    found = list(predictor.stream(ImageSource.find(images)))
    assert [each.path for each in found] == [str(path) for path in images]
    assert [each.error is None for each in found] == [True, False, True, False, True, True]
    assert [None if each.mask is None else each.mask.shape for each in found] == [
        *((64, 64), None, (40, 96), None, (96, 40), (33, 33))
    ]
    for number in (0, 2, 4):
        (alone,) = predictor.stream(ImageSource.find([images[number]]))
        np.testing.assert_array_equal(alone.mask, found[number].mask)


def test_masks_are_those_of_the_network(segmenter: TrainedModel, tmp_path: pathlib.Path):
    image = picture(64, 64, seed=2)
    (tmp_path / "a.png").write_bytes(encode(image, "PNG"))
    (found,) = DensePredictor(segmenter).stream(ImageSource.find([tmp_path]))
    apply = jax.jit(lambda variables, pixels: segmenter.objective.network.apply(variables, pixels, train=False))
    outputs, _ = apply(segmenter.variables, pixels_of(segmenter, image))
    assert (found.mask == np.asarray(outputs["out"][0].argmax(-1))).mean() > 0.999


def test_masks_are_resized_by_nearest_neighbors():
    mask = np.random.default_rng(0).integers(0, 9, (8, 10), np.uint8)
    resized = predict_dense.resize_mask(mask, (6, 7), (13, 3))
    rows = np.floor((np.arange(13) + 0.5) * 6 / 13).astype(int)
    columns = np.floor((np.arange(3) + 0.5) * 7 / 3).astype(int)
    np.testing.assert_array_equal(resized, mask[rows][:, columns])


def test_evaluations_in_windows_are_followed(segmenter: TrainedModel):
    config = segmenter.config.copy_and_resolve_references()
    with config.ignore_type():
        config.evals.val = {"kind": "segmentation", "flip": True, "window": 48}
    predictor = DensePredictor(dataclasses.replace(segmenter, config=config))
    assert predictor._options == {"flip": True, "window": (48, 32)}


def test_what_cannot_predict_is_refused(segmenter: TrainedModel):
    with pytest.raises(ConfigError, match="batch_size is 0"):
        DensePredictor(segmenter, batch_size=0)
    broken = jax.tree.map(lambda x: x, dict(segmenter.variables))
    broken["params"]["conv1"]["kernel"] = broken["params"]["conv1"]["kernel"] * jnp.nan
    with pytest.raises(CheckpointError, match="are not finite"):
        DensePredictor(dataclasses.replace(segmenter, variables=broken))
