"""What can be prepared: the records of an input, listed without reading the images, and how one is read.

An input answers `name`, `kind`, `identity()` and `index(cache)`. This file has folders of classes and tfds' data sets;
`archives` has ImageNet as it is downloaded, and `known_input` the data sets that `known` describes.
"""

import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from vision_jax.data import label_files, listing, tfds_format
from vision_jax.data.arrayrecord import ArrayRecordFiles
from vision_jax.data.prepared import Table
from vision_jax.data.tfrecord import TfRecordFiles
from vision_jax.errors import DataError, reason

log = logging.getLogger(__name__)

SPLIT_NAMES = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


class Original(NamedTuple):
    """An image as the input has it; and of a data set with boxes or masks, its record.

    The label of such a one is its number in the split.
    """

    file_name: bytes
    label: int
    data: bytes
    dense: Mapping[str, Any] | None = None


class Reader(Protocol):
    """Reads single records; it is sent to other processes, and opens files when they are first needed."""

    def read(self, record: np.void) -> Original: ...


@dataclasses.dataclass(frozen=True)
class Index:
    """The records of an input.

    Attributes:
        splits: by split, one row a record as `make_records` makes them.
        class_names: in the order of the labels.
        display_names: words for class names, as far as there are any.
        reader: of the records.
        in_random_order: the records need not be shuffled.
        tables: of a data set with boxes or masks, what is known of the records of each split; their labels are the
            numbers of its rows.
    """

    splits: Mapping[str, np.ndarray]
    class_names: Sequence[str]
    display_names: Mapping[str, str]
    reader: Reader
    in_random_order: bool = False
    tables: Mapping[str, Table] | None = None


class Input(Protocol):
    """Something that can be prepared."""

    @property
    def name(self) -> str:
        """What the data set is called unless the user says otherwise."""
        ...

    @property
    def kind(self) -> str:
        """Words for a person."""
        ...

    def identity(self) -> dict[str, Any]:
        """Returns JSON that differs for different inputs, with no time and no path; no image is read."""
        ...

    def index(self, cache: pathlib.Path) -> Index:
        """Lists the records; what took long to find out is kept in the folder `cache`."""
        ...


