"""The evaluators of boxes and masks against pycocotools and numpy, image by image, on two canvases."""

import contextlib
import io
import json
import logging
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
import tiny_dense
from dense_cases import write_coco, write_masks

from vision_jax import build, evaluate
from vision_jax.data.resizing import Resizing
from vision_jax.dense.average_precision import Found, Truth, voc_average_precision
from vision_jax.devices import sharding
from vision_jax.errors import DataError
from vision_jax.evaluators.detection import COCO_STATS

CATEGORY = {0: 2, 1: 5, 2: 9}  # the labels' ids: ascending


def mesh_of(count: int) -> jax.sharding.Mesh:
    return sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.devices()[:count])


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_coco(tmp_path_factory.mktemp("coco"), tiny_dense.coco_annotations(), "val2017")


@pytest.fixture(scope="module")
def measured(coco: pathlib.Path) -> tuple[dict[str, float], dict[str, Any], list[str], Any]:
    """Metrics and tables of random weights on two devices, what was compiled, and the setting."""
    setting = tiny_dense.detection_setting(coco, mesh_of(2))
    evaluators, of, variables, _ = setting
    tables: dict[str, Any] = {}
    with compilations() as compiled:
        results = evaluate.measure(evaluators, of, {"": variables, "ema_": variables}, keep_tables=tables.update)
    return results, tables, compiled, setting


@contextlib.contextmanager
def compilations():
    """Gives a list of the names of all programs that are compiled meanwhile."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger = logging.getLogger("jax")
    with jax.log_compiles():
        logger.addHandler(handler)
        try:
            yield found
        finally:
            logger.removeHandler(handler)
            found[:] = [message for message in found if message.startswith("Finished XLA compilation of")]


@pytest.fixture(scope="module")
def found(measured: Any) -> list[dict[str, Any]]:
    """What `detect` finds, one image at a time, as COCO's files have results."""
    of, variables, source = measured[3][1:]
    evaluator = measured[3][0]["val"]
    variables = jax.device_get(variables)
    detect = jax.jit(of.detect)
    results = []
    resizing = Resizing("fit", (40,), 64)
    for index in range(len(source)):
        canvases = ((40, 64), (64, 40))
        transform = evaluator.context.transform.on(canvases[resizing.canvas_of(*source.image_size(index), canvases)])
        rows = {n: np.zeros((1, *field.shape), field.dtype) for n, field in transform.fields().items()}
        transform([source[index]], np.array([index]), np.zeros(1, np.int64), rows)
        boxes, scores, labels = (np.asarray(values[0], np.float64) for values in detect(variables, rows))
        for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
            if label >= 0:
                entry = {"image_id": int(source.image_ids[index]), "category_id": CATEGORY[int(label)]}
                results.append({**entry, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score})
    return results


