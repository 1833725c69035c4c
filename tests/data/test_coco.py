"""COCO's instances, beside pycocotools and torchvision's recipe for masks, and what is refused."""

import copy
import logging
import pathlib
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dense_cases import ANNOTATIONS, SIZES, coco_content, write_coco
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from vision_jax.data import rle
from vision_jax.data.boxes import with_objects
from vision_jax.data.coco import VOC_IN_COCO, CocoSource
from vision_jax.errors import ConfigError, DataError


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    return write_coco(tmp_path)


def test_records_are_what_pycocotools_reads(directory: pathlib.Path):
    source = CocoSource(directory, "train2017")
    known = COCO(str(directory / "annotations" / "instances_train2017.json"))
    assert len(source) == len(SIZES)
    assert source.image_ids.tolist() == sorted(known.imgs)
    assert (source.num_classes, list(source.class_names)) == (3, ["dog", "cat", "person"])  # ascending by id
    for index, key in enumerate(sorted(known.imgs)):
        record, expected = source[index], known.loadAnns(known.getAnnIds(imgIds=key))
        assert record["size"] == source.image_size(index) == SIZES[key]
        assert record["image"] == pathlib.Path(source.describe(index)).read_bytes()
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in expected)]
        np.testing.assert_array_equal(record["boxes"], np.asarray(boxes, np.float32).reshape(-1, 4))
        assert record["box_labels"].tolist() == [{2: 0, 5: 1, 9: 2}[a["category_id"]] for a in expected]
        assert record["crowd"].tolist() == [bool(a["iscrowd"]) for a in expected]
        assert record["area"].tolist() == [a["area"] for a in expected]
        assert "mask" not in record


def test_category_ids_and_chosen_categories(directory: pathlib.Path):
    by_id = CocoSource(directory, "train2017", category_ids=True)
    assert by_id.num_classes == 10
    assert (by_id.class_names[0], by_id.class_names[9], by_id.class_names[1]) == ("background", "person", "N/A")
    assert sorted(set(by_id.objects.labels.tolist())) == [2, 5, 9]
    some = CocoSource(directory, "train2017", categories=("person", "dog"))
    assert some.objects.labels.tolist() == [1, 1, 0, 0]
    assert len(some) == len(SIZES)
    with pytest.raises(DataError, match=r"'dgo'.*did you mean dog"):
        CocoSource(directory, "train2017", categories=("dgo",))
    with pytest.raises(DataError, match="airplane"):
        CocoSource(directory, "train2017", categories=("voc",))
    assert len(VOC_IN_COCO) == 20


@pytest.mark.parametrize("category_ids", [False, True])
def test_masks_are_those_of_torchvisions_recipe(directory: pathlib.Path, category_ids: bool):
    source = CocoSource(directory, "train2017", masks=True, category_ids=category_ids)
    assert source.class_names[0] == "background"
    classes = {2: 2, 5: 5, 9: 9} if category_ids else {2: 1, 5: 2, 9: 3}
    for index, key in enumerate(sorted(SIZES)):
        height, width = SIZES[key]
        target, depth = np.zeros((height, width), np.uint8), np.zeros((height, width), int)
        for _, image, category, _, _, segmentation in ANNOTATIONS:
            if image == key:
                inside = coco_mask.decode(coco_mask.frPyObjects(segmentation, height, width))
                inside = inside.reshape(height, width, -1).any(axis=2)
                target = np.maximum(target, inside * np.uint8(classes[category]))
                depth += inside
        target[depth > 1] = 255
        mask = source[index]["mask"]
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, target)
    assert (source[1]["mask"] == 255).any()  # two of the objects of the image 7 overlap


def test_it_can_be_pickled_and_told_from_others(directory: pathlib.Path):
    source = CocoSource(directory, "train2017", masks=True)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(source[0]["mask"], again[0]["mask"])
    assert source.fingerprint() == again.fingerprint() == CocoSource(directory, "train2017", masks=True).fingerprint()
    assert source.fingerprint() != CocoSource(directory, "train2017", category_ids=True).fingerprint()


