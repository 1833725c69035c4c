"""Detection and semantic segmentation: boxes, losses, detections, measures and whole networks; see README.md.

Each case of a file of references/dense is one test.
"""

import math
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from references import common, dense_losses

from vision_jax.dense import anchors, boxes, iou_metrics, losses, matching, postprocess, resizing
from vision_jax.dense.average_precision import Found, Truth, coco_average_precision, voc_average_precision

Checks = dict[str, Callable[[], None]]
SHAPES = {"retinanet": anchors.RETINANET, "fcos": anchors.FCOS}


def numbered(case: dict[str, Any], name: str) -> list[int]:
    """The numbers that arrays `name_0`, `name_1` ... have."""
    found = [key.removeprefix(f"{name}_") for key in case if key.startswith(f"{name}_")]
    return sorted(int(number) for number in found if number.isdigit())


def anchor_cases(case: dict[str, Any]) -> Checks:
    found = {}
    for network in SHAPES:
        found[f"{network}:cells"] = partial(check_cells, case, network)
        for height, width in case["sizes"]:
            found[f"{network}:{height}x{width}"] = partial(check_anchors, case, network, (height, width))
    return found


def check_cells(case: dict[str, Any], network: str) -> None:
    for level in numbered(case, f"{network}_cell"):
        np.testing.assert_array_equal(SHAPES[network].cell(level), case[f"{network}_cell_{level}"])


def check_anchors(case: dict[str, Any], network: str, size: tuple[int, int]) -> None:
    name = f"{network}_{size[0]}x{size[1]}"
    found = np.concatenate(dense_losses.levels_of(network, size))
    expected = case[name]
    assert found.dtype == np.float32
    assert len(found) == case[f"{name}_count"]
    np.testing.assert_array_equal(found if len(found) == len(expected) else found[::7], expected)
    np.testing.assert_allclose(found.sum(0, dtype=np.float64), case[f"{name}_sum"], rtol=1e-12)


def coder_cases(case: dict[str, Any]) -> Checks:
    weights = [key.removeprefix("encoded_") for key in case if key.startswith("encoded_")]
    return {
        **{f"weights_{weight}": partial(check_coder, case, weight) for weight in weights},
        "linear": partial(check_linear_coder, case),
        "overlap": partial(check_overlap, case),
    }


def check_coder(case: dict[str, Any], weight: str) -> None:
    coder = boxes.BoxCoder({"1": (1, 1, 1, 1), "10": (10, 10, 5, 5)}[weight])
    codes = jax.jit(coder.encode)(case["truth"], case["boxes"])
    np.testing.assert_allclose(codes, case[f"encoded_{weight}"], rtol=2e-5, atol=2e-5)
    decoded = jax.jit(coder.decode)(case["codes"], case["boxes"])
    np.testing.assert_allclose(decoded, case[f"decoded_{weight}"], rtol=1e-5, atol=1e-3)


def check_linear_coder(case: dict[str, Any]) -> None:
    coder = boxes.LinearCoder()
    codes = jax.jit(coder.encode)(case["truth"], case["squares"])
    np.testing.assert_allclose(codes, case["linear_encoded"], rtol=2e-5, atol=2e-5)
    decoded = jax.jit(coder.decode)(np.abs(case["codes"]), case["squares"])
    np.testing.assert_allclose(decoded, case["linear_decoded"], rtol=1e-5, atol=1e-3)


def check_overlap(case: dict[str, Any]) -> None:
    first, second = case["boxes"], case["truth"]
    np.testing.assert_allclose(jax.jit(boxes.iou)(first[:, None], second[None]), case["iou"], atol=2e-5)
    np.testing.assert_allclose(jax.jit(boxes.giou)(first[:, None], second[None]), case["giou"], atol=2e-5)
    np.testing.assert_allclose(jax.jit(boxes.giou_loss)(first, second), case["giou_loss"], atol=2e-5)


def matcher_cases(case: dict[str, Any]) -> Checks:
    return {
        f"{kind}:{number}": partial(check_matcher, case, kind, number)
        for kind in ("matched", "strict", "fcos_matched")
        for number in numbered(case, kind)
    }


