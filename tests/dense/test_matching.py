import jax
import numpy as np

from vision_jax.dense.anchors import FCOS, RETINANET, Anchors
from vision_jax.dense.matching import BACKGROUND, IGNORED, match_by_center, match_by_iou

SQUARES = np.array([[0, 0, 10, 10], [0, 0, 10, 4.5], [0, 0, 10, 3], [100, 100, 110, 110]], np.float32)


def match(boxes: list, labels: list, anchors: np.ndarray = SQUARES, **options):
    batch = np.array([boxes], np.float32), np.array([labels], np.int32)
    return jax.tree.map(lambda values: values[0], match_by_iou(anchors, *batch, **options))


def test_anchors_are_foreground_ignored_or_background_by_their_iou():
    found = match([[0, 0, 10, 10]], [3], low_quality=False)
    np.testing.assert_array_equal(found.number, [0, IGNORED, BACKGROUND, BACKGROUND])
    np.testing.assert_array_equal(found.labels, [3, -1, -1, -1])
    np.testing.assert_array_equal(found.foreground, [True, False, False, False])
    np.testing.assert_array_equal(found.boxes[0], [0, 0, 10, 10])


def test_the_thresholds_belong_to_what_is_above():
    found = match([[0, 0, 10, 10]], [3], np.array([[0, 0, 10, 5], [0, 0, 10, 4]], np.float32), low_quality=False)
    np.testing.assert_array_equal(found.number, [0, IGNORED])


def test_every_anchor_that_ties_for_the_best_of_a_box_gets_its_own_best_box():
    anchors = np.array([[0, 0, 4, 4], [16, 0, 20, 4], [40, 0, 60, 20], [0, 0, 4, 3]], np.float32)
    # Anchors 0 and 1 overlap the first box equally; anchor 1 overlaps the second box more, though not much.
    boxes = [[0, 0, 20, 20], [14, 0, 20, 20]]
    found = match(boxes, [1, 2], anchors)
    np.testing.assert_array_equal(found.number, [0, 1, BACKGROUND, BACKGROUND])
    np.testing.assert_array_equal(match(boxes, [1, 2], anchors, low_quality=False).number, BACKGROUND)


def test_of_equal_boxes_the_first_counts():
    found = match([[0, 0, 10, 10]] * 3, [-1, 5, 6])
    assert (found.number[0], found.labels[0]) == (1, 5)


def test_padding_and_boxes_without_area_change_nothing():
    anchors = np.concatenate(RETINANET.levels(((8, 8), (4, 4), (2, 2), (1, 1), (1, 1)), (64, 64)))
    points = FCOS.levels(((8, 8), (4, 4), (2, 2), (1, 1), (1, 1)), (64, 64))
    box = np.array([[[5, 8, 40, 50]]], np.float32)
    filled = np.concatenate([np.zeros((1, 1, 4)), box, [[[3, 3, 3, 9]]], np.full((1, 1, 4), 7.0)], 1).astype(np.float32)
    labels = np.array([[-1, 4, 4, -1]])
    for matcher, of in ((match_by_iou, anchors), (match_by_center, points)):
        expected, found = matcher(of, box, labels[:, 1:2]), matcher(of, filled, labels)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.number == 1, expected.number == 0)
        assert expected.foreground.any()
        empty = matcher(of, box[:, :0], labels[:, :0])
        np.testing.assert_array_equal(empty.number, BACKGROUND)


def test_points_are_matched_near_the_centre_in_the_range_of_sizes_of_their_level():
    points = Anchors(((8,), (16,)), (1.0,)).levels(((16, 16), (8, 8)), (128, 128))
    boxes, labels = np.array([[[0, 0, 120, 120], [40, 40, 72, 72]]], np.float32), np.array([[1, 2]])
    found = np.asarray(match_by_center(points, boxes, labels).number[0])
    first, second = found[:256].reshape(16, 16), found[256:].reshape(8, 8)
    # Nearer than 12 pixels to (56, 56) the small box is found, none of whose sides is 64 pixels away.
    y, x = np.mgrid[:16, :16] * 8
    small = (np.abs(x - 56) < 12) & (np.abs(y - 56) < 12)
    np.testing.assert_array_equal(first == 1, small)
    # The large one, nearer than 24 pixels to (60, 60), is found on the other level where a side is farther than 64.
    y, x = np.mgrid[:8, :8] * 16
    near = (np.abs(x - 60) < 24) & (np.abs(y - 60) < 24)
    far = np.maximum(np.maximum(x, 120 - x), np.maximum(y, 120 - y)) > 64
    np.testing.assert_array_equal(second, np.where(near & far, 0, BACKGROUND))
    assert (near & far).any()


def test_the_smallest_box_counts_and_the_border_is_outside():
    points = (np.array([[-4, -4, 4, 4], [4, -4, 12, 4]], np.float32),)
    boxes = np.array([[[-30, -30, 30, 30], [-20, -20, 20, 20], [8, -9, 20, 9]]], np.float32)
    found = match_by_center(points, boxes, np.array([[1, 2, 3]]), radius=10)
    np.testing.assert_array_equal(found.number, [[1, 1]])
    np.testing.assert_array_equal(found.labels, [[2, 2]])
