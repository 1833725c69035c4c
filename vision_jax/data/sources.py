"""Sources of records, with `len`, `source[i] -> {"image": bytes, ...}`, `num_classes` and `describe(i)`.

A record is a dict: `image` is the bytes of an encoded image, `label` an integer; other entries can become fields of the
batch (see `TrainTransform.copied`).

Access is random and thread-safe; a source has no order of its own. It can be pickled, for worker processes.
"""

import bisect
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import PIL.Image
import simplejpeg

from vision_jax.data import label_files, listing, order, tfds_format
from vision_jax.data.arrayrecord import ArrayRecordFiles
from vision_jax.data.cache import optional_cache_dir, read_arrays, write_arrays
from vision_jax.data.tfrecord import TfRecordFiles
from vision_jax.errors import DataError, reason, suggest

log = logging.getLogger(__name__)
T = TypeVar("T")

Record = dict[str, Any]  # the encoded image as `image`, and what goes with it, such as `label`


class Source(Protocol):
    """Encoded images with labels and the like, with random access."""

    @property
    def num_classes(self) -> int:
        """Labels are 0 to num_classes - 1."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """One for each label; empty if unknown."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def describe(self, index: int) -> str:
        """Returns a description by which people can find the record."""
        ...

    def fingerprint(self) -> str:
        """Returns a string that is equal for the same data in any location, and differs for other data, without reading
        records."""
        ...


# What a config file adds to the sources of whole images, by the name that `data.source` then has: it makes one of
# `data.dir` and the name of a split. See docs/extending.md.
OWN_SOURCES: dict[str, Callable[[str | None, str], Source]] = {}


