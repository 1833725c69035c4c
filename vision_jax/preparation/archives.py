"""ImageNet as it is downloaded: the archives of ILSVRC2012, read in place and never extracted.

`ILSVRC2012_img_train.tar` holds a tar file for each of 1,000 classes, `ILSVRC2012_img_val.tar` the validation images,
and `ILSVRC2012_devkit_t12.tar.gz` the labels of those and the names of the classes (Russakovsky et al. 2015,
https://arxiv.org/abs/1409.0575). None is compressed within, so an image is a range of bytes of an archive: headers are
read once, to find the ranges.
"""

import concurrent.futures
import dataclasses
import functools
import io
import logging
import os
import pathlib
import re
import tarfile
from collections.abc import Callable
from typing import Any

import numpy as np

from vision_jax.data.archives import Part, tar_members
from vision_jax.data.cache import read_arrays, write_arrays
from vision_jax.errors import DataError, reason
from vision_jax.preparation.inputs import Index, make_records
from vision_jax.preparation.tree import TarPack, TreeReader
from vision_jax.runtime.writers import Progress

log = logging.getLogger(__name__)

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"
# How many images the whole of ImageNet has.
EXAMPLES = {"train": 1_281_167, "validation": 50_000}
NUM_CLASSES = 1_000

_CLASS_ARCHIVE = re.compile(r"(n\d{8})\.tar")
_VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_INDEXING_THREADS = 16
_LARGEST_METADATA = 64 << 20  # bytes of a file of the devkit, to be read into memory


class ImageNetArchives:
    """The archives in one folder. Labels number the WordNet ids in sorted order, as everyone's do.

    Either archive of images may be missing, but validation images need the devkit, for their labels.

    Raises:
        DataError: if an archive is truncated or has members that do not belong into it.
    """

    kind = "ILSVRC2012 archives"
    name = "imagenet2012"

    def __init__(self, directory: pathlib.Path):
        self._train, self._validation = directory / TRAIN, directory / VALIDATION
        self._devkit = next((p for p in (directory / f"{DEVKIT}.tar.gz", directory / DEVKIT) if p.exists()), None)
        if self._validation.exists() and self._devkit is None:
            raise DataError(
                f"{directory} has {VALIDATION}, but not {DEVKIT}.tar.gz, which holds the labels of its images: put it "
                "there too (or move the validation archive away, to prepare the training images alone)."
            )
        for path, split in ((self._train, "training"), (self._validation, "validation")):
            if not path.exists():
                log.warning("There is no %s in %s: there will be no %s split.", path.name, directory, split)

    @staticmethod
    def found_in(directory: pathlib.Path) -> bool:
        """Returns whether a folder has an archive of images."""
        return (directory / TRAIN).exists() or (directory / VALIDATION).exists()

    def identity(self) -> dict[str, Any]:
        devkit = self._devkit if self._devkit is not None and self._devkit.is_file() else None
        paths = [path for path in (self._train, self._validation, devkit) if path is not None and path.exists()]
        return {"kind": self.kind, "files": {path.name: path.stat().st_size for path in paths}}

    def index(self, cache: pathlib.Path, *, train_split: bool = True) -> Index:
        """Lists the records; see `Input`. `train_split=False`: those of the validation images alone."""
        devkit = read_devkit(self._devkit) if self._devkit is not None else None
        splits = {}
        train = None
        if train_split and self._train.exists():
            train = _cached(cache, self._train, _index_train)
        class_names = list(devkit.class_names) if devkit is not None else []
        if train is not None:
            wnids = np.char.partition(train["name"], b"_")[:, 0]
            present = [wnid.decode() for wnid in np.unique(wnids).tolist()]
            class_names = class_names or present
            if unknown := sorted(set(present) - set(class_names)):
                raise DataError(f"{self._train} has classes that the devkit does not name: {', '.join(unknown[:10])}.")
            train["label"] = np.searchsorted(np.asarray(class_names, "S9"), wnids)
            splits["train"] = train
        if devkit is not None and self._validation.exists():
            validation = _cached(cache, self._validation, _index_validation)
            if len(validation) != len(devkit.validation_labels):
                raise DataError(
                    f"{self._validation} has {len(validation)} images, but the devkit labels of "
                    f"{len(devkit.validation_labels)}: one of them is not whole."
                )
            validation["label"] = devkit.validation_labels  # both are in the order of the names
            validation["file"] = 1
            splits["validation"] = validation
        return Index(
            splits,
            class_names,
            devkit.display_names if devkit is not None else {},
            TreeReader((TarPack(self._train), TarPack(self._validation))),
        )