def by_pycocotools(annotations: pathlib.Path, results: list[dict[str, Any]], directory: pathlib.Path, **only: Any):
    """COCO's twelve numbers, by files, as a user computes them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    (directory / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(directory / "results.json")), "bbox")
        for name, values in only.items():
            setattr(evaluation.params, name, values)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def test_the_numbers_are_those_of_pycocotools(measured: Any, found: Any, coco: pathlib.Path, tmp_path: pathlib.Path):
    """With crowds, areas that are not those of boxes, images without objects, two canvases and two devices."""
    results, tables, _, _ = measured
    expected = by_pycocotools(coco / "annotations/instances_val2017.json", found, tmp_path)
    assert [results[f"val/{name}"] for name in COCO_STATS] == pytest.approx(expected, rel=1e-9)
    assert [results[f"val/ema_{name}"] for name in COCO_STATS] == pytest.approx(expected, rel=1e-9)
    assert results["val/count"] == 16
    assert min(expected) >= 0  # there are objects of all sizes
    assert expected[0] > 0
    table = tables["val/classes"]
    assert table["classes"] == ["dog", "cat", "person"]
    for number, category in enumerate((2, 5, 9)):
        of_class = by_pycocotools(coco / "annotations/instances_val2017.json", found, tmp_path, catIds=[category])
        assert table["AP"][number] == pytest.approx(of_class[0], rel=1e-9)
        assert table["AR100"][number] == pytest.approx(of_class[8], rel=1e-9)


def test_a_program_for_each_canvas_and_no_more(measured: Any):
    _, _, compiled, (evaluators, of, variables, _) = measured
    assert sum("jit(step)" in message for message in compiled) == 2, compiled
    with compilations() as again:
        results = evaluate.measure(evaluators, of, {"": variables, "ema_": variables})
    assert again == []
    assert results == measured[0]


def test_fewer_detections_and_voc(measured: Any, found: Any, coco: pathlib.Path, tmp_path: pathlib.Path):
    """Three boxes an image, the best; and VOC's measure, of which crowds are the difficult ones."""
    evaluators, of, variables, source = tiny_dense.detection_setting(coco, mesh_of(2), measure="voc", detections=3)
    results = evaluate.measure(evaluators, of, {"": variables})
    ids = {int(key): index for index, key in enumerate(source.image_ids)}
    best: list[dict[str, Any]] = []
    for key in ids:
        best += [entry for entry in found if entry["image_id"] == key][:3]
    annotations = tiny_dense.coco_annotations()["annotations"]
    label = {category: number for number, category in CATEGORY.items()}

    def columns(entries: list[dict[str, Any]]) -> tuple[list[int], list[int], np.ndarray]:
        images, labels = ([ids[e["image_id"]] for e in entries], [label[e["category_id"]] for e in entries])
        return images, labels, np.array([e["bbox"] for e in entries])

    truth = Truth(*columns(annotations), [bool(entry["iscrowd"]) for entry in annotations])
    expected = voc_average_precision(truth, Found(*columns(best), [e["score"] for e in best]), range(3))
    assert results["val/mAP"] == pytest.approx(expected.mean_ap, rel=1e-5)
    assert results["val/mAP07"] == pytest.approx(expected.mean_ap11, rel=1e-5)
    assert results["val/mAP"] > 0


def damaged(directory: pathlib.Path, *files: int) -> pathlib.Path:
    """The set, with files of images cut in half."""
    write_coco(directory, tiny_dense.coco_annotations(), "val2017")
    for number in files:
        path = directory / "val2017" / f"{number:04}.jpg"
        path.write_bytes(path.read_bytes()[:200])
    return directory


def test_damaged_images_count_in_nothing(found: Any, tmp_path: pathlib.Path):
    """Neither their objects nor their detections; the same image four times."""
    directory = damaged(tmp_path / "one", 3)
    fields = {"data.max_bad_eval_records": 4}
    evaluators, of, variables, source = tiny_dense.detection_setting(directory, mesh_of(2), **fields)
    results = evaluate.measure(evaluators, of, {"": variables})
    assert results["val/count"] == 12
    left = [int(key) for key in source.image_ids if key % 100 != 3]
    kept = [entry for entry in found if entry["image_id"] in left]
    expected = by_pycocotools(directory / "annotations/instances_val2017.json", kept, tmp_path, imgIds=left)
    assert [results[f"val/{name}"] for name in COCO_STATS] == pytest.approx(expected, rel=1e-9)


@pytest.mark.exhaustive
def test_damaged_images_of_all_canvases_count_together(tmp_path: pathlib.Path):
    directory = damaged(tmp_path, 3, 7)
    fields = {"data.max_bad_eval_records": 5}
    evaluators, of, variables, _ = tiny_dense.detection_setting(directory, mesh_of(1), **fields)
    with pytest.raises(DataError, match=r"8 of 16 images are damaged, and 5 may be left out"):
        evaluate.measure(evaluators, of, {"": variables})