def digest_of(*values: object) -> str:
    """Returns the start of a SHA-256 of values: arrays by their bytes, others by `repr`."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


@contextlib.contextmanager
def closing(*sources: Source) -> Iterator[None]:
    """Closes the files of sources that keep some open."""
    try:
        yield
    finally:
        for source in sources:
            while isinstance(source, SubsetSource | RelabeledSource):
                source = source.source
            if isinstance(source, TfdsSource):
                source.close()


class TfdsSource:
    """A split of a data set in tfds' layout, of ArrayRecord or TFRecord files, with one image and one label an example.

    tfds reads only the metadata. TFRecord files are indexed once; see `vision_jax.data.tfrecord`. Where the examples
    have a `file_name`, as `prepare` writes it, so have the records, as bytes.

    Args:
        directory: the folder with features.json, or a parent that holds no other data set.
        split: a split's name, or a slice such as `train[:99%]`.
        label: the name of the class label, where there are several; None: `label`.

    Raises:
        DataError: if there is no such data set, label or split, or it is empty or in another file format.
    """

    def __init__(self, directory: pathlib.Path, split: str, label: str | None = None):
        self.directory, self.split = tfds_format.find_dataset(directory), split
        info = tfds_format.read_metadata(self.directory).info
        self._label = label
        self.has_file_names = "file_name" in info.features
        self.num_classes, self.class_names = self._choose(info.features)
        for part in split.split("+"):
            if (name := part.partition("[")[0].strip()) not in info.splits:
                raise DataError(f"{self.directory} has no split {name!r}: {suggest(name, list(info.splits))}")
        try:
            instructions = info.splits[split].file_instructions
        except Exception as error:  # whatever its parser raises: a slice that is empty or misspelled
            reason = str(error).partition("\n")[0].partition(". See format")[0].rstrip(".")
            raise DataError(
                f"{self.directory} cannot give the split {split!r}: {reason}. Give one such as train, or a part of it "
                "such as train[:80%]."
            ) from error
        self._spans = _spans(instructions)
        if not len(self):
            raise DataError(f"The split {split!r} of {self.directory} is empty: give another.")
        lengths = {pathlib.Path(i.filename): i.examples_in_shard for i in instructions}
        self._parts = _parts(info.splits, split, instructions)
        self._records = self._open(info.file_format.value, lengths)
        self._connect()

    def _choose(self, features: Any) -> tuple[int, list[str]]:
        """Notes the keys of image and label, and returns the number of classes, and their names."""
        self._image_key, self._label_key = tfds_format.image_and_label(features, self.directory, self._label)
        label = features[self._label_key]
        return label.num_classes, list(label.names or ())

    def _open(self, file_format: str, lengths: dict[pathlib.Path, int]) -> ArrayRecordFiles | TfRecordFiles:
        """Opens the files, of which the metadata tell how many records each has."""
        if file_format == "array_record":
            return ArrayRecordFiles(list(lengths), list(lengths.values()))
        if file_format != "tfrecord":
            raise DataError(
                f"{self.directory} holds {file_format} files, and only array_record and tfrecord can be read at "
                "random: convert it with `python -m vision_jax prepare`."
            )
        files = TfRecordFiles(list(lengths), optional_cache_dir())
        for path, expected, there in zip(lengths, lengths.values(), files.lengths, strict=True):
            if expected != there:
                raise DataError(
                    f"{path} has {there} records, and the metadata say {expected}: prepare or copy it again."
                )
        return files

    def _connect(self) -> None:
        self._parse = tfds_format.example_parser()
        self._ends = list(itertools.accumulate(take for _, take in self._spans))

    def __len__(self) -> int:
        return sum(take for _, take in self._spans)

    def _features(self, index: int) -> Any:
        span = bisect.bisect_right(self._ends, index)
        first, take = self._spans[span]
        return self._parse(self._records[first + index - self._ends[span] + take]).features.feature

    def __getitem__(self, index: int) -> Record:
        features = self._features(index)
        record = {
            "image": features[self._image_key].bytes_list.value[0],
            "label": features[self._label_key].int64_list.value[0],
        }
        if self.has_file_names and (values := features["file_name"].bytes_list.value):
            record["file_name"] = values[0]
        return record

    def describe(self, index: int) -> str:
        name = ""
        if self.has_file_names:
            with contextlib.suppress(Exception):  # perhaps the record is described because it cannot be read
                if values := self._features(index)["file_name"].bytes_list.value:
                    name = f" ({values[0].decode(errors='replace')})"
        return f"record {index}{name} of the split {self.split!r} in {self.directory}"

    def fingerprint(self) -> str:
        files = [(path.name, length) for path, length in zip(self._records.paths, self._records.lengths, strict=True)]
        # The name of a label that was chosen tells one task from another on the same images.
        chosen = () if self._label is None else (self._label,)
        return digest_of("tfds", files, self._file_sizes(), self._spans, self.class_names, *chosen)

    def local_key(self) -> str:
        """Returns a string that also differs for other files, and for files that have been rewritten."""
        times = [(str(path.absolute()), path.stat().st_mtime_ns) for path in self._records.paths]
        return digest_of(self.fingerprint(), times)

    def _file_sizes(self) -> list[int]:
        try:
            return [path.stat().st_size for path in self._records.paths]
        except OSError as error:
            raise DataError(f"Cannot read the split {self.split!r} of {self.directory}: {reason(error)}.") from error

    def prepared_labels(self) -> np.ndarray | None:
        """Returns the labels that `python -m vision_jax prepare` has written, (n,) int32; None if it has not."""
        labels = []
        for split, total, first, take in self._parts:
            path = tfds_format.labels_path(self.directory, split)
            if not path.is_file():
                return None
            try:
                stored = np.load(path, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                log.warning("%s is damaged (%s): the labels are read from the records.", path, reason(error))
                return None
            if stored.shape != (total,) or stored.dtype.kind != "i":
                log.warning("%s is of another data set: the labels are read from the records.", path)
                return None
            labels.append(stored[first : first + take])
        found = np.concatenate(labels).astype(np.int32)
        # Were the shards of another preparation, most of these would differ.
        for index in np.linspace(0, len(self) - 1, min(len(self), 16), dtype=int).tolist():
            if self[index]["label"] != found[index]:
                log.warning("The labels beside %s are not those of its records, which are read.", self.describe(index))
                return None
        return found

    def close(self) -> None:
        """Closes the files; they are opened again when they are read again."""
        self._records.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_parse", "_ends")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()


def _spans(instructions: Sequence[Any]) -> list[tuple[int, int]]:
    """Turns tfds' file instructions into (first record, how many), the records of their files being numbered through.

    A file that stands in several instructions, as in `train[:1%]+train[2%:]`, counts once.
    """
    starts: dict[str, int] = {}
    total = 0
    for instruction in instructions:
        if instruction.filename not in starts:
            starts[instruction.filename] = total
            total += instruction.examples_in_shard
    return [(starts[i.filename] + i.skip, i.take) for i in instructions if i.take > 0]


def _parts(splits: Any, split: str, instructions: Sequence[Any]) -> list[tuple[str, int, int, int]]:
    """Turns tfds' file instructions into (split, its length, first record in it, how many)."""
    starts: dict[str, tuple[str, int, int]] = {}
    for name in {part.partition("[")[0].strip() for part in split.split("+")}:
        lengths = list(splits[name].shard_lengths)
        for path, end, length in zip(splits[name].filepaths, itertools.accumulate(lengths), lengths, strict=True):
            starts[os.path.basename(path)] = (name, sum(lengths), end - length)
    parts = []
    for instruction in instructions:
        name, total, start = starts[os.path.basename(instruction.filename)]
        if instruction.take > 0:
            parts.append((name, total, start + instruction.skip, instruction.take))
    return parts


