"""Masks that are wrong are found before a run, and files that have not changed are read once."""

import os
import pathlib

import numpy as np
import PIL.Image
import pytest
from dense_cases import palette_png, write_masks, write_voc

from vision_jax import recipes
from vision_jax.assembly.dense_inputs import create_dense_source
from vision_jax.data import mask_check
from vision_jax.data.mask_check import check_masks
from vision_jax.data.masks import MasksSource
from vision_jax.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vision_jax"


def opened(directory: pathlib.Path, source: str, split: str, **fields: object) -> object:
    config = recipes.dense("resnet18", "segmentation", head="linear")
    config.data.update({"source": source, "dir": str(directory), "train_split": split})
    config.data.dense.update(fields)
    return create_dense_source(config, train=True, masks=True)


def test_good_masks_are_read_once(tmp_path: pathlib.Path, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    write_masks(tmp_path)
    opened(tmp_path, "masks", "training")
    (kept,) = cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(mask_check, "read_mask", None)
        opened(tmp_path, "masks", "training")
        # Other numbers of classes need no file either.
        with pytest.raises(DataError, match=r"has the classes \[3\], and there are 3, .* Of 3 masks, 3 are wrong"):
            check_masks(MasksSource(tmp_path, "training").pairs(), 3)
    path = tmp_path / "masks/training/1.png"
    PIL.Image.fromarray(np.full((50, 30), 4, np.uint8)).save(path)
    os.utime(path, (1, 1))
    with pytest.raises(DataError, match=r"masks/training/1.png has the classes \[4\], and there are 4.*categories"):
        opened(tmp_path, "masks", "training")
    assert len(list(cache.iterdir())) == 2
    assert len(opened(tmp_path, "masks", "training", skip_bad=True)) == 2
    kept.unlink()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (PIL.Image.new("L", (30, 49)), "masks/training/1.png has 30x49 pixels, and its image .*1.jpg has 30x50"),
        (PIL.Image.new("RGB", (30, 50)), "masks/training/1.png cannot be read: it is no image of 8 bits"),
    ],
)
def test_what_is_wrong_is_named(mask: PIL.Image.Image, message: str, tmp_path: pathlib.Path):
    mask.save(write_masks(tmp_path) / "masks/training/1.png")
    with pytest.raises(DataError, match=message):
        opened(tmp_path, "masks", "training")


def test_the_zero_label_is_reduced_before(tmp_path: pathlib.Path):
    write_masks(tmp_path)
    names = ("a", "b", "c")
    assert len(opened(tmp_path, "masks", "training", categories=names, reduce_zero_label=True)) == 3
    with pytest.raises(DataError, match=r"classes \[2\], and there are 2, .* after data.dense.reduce_zero_label"):
        opened(tmp_path, "masks", "training", categories=names[:2], reduce_zero_label=True)


def test_damaged_images_are_left_to_the_run(tmp_path: pathlib.Path):
    (write_masks(tmp_path) / "images/training/1.jpg").write_bytes(b"\xff\xd8nothing")
    assert len(opened(tmp_path, "masks", "training")) == 3


def test_masks_of_voc(tmp_path: pathlib.Path):
    write_voc(tmp_path)
    assert len(opened(tmp_path, "voc", "train")) == 2
    palette_png(np.full((40, 60), 21, np.uint8)).save(tmp_path / "SegmentationClass" / "2007_000002.png")
    with pytest.raises(DataError, match=r"2007_000002.png has the classes \[21\], and there are 21"):
        opened(tmp_path, "voc", "train")
