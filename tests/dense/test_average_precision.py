import builtins
import dataclasses

import numpy as np
import pytest

from vision_jax.dense.average_precision import (
    Found,
    Truth,
    area_under_curve,
    coco_average_precision,
    eleven_points,
    to_xywh,
    voc_average_precision,
)
from vision_jax.errors import ConfigError

NO_BOXES = np.zeros((0, 4))
NOTHING = Found([], [], NO_BOXES, [])


def right_wrong_right() -> tuple[Truth, Found]:
    """Two objects, of which both are found, and a detection between them that is wrong."""
    boxes = np.array([[0, 0, 20, 20], [100, 100, 50, 50]], np.float64)
    truth = Truth(["a", "b"], [7, 7], boxes, [False, False])
    found = Found(
        ["a", "a", "b"], [7, 7, 7], np.stack([boxes[0], boxes[0] + [300, 300, 0, 0], boxes[1]]), [0.9, 0.8, 0.7]
    )
    return truth, found


def test_ap_of_right_wrong_right(capsys: pytest.CaptureFixture):
    result = coco_average_precision(*right_wrong_right(), [7, 9])
    expected = (51 + 50 * 2 / 3) / 101
    assert expected == pytest.approx(0.834983, abs=1e-6)
    for value in (result.stats["AP"], result.stats["AP50"], *result.per_threshold, result.per_category[7]["AP"]):
        assert value == pytest.approx(expected)
    # Of an object in each image the first detection finds one.
    assert [result.stats[name] for name in ("AR1", "AR10", "AR100", "ARl")] == [1, 1, 1, -1]
    assert (result.stats["APs"], result.per_category[9]["AP"]) == (pytest.approx(1), -1)
    assert " ".join(result.stats) == "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl"
    assert capsys.readouterr() == ("", "")


def test_the_area_of_the_annotation_says_how_large_an_object_is():
    truth, found = right_wrong_right()
    outlines = dataclasses.replace(truth, area=np.array([400.0, 900.0]))
    assert coco_average_precision(truth, found, [7]).stats["APm"] == pytest.approx(1)
    result = coco_average_precision(outlines, found, [7])
    assert result.stats["APm"] == -1
    assert result.stats["APs"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_what_is_found_of_a_crowd_does_not_count():
    truth, found = right_wrong_right()
    crowd = Truth(
        [*truth.image, "a"], [7] * 3, np.concatenate([truth.xywh, [[250.0, 250, 300, 300]]]), [False, False, True]
    )
    assert coco_average_precision(crowd, found, [7]).stats["AP"] == pytest.approx(1)


def test_without_boxes_there_is_no_number():
    truth, found = right_wrong_right()
    assert set(coco_average_precision(Truth([], [], NO_BOXES, []), NOTHING, [7]).stats.values()) == {-1}
    assert coco_average_precision(Truth([], [], NO_BOXES, []), found, [7]).stats["AP"] == -1
    assert coco_average_precision(truth, NOTHING, [7]).stats["AP"] == 0
    with pytest.raises(ConfigError, match="no category"):
        coco_average_precision(truth, found, [])


def test_the_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    original = builtins.__import__

    def without(name: str, *arguments: object, **options: object) -> object:
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'vision_jax\[detection\]'"):
        coco_average_precision(*right_wrong_right(), [7])


def test_voc_of_right_wrong_right():
    result = voc_average_precision(*right_wrong_right(), [7, 9])
    assert result.per_category[7] == {
        "positives": 2,
        "AP": pytest.approx(0.5 + 0.5 * 2 / 3),
        "AP11": pytest.approx((6 + 5 * 2 / 3) / 11),
    }
    assert result.per_category[9] == {"positives": 0, "AP": None, "AP11": None}
    assert result.mean_ap == pytest.approx(5 / 6)
    assert voc_average_precision(Truth([], [], NO_BOXES, []), NOTHING, [7]).mean_ap is None


def test_voc_leaves_out_what_is_difficult_and_counts_an_object_once():
    boxes = np.array([[0, 0, 10, 10], [50, 0, 10, 10]], np.float64)
    truth = Truth([1, 1], [0, 0], boxes, [False, True])
    twice = Found([1] * 4, [0] * 4, np.stack([boxes[1], boxes[1], boxes[0], boxes[0]]), [0.9, 0.8, 0.7, 0.6])
    result = voc_average_precision(truth, twice, [0])
    assert result.per_category[0] == {"positives": 1, "AP": 1.0, "AP11": 1.0}
    wrong_first = dataclasses.replace(twice, xywh=twice.xywh + np.array([[100, 0, 0, 0], [0] * 4, [0] * 4, [0] * 4]))
    assert voc_average_precision(truth, wrong_first, [0]).mean_ap == 0.5


def test_an_iou_of_one_half_is_not_enough_for_voc():
    truth = Truth([1], [0], np.array([[0.0, 0, 10, 10]]), [False])
    assert voc_average_precision(truth, Found([1], [0], np.array([[0.0, 0, 10, 5]]), [0.5]), [0]).mean_ap == 0
    assert voc_average_precision(truth, Found([1], [0], np.array([[0.0, 0, 10, 5.1]]), [0.5]), [0]).mean_ap == 1


def test_the_recall_of_three_tenths_is_reached_by_three_of_ten():
    right = np.array([1, 1, 1, 0, 0])
    recall, precision = np.cumsum(right) / 10, np.cumsum(right) / np.arange(1, 6)
    assert eleven_points(recall, precision) == pytest.approx(4 / 11)
    assert area_under_curve(recall, precision) == pytest.approx(0.3)


def test_boxes_by_their_sizes():
    np.testing.assert_array_equal(to_xywh(np.array([[1, 2, 4, 8]])), [[1, 2, 3, 6]])
