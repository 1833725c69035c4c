"""Where records come from. A source answers `len`, `source[i] -> {"image": bytes, ...}`, `num_classes`, `describe(i)`.

A record is a dict: `image` are the bytes of an encoded image, `label` is an integer; what else there is, transforms
that know of it turn into fields of the batch.

Access is at random and safe from many threads; a source has no order of its own. It can be pickled, for processes that
load.
"""

import bisect
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import PIL.Image
import simplejpeg

from vision_jax.data import order, tfds_format
from vision_jax.data.arrayrecord import ArrayRecordFiles
from vision_jax.data.strings import Strings
from vision_jax.data.tfrecord import TfRecordFiles
from vision_jax.errors import DataError, suggest

log = logging.getLogger(__name__)

Record = dict[str, Any]  # the encoded image as `image`, and what goes with it, such as `label`

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"})


class Source(Protocol):
    """Encoded images with what goes with them, at random access."""

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
        """Returns words by which a person finds the record."""
        ...


@contextlib.contextmanager
def closing(*sources: Source) -> Iterator[None]:
    """Closes the files of those sources that keep some open."""
    try:
        yield
    finally:
        for source in sources:
            if isinstance(source, SubsetSource):
                source = source.source
            if isinstance(source, TfdsSource):
                source.close()