def make_records(
    names: Sequence[bytes], labels: np.ndarray | int, files: np.ndarray | int, offsets: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Returns (n,) rows of name, label, number of the file, and offset and size in bytes; what they mean is the
    reader's to say."""
    longest = max(map(len, names), default=1)
    fields = [("name", f"S{longest}"), ("label", "<i4"), ("file", "<i4"), ("offset", "<i8"), ("size", "<i8")]
    records = np.empty(len(names), fields)
    for key, values in zip(records.dtype.names or (), (names, labels, files, offsets, sizes), strict=True):
        records[key] = values
    return records


def in_order_of_hash(records: np.ndarray, split: str) -> np.ndarray:
    """Returns the records in an order that looks random but depends on the split and their names alone."""
    return records[
        sorted(range(len(records)), key=[_hash(split, name) for name in records["name"].tolist()].__getitem__)
    ]


def _hash(split: str, name: bytes) -> bytes:
    return hashlib.sha256(b"vision_jax.prepare\0" + split.encode() + b"\0" + name).digest()


@dataclasses.dataclass(frozen=True)
class FolderReader:
    """Reads whole files; `file` is the number of the folder that the name is relative to."""

    folders: tuple[pathlib.Path, ...]

    def read(self, record: np.void) -> Original:
        path = os.path.join(os.fsencode(self.folders[record["file"]]), bytes(record["name"]))
        with open(path, "rb") as file:
            return Original(bytes(record["name"]), int(record["label"]), file.read())


class FolderInput:
    """A folder of images: DIR/SPLIT/CLASS/IMAGE if DIR has folders named like splits, else DIR/CLASS/IMAGE.

    The images of a split may also lie in DIR/SPLIT itself, with a file that tells their labels. Labels number the class
    names of the first split in sorted order. The name of a record is its path below the folder of its split.
    `vision_jax.data.listing` says what is an image.

    Args:
        directory: DIR.
        holdout: the share of each class that becomes the validation split, chosen by a hash of the names.
        labels: files of labels by the name of the split; others are found under the usual names.

    Raises:
        DataError: if there are no splits, classes or images, or the classes of the splits do not fit together.
    """

    kind = "folder of classes"

    def __init__(self, directory: pathlib.Path, holdout: float = 0.0, labels: Mapping[str, str] | None = None):
        self.name = re.sub(r"[^a-z0-9]+", "_", directory.resolve().name.lower()).strip("_") or "images"
        if not self.name[0].isalpha():
            self.name = f"images_{self.name}"
        self._directory = directory
        self._holdout = holdout
        given = (labels or {}).items()
        self._labels = {SPLIT_NAMES[split]: label_files.locate(file, directory) for split, file in given}
        self._folders = self._find_splits()
        if holdout and set(self._folders) != {"train"}:
            raise DataError(
                f"--holdout={holdout} is for a folder with nothing but training images, but {directory} has the splits "
                f"{sorted(self._folders)}: leave it out."
            )

    def _find_splits(self) -> dict[str, pathlib.Path]:
        """Returns the folder of each split, and notes where its labels are; without splits all is training."""
        below = listing.folders_in(self._directory)
        by_split = self._named_like_splits(below)
        folders: dict[str, pathlib.Path] = {}
        flat: dict[str, pathlib.Path] = {}  # no labels are known for what is in these
        for split, name in by_split.items():
            folder = self._directory / name
            if split not in self._labels and (found := label_files.find_label_file(self._directory, name)) is not None:
                self._labels[split] = found
            (folders if split in self._labels or listing.folders_in(folder) else flat)[split] = folder
        if unknown := sorted(set(self._labels) - set(by_split)):
            if by_split or unknown != ["train"]:
                raise DataError(f"--labels={unknown[0]}=FILE is given, but {self._directory} has no such folder.")
            return {"train": self._directory}
        if not folders and set(below) - set(by_split.values()):
            return {"train": self._directory}  # a class may be called `test`
        for split, folder in flat.items():
            if not listing.has_images(folder):
                continue
            if split != "test" or not folders:
                raise DataError(
                    f"{folder} holds images, but no class folders: give their labels by --labels={folder.name}=FILE, a "
                    "CSV file of images and their classes, or put each class into a folder of its own."
                )
            log.warning("Left out: the images in %s have no labels; --labels=test=FILE would give some.", folder)
        if not folders:
            return {"train": self._directory}
        if others := [name for name in below if name not in by_split.values()]:
            log.warning("Left out, as these folders of %s are no splits: %s.", self._directory, ", ".join(others))
        return {split: folders[split] for split in ("train", "validation", "test") if split in folders}

    def _named_like_splits(self, names: Sequence[str]) -> dict[str, str]:
        """Returns the folders that are named like splits, by split.

        Raises:
            DataError: if two are named like the same one, and both hold images.
        """
        by_split: dict[str, str] = {}
        for name in names:
            split = SPLIT_NAMES.get(name)
            if split is None or not listing.has_images(self._directory / name):
                continue
            if split in by_split:
                raise DataError(f"{self._directory} has two {split} splits, {by_split[split]} and {name}.")
            by_split[split] = name
        return by_split

    @functools.cached_property
    def _index(self) -> Index:
        splits: dict[str, np.ndarray] = {}
        class_names: list[str] | None = None
        for number, (split, folder) in enumerate(self._folders.items()):
            if split in self._labels:
                images = label_files.list_labeled_images(folder, self._labels[split], class_names)
            else:
                images = listing.list_classes(folder, class_names, labels_option=f"--labels={split}=FILE")
            class_names = images.class_names
            sizes = [os.stat(images.path(i)).st_size for i in range(len(images.labels))]
            splits[split] = make_records(
                images.names.tolist(), images.labels, number, np.zeros(len(sizes)), np.asarray(sizes)
            )
        assert class_names is not None  # there is a split at least
        check_class_names(class_names)
        if self._holdout:
            splits = _hold_out(splits["train"], self._holdout)
        return Index(splits, class_names, {}, FolderReader(tuple(self._folders.values())))

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for split, records in self._index.splits.items():
            for name, size in zip(records["name"].tolist(), records["size"].tolist(), strict=True):
                digest.update(b"%s\0%s\0%d\0" % (split.encode(), name, size))
            if split in self._labels:
                digest.update(records["label"].tobytes())
        images = {split: len(records) for split, records in self._index.splits.items()}
        return {"kind": self.kind, "images": images, "sha256 of names and sizes": digest.hexdigest()}

    def index(self, cache: pathlib.Path) -> Index:
        return self._index


def check_class_names(names: Sequence[str]) -> None:
    """Checks that tfds, which keeps one name a line and strips it, can store the names of classes.

    Raises:
        DataError: if not.
    """
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"The class {name!r} has a name that is not UTF-8: rename it.") from error
        if name != name.strip() or len(name.splitlines()) != 1:
            raise DataError(f"The class {name!r} has spaces around its name, or a line break: rename it.")