def test_sizes_come_from_the_header_where_they_are_not_listed(tmp_path: pathlib.Path):
    content = coco_content()
    for image in content["images"]:
        del image["height"], image["width"]
    source = CocoSource(write_coco(tmp_path, content), "train2017")
    assert [source.image_size(i) for i in range(4)] == [SIZES[key] for key in sorted(SIZES)]


def test_what_is_left_out_of_training_as_by_torchvision(directory: pathlib.Path):
    assert with_objects(CocoSource(directory, "train2017"), masks=False).tolist() == [0, 1, 2]
    # The objects of the image 3 have 66.5 pixels, those of the image 7 and 12 more than a thousand or 716.8.
    areas = {key: sum(0.7 * a[3][2] * a[3][3] for a in ANNOTATIONS if a[1] == key) for key in sorted(SIZES)}
    expected = [index for index, area in enumerate(areas.values()) if area > 1000]
    assert with_objects(CocoSource(directory, "train2017", masks=True), masks=True).tolist() == expected


def test_compressed_runs_are_those_of_pycocotools():
    random = np.random.RandomState(0)
    for density in (0.02, 0.5, 0.98):
        mask = np.asfortranarray((random.rand(37, 53) < density).astype(np.uint8))
        encoded = coco_mask.encode(mask)
        columns = mask.T.reshape(-1)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], columns])))
        expected = np.diff([0, *edges, len(columns)]).tolist()
        assert rle.runs_of(encoded["counts"]) == expected
        for counts in (encoded["counts"], encoded["counts"].decode(), expected):
            code = rle.encode({"size": [37, 53], "counts": counts}, 37, 53)
            np.testing.assert_array_equal(rle.decode(code, 37, 53), mask)


def change(path: str, value: Any) -> Callable[[dict], None]:
    """Returns a function that sets, or for `None` deletes, what is at a path such as annotations/0/bbox."""

    def apply(content: Any) -> None:
        *parents, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        for key in parents:
            content = content[key]
        content[last] = value

    return apply


