"""Pictures of boxes and masks."""

import io

import numpy as np
import PIL.Image
import pytest

from vision_jax.dense import drawing


def test_the_palette_is_that_of_voc():
    """The colors that VOC2012's development kit prints, and that its masks have."""
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    known[255] = (224, 224, 192)
    colors = drawing.palette()
    assert {number: tuple(colors[number].tolist()) for number in known} == known
    assert len({tuple(color) for color in colors.tolist()}) == 256


def test_pixels_of_a_mask_are_classes():
    mask = np.random.default_rng(0).integers(0, 256, (7, 11), np.uint8)
    file = io.BytesIO()
    drawing.palette_image(mask).save(file, "PNG")
    read = PIL.Image.open(file)
    assert read.mode == "P"
    np.testing.assert_array_equal(np.asarray(read), mask)
    np.testing.assert_array_equal(np.asarray(read.convert("RGB")), drawing.palette()[mask])


def test_overlays_leave_out_what_is_clear():
    pixels = np.full((4, 4, 3), 100, np.uint8)
    mask = np.zeros((4, 4), np.uint8)
    mask[0] = 1
    drawn = drawing.overlay(pixels, mask, clear=[0])
    assert (drawn[1:] == 100).all()
    np.testing.assert_array_equal(drawn[0, 0], np.rint(0.45 * 100 + 0.55 * np.array([128, 0, 0])))
    gray = drawing.overlay(pixels[..., :1], mask)
    assert gray.shape == (4, 4, 3)
    assert gray[1, 0, 0] == 45


@pytest.mark.parametrize("background", [0, 255])
def test_boxes_are_seen_on_any_background(background: int):
    pixels = np.full((50, 80, 3), background, np.uint8)
    drawn = drawing.draw_boxes(pixels, np.array([[10, 20, 40, 45.0]]), np.array([3]), [""], least_side=80)
    color = np.array(drawing.box_color(3))
    changed = (drawn != background).any(-1)
    assert changed.any()
    rows, columns = np.flatnonzero((drawn == color).all(-1).any(1)), np.flatnonzero((drawn == color).all(-1).any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (21, 43, 11, 38)  # within the dark rim
    assert (drawn[20, 10:40] == 0).all()
    assert (drawn[44, 10:40] == 0).all()
    inside = drawn[25:40, 15:35]
    assert (inside == background).all()


def test_texts_stay_within_the_picture():
    pixels = np.zeros((30, 40, 1), np.uint8)
    boxes = np.array([[-5, -5, 60, 50.0], [38, 0, 40, 3.0]])
    drawn = drawing.draw_boxes(pixels, boxes, np.array([0, 1]), ["a name that is long", "other 50%"])
    assert drawn.shape == (360, 480, 3)  # enlarged by a whole number
    assert (drawn == np.array(drawing.box_color(1))).all(-1).sum() > 500


def test_classes_beside_each_other_differ():
    colors = np.array([drawing.box_color(label) for label in range(91)], float)
    assert np.abs(np.diff(colors, axis=0)).max(1).min() > 60
    assert colors.max(1).min() == 255