def _hold_out(records: np.ndarray, fraction: float) -> dict[str, np.ndarray]:
    """Divides the records of a training split: of each class, the share `fraction` with the lowest hashes leaves it."""
    held_out = np.zeros(len(records), bool)
    for label in np.unique(records["label"]):
        rows = np.flatnonzero(records["label"] == label)
        by_hash = sorted(rows.tolist(), key=lambda row: _hash("holdout", bytes(records["name"][row])))
        count = round(fraction * len(rows))
        if count == len(rows):
            raise DataError(f"--holdout={fraction} leaves no training image of a class that has {len(rows)} images.")
        held_out[by_hash[:count]] = True
    if not held_out.any():
        raise DataError(f"--holdout={fraction} of each class rounds to no image at all: give a larger share.")
    return {"train": records[~held_out], "validation": records[held_out]}


@dataclasses.dataclass(frozen=True)
class TfdsReader:
    """Reads examples of tfds; `file` is the number of the split, `offset` that of the record in it.

    Attributes:
        splits: by number: name, paths and lengths of the shards.
        tfrecord: the shards are TFRecord files, not ArrayRecord files.
        cache: where the index of TFRecord files is kept.
        image_key, label_key: of the features.
        has_file_names: there is a feature `file_name`; else the name is made up of split and number.
    """

    splits: tuple[tuple[str, tuple[pathlib.Path, ...], tuple[int, ...]], ...]
    tfrecord: bool
    cache: pathlib.Path
    image_key: str
    label_key: str
    has_file_names: bool

    @functools.cached_property
    def _records(self) -> list[Any]:
        """The serialized examples of each split, at random access."""
        if self.tfrecord:
            return [TfRecordFiles(paths, self.cache) for _, paths, _ in self.splits]
        return [ArrayRecordFiles(paths, lengths) for _, paths, lengths in self.splits]

    @functools.cached_property
    def _parse(self) -> Callable[[bytes], Any]:
        return tfds_format.example_parser()

    def read(self, record: np.void) -> Original:
        serialized = self._records[record["file"]][int(record["offset"])]
        features = self._parse(serialized).features.feature
        return Original(
            features["file_name"].bytes_list.value[0] if self.has_file_names else bytes(record["name"]),
            features[self.label_key].int64_list.value[0],
            features[self.image_key].bytes_list.value[0],
        )