def check_matcher(case: dict[str, Any], kind: str, number: int) -> None:
    own = case[f"{'fcos_' if kind == 'fcos_matched' else ''}boxes_{number}"].reshape(-1, 4)
    batch = dense_losses.padded([own, own[:0]], [np.ones(len(own)), np.ones(0)])
    if kind == "fcos_matched":
        levels = dense_losses.levels_of("fcos", case["size"])
        found = jax.jit(lambda *batch: matching.match_by_center(levels, *batch))(*batch)
    else:
        every = np.concatenate(dense_losses.levels_of("retinanet", case["size"]))
        low = kind == "matched"
        found = jax.jit(lambda *batch: matching.match_by_iou(every, *batch, low_quality=low))(*batch)
    expected = case[f"{kind}_{number}"]
    np.testing.assert_array_equal(found.number[0], expected)
    np.testing.assert_array_equal(found.number[1], matching.BACKGROUND)
    np.testing.assert_array_equal(found.boxes[0][expected >= 0], own[expected[expected >= 0]])


def loss_cases(case: dict[str, Any]) -> Checks:
    return {
        "focal": partial(check_focal, case),
        **{name: partial(check_loss, case, name) for name in case["losses"]},
        **{f"{network}:gradients": partial(check_gradients, case, network) for network in SHAPES},
    }


def check_focal(case: dict[str, Any]) -> None:
    logits, targets = case["focal_logits"], case["focal_targets"]
    np.testing.assert_allclose(losses.sigmoid_focal_loss(logits, targets), case["focal"], rtol=1e-5, atol=1e-7)
    found = losses.sigmoid_focal_loss(logits, targets, -1, 3.0)
    np.testing.assert_allclose(found, case["focal_alpha_none_gamma_3"], rtol=1e-5, atol=1e-7)


def made_up(case: dict[str, Any], network: str) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, np.ndarray]]:
    """The heads' outputs and the boxes of all images of a case of losses."""
    images = numbered(case, "boxes")
    seed = int(case["seed"]) + 30 * (network == "fcos")
    heads = dense_losses.made_up_heads(network, seed, case["size"], int(case["num_classes"]), len(images))
    rows = [case[f"boxes_{number}"].reshape(-1, 4) for number in images]
    return heads, dense_losses.padded(rows, [case[f"labels_{number}"] for number in images])


def loss_of(case: dict[str, Any], name: str) -> Callable[..., dict[str, jax.Array]]:
    """Returns the function (heads, boxes, mask) -> means that `name` tells."""
    network = name.partition("_")[0]
    levels = dense_losses.levels_of(network, case["size"])
    function: Any = {"retinanet": losses.retinanet_loss, "fcos": losses.fcos_loss}[network]
    options = {"regression": "giou"} if "_giou" in name else {}

    def means(heads: Any, batch: Any, mask: Any = None) -> dict[str, jax.Array]:
        return dense_losses.means(function(dense_losses.heads_of(heads), levels, *batch, mask, **options))

    return means


def check_loss(case: dict[str, Any], name: str) -> None:
    """Of some images, alone and as those of a batch that are no padding."""
    heads, batch = made_up(case, name.partition("_")[0])
    images = np.arange(len(batch[0]))
    chosen = {"all": images, "first": images[:1], "empty": images[-1:]}[name.rpartition("_")[2]]
    means = jax.jit(loss_of(case, name))
    alone = means(*jax.tree.map(lambda values: values[chosen], (heads, batch)))
    masked = means(heads, batch, np.isin(images, chosen))
    for part, expected in case["losses"][name].items():
        np.testing.assert_allclose(alone[part], expected, rtol=1e-5, err_msg=part)
        np.testing.assert_allclose(masked[part], expected, rtol=1e-5, err_msg=part)
    parts = [value for part, value in alone.items() if part != "loss"]
    np.testing.assert_allclose(alone["loss"], sum(parts), rtol=1e-6)


def check_gradients(case: dict[str, Any], network: str) -> None:
    heads, batch = made_up(case, network)
    means = loss_of(case, network)
    gradients = jax.jit(jax.grad(lambda heads: means(heads, batch)["loss"]))(heads)
    for name, gradient in zip(("cls_logits", "bbox_regression", "bbox_ctrness"), gradients, strict=False):
        key = f"{network}_grad_{name}"
        gradient, norm = np.asarray(gradient, np.float64), float(case[f"{key}_norm"])
        assert gradient.shape == tuple(case[f"{key}_shape"])
        found = gradient.reshape(-1)[:: int(case[f"{key}_step"])]
        assert np.linalg.norm(found - case[f"{key}_sample"]) <= 1e-4 * norm
        np.testing.assert_allclose(np.linalg.norm(gradient), norm, rtol=1e-4)
        assert abs(gradient.mean() - case[f"{key}_mean"]) <= 1e-4 * norm / math.sqrt(gradient.size)


