"""Data sets that are published as arrays of pixels: MNIST and its kin in IDX files, CIFAR-10 and -100 as binary files.

Each image becomes a PNG, which keeps its pixels. The files are read as they were downloaded, gzipped or not.
"""

import dataclasses
import functools
import gzip
import hashlib
import io
import pathlib
import re
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from vision_jax.errors import DataError
from vision_jax.preparation.inputs import Index, Original, make_records

_SPLITS = {"train": "train", "t10k": "test", "test": "test"}
# train-images-idx3-ubyte.gz; some copies have a dot instead of the second hyphen, EMNIST a name in front.
_IDX = re.compile(r"(?:.*-)?(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(?:\.gz)?")
_CIFAR = {
    "cifar10": (tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",), "batches.meta.txt"),
    "cifar100": (("train.bin",), ("test.bin",), "fine_label_names.txt"),
}
_PICKLED = ("data_batch_1", "test_batch", "batches.meta", "meta")
_SIDE = 32  # of CIFAR's images


class Pixels(NamedTuple):
    """Images and labels of a file: (n, height, width[, 3]) and (n,) uint8."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class PixelReader:
    """Reads images; `file` is the number of the split, `offset` that of the image in it.

    Attributes:
        splits: the files of each, as `_load` takes them.
    """

    splits: tuple[tuple[pathlib.Path, ...], ...]

    def read(self, record: np.void) -> Original:
        pixels = _load(self.splits[record["file"]]).images[record["offset"]]
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, "PNG")
        return Original(bytes(record["name"]), int(record["label"]), buffer.getvalue())


class PixelInput:
    """A folder with the IDX files of MNIST, Fashion-MNIST and the like, or with the binary files of CIFAR-10 or -100.

    The splits are `train` and `test`. IDX files have no names of classes: they are numbers.

    Raises:
        DataError: if files are missing, or the folder holds CIFAR's pickled files.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory
        self._names: pathlib.Path | None = None
        if idx := _find_idx(directory):
            self.name, self.kind, self._splits = "idx", "IDX files", idx
            return
        name, (train, test, names) = next(
            (name, files) for name, files in _CIFAR.items() if (directory / files[0][0]).is_file()
        )
        self.name, self.kind = name, f"binary files of {name.upper().replace('CIFAR', 'CIFAR-')}"
        files = {"train": train, "test": test}
        self._splits = {split: tuple(_existing(directory, file) for file in given) for split, given in files.items()}
        self._names = _existing(directory, names)

    @staticmethod
    def found_in(directory: pathlib.Path) -> bool:
        """Returns whether a folder has such files.

        Raises:
            DataError: if it has CIFAR's pickled files.
        """
        if all((directory / name).is_file() for name in _PICKLED[:2]) or (
            (directory / "train").is_file() and (directory / "meta").is_file()
        ):
            raise DataError(
                f"{directory} holds CIFAR as Python pickles, which can run any program and are not read: download the "
                "binary version."
            )
        return bool(_find_idx(directory)) or any((directory / files[0][0]).is_file() for files in _CIFAR.values())

    def identity(self) -> dict[str, Any]:
        files = [path for paths in self._splits.values() for path in paths]
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        return {"kind": self.kind, "sha256": digests}

    def index(self, cache: pathlib.Path) -> Index:
        splits, most = {}, -1
        for number, (split, paths) in enumerate(self._splits.items()):
            pixels = _load(paths)
            count = len(pixels.labels)
            names = [f"{split}/{i:06d}.png".encode() for i in range(count)]
            size = pixels.images[0].size
            splits[split] = make_records(names, pixels.labels, number, np.arange(count), np.full(count, size))
            most = max(most, int(pixels.labels.max()))
        class_names = [str(i) for i in range(most + 1)]
        if self._names is not None:
            class_names = self._names.read_text().split()
            if len(class_names) <= most:
                raise DataError(f"{self._names} names {len(class_names)} classes, and there are labels up to {most}.")
        return Index(splits, class_names, {}, PixelReader(tuple(self._splits.values())))


def _existing(directory: pathlib.Path, name: str) -> pathlib.Path:
    if not (directory / name).is_file():
        raise DataError(f"{directory} has no {name}: the data set is not whole.")
    return directory / name


def _find_idx(directory: pathlib.Path) -> dict[str, tuple[pathlib.Path, ...]]:
    """Returns the files of images and of labels of each split, if there are any.

    Raises:
        DataError: if a split has one without the other, or one twice.
    """
    found: dict[str, dict[str, pathlib.Path]] = {}
    for path in sorted(directory.iterdir()):
        if (match := _IDX.fullmatch(path.name)) and path.is_file():
            files = found.setdefault(_SPLITS[match[1]], {})
            if match[2] in files:
                raise DataError(f"{directory} has both {files[match[2]].name} and {path.name}: remove one of them.")
            files[match[2]] = path
    for split, files in found.items():
        if len(files) < 2:
            (there,) = files.values()
            what = "labels" if "images" in files else "images"
            raise DataError(f"{directory} has {there.name}, but not the {what} of the split {split}.")
    return {split: (found[split]["images"], found[split]["labels"]) for split in ("train", "test") if split in found}


@functools.cache
def _load(paths: tuple[pathlib.Path, ...]) -> Pixels:
    """Reads the files of a split, once in each process."""
    if _IDX.fullmatch(paths[0].name):
        images, labels = (_read_idx(path) for path in paths)
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(labels):
            raise DataError(
                f"{paths[0]} holds an array of {images.shape}, and {paths[1].name} one of {labels.shape}: they do not "
                "belong together."
            )
        return Pixels(images, labels)
    parts = [_read_cifar(path) for path in paths]
    return Pixels(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _read_idx(path: pathlib.Path) -> np.ndarray:
    """Reads an array of bytes: 0, 0, the type, the number of dimensions, the dimensions as big-endian 32-bit integers,
    and the elements (http://yann.lecun.com/exdb/mnist/).
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read, or is cut off: {error}.") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{path} is no IDX file of bytes: it begins with {data[:4]!r}.")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{path} is damaged or cut off: it has {values.size} elements, and says {shape}.")
    return values.reshape(shape)


def _read_cifar(path: pathlib.Path) -> Pixels:
    """Reads records of one label, or of a coarse and a fine one, and 32 * 32 bytes of red, green and blue each."""
    labels = 2 if path.name in ("train.bin", "test.bin") else 1
    data = np.fromfile(path, np.uint8)
    size = labels + 3 * _SIDE**2
    if not data.size or data.size % size:
        raise DataError(f"{path} is damaged or cut off: {data.size} bytes are not a multiple of {size}.")
    rows = data.reshape(-1, size)
    images = rows[:, labels:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return Pixels(np.ascontiguousarray(images), rows[:, labels - 1])
