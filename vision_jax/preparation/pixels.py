"""Data sets that are published as arrays of pixels: MNIST and its kin in IDX files, CIFAR's binary files, SVHN's .mat.

Each image becomes a PNG, which keeps its pixels. The arrays of a split are written once, as they are, into the folder
of unfinished work, where all processes read them.
"""

import dataclasses
import functools
import gzip
import io
import os
import pathlib
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from vision_jax.errors import DataError, reason
from vision_jax.preparation.downloads import Download
from vision_jax.preparation.inputs import Original
from vision_jax.preparation.tree import Tree

_SPLITS = {"train": "train", "t10k": "test", "test": "test"}
# train-images-idx3-ubyte.gz; some copies have a dot instead of the second hyphen, EMNIST a name in front.
_IDX = re.compile(r"(.*-)?(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(?:\.gz)?")
# What the pickled versions of CIFAR are called, and unpack to.
_PICKLED = ("cifar-10-python.tar.gz", "cifar-10-batches-py", "cifar-100-python.tar.gz", "cifar-100-python")
_SIDE = 32  # of CIFAR's and SVHN's images


class Pixels(NamedTuple):
    """Images and labels of a split: (n, height, width[, 3]) uint8 and (n,) integers from 0."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Arrays:
    """What a layout finds.

    Attributes:
        splits: by name.
        class_names: in the order of the labels; empty if nobody names them.
    """

    splits: Mapping[str, Pixels]
    class_names: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class PixelReader:
    """Reads images; `file` is the number of the split, `offset` that of the image in it.

    Attributes:
        files: of the images of each split, as `write_images` has written them.
    """

    files: tuple[pathlib.Path, ...]

    def read(self, record: np.void) -> Original:
        pixels = np.ascontiguousarray(_open(self.files[record["file"]])[record["offset"]])
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, "PNG")
        return Original(bytes(record["name"]), int(record["label"]), buffer.getvalue())


@functools.cache
def _open(path: pathlib.Path) -> np.ndarray:
    """Maps a file into memory for as long as the process lives."""
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def write_images(images: np.ndarray, path: pathlib.Path) -> None:
    """Writes the images of a split, whole or not at all.

    Raises:
        DataError: if there is no room.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, images, allow_pickle=False)
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"Cannot write {path}: {reason(error)}. Give an OUTPUT with more space.") from error
    finally:
        temporary.unlink(missing_ok=True)


def idx_files(directory: pathlib.Path) -> tuple[Download, ...]:
    """Returns what IDX files there are in a folder, whichever data set they are of."""
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    return tuple(Download(name) for name in names if _IDX.fullmatch(name))


def idx(tree: Tree, *, prefix: str = "", first_label: int = 0, transposed: bool = False) -> Arrays:
    """Reads the IDX files of MNIST and the like.

    Args:
        tree: of the downloads.
        prefix: in front of the names of the files.
        first_label: the lowest one.
        transposed: rows and columns of the images have changed places.

    Raises:
        DataError: if a split has one file without the other, or one twice, or they do not belong together.
    """
    found: dict[str, dict[str, str]] = {}
    for name in tree.names():
        if not (match := _IDX.fullmatch(name)) or (prefix and match[1] != prefix):
            continue
        files = found.setdefault(_SPLITS[match[2]], {})
        if match[3] in files:
            raise DataError(f"There are both {files[match[3]]} and {name}: remove one of them.")
        files[match[3]] = name
    splits: dict[str, Pixels] = {}
    for split in (split for split in ("train", "test") if split in found):
        files = found[split]
        if len(files) < 2:
            (there,) = files.values()
            what = "labels" if "images" in files else "images"
            raise DataError(f"There is {there}, but not the {what} of the split {split}.")
        images, labels = (_read_idx(files[what], tree.read(files[what])) for what in ("images", "labels"))
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or not len(labels):
            raise DataError(
                f"{files['images']} holds an array of {images.shape}, and {files['labels']} one of {labels.shape}: "
                "they do not belong together."
            )
        splits[split] = Pixels(images.swapaxes(1, 2) if transposed else images, labels.astype(np.int32) - first_label)
    return Arrays(splits)


