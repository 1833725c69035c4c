"""`python -m vision_jax prepare` on data sets with boxes and masks: the same records both ways."""

import os
import pathlib
import shutil

import numpy as np
import pytest
from dense_cases import assert_same_record, coco_content, write_coco, write_masks, write_voc

from vision_jax.commands import prepare
from vision_jax.data.coco import CocoSource
from vision_jax.data.masks import MasksSource
from vision_jax.data.prepared import PreparedSource
from vision_jax.data.voc import VocSource
from vision_jax.errors import DataError

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def coco(tmp_path: pathlib.Path) -> pathlib.Path:
    directory = tmp_path / "coco"
    write_coco(directory)
    content = coco_content()
    content["images"] = content["images"][:2]
    content["annotations"] = content["annotations"][:4]
    return write_coco(directory, content, split="val2017")


def assert_same_records(source, prepared: PreparedSource) -> None:
    """The records of both are the same, in whatever order."""
    places = {key: index for index, key in enumerate(source.image_ids.tolist())}
    assert sorted(places) == sorted(prepared.image_ids.tolist())
    assert (list(prepared.class_names), prepared.num_classes) == (list(source.class_names), source.num_classes)
    for index in range(len(prepared)):
        record = prepared[index]
        assert_same_record(record, source[places[record["image_id"]]])
        assert prepared.image_size(index) == record["size"]
    prepared.close()


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("flags", [[], ["--category_ids"]])
def test_coco(masks: bool, flags: list[str], coco: pathlib.Path, tmp_path: pathlib.Path):
    given = [*flags, *(["--masks"] if masks else []), "--shards=2", "--workers=1"]
    assert prepare.main([str(coco), str(tmp_path / "out"), *given]) == 0
    for split, name in (("train2017", "train"), ("val2017", "validation")):
        source = CocoSource(coco, split, masks=masks, category_ids=bool(flags))
        assert_same_records(source, PreparedSource(tmp_path / "out", name, masks=masks))
    assert prepare.main([str(coco), str(tmp_path / "out"), *given]) == 0  # it is complete
    assert prepare.main(["--verify", str(tmp_path / "out")]) == 0
    with_boxes = PreparedSource(tmp_path / "out", "train+validation")
    assert len(with_boxes) == 6
    assert with_boxes.class_names == list(CocoSource(coco, "train2017", category_ids=bool(flags)).class_names)
    if not masks:
        with pytest.raises(DataError, match="boxes, but no masks: prepare it with --masks"):
            PreparedSource(tmp_path / "out", "train", masks=True)


@pytest.mark.parametrize("masks", [False, True])
def test_voc(masks: bool, tmp_path: pathlib.Path):
    directory = write_voc(tmp_path / "voc")
    assert prepare.main([str(directory), str(tmp_path / "out"), "--workers=1", *(["--masks"] * masks)]) == 0
    assert_same_records(
        VocSource(directory, "train", masks=masks), PreparedSource(tmp_path / "out", "train", masks=masks)
    )


def test_masks(tmp_path: pathlib.Path):
    directory = write_masks(tmp_path / "ade", folder="annotations")
    (directory / "classes.txt").write_text("wall\nbuilding\nsky\n")
    assert prepare.main([str(directory), str(tmp_path / "out"), "--reduce_zero_label", "--workers=1"]) == 0
    for split, name in (("training", "train"), ("validation", "validation")):
        source = MasksSource(directory, split, reduce_zero_label=True)
        assert_same_records(source, PreparedSource(tmp_path / "out", name, masks=True))
    with pytest.raises(DataError, match="masks, but no boxes"):
        PreparedSource(tmp_path / "out", "train")


def test_images_that_are_left_out_leave_the_others_as_they_are(
    coco: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    image = coco / "train2017" / "0012.jpg"
    data = image.read_bytes()
    image.write_bytes(data[: len(data) // 2])
    shutil.rmtree(coco / "val2017")
    os.remove(coco / "annotations" / "instances_val2017.json")
    assert prepare.main([str(coco), str(tmp_path / "out"), "--workers=1"]) == 1
    assert prepare.main([str(coco), str(tmp_path / "out"), "--workers=1", "--skip_corrupt=1"]) == 0
    found = PreparedSource(tmp_path / "out", "train")
    assert sorted(found.image_ids.tolist()) == [3, 7, 20]
    source = CocoSource(coco, "train2017")
    for index, key in enumerate(found.image_ids.tolist()):
        np.testing.assert_array_equal(found[index]["boxes"], source[[3, 7, 12, 20].index(key)]["boxes"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encoding=jpeg"], "--encoding=jpeg changes images"),
        (["--apply_exif_orientation"], "--apply_exif_orientation changes images"),
        (["--holdout=0.5"], "--holdout=0.5 is for folders of classes"),
        (["--reduce_zero_label"], "--reduce_zero_label is for folders of masks"),
        (["--categories=dgo"], "'dgo'"),
    ],
)
def test_flags_that_do_not_fit(
    flags: list[str], message: str, coco: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
):
    assert prepare.main([str(coco), str(tmp_path / "out"), *flags]) == 1
    assert message in capsys.readouterr().err


def test_what_is_wrong_is_said_or_left_out(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    content = coco_content()
    content["annotations"][0]["bbox"] = [10, 5, 0, 3]
    directory = write_coco(tmp_path / "coco", content)
    assert prepare.main([str(directory), str(tmp_path / "out"), "--workers=1"]) == 1
    error = capsys.readouterr().err
    assert "annotation 1 of image 7" in error
    assert prepare.main([str(directory), str(tmp_path / "out"), "--workers=1", "--skip_bad"]) == 0
    assert len(PreparedSource(tmp_path / "out", "train").objects.labels) == 4


def test_flags_of_boxes_are_for_boxes(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        shutil.copy(write_coco(tmp_path / f"coco {name}") / "train2017" / "0003.jpg", tmp_path / "in" / name)
    assert prepare.main([str(tmp_path / "in"), str(tmp_path / "out"), "--masks"]) == 1
    assert "is: folder of classes" in capsys.readouterr().err