def segmented(directory: pathlib.Path, **options: Any) -> tuple[dict[str, float], dict[str, Any], Any, Any, Any]:
    config = tiny_dense.evaluation_config("masks", directory, **options)
    source = build.create_source(config, train=False)
    of = tiny_dense.objective("segmentation", ("frozen_norms", True))
    assert source.num_classes == 4
    of = type(of)(setup=of.setup, num_classes=4, head="linear")
    mesh = mesh_of(2)
    variables = tiny_dense.spread(jax.jit(lambda: build.initialize(of, jax.random.key(0)))())
    placed = sharding.place(jax.device_get(variables), sharding.replicated(mesh))
    evaluators = build.make_evaluators(config, of, mesh, source)
    tables: dict[str, Any] = {}
    results = evaluate.measure(evaluators, of, {"": placed}, keep_tables=tables.update)
    return results, tables["val/classes"], evaluators["val"], of, jax.device_get(placed)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def windowed(apply: Any, image: np.ndarray, window: int | None, stride: int) -> np.ndarray:
    """The mean of the logits of windows, of one image."""
    if window is None:
        return apply(image)
    height, width = image.shape[:2]
    total, count = 0.0, np.zeros((height, width, 1))
    ends = [sorted({min(start + window, side) for start in range(0, side, stride)}) for side in (height, width)]
    for bottom in (end for end in ends[0] if end >= min(window, height)):
        for right in (end for end in ends[1] if end >= min(window, width)):
            here = slice(max(0, bottom - window), bottom), slice(max(0, right - window), right)
            part = apply(image[here])
            total = total + np.zeros((height, width, part.shape[-1]))
            total[here] += part
            count[here] += 1
    return total / count


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"flip": True}, id="flip", marks=pytest.mark.exhaustive),
        pytest.param({"flip": True, "window": 32, "stride": 24}, id="windows"),
    ],
)
def test_mean_iou_is_that_of_numpy(tmp_path: pathlib.Path, options: dict[str, Any]):
    """One image after another, mirrored and cut by numpy."""
    results, table, evaluator, of, variables = segmented(write_masks(tmp_path), **options)
    network = jax.jit(lambda images: of.network.apply(variables, images, train=False)[0]["out"])
    matrix = np.zeros((4, 4), np.int64)
    source, canvases = evaluator.context.source, ((40, 64), (64, 40))

    def apply(image: np.ndarray) -> np.ndarray:
        return np.asarray(network(image[None]))[0]

    for index in range(len(source)):
        canvas = canvases[Resizing("fit", (40,), 64).canvas_of(*source.image_size(index), canvases)]
        transform = evaluator.context.transform.on(canvas)
        rows = {n: np.zeros((1, *field.shape), field.dtype) for n, field in transform.fields().items()}
        transform([source[index]], np.array([index]), np.zeros(1, np.int64), rows)
        width = rows["size"][0, 1]
        image = np.asarray(of.normalized(rows))[0]
        window, stride = options.get("window"), options.get("stride", 1)
        probabilities = softmax(windowed(apply, image, window, stride))
        if options.get("flip"):
            turned = image.copy()
            turned[:, :width] = image[:, :width][:, ::-1]
            other = softmax(windowed(apply, turned, window, stride))
            probabilities[:, :width] += other[:, :width][:, ::-1]
        labels = rows["segmentation"][0]
        counted = labels != 255
        np.add.at(matrix, (labels[counted], probabilities.argmax(-1)[counted]), 1)
    right = np.diag(matrix)
    iou = right / (matrix.sum(0) + matrix.sum(1) - right)
    assert len({*matrix.sum(0)}) > 1  # the classes that are predicted differ
    assert results["val/miou"] == pytest.approx(iou.mean(), abs=2e-4)
    assert results["val/pixel_accuracy"] == pytest.approx(right.sum() / matrix.sum(), abs=2e-4)
    assert results["val/mean_accuracy"] == pytest.approx((right / matrix.sum(1)).mean(), abs=2e-4)
    assert table["pixels"] == matrix.sum(1).tolist()
    assert results["val/count"] == 3