# What is wrong, what the message says, and how many objects and images are left.
BAD = {
    "outside": (change("annotations/0/bbox", [55, 5, 20, 12]), "annotation 1 of image 7.*outside", 4, 4),
    "beyond": (change("annotations/0/bbox", [61, 5, 20, 12]), "outside", 4, 4),
    "negative": (change("annotations/0/bbox", [-3, 5, 20, 12]), "outside", 4, 4),
    "empty": (change("annotations/1/bbox", [10, 5, 0, 12]), "annotation 2.*empty or inverted", 4, 4),
    "inverted": (change("annotations/1/bbox", [10, 5, 4, -12]), "empty or inverted", 4, 4),
    "nan": (change("annotations/1/bbox", [float("nan"), 5, 4, 12]), "finite", 4, 4),
    "infinite": (change("annotations/1/bbox", [1, 5, float("inf"), 12]), "finite", 4, 4),
    "three": (change("annotations/1/bbox", [1, 5, 3]), "four numbers", 4, 4),
    "words": (change("annotations/1/bbox", ["1", 5, 3, 4]), "four numbers", 4, 4),
    "area": (change("annotations/1/area", -1), "area -1", 4, 4),
    "crowd": (change("annotations/1/iscrowd", 7), "iscrowd 7", 4, 4),
    "category": (
        change("annotations/1/category_id", 77),
        "annotation 2 has the category 77, which is not",
        4,
        4,
    ),
    "no category": (change("annotations/1/category_id", [5]), "which is not listed", 4, 4),
    "no image": (change("annotations/1/image_id", 99), "annotation 2 is of the image 99, which is not listed", 4, 4),
    "same id": (change("images/1/id", 7), "two images have the id 7: 0007.jpg and 0003.jpg", 4, 3),
    "no file": (change("images/2/file_name", "none.jpg"), "image 12 is none.jpg, and there is no such file", 4, 3),
    "above": (change("images/2/file_name", "../a.jpg"), "image 12 has the file_name '../a.jpg', which leads out", 4, 3),
    "absolute": (change("images/2/file_name", "/a.jpg"), "image 12 has the file_name '/a.jpg', which leads out", 4, 3),
    "within": (change("images/2/file_name", "x/../0012.jpg"), "leads out of .*train2017", 4, 3),
    "no name": (change("images/2/file_name", None), "image has the id 12 and the file_name None", 4, 3),
    "height": (change("images/2/height", 0), "image 12 .0012.jpg. has the height 0", 4, 3),
    "RLE size": (change("annotations/2/segmentation/size", [60, 40]), r"RLE has the size \[60, 40\]", 4, 4),
    "RLE runs": (change("annotations/2/segmentation/counts", [30, 10]), "runs of 40 pixels", 4, 4),
    "RLE string": (change("annotations/2/segmentation/counts", "ab\x7f"), "character", 4, 4),
    "RLE cut off": (change("annotations/2/segmentation/counts", "Po"), "ends within a number", 4, 4),
    "RLE none": (change("annotations/2/segmentation/counts", None), "neither a string", 4, 4),
    "polygon": (change("annotations/0/segmentation", [[1, 2, 3]]), "three corners", 4, 4),
    "far polygon": (change("annotations/0/segmentation", [[1, 2, 3, 1e9, 5, 6]]), "far outside", 4, 4),
    "no mask": (change("annotations/0/segmentation", None), "no segmentation", 4, 4),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_refused_or_left_out_and_counted(
    name: str, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    apply, message, num_objects, num_images = BAD[name]
    content = copy.deepcopy(coco_content())
    apply(content)
    write_coco(tmp_path, content)
    with pytest.raises(DataError, match=message) as error:
        CocoSource(tmp_path, "train2017", masks=True)
    assert "instances_train2017.json" in str(error.value)
    assert "data.dense.skip_bad" in str(error.value)
    with caplog.at_level(logging.WARNING):
        source = CocoSource(tmp_path, "train2017", masks=True, skip_bad=True)
    assert (len(source.objects.labels), len(source)) == (num_objects, num_images)
    assert "wrong and left out" in caplog.text
    for index in range(len(source)):
        assert source[index]["mask"].shape == source.image_size(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "no list of images"),
        ({"images": [], "annotations": []}, "no list of categories"),
        ({"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}, "no image"),
        ({"images": [], "annotations": [], "categories": []}, "no categories"),
        ({"images": [], "annotations": [], "categories": [{"id": "1", "name": "a"}]}, "integer id"),
        ({"images": [], "annotations": [], "categories": [{"id": 1, "name": n} for n in "ab"]}, "two categories"),
    ],
)
def test_files_that_are_none_are_refused(content: Any, message: str, tmp_path: pathlib.Path):
    write_coco(tmp_path, content)
    with pytest.raises(DataError, match=message):
        CocoSource(tmp_path, "train2017", skip_bad=True)


def test_folders_that_are_missing_are_refused(directory: pathlib.Path):
    with pytest.raises(DataError, match=r"instances_val2017.json.*instances_train2017.json"):
        CocoSource(directory, "val2017")
    (directory / "train2017").rename(directory / "other")
    with pytest.raises(DataError, match="none of the folders of its images"):
        CocoSource(directory, "train2017")


def test_an_image_of_another_size_than_listed_is_refused(tmp_path: pathlib.Path):
    content = coco_content()
    content["images"][3]["width"] = 49
    source = CocoSource(write_coco(tmp_path, content), "train2017")
    with pytest.raises(DataError, match=r"0020.jpg has 48x24 pixels, and .* of 49x24"):
        source[3]


def test_masks_say_what_is_lacking(directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    CocoSource(directory, "train2017")
    with pytest.raises(ConfigError, match=r"pip install 'vision_jax\[detection\]'"):
        CocoSource(directory, "train2017", masks=True)
