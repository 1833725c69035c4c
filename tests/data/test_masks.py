"""Folders of images and masks, and what is refused."""

import logging
import pathlib
import pickle

import numpy as np
import PIL.Image
import pytest
from dense_cases import class_mask, write_masks

from vision_jax.data.masks import MasksSource
from vision_jax.errors import DataError


def test_masks_and_their_classes(tmp_path: pathlib.Path):
    source = MasksSource(write_masks(tmp_path), "training")
    assert (len(source), source.num_classes, source.class_names[3]) == (3, 4, "class 3")
    assert (source.has_boxes, source.has_masks) == (False, True)
    record = source[1]
    np.testing.assert_array_equal(record["mask"], class_mask(50, 30, 4, 1))
    assert (record["size"], record["image_id"]) == ((50, 30), "1")
    assert record["image"] == (tmp_path / "images/training/1.jpg").read_bytes()
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint() == source.fingerprint() != MasksSource(tmp_path, "validation").fingerprint()


def test_the_names_of_ade20k_and_its_zero_label(tmp_path: pathlib.Path):
    write_masks(tmp_path, folder="annotations")
    source = MasksSource(tmp_path, "validation", class_names=("wall", "building", "sky"), reduce_zero_label=True)
    raw = class_mask(40, 60, 4, 10)
    expected = np.where((raw == 0) | (raw == 255), 255, raw.astype(int) - 1)
    np.testing.assert_array_equal(source[0]["mask"], expected)
    assert source.num_classes == 3


def test_classes_must_be_known(tmp_path: pathlib.Path):
    write_masks(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes.txt.*data.dense.categories.*model.num_classes"):
        MasksSource(tmp_path, "training")
    assert MasksSource(tmp_path, "training", num_classes=4).num_classes == 4
    with pytest.raises(DataError, match="There are 256 classes"):
        MasksSource(tmp_path, "training", num_classes=256)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (PIL.Image.fromarray(np.full((50, 30), 4, np.uint8)), r"1.png has the classes \[4\], and there are 4"),
        (PIL.Image.new("L", (30, 49)), "1.jpg has 30x50 pixels, and .* 30x49"),
        (PIL.Image.new("RGB", (30, 50)), "1.png cannot be read: it is no image of 8 bits"),
        (PIL.Image.new("I;16", (30, 50)), "1.png cannot be read: it is no image of 8 bits"),
        (b"no image", "the mask of 1.jpg cannot be read"),
        (None, "the mask of 1.jpg cannot be read"),
    ],
)
def test_what_is_wrong_is_refused_or_left_out(
    mask: PIL.Image.Image | bytes | None, message: str, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    path = write_masks(tmp_path) / "masks/training/1.png"
    path.unlink()
    if isinstance(mask, bytes):
        path.write_bytes(mask)
    elif mask is not None:
        mask.save(path)
    with pytest.raises(DataError, match=message):
        MasksSource(tmp_path, "training")[1]
    with caplog.at_level(logging.WARNING):
        source = MasksSource(tmp_path, "training", skip_bad=True)
    assert source.image_ids.tolist() == ["0", "2"]
    assert "1 objects or images are wrong and left out" in caplog.text
    assert source[1]["image_id"] == "2"


def test_folders_that_are_missing(tmp_path: pathlib.Path):
    write_masks(tmp_path)
    with pytest.raises(DataError, match="images/train, or none of"):
        MasksSource(tmp_path, "train")