class TfdsInput:
    """A data set of tfds on disk, in TFRecord or ArrayRecord files, with one image and one class label an example.

    The order is kept, as tfds has shuffled it: slices such as train[99%:] stay the same images.

    Args:
        directory: the folder with features.json.

    Raises:
        DataError: if it has other features or files, or the metadata cannot be read.
    """

    def __init__(self, directory: pathlib.Path):
        tfds = tfds_format.import_tfds()

        builder = tfds_format.read_metadata(directory)
        info = builder.info
        self.name: str = builder.name
        self._directory = directory
        self._tfrecord = info.file_format == tfds.core.FileFormat.TFRECORD
        if not self._tfrecord and info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise DataError(f"{directory} holds {info.file_format.value} files: TFRecord and ArrayRecord can be read.")
        self.kind = f"tfds data set of {'TFRecord' if self._tfrecord else 'ArrayRecord'} files"
        self._image_key, self._label_key = tfds_format.image_and_label(info.features, directory)
        self._has_file_names = isinstance(dict(info.features.items()).get("file_name"), tfds.features.Text)
        label = info.features[self._label_key]
        self._class_names = list(label.names or map(str, range(label.num_classes)))
        self._shuffled = not info.disable_shuffling
        self._splits = tuple(
            (SPLIT_NAMES.get(name, name), tuple(map(pathlib.Path, split.filepaths)), tuple(split.shard_lengths))
            for name, split in info.splits.items()
            if split.num_examples
        )
        if not self._splits:
            raise DataError(f"{directory} has no examples.")
        for _, paths, _ in self._splits:
            for path in paths:
                if not path.is_file():
                    raise DataError(f"{path} is missing, but the metadata beside it name it.")

    def identity(self) -> dict[str, Any]:
        files = {path.name: path.stat().st_size for _, paths, _ in self._splits for path in paths}
        return {"kind": self.kind, "files": files}

    def index(self, cache: pathlib.Path) -> Index:
        splits = {}
        for number, (split, paths, lengths) in enumerate(self._splits):
            if self._tfrecord:
                with TfRecordFiles(paths, cache) as files:
                    _check_lengths(paths, lengths, files.lengths)
                    sizes = files.sizes
            else:  # only their sum is needed, for the number of shards
                size = sum(path.stat().st_size for path in paths)
                sizes = np.full(sum(lengths), size // sum(lengths), np.int64)
            numbers = np.arange(len(sizes))
            names = [b"%s/%08d" % (split.encode(), i) for i in numbers]
            splits[split] = make_records(names, -1, number, numbers, sizes)
        reader = TfdsReader(self._splits, self._tfrecord, cache, self._image_key, self._label_key, self._has_file_names)
        return Index(splits, self._class_names, {}, reader, in_random_order=self._shuffled)


def _check_lengths(paths: Iterable[pathlib.Path], expected: Iterable[int], lengths: Iterable[int]) -> None:
    for path, stated, length in zip(paths, expected, lengths, strict=True):
        if stated != length:
            raise DataError(f"{path} has {length} records, but the metadata beside it say {stated}. Prepare it again.")


def download_with_tfds(name: str) -> pathlib.Path:
    """Lets tfds download and prepare a data set, into its own folder (~/tensorflow_datasets, or $TFDS_DATA_DIR).

    Args:
        name: NAME[/CONFIG][:VERSION].

    Raises:
        DataError: if TensorFlow is missing, or tfds fails.
    """
    import importlib.util

    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            f"tfds needs TensorFlow to download and prepare {name}: install it with `pip install tensorflow`, here or "
            "where the data set is prepared; or point at the folder of a data set that tfds has prepared already. "
            "Those that `prepare --datasets` lists are prepared without it, from the files as they are downloaded."
        )
    tfds = tfds_format.import_tfds()

    try:
        builder = tfds.builder(name)
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # it runs the program of the data set, which may raise anything
        raise DataError(f"tfds cannot prepare {name}: {reason(error, path=True)}") from error
    return pathlib.Path(builder.data_dir)
