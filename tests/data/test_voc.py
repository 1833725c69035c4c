"""Pascal VOC's layout: boxes, palette masks, and what is refused."""

import logging
import pathlib
import pickle

import numpy as np
import PIL.Image
import pytest
from dense_cases import class_mask, palette_png, voc_object, voc_xml, write_voc

from vision_jax.data.voc import VOC_CLASSES, VocSource
from vision_jax.errors import DataError


def test_boxes(tmp_path: pathlib.Path):
    source = VocSource(write_voc(tmp_path), "train")
    assert (len(source), source.num_classes, tuple(source.class_names)) == (2, 20, VOC_CLASSES)
    record = source[0]
    # Pixels are counted from 1, and the last one belongs to the box.
    assert record["boxes"].tolist() == [[0, 0, 20, 40], [30, 5, 60, 30]]
    assert record["box_labels"].tolist() == [VOC_CLASSES.index("dog"), 0]
    assert record["crowd"].tolist() == [False, True]  # the second is difficult
    assert record["area"].tolist() == [800, 750]
    assert record["image_id"] == "2007_000001"
    assert record["size"] == source.image_size(0) == (40, 60)
    assert len(source[1]["boxes"]) == 0
    by_id = VocSource(tmp_path, "train", category_ids=True)
    assert by_id[0]["box_labels"].tolist() == [VOC_CLASSES.index("dog") + 1, 1]
    assert by_id.class_names[0] == "background"
    assert pickle.loads(pickle.dumps(source)).fingerprint() == source.fingerprint() != by_id.fingerprint()


def test_masks_are_the_numbers_of_the_palette(tmp_path: pathlib.Path):
    source = VocSource(write_voc(tmp_path), "train", masks=True)
    assert (source.num_classes, source.has_boxes, source.has_masks) == (21, False, True)
    np.testing.assert_array_equal(source[1]["mask"], class_mask(40, 60, 21, 1))
    assert "boxes" not in source[1]


def test_the_size_comes_from_the_header_where_the_file_has_none(tmp_path: pathlib.Path):
    text = voc_xml(voc_object("cat", (1, 1, 60, 40)), size=(0, 0))
    assert VocSource(write_voc(tmp_path, {"a": text, "b": "<annotation/>"}), "train").sizes.tolist() == [[40, 60]] * 2


@pytest.mark.parametrize(
    ("text", "message", "left"),
    [
        (voc_xml(voc_object("dgo", (1, 1, 9, 9))), "object 1 of .*a.xml has the class 'dgo'", (0, 2)),
        (voc_xml(voc_object("dog", (1, 1, 9, 99))), "object 1 of .*a.xml has a box outside", (0, 2)),
        (voc_xml(voc_object("dog", (9, 1, 5, 9))), "empty or inverted", (0, 2)),
        (voc_xml(voc_object("dog", (1, "x", 5, 9))), "finite", (0, 2)),
        (voc_xml(voc_object("dog", (1, 1, 9, 9), difficult=3)), "difficult='3'", (0, 2)),
        ("<annotation><object>", "a.xml cannot be read", (0, 1)),
    ],
)
def test_what_is_wrong_is_refused_or_left_out(
    text: str, message: str, left: tuple[int, int], tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    write_voc(tmp_path, {"a": text, "b": voc_xml()})
    with pytest.raises(DataError, match=message):
        VocSource(tmp_path, "train")
    with caplog.at_level(logging.WARNING):
        source = VocSource(tmp_path, "train", skip_bad=True)
    assert (len(source.objects.labels), len(source)) == left
    assert "1 objects or images are wrong and left out" in caplog.text


def test_lists_and_files_that_are_wrong(tmp_path: pathlib.Path):
    write_voc(tmp_path)
    with pytest.raises(DataError, match=r"val.txt cannot be read.*There are: train\."):
        VocSource(tmp_path, "val")
    (tmp_path / "ImageSets/Main/train.txt").write_text("2007_000001\n2007_000001\n2007_000003\n")
    with pytest.raises(DataError, match="2007_000001 is listed twice"):
        VocSource(tmp_path, "train")
    assert len(VocSource(tmp_path, "train", skip_bad=True)) == 1
    (tmp_path / "ImageSets/Main/train.txt").write_text("2007_000001\n../JPEGImages/2007_000002\n")
    with pytest.raises(DataError, match=r"'../JPEGImages/2007_000002' is listed, which leads out"):
        VocSource(tmp_path, "train")


def test_masks_that_are_wrong(tmp_path: pathlib.Path):
    write_voc(tmp_path)
    path = tmp_path / "SegmentationClass" / "2007_000002.png"
    palette_png(np.full((40, 60), 21, np.uint8)).save(path)
    source = VocSource(tmp_path, "train", masks=True)  # masks are read when they are needed
    with pytest.raises(DataError, match=r"2007_000002.png has the classes \[21\], and there are 21"):
        source[1]
    assert len(VocSource(tmp_path, "train", masks=True, skip_bad=True)) == 1
    PIL.Image.new("L", (60, 41)).save(path)
    with pytest.raises(DataError, match="has 60x41 pixels, and its image 60x40"):
        VocSource(tmp_path, "train", masks=True)
    PIL.Image.new("RGB", (60, 40)).save(path)
    with pytest.raises(DataError, match="no image of 8 bits"):
        VocSource(tmp_path, "train", masks=True)[1]
