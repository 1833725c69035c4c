"""IDX files of a data set that nobody names; `test_known` has those that are known."""

import gzip
import pathlib
import struct

import numpy as np
import pytest

from vision_jax.commands import prepare
from vision_jax.data import decode
from vision_jax.data.sources import TfdsSource

RANDOM = np.random.RandomState(0)
SIZES = {"train": 70, "t10k": 9}
IMAGES = {split: RANDOM.randint(0, 256, (count, 28, 28)).astype(np.uint8) for split, count in SIZES.items()}
LABELS = {split: (np.arange(count) % 3).astype(np.uint8) for split, count in SIZES.items()}


pytestmark = pytest.mark.usefixtures("in_process")


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
            "has both train-labels-idx1-ubyte.gz and train-labels-idx1-ubyte: remove one of them",
        ),
    ],
)
def test_damaged_idx_files(change, message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    folder = write_idx(tmp_path / "in")
    change(folder)
    assert prepare.main([str(folder), str(tmp_path / "out"), "--workers=1"]) == 1
    assert message in capsys.readouterr().err