def cache_dir() -> pathlib.Path:
    """Returns $XDG_CACHE_HOME/vision_jax, or ~/.cache/vision_jax; it is made on first use, private to the user."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = pathlib.Path(root).expanduser() / "vision_jax"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"Cannot make the cache {path}: {error}. Point XDG_CACHE_HOME at another folder.") from error
    return path


class TfdsSource:
    """A split of a data set in tfds' layout, of ArrayRecord or TFRecord files, with one image and one label an example.

    Only the metadata are read by tfds. TFRecord files are indexed once; see `vision_jax.data.tfrecord`.

    Args:
        directory: the folder with features.json, or one above it that holds no second data set.
        split: a split's name, or a slice such as `train[:99%]`.

    Raises:
        DataError: if there is no such data set or split, or it is empty or in another file format.
    """

    def __init__(self, directory: pathlib.Path, split: str):
        self.directory, self.split = tfds_format.find_dataset(directory), split
        info = tfds_format.read_metadata(self.directory).info
        self._image_key, self._label_key = tfds_format.image_and_label(info.features, self.directory)
        self.num_classes: int = info.features[self._label_key].num_classes
        self.class_names: list[str] = list(info.features[self._label_key].names or ())
        for part in split.split("+"):
            if (name := part.partition("[")[0].strip()) not in info.splits:
                raise DataError(f"{self.directory} has no split {name!r}: {suggest(name, list(info.splits))}")
        try:
            instructions = info.splits[split].file_instructions
        except Exception as error:  # whatever its parser raises: a slice that is empty or misspelt
            raise DataError(f"{self.directory} cannot give the split {split!r}: {error}.") from error
        self._spans = _spans(instructions)
        if not len(self):
            raise DataError(f"The split {split!r} of {self.directory} is empty.")
        lengths = {pathlib.Path(i.filename): i.examples_in_shard for i in instructions}
        self._records = self._open(info.file_format.value, lengths)
        self._connect()

    def _open(self, file_format: str, lengths: dict[pathlib.Path, int]) -> ArrayRecordFiles | TfRecordFiles:
        """Opens the files, of which the metadata tell how many records each has."""
        if file_format == "array_record":
            return ArrayRecordFiles(list(lengths), list(lengths.values()))
        if file_format != "tfrecord":
            raise DataError(
                f"{self.directory} holds {file_format} files, and only array_record and tfrecord can be read at "
                "random: convert it with `python -m vision_jax prepare`."
            )
        files = TfRecordFiles(list(lengths), cache_dir())
        for path, expected, there in zip(lengths, lengths.values(), files.lengths, strict=True):
            if expected != there:
                raise DataError(
                    f"{path} has {there} records, and the metadata say {expected}: prepare or copy it again."
                )
        return files

    def _connect(self) -> None:
        from tensorflow_datasets.proto import tf_example_generated_pb2

        self._parse = tf_example_generated_pb2.Example.FromString
        self._ends = list(itertools.accumulate(take for _, take in self._spans))

    def __len__(self) -> int:
        return sum(take for _, take in self._spans)

    def _features(self, index: int) -> Any:
        span = bisect.bisect_right(self._ends, index)
        first, take = self._spans[span]
        return self._parse(self._records[first + index - self._ends[span] + take]).features.feature

    def __getitem__(self, index: int) -> Record:
        features = self._features(index)
        return {
            "image": features[self._image_key].bytes_list.value[0],
            "label": features[self._label_key].int64_list.value[0],
        }

    def describe(self, index: int) -> str:
        name = ""
        with contextlib.suppress(Exception):  # perhaps the record is described because it cannot be read
            if values := self._features(index)["file_name"].bytes_list.value:
                name = f" ({values[0].decode(errors='replace')})"
        return f"record {index}{name} of the split {self.split!r} in {self.directory}"

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


class FolderSource:
    """Images in class folders, as DIR/SPLIT/CLASS/IMAGE. Labels number the class names in sorted order.

    Raises:
        DataError: if the split or its classes are missing or empty.
    """

    def __init__(self, directory: pathlib.Path, split: str):
        root = directory / split
        if not root.is_dir():
            there = sorted(path.name for path in directory.iterdir() if path.is_dir())
            raise DataError(
                f"{root} does not exist. A folder data set is DIR/SPLIT/CLASS/IMAGE; in {directory} there are the "
                f"folders {there}. Set data.dir, data.train_split and data.val_split accordingly."
            )
        self.class_names = sorted(path.name for path in root.iterdir() if path.is_dir())
        self.num_classes = len(self.class_names)
        all_paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(self.class_names):
            paths = sorted(
                os.path.join(folder, file)
                for folder, _, files in os.walk(root / name)
                for file in files
                if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES
            )
            if not paths:
                raise DataError(f"{root / name} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
            all_paths += paths
            labels += [label] * len(paths)
        if not all_paths:
            raise DataError(f"{root} holds no class folders.")
        self._paths = Strings(all_paths)
        self.labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Record:
        with open(self._paths[index], "rb") as file:
            return {"image": file.read(), "label": int(self.labels[index])}

    def describe(self, index: int) -> str:
        return self._paths[index]


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
    """Returns the label of every record, (n,) int32. Unless the source knows them, it reads all of its records."""
    if isinstance(source, SubsetSource):
        if isinstance(source.source, FolderSource):
            return source.source.labels[source.indices]
    elif isinstance(source, FolderSource):
        return source.labels
    log.info("Reading the labels of %d records, since the sampling is balanced by class.", len(source))
    labels = np.empty(len(source), np.int32)

    def read(first: int) -> None:
        for index in range(first, min(first + 1000, len(source))):
            try:
                record = source[index]
            except Exception as error:  # whatever a format's reader raises
                raise DataError(f"Cannot read {source.describe(index)}: {error}. Repair or remove it.") from error
            if "label" not in record:
                raise DataError(f"{source.describe(index)} has no label, which balanced sampling needs.")
            check_record(source, index, record)
            labels[index] = record["label"]

    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        collections.deque(pool.map(read, range(0, len(source), 1000)), maxlen=0)
    return labels


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Made-up JPEGs that need no data: a few smooth random pictures, of which each record is one.

    A picture and its label go together, the same in training and validation, so a model can learn them. Decoding costs
    what it costs for real images of this size.

    Attributes:
        num_examples: length of the source.
        num_classes: number of labels.
        size: height and width of the images.
        seed: decides the pictures and which record is which.
        num_pictures: how many there are.
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


def check_classes(source: Source, num_classes: int, class_names: Sequence[str], split: str) -> None:
    """Checks that the labels of a source mean what they meant in training.

    Raises:
        DataError: if not.
    """
    if class_names and source.class_names and list(source.class_names) != list(class_names):
        missing, extra = set(class_names) - set(source.class_names), set(source.class_names) - set(class_names)
        raise DataError(
            f"The split {split!r} has other classes than the training data: missing are {sorted(missing)[:10]}, only "
            f"there are {sorted(extra)[:10]}. Give both the same class folders."
        )
    if source.num_classes != num_classes:
        raise DataError(f"The split {split!r} has {source.num_classes} classes and the training data {num_classes}.")