class FolderSource:
    """Images in class folders, as DIR/SPLIT/CLASS/IMAGE, or in one folder with a file of labels.

    Labels number the class names in sorted order, as torchvision does, or those of the training split.
    `vision_jax.data.listing` says what an image is.

    Args:
        directory: DIR.
        split: the folder of the split.
        labels: a file of labels (see `vision_jax.data.label_files`), as a path or below DIR; None: the images are in
            class folders, or the file has one of the usual names.
        class_names: of the training split; None: this is the training split.
        labels_option: the field that `labels` comes from, for messages.

    Raises:
        DataError: if the split or its classes are missing or empty, or the labels do not fit.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        split: str,
        *,
        labels: str | None = None,
        class_names: Sequence[str] | None = None,
        labels_option: str = "data.train_labels",
    ):
        root = directory / split
        if not root.is_dir():
            there = listing.folders_in(directory)
            raise DataError(
                f"{root} does not exist. A folder data set is DIR/SPLIT/CLASS/IMAGE; in {directory} there are the "
                f"folders {there}. Set data.dir, data.train_split and data.val_split accordingly."
            )
        if (path := _label_file(directory, split, labels)) is not None:
            self._images = label_files.list_labeled_images(root, path, class_names)
        else:
            self._images = listing.list_classes(root, class_names, labels_option=labels_option)
        self.class_names = self._images.class_names
        self.num_classes = len(self.class_names)
        self.labels, self.names = self._images.labels, self._images.names

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        with open(self._images.path(index), "rb") as file:
            return {"image": file.read(), "label": int(self.labels[index])}

    def describe(self, index: int) -> str:
        return os.fsdecode(self._images.path(index))

    def fingerprint(self) -> str:
        return digest_of("folder", self._images.names, self.labels, self.class_names)


def _label_file(directory: pathlib.Path, split: str, labels: str | None) -> pathlib.Path | None:
    """Returns the file with the labels of a split, given or found; None if its images are in class folders."""
    return label_files.find_label_file(directory, split) if labels is None else label_files.locate(labels, directory)


def folder_class_names(directory: pathlib.Path, split: str, labels: str | None = None) -> list[str] | None:
    """Returns the class names that `FolderSource` would have, without listing all images; None if there is no split."""
    root = directory / split
    if not root.is_dir():
        return None
    if (path := _label_file(directory, split, labels)) is not None:
        return label_files.read_class_names(path, root)
    return listing.list_class_names(root) or None


class SubsetSource:
    """Some of the records of another source.

    Attributes:
        source: the other one.
        indices: (n,) integers, which records.
    """

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices = source, indices
        self.num_classes, self.class_names = source.num_classes, source.class_names

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.indices[index])]

    def describe(self, index: int) -> str:
        return self.source.describe(int(self.indices[index]))

    def fingerprint(self) -> str:
        return digest_of("subset", self.source.fingerprint(), self.indices)


class RelabeledSource:
    """The records of another source, whose labels are numbers among more classes.

    Attributes:
        source: the other one.
        labels: (source.num_classes,) integers, for each label of it the new one.
        class_names: for each of the new labels.
    """

    def __init__(self, source: Source, labels: np.ndarray, class_names: Sequence[str]):
        self.source, self.labels = source, labels
        self.num_classes, self.class_names = len(class_names), list(class_names)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        label = record["label"]
        if not 0 <= label < len(self.labels):  # an index below 0 would be one from the end
            raise DataError(
                f"{self.describe(index)} has the label {label}, but there are {len(self.labels)} classes: correct it."
            )
        return {**record, "label": int(self.labels[label])}

    def describe(self, index: int) -> str:
        return self.source.describe(index)

    def fingerprint(self) -> str:
        return digest_of("relabeled", self.source.fingerprint(), self.labels, self.class_names)


def check_record(source: Source, index: int, record: Record) -> None:
    """Checks that a record fits its source.

    Args:
        source, index: where it comes from.
        record: what was read.

    Raises:
        DataError: if it has a label that is out of range.
    """
    label = record.get("label")
    if label is not None and not 0 <= label < source.num_classes:
        raise DataError(
            f"{source.describe(index)} has the label {label}, but there are {source.num_classes} classes, 0 to "
            f"{source.num_classes - 1}. Correct or remove it."
        )


def read_labels(source: Source, num_threads: int | None = None) -> np.ndarray:
    """Returns the label of every record, (n,) int32.

    If neither the source nor the cache has them, all records are read, which takes as long as reading for an epoch; the
    labels are then cached.

    Raises:
        DataError: if a record cannot be read, or a label is out of range.
    """
    if isinstance(source, RelabeledSource):
        return source.labels[read_labels(source.source, num_threads)]
    if (labels := _known_labels(source)) is None:
        path = _label_cache(source)
        kept = read_arrays(path) if path is not None else None
        if kept is not None and kept["labels"].shape == (len(source),):
            labels = kept["labels"]
        else:
            labels = _read_labels(source, num_threads)
            if path is not None:
                write_arrays(path, labels=labels)
    if len(wrong := np.flatnonzero((labels < 0) | (labels >= source.num_classes))):
        index = int(wrong[0])
        raise DataError(
            f"{source.describe(index)} has the label {labels[index]}, but there are {source.num_classes} classes, 0 to "
            f"{source.num_classes - 1}. Correct or remove it."
        )
    return labels


def _known_labels(source: Source) -> np.ndarray | None:
    """Returns the labels, if they are available without reading the records."""
    match source:
        case SubsetSource():
            labels = _known_labels(source.source)
            return None if labels is None else labels[source.indices]
        case FolderSource():
            return source.labels
        case TfdsSource():
            return source.prepared_labels()
    return None


def _label_cache(source: Source) -> pathlib.Path | None:
    """Returns the file that the labels of a source are kept in; None if they are not kept."""
    match source:
        case SubsetSource(source=TfdsSource() as whole):
            key = digest_of(whole.local_key(), source.indices)
        case TfdsSource():
            key = source.local_key()
        case _:
            return None
    cache = optional_cache_dir()
    return None if cache is None else cache / f"labels-{key}.npz"


def _read_labels(source: Source, num_threads: int | None) -> np.ndarray:
    """Reads all records for their labels."""
    log.info("Reading the labels of %d records.", len(source))

    def label(index: int, record: Record) -> int:
        if "label" not in record:
            raise DataError(f"{source.describe(index)} has no label, and records are to be chosen by their labels.")
        check_record(source, index, record)
        return record["label"]

    return np.fromiter(map_records(source, label, num_threads), np.int32, len(source))


def map_records(source: Source, function: Callable[[int, Record], T], num_threads: int | None = None) -> Iterator[T]:
    """Yields what a function makes of each record and its number, in their order; all are read, by threads.

    Raises:
        DataError: if a record cannot be read.
    """

    def read(first: int) -> list[T]:
        found = []
        for index in range(first, min(first + 1000, len(source))):
            try:
                record = source[index]
            except Exception as error:  # whatever a format's reader raises
                raise DataError(
                    f"Cannot read {source.describe(index)}: {reason(error)}. Repair or remove it."
                ) from error
            found.append(function(index, record))
        return found

    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        yield from itertools.chain.from_iterable(pool.map(read, range(0, len(source), 1000)))


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Generated JPEGs, which need no data: each record is one of a few smooth random pictures.

    Each picture has one label, the same in training and validation, so a model can learn them. Decoding costs as much
    as for real images of this size.

    Attributes:
        num_examples: length of the source.
        num_classes: number of labels.
        size: height and width of the images.
        seed: of the pictures and their assignment to records.
        num_pictures: number of different pictures.
    """

    num_examples: int
    num_classes: int
    size: int
    seed: int
    num_pictures: int = 64
    class_names: Sequence[str] = ()

    @functools.cached_property
    def _pictures(self) -> list[bytes]:
        random = np.random.RandomState(self.seed)
        coarse = random.randint(0, 256, (self.num_pictures, 8, 8, 3)).astype(np.uint8)
        images = [PIL.Image.fromarray(c).resize((self.size, self.size), PIL.Image.Resampling.BICUBIC) for c in coarse]
        return [simplejpeg.encode_jpeg(np.asarray(image), quality=90, colorsubsampling="420") for image in images]

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> Record:
        picture = int(order.random_bits(2, self.seed, index)[0] % np.uint64(self.num_pictures))
        return {"image": self._pictures[picture], "label": picture % self.num_classes}

    def describe(self, index: int) -> str:
        return f"synthetic record {index}"

    def fingerprint(self) -> str:
        return digest_of("synthetic", dataclasses.astuple(self))


def check_classes(source: Source, num_classes: int, class_names: Sequence[str], split: str) -> None:
    """Checks that the labels of a source mean what they meant in training.

    Raises:
        DataError: if not.
    """
    if class_names and source.class_names and list(source.class_names) != list(class_names):
        missing, extra = set(class_names) - set(source.class_names), set(source.class_names) - set(class_names)
        what = f"missing are {sorted(missing)[:10]}, only there are {sorted(extra)[:10]}"
        if not missing and not extra:
            what = "the names are the same, but in another order, or some are there twice"
        raise DataError(
            f"The split {split!r} has other classes than the training data: {what}. Give both the same class folders; "
            "or, with boxes or masks, the same categories, or those to learn by data.dense.categories."
        )
    if source.num_classes != num_classes:
        raise DataError(f"The split {split!r} has {source.num_classes} classes and the training data {num_classes}.")