def _read_idx(name: str, data: bytes) -> np.ndarray:
    """Reads an array of bytes: 0, 0, the type, the number of dimensions, the dimensions as big-endian 32-bit integers,
    and the elements (http://yann.lecun.com/exdb/mnist/).
    """
    try:
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} cannot be read, or is cut off: {reason(error)}. Download it again.") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{name} is no IDX file of bytes: it begins with {data[:4]!r}.")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{name} is damaged or cut off: it has {values.size} elements, and says {shape}.")
    return values.reshape(shape)


def cifar(tree: Tree, *, train: Sequence[str], test: Sequence[str], names: str, labels: int) -> Arrays:
    """Reads CIFAR's binary files (https://www.cs.toronto.edu/~kriz/cifar.html).

    Args:
        tree: of the downloads.
        train, test: the files of each split.
        names: the file of the names of classes, a line each.
        labels: of an image, of which the last is the class: CIFAR-100 has its superclass in front.

    Raises:
        DataError: if a file is cut off.
    """
    splits: dict[str, Pixels] = {}
    for split, files in (("train", train), ("test", test)):
        parts = [_read_cifar(name, tree.read(name), labels) for name in files if tree.has(name)]
        if parts:
            splits[split] = Pixels(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return Arrays(splits, tree.read(names).decode("utf-8", "replace").split())


def _read_cifar(name: str, data: bytes, labels: int) -> Pixels:
    """Reads records of labels, and 32 * 32 bytes of red, green and blue each."""
    size = labels + 3 * _SIDE**2
    if not data or len(data) % size:
        raise DataError(f"{name} is damaged or cut off: {len(data)} bytes are not a multiple of {size}.")
    rows = np.frombuffer(data, np.uint8).reshape(-1, size)
    images = rows[:, labels:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return Pixels(images, rows[:, labels - 1].astype(np.int32))


def pickled_cifar(directory: pathlib.Path) -> str | None:
    """Returns the name of what there is of CIFAR's pickled version, if anything."""
    found = next((name for name in _PICKLED if (directory / name).exists()), None)
    loose = next(
        (pair for pair in (("data_batch_1", "test_batch"), ("train", "meta")) if _are_files(directory, pair)), None
    )
    return found or (loose[0] if loose else None)


def _are_files(directory: pathlib.Path, names: Sequence[str]) -> bool:
    return all((directory / name).is_file() for name in names)


def svhn(tree: Tree) -> Arrays:
    """Reads SVHN's cropped digits (http://ufldl.stanford.edu/housenumbers/), in which 10 stands for the digit 0.

    Raises:
        DataError: if a file is damaged, or has labels out of range.
    """
    splits = {}
    for split in ("train", "test", "extra"):
        name = f"{split}_32x32.mat"
        if not tree.has(name):
            continue
        values = read_mat(name, tree.read(name), ("X", "y"))
        images, labels = values["X"], values["y"].reshape(-1)
        if images.dtype != np.uint8 or images.shape != (_SIDE, _SIDE, 3, len(labels)):
            raise DataError(f"{name} holds images of {images.dtype}, {images.shape}, and {len(labels)} labels.")
        labels = labels.astype(np.int32)
        if wrong := np.flatnonzero((labels < 1) | (labels > 10)).tolist():
            raise DataError(f"{name}: the label of image {wrong[0]} is {labels[wrong[0]]}, and none is but 1 to 10.")
        splits[split] = Pixels(images.transpose(3, 0, 1, 2), labels % 10)
    return Arrays(splits)


def read_mat(name: str, data: bytes, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads arrays of a file of MATLAB, which holds no program.

    Raises:
        DataError: if it is damaged, or lacks one of them.
    """
    from scipy.io import loadmat  # here, because it takes a quarter of a second

    try:
        values = loadmat(io.BytesIO(data), variable_names=list(keys))
    except Exception as error:  # loadmat raises most of Python's exceptions on damaged files
        raise DataError(f"{name} cannot be read, or is cut off: {type(error).__name__}: {reason(error)}.") from error
    if missing := [key for key in keys if key not in values]:
        raise DataError(f"{name} has no array {missing[0]!r}: it is another file of that name.")
    return {key: np.asarray(values[key]) for key in keys}