def postprocess_cases(case: dict[str, Any]) -> Checks:
    return {f"{number}": partial(check_detections, case, number) for number in numbered(case, "labels")}


def check_detections(case: dict[str, Any], number: int) -> None:
    network = "fcos" if "check_bbox_ctrness" in case else "retinanet"
    images, given = len(case["image_shapes"]), case["defaults"]
    heads = dense_losses.made_up_heads(network, int(case["seed"]), case["size"], int(case["num_classes"]), images)
    for name, values in zip(("cls_logits", "bbox_regression", "bbox_ctrness"), heads, strict=False):
        np.testing.assert_array_equal(values[0, : len(case[f"check_{name}"])], case[f"check_{name}"])
    selection = postprocess.Selection(
        given["score_threshold"],
        given["topk_candidates"],
        given["nms_threshold"],
        given["detections_per_image"],
        {"fcos": postprocess.FCOS, "retinanet": postprocess.RETINANET}[network].coder,
    )
    levels = dense_losses.levels_of(network, case["size"])
    run = jax.jit(lambda heads, sizes: postprocess.detections(selection, dense_losses.heads_of(heads), levels, sizes))
    found = jax.tree.map(lambda values: values[number], run(heads, np.array(case["image_shapes"])))
    expected, count = case[f"labels_{number}"], len(case[f"labels_{number}"])
    np.testing.assert_array_equal(found.labels[:count], expected)
    np.testing.assert_array_equal(found.labels[count:], -1)
    np.testing.assert_allclose(found.scores[:count], case[f"scores_{number}"], atol=2e-5)
    np.testing.assert_allclose(found.boxes[:count], case[f"boxes_{number}"], atol=1e-3)


def resize_cases(case: dict[str, Any]) -> Checks:
    rows = {
        f"{number}:{'x'.join(map(str, row['size']))}": partial(check_resized_size, row)
        for number, row in enumerate(case["rows"])
    }
    return {**rows, "pixels": partial(check_pixels, case)}


def check_resized_size(row: dict[str, Any]) -> None:
    height, width = row["size"]
    size = resizing.resized_size(height, width, 800, 1333)
    assert size == tuple(row["resized"])
    assert resizing.padded_size(*size) == tuple(row["padded"])
    found = resizing.scale_boxes(np.array(row["boxes"]), (height, width), size)
    np.testing.assert_allclose(found, np.array(row["resized_boxes"]).reshape(found.shape), rtol=1e-6)


def check_pixels(case: dict[str, Any]) -> None:
    images = []
    for number, (height, width) in enumerate(case["sizes"]):
        generator = np.random.Generator(np.random.PCG64(int(case["seed"]) + 1 + number))
        images.append(np.moveaxis(generator.random((3, height, width), dtype=np.float32), 0, -1))
    prepared = resizing.prepare(images, shorter=int(case["min_size"]), longer=int(case["max_size"]))
    np.testing.assert_array_equal(prepared.sizes, case["resized"])
    found = np.moveaxis(np.asarray(prepared.images), -1, 1)
    assert found.shape == tuple(case["pixels_shape"])
    sample = found.reshape(-1)[:: int(case["pixels_step"])]
    np.testing.assert_allclose(sample, case["pixels_sample"], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found.astype(np.float64)), case["pixels_norm"], rtol=1e-4)
    for number, (old, new) in enumerate(zip(case["sizes"], case["resized"], strict=True)):
        moved = resizing.scale_boxes(case[f"boxes_{number}"], tuple(old), tuple(new))
        np.testing.assert_allclose(moved, case[f"new_boxes_{number}"], rtol=1e-6)


def agreement_cases(case: dict[str, Any]) -> Checks:
    return {"agreement": partial(check_agreement, case)}


def check_agreement(case: dict[str, Any]) -> None:
    classes = len(case["matrix"])
    count = jax.jit(lambda predicted, labels: iou_metrics.confusion_matrix(predicted, labels, classes))
    matrix = count(case["predicted"], case["labels"])
    np.testing.assert_array_equal(matrix, case["matrix"])
    found = iou_metrics.agreement(np.asarray(matrix))
    for name in ("iou", "miou", "class_accuracy", "mean_accuracy", "pixel_accuracy"):
        np.testing.assert_allclose(getattr(found, name), case[name], rtol=0, atol=1e-12, equal_nan=True)


