"""Data sets of pixel arrays, as they are downloaded: IDX files and CIFAR's binary files."""

import gzip
import logging
import pathlib
import pickle
import struct

import numpy as np
import pytest

from vision_jax.commands import prepare
from vision_jax.data import decode
from vision_jax.data.sources import TfdsSource
from vision_jax.preparation import shards

RANDOM = np.random.RandomState(0)
SIZES = {"train": 70, "t10k": 9}
IMAGES = {split: RANDOM.randint(0, 256, (count, 28, 28)).astype(np.uint8) for split, count in SIZES.items()}
LABELS = {split: (np.arange(count) % 3).astype(np.uint8) for split, count in SIZES.items()}


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vision_jax")
    monkeypatch.setattr(prepare.console, "configure_logging", lambda: None)
    monkeypatch.setattr(
        shards, "write_shards", lambda job, todo, workers, progress: (job.write(s, lambda: None) for s in todo)
    )


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: pathlib.Path, *, compressed: bool = False) -> pathlib.Path:
    folder.mkdir()
    for split in SIZES:
        for what, array in (("images-idx3", IMAGES[split]), ("labels-idx1", LABELS[split])):
            data = idx(array)
            name = f"{split}-{what}-ubyte"
            (folder / (f"{name}.gz" if compressed else name)).write_bytes(gzip.compress(data) if compressed else data)
    return folder


def write_cifar(folder: pathlib.Path, classes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Writes CIFAR-10's or CIFAR-100's binary files, and returns images and labels by split."""
    folder.mkdir()
    files = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    if classes == 100:
        files = {"train": ["train.bin"], "test": ["test.bin"]}
    found = {}
    for split, names in files.items():
        images = RANDOM.randint(0, 256, (4 * len(names), 32, 32, 3)).astype(np.uint8)
        labels = RANDOM.randint(0, classes, len(images)).astype(np.uint8)
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        columns = [labels[:, None], planes] if classes == 10 else [labels[:, None] // 5, labels[:, None], planes]
        rows = np.concatenate(columns, 1)
        for number, name in enumerate(names):
            (folder / name).write_bytes(rows[4 * number : 4 * number + 4].tobytes())
        found[split] = images, labels
    names = "\n".join(f"class{i}" for i in range(classes)) + "\n\n"
    (folder / ("batches.meta.txt" if classes == 10 else "fine_label_names.txt")).write_text(names)
    return found


def contents(directory: pathlib.Path, split: str, channels: int) -> set[tuple[int, bytes]]:
    source = TfdsSource(directory, split)
    records = [source[i] for i in range(len(source))]
    return {(int(record["label"]), decode.decode(record["image"], channels).tobytes()) for record in records}


@pytest.mark.parametrize("compressed", [False, True])
def test_idx_files_keep_their_pixels(compressed: bool, tmp_path: pathlib.Path):
    folder = write_idx(tmp_path / "in", compressed=compressed)
    assert prepare.main([str(folder), str(tmp_path / "out"), "--workers=1"]) == 0
    for split, name in (("train", "train"), ("t10k", "test")):
        pairs = zip(LABELS[split].tolist(), IMAGES[split], strict=True)
        assert contents(tmp_path / "out", name, 1) == {(label, image.tobytes()) for label, image in pairs}
    assert TfdsSource(tmp_path / "out", "train").class_names == ["0", "1", "2"]
    assert prepare.main(["--verify", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_keeps_its_pixels(classes: int, tmp_path: pathlib.Path):
    expected = write_cifar(tmp_path / "in", classes)
    assert prepare.main([str(tmp_path / "in"), str(tmp_path / "out"), "--workers=1"]) == 0
    for split, (images, labels) in expected.items():
        pairs = zip(labels.tolist(), images, strict=True)
        assert contents(tmp_path / "out", split, 3) == {(label, image.tobytes()) for label, image in pairs}
    source = TfdsSource(tmp_path / "out", "test")
    assert list(source.class_names) == [f"class{i}" for i in range(classes)]


def damage(name: str, change):
    def apply(folder: pathlib.Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage("train-images-idx3-ubyte", lambda data: data[:-1]), "is damaged or cut off: it has 54879 elements"),
        (damage("train-images-idx3-ubyte", lambda data: b"x" + data), "is no IDX file of bytes: it begins with b'x"),
        (damage("t10k-labels-idx1-ubyte", lambda data: idx(LABELS["train"])), "they do not belong together"),
        (lambda folder: (folder / "t10k-labels-idx1-ubyte").unlink(), "but not the labels of the split test"),
        (
            lambda folder: (folder / "train-labels-idx1-ubyte.gz").write_bytes(b""),
            "has both train-labels-idx1-ubyte and train-labels-idx1-ubyte.gz",
        ),
    ],
)
def test_damaged_idx_files(change, message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    folder = write_idx(tmp_path / "in")
    change(folder)
    assert prepare.main([str(folder), str(tmp_path / "out"), "--workers=1"]) == 1
    assert message in capsys.readouterr().err


def test_damaged_cifar(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    write_cifar(tmp_path / "in", 10)
    (tmp_path / "in" / "data_batch_3.bin").write_bytes(b"123")
    assert prepare.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert "3 bytes are not a multiple of 3073" in capsys.readouterr().err
    (tmp_path / "in" / "data_batch_3.bin").unlink()
    assert prepare.main([str(tmp_path / "in"), str(tmp_path / "out2")]) == 1
    assert "has no data_batch_3.bin: the data set is not whole" in capsys.readouterr().err


def test_pickles_are_refused(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (tmp_path / name).write_bytes(pickle.dumps({}))
    assert prepare.main([str(tmp_path), str(tmp_path.with_name("out"))]) == 1
    assert "holds CIFAR as Python pickles, which can run any program" in capsys.readouterr().err
