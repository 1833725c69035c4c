"""The made-up scenes, and dense records in tfds' layout."""

import concurrent.futures
import io
import pathlib
import pickle

import numpy as np
import PIL.Image
import pytest

from vision_jax.data import digits, prepared, scenes
from vision_jax.data.sources import TfdsSource
from vision_jax.errors import DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def directory(root: pathlib.Path) -> pathlib.Path:
    with concurrent.futures.ThreadPoolExecutor() as pool:  # as several processes do
        found = set(pool.map(lambda _: scenes.prepare(root), range(2)))
    assert len(found) == 1
    assert sorted(path.name for path in (root / "scenes").iterdir()) == [scenes.VERSION]
    return found.pop()


def test_boxes_are_where_the_ink_is(directory: pathlib.Path):
    source = prepared.PreparedSource(directory, "train")
    assert (len(source), source.num_classes) == (1000, 10)
    assert len(prepared.PreparedSource(directory, "validation")) == 200
    counts = np.bincount(source.objects.counts)
    assert counts[0] == 0
    assert len(counts) == 4
    for index in range(0, 1000, 50):
        record = source[index]
        image = np.asarray(PIL.Image.open(io.BytesIO(record["image"])))
        assert image.shape == (96, 96, 3)
        assert set(record["box_labels"] + 1) >= set(np.unique(record["mask"])) - {0}
        drawn = np.zeros((96, 96), bool)
        for box, label in zip(record["boxes"].astype(int), record["box_labels"], strict=True):
            x1, y1, x2, y2 = box
            inside = record["mask"][y1:y2, x1:x2] == label + 1
            drawn[y1:y2, x1:x2] = True
            assert inside.mean() > 0.3
            assert image[y1:y2, x1:x2][inside].mean() > 90  # ink is bright
            height, width = y2 - y1, x2 - x1
            rows, columns = inside.any(axis=1), inside.any(axis=0)
            if not record["crowd"].any() and len(record["boxes"]) == 1:  # none lies on another
                assert (rows.sum(), columns.sum()) == (height, width)
                assert all(np.diff(np.flatnonzero(row)).max(initial=1) == 1 for row in inside)  # a hull has no gaps
        assert not record["mask"][~drawn].any()


def test_held_out_scenes_have_held_out_digits(root: pathlib.Path, directory: pathlib.Path, monkeypatch):
    """The digits that are drawn come from the split of the same name."""
    asked = []
    monkeypatch.setattr(scenes, "_scene", lambda random, stock: asked.append(stock) or (scene, mask, []))
    scene, mask = np.zeros((96, 96, 3), np.uint8), np.zeros((96, 96), np.uint8)
    for split in ("train", "validation"):
        scenes._split(digits.prepare(root), split)
        source = TfdsSource(digits.prepare(root), split)
        assert [digit.label for digit in asked[-1]] == [source[i]["label"] for i in range(len(source))]


def test_it_is_the_same_again(directory: pathlib.Path, tmp_path: pathlib.Path):
    again = scenes.prepare(tmp_path)
    for path in directory.glob("*.array_record*"):
        assert path.read_bytes() == (again / path.name).read_bytes()
    one, other = (prepared.PreparedSource(folder, "train") for folder in (directory, again))
    assert one.fingerprint() == other.fingerprint()


def test_masks_and_slices(directory: pathlib.Path):
    source = prepared.PreparedSource(directory, "train[10:13]+validation[:2]", masks=True)
    assert (len(source), source.num_classes, source.class_names[0]) == (5, 11, "background")
    whole = prepared.PreparedSource(directory, "validation")
    np.testing.assert_array_equal(source[4]["boxes"], whole[1]["boxes"])
    np.testing.assert_array_equal(source[4]["mask"], whole[1]["mask"])
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[3]["mask"], whole[0]["mask"])
    source.close()


def test_tfds_reads_it(directory: pathlib.Path):
    import tensorflow_datasets as tfds

    example = tfds.builder_from_directory(str(directory)).as_data_source("train")[3]
    record = prepared.PreparedSource(directory, "train")[3]
    np.testing.assert_array_equal(np.stack(example["objects"]["box"]), record["boxes"])
    assert [int(label) for label in example["objects"]["label"]] == record["box_labels"].tolist()
    np.testing.assert_array_equal(example["mask"][..., 0], record["mask"])


def test_a_data_set_without_objects_says_so(root: pathlib.Path):
    with pytest.raises(DataError, match=r"objects-train.npz: the data set has no boxes or masks"):
        prepared.PreparedSource(digits.prepare(root), "train")