@dataclasses.dataclass(frozen=True)
class Devkit:
    """What the devkit says.

    Attributes:
        class_names: the WordNet ids of the classes, sorted.
        display_names: words by WordNet id.
        validation_labels: (n,) int32, of the validation images in the order of their numbers.
    """

    class_names: list[str]
    display_names: dict[str, str]
    validation_labels: np.ndarray


def read_devkit(path: pathlib.Path) -> Devkit:
    """Reads `data/meta.mat` and `data/ILSVRC2012_validation_ground_truth.txt` of a devkit, packed or unpacked.

    Raises:
        DataError: if one is missing or malformed.
    """
    from scipy.io import loadmat  # here, because it takes a quarter of a second

    read = functools.partial(_read_devkit_file, path)
    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(read("data/meta.mat")), squeeze_me=True)["synsets"])
        # The nodes above the classes are in the table too; their numbers come after those of the classes.
        leaves = [synset for synset in synsets if synset["num_children"] == 0]
        wnids = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in leaves}
        words = {str(synset["WNID"]): str(synset["words"]) for synset in leaves}
        ids = [int(line) for line in read("data/ILSVRC2012_validation_ground_truth.txt").split()]
        class_names = sorted(words)
        label_of_id = {number: class_names.index(wnid) for number, wnid in wnids.items()}
        labels = np.asarray([label_of_id[number] for number in ids], np.int32)
    except DataError:
        raise
    except Exception as error:  # loadmat raises most of Python's exceptions on damaged files
        raise DataError(
            f"The devkit {path} cannot be read: {type(error).__name__}: {reason(error, path=True)}."
        ) from error
    return Devkit(class_names, {wnid: words[wnid] for wnid in class_names}, labels)


def _read_devkit_file(path: pathlib.Path, name: str) -> bytes:
    if path.is_dir():
        return (path / name).read_bytes()
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            if member.isreg() and member.name.endswith(f"{DEVKIT}/{name}"):
                if member.size > _LARGEST_METADATA:
                    raise DataError(f"{path}: {member.name} has {member.size} bytes, which it never has.")
                file = archive.extractfile(member)
                assert file is not None  # it is a regular file
                return file.read()
    raise DataError(f"{path} holds no {DEVKIT}/{name}.")


def _cached(cache: pathlib.Path, archive: pathlib.Path, index: Callable[[pathlib.Path], np.ndarray]) -> np.ndarray:
    """Returns `index(archive)`, which is kept in `cache` for as long as the archive has the same size and time."""
    status = archive.stat()
    path = cache / f"{archive.name}.{status.st_size}.{status.st_mtime_ns}.npz"
    if (arrays := read_arrays(path)) is not None:
        return arrays["records"]
    log.info("Reading the headers of %s.", archive)
    records = index(archive)
    write_arrays(path, records=records)
    return records


def _index_train(archive: pathlib.Path) -> np.ndarray:
    """Lists the images in the tar files of the classes in the training archive, sorted by name."""
    with archive.open("rb", buffering=0) as file:
        whole = Part(file.fileno(), 0, os.fstat(file.fileno()).st_size, str(archive))
        classes = {}
        for name, start, size in tar_members(whole, _CLASS_ARCHIVE):
            classes[name] = Part(file.fileno(), start, size, f"{archive}: {name}")

        def images(name: str) -> list[tuple[str, int, int]]:
            return list(tar_members(classes[name], re.compile(rf"{name.removesuffix('.tar')}_\d+\.JPEG")))

        found = []
        with (
            concurrent.futures.ThreadPoolExecutor(_INDEXING_THREADS) as pool,
            Progress(len(classes), description="archives of classes") as bar,
        ):
            for members in pool.map(images, classes):
                found.append(members)
                bar.update({})
    for name, members in zip(classes, found, strict=True):
        if not members:
            raise DataError(f"{archive}: {name} holds no images.")
    return _as_records(archive, [member for members in found for member in members])


def _index_validation(archive: pathlib.Path) -> np.ndarray:
    """Lists the images in the validation archive, sorted by name; their numbers are 1 to n."""
    with archive.open("rb", buffering=0) as file:
        whole = Part(file.fileno(), 0, os.fstat(file.fileno()).st_size, str(archive))
        members = list(tar_members(whole, _VALIDATION_IMAGE))
    records = _as_records(archive, members)
    for number, name in enumerate(records["name"].tolist(), 1):
        if name != b"ILSVRC2012_val_%08d.JPEG" % number:
            raise DataError(f"{archive} has no image number {number}: it is not whole.")
    return records


def _as_records(archive: pathlib.Path, members: list[tuple[str, int, int]]) -> np.ndarray:
    members.sort()
    names, starts, sizes = zip(*members, strict=True) if members else ((), (), ())
    if not names:
        raise DataError(f"{archive} holds no images.")
    return make_records([name.encode() for name in names], -1, 0, np.asarray(starts), np.asarray(sizes))