def average_precision_cases(case: dict[str, Any]) -> Checks:
    return {
        "coco": partial(check_coco, case),
        "coco_area_of_boxes": partial(check_coco_area_of_boxes, case),
        "voc": partial(check_voc, case),
    }


def column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows])


def truth_and_found(case: dict[str, Any], area: bool = True) -> tuple[Truth, Found, range]:
    rows, found = case["ground_truth"], case["detections"]
    truth = Truth(
        column(rows, "image_id"),
        column(rows, "category_id"),
        column(rows, "bbox"),
        column(rows, "iscrowd"),
        column(rows, "area") if area else None,
    )
    places = column(found, "image_id"), column(found, "category_id")
    detections = Found(*places, column(found, "bbox"), column(found, "score"))
    return truth, detections, range(1, case["categories"] + 1)


def check_coco(case: dict[str, Any]) -> None:
    found, expected = coco_average_precision(*truth_and_found(case)), case["coco"]
    common.near([found.stats[name] for name in expected["stats"]], list(expected["stats"].values()), 1e-9)
    common.near(found.per_threshold, expected["AP_per_threshold"], 1e-9)
    for row in expected["per_category"]:
        category = found.per_category[row["category"]]
        common.near([category[name] for name in row if name != "category"], list(row.values())[1:], 1e-9)


def check_coco_area_of_boxes(case: dict[str, Any]) -> None:
    found, expected = coco_average_precision(*truth_and_found(case, area=False)), case["coco_area_of_boxes"]
    common.near([found.stats[name] for name in expected], list(expected.values()), 1e-9)


def check_voc(case: dict[str, Any]) -> None:
    found, expected = voc_average_precision(*truth_and_found(case)), case["voc"]
    common.near([found.mean_ap, found.mean_ap11], [expected["mAP"], expected["mAP11"]], 1e-9)
    for row in expected["per_category"]:
        category = found.per_category[row["category"]]
        assert category["positives"] == row["positives"]
        for name in ("AP", "AP11"):
            assert (category[name] is None) == (row[name] is None)
            assert category[name] == pytest.approx(row[name], abs=1e-9)


def network_cases(case: dict[str, Any]) -> Checks:
    return {"network": partial(check_network, case)}


def check_network(case: dict[str, Any]) -> None:
    from references import dense_networks

    if "num_classes" in case:
        dense_losses.check_detection_losses_of(case, dense_networks.check_detection(case))
    else:
        dense_losses.check_segmentation_losses_of(case, dense_networks.check_segmentation(case))


# By the kind of a file: the ending of its name, and its cases.
KINDS: dict[str, tuple[str, Callable[[dict[str, Any]], Checks]]] = {
    "anchors": (".npz", anchor_cases),
    "box_coders": (".npz", coder_cases),
    "coco_ap": (".json", average_precision_cases),
    "detection": (".npz", network_cases),
    "detection_losses": (".npz", loss_cases),
    "detection_resize": (".npz", resize_cases),
    "matcher": (".npz", matcher_cases),
    "miou": (".npz", agreement_cases),
    "postprocess": (".npz", postprocess_cases),
    "segmentation": (".npz", network_cases),
}


def find_cases() -> Checks:
    """What checks each case, by what its test is called; a file of an unknown kind has a test that fails."""
    found: Checks = {}
    for path, kind in common.dense_files("test_dense"):
        if kind in KINDS and path.suffix == KINDS[kind][0]:
            for name, check in KINDS[kind][1](common.read_dense(path)).items():
                found[f"{path.name}:{name}"] = check
        else:
            found[path.name] = partial(pytest.fail, f"{path} is of a kind that is not known.")
    return found


CASES = find_cases()
assert CASES, "There is no case at all."
assert KINDS.keys() == common.DENSE_KINDS["test_dense"]


@pytest.mark.parametrize("name", CASES)
def test_case(name: str):
    CASES[name]()


def test_a_file_of_an_unknown_kind_fails(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "dense").mkdir()
    for name in ("anchors_3d.npz", "bpe.npz", "README.md", "coco_ap.a.npz"):
        (tmp_path / "dense" / name).write_bytes(b"")
    monkeypatch.setenv("VISION_JAX_REFERENCES", str(tmp_path))
    cases = find_cases()
    assert cases.keys() == {"anchors_3d.npz", "coco_ap.a.npz"}
    for check in cases.values():
        with pytest.raises(pytest.fail.Exception, match="not known"):
            check()
