import os
import pathlib

import numpy as np
import pytest
from conftest import encode, picture
from miniature import write_tfrecord

from vision_jax import build
from vision_jax import config as config_lib
from vision_jax.data import cache, sources, tfds_format, tfrecord
from vision_jax.errors import DataError

EXAMPLES = [(encode(picture(20, 24, seed=i)), i % 3) for i in range(12)]


def fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_what_was_written_is_read(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "x.npz"
    assert cache.read_arrays(path) is None
    cache.write_arrays(path, a=np.arange(3), b=np.ones(2))
    found = cache.read_arrays(path)
    assert found is not None
    assert found["a"].tolist() == [0, 1, 2]
    assert not caplog.text
    whole = path.read_bytes()
    for damaged in (whole[:50], b"", whole.replace(np.ones(2).tobytes(), bytes(16))):
        path.write_bytes(damaged)
        assert cache.read_arrays(path) is None
    assert caplog.text.count("is damaged") == 3
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "x.npz"
    cache.write_arrays(path, a=np.arange(3))
    monkeypatch.setattr(os, "fsync", fail)
    cache.write_arrays(path, a=np.arange(4))
    assert "x.npz cannot be written (No space left on device)" in caplog.text
    assert list(tmp_path.iterdir()) == [path]
    assert len(cache.read_arrays(path)["a"]) == 3


def test_an_index_that_cannot_be_kept_ends_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    path = write_tfrecord(tmp_path / "1.tfrecord", [b"one", b"two"])
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(os, "fsync", fail)
    for where in (tmp_path / "cache", tmp_path / "gone", None):
        with tfrecord.TfRecordFiles([path], where) as files:
            assert [files[0], files[1]] == [b"one", b"two"]
    assert not list((tmp_path / "cache").iterdir())


def as_tfrecords(directory: pathlib.Path) -> pathlib.Path:
    """A data set of tfds in TFRecord files."""
    directory.mkdir(parents=True)
    tfds_format.write_dataset(directory, "mine", {"train": EXAMPLES}, ["a", "b", "c"])
    (shard,) = directory.glob("*.array_record-*")
    records = [tfds_format.serialize_example(image, label) for image, label in EXAMPLES]
    write_tfrecord(directory / shard.name.replace("array_record", "tfrecord"), records)
    shard.unlink()
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    return directory


def test_without_a_cache_folder_only_what_needs_it_ends(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source = sources.TfdsSource(as_tfrecords(tmp_path / "1.0.0"), "train")
    assert tuple(source[4].values()) == EXAMPLES[4]
    assert sources.read_labels(source).tolist() == [label for _, label in EXAMPLES]
    assert "Cannot make the cache" in caplog.text
    config = config_lib.default_config()
    config.data.source = "digits"
    with pytest.raises(DataError, match=r"Cannot make the cache .*file/vision_jax.* Or set data\.dir"):
        build.create_source(config, train=True)


def test_labels_are_read_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = as_tfrecords(tmp_path / "1.0.0")
    expected = np.array([label for _, label in EXAMPLES])
    subset = np.array([7, 2, 3])
    read: list[int] = []
    plain = sources.TfdsSource.__getitem__
    monkeypatch.setattr(sources.TfdsSource, "__getitem__", lambda self, i: read.append(i) or plain(self, i))
    for again in (False, True):
        read.clear()
        source = sources.TfdsSource(directory, "train")
        assert (sources.read_labels(sources.SubsetSource(source, subset)) == expected[subset]).all()
        assert sorted(read) == ([] if again else [2, 3, 7])  # of a subset no more than it has
        assert (sources.read_labels(source) == expected).all()
        assert (sources.read_labels(sources.TfdsSource(directory, "train[2:5]")) == expected[2:5]).all()
        assert len(read) == (0 if again else 3 + 12 + 3)
    (shard,) = directory.glob("*.tfrecord-*")
    write_tfrecord(shard, [tfds_format.serialize_example(image, 2) for image, _ in EXAMPLES])
    assert (sources.read_labels(sources.TfdsSource(directory, "train")) == 2).all()  # other files, other labels


def test_labels_that_prepare_has_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = tmp_path / "1.0.0"
    directory.mkdir()
    tfds_format.write_dataset(directory, "mine", {"train": EXAMPLES}, ["a", "b", "c"])
    path = tfds_format.labels_path(directory, "train")
    expected = np.array([label for _, label in EXAMPLES], np.int32)
    np.save(path, expected)
    slices = {"train": slice(None), "train[2:5]": slice(2, 5), "train[9:]+train[:2]": [9, 10, 11, 0, 1]}
    for split, rows in slices.items():
        source = sources.TfdsSource(directory, split)
        assert (source.prepared_labels() == expected[rows]).all()
        assert (sources.read_labels(source) == expected[rows]).all()
    assert not (tmp_path / "cache" / "vision_jax").exists()
    assert not caplog.text
    source = sources.TfdsSource(directory, "train")
    for wrong, message in ((expected[::-1], "are not those of"), (expected[1:], "of another data set")):
        np.save(path, wrong)
        assert (sources.read_labels(source) == expected).all()
        assert message in caplog.text
    path.write_bytes(path.read_bytes()[:100])
    assert source.prepared_labels() is None
    assert "is damaged" in caplog.text
