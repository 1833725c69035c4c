"""The files of features: shards of NumPy arrays, and one JSON file that says what they are.

A folder holds, for each shard I of so many records:

    features-I.npy      (rows, dim) float16 or float32
    labels-I.npy        (rows,) int32, if the images have labels
    names-I.jsonl       the name of each image, a JSON string a line: names may hold any character

and `features.json`, which is written last: without it the features are not complete, and `progress.json` says which
shards there are. Damaged images have no row, and their numbers are listed. Nothing depends on the time, so that the
same command writes the same bytes.
"""

import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax import pretrained
from vision_jax.errors import CheckpointError, ConfigError, DataError, reason
from vision_jax.runtime.writers import write_atomically

log = logging.getLogger(__name__)

FORMAT = 1  # of the files; raised when older versions cannot read them
COMPLETE, PROGRESS = "features.json", "progress.json"
# What tells features from others: not what is only for people to read.
_IDENTITY = {
    "model": "the model",
    "digest": "the digest of the weights and the preprocessing",
    "compute_dtype": "the dtype that the model computes in",
    "dtype": "--dtype",
    "dim": "the number of features",
    "fingerprint": "the fingerprint of the images",
    "records": "the number of images",
    "class_names": "the names of the classes",
    "shard_size": "--shard_size",
    "batch_size": "--batch_size",
}


@dataclasses.dataclass(frozen=True)
class About:
    """What features are of.

    Attributes:
        model: name of the architecture.
        origin: of its weights, for people.
        digest: of the weights and the preprocessing; see `build.TrainedModel`.
        compute_dtype: that the model computed in.
        dtype: of the stored features, "float16" or "float32".
        dim: features of each image.
        images: which they are, for people.
        split: of the data set, as it was named; empty: they are none of one.
        fingerprint: of the source of the images.
        records: how many the source has, damaged ones included.
        num_classes: of the labels; 0: there are none.
        class_names: one for each class; empty: unknown.
        shard_size: records of each shard but the last.
        batch_size: images that were computed at once: another size may round differently.
        versions: of the packages that computed them.
    """

    model: str
    origin: str
    digest: str
    compute_dtype: str
    dtype: str
    dim: int
    images: str
    split: str
    fingerprint: str
    records: int
    num_classes: int
    class_names: tuple[str, ...]
    shard_size: int
    batch_size: int
    versions: Mapping[str, str]

    @property
    def num_shards(self) -> int:
        return -(-self.records // self.shard_size)

    def span(self, shard: int) -> range:
        """Returns the numbers of the records of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.records))

    def differences(self, other: "About") -> list[str]:
        """Returns in what these features cannot be the others, in words that begin with this one's value."""
        found = []
        for name, words in _IDENTITY.items():
            mine, others = getattr(self, name), getattr(other, name)
            if mine != others:
                shown = "" if name == "class_names" else f" is {mine} there, and {others} here"
                found.append(f"{words}{shown}")
        return found


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard that was written.

    Attributes:
        rows: how many images have features.
        damaged: the numbers of those that have none, in the source.
        files: by name, the size in bytes and the SHA-256.
    """

    rows: int
    damaged: tuple[int, ...]
    files: Mapping[str, tuple[int, str]]

    def problem(self, directory: pathlib.Path, *, verify: bool = False) -> str | None:
        """Returns what is wrong with the files, if anything.

        Args:
            directory: where they are.
            verify: read them all and compare their SHA-256, not only the sizes.
        """
        for name, (size, digest) in self.files.items():
            path = directory / name
            try:
                there = path.stat().st_size
                if there != size:
                    return f"{path} has {there} bytes instead of {size}"
                if verify:
                    with path.open("rb") as file:
                        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                            return f"{path} has been altered: its SHA-256 is another"
            except FileNotFoundError:
                return f"{path} is missing"
            except OSError as error:
                return f"{path} cannot be read: {reason(error)}"
        return None


# ---- Reading


class Rows:
    """The rows of several arrays in files, as one: like a memory map, what is not asked for is not read.

    Attributes:
        shape: (rows, dim).
        dtype: of the elements.
    """

    def __init__(self, parts: Sequence[np.ndarray]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self.dtype = parts[0].dtype
        self.shape = (int(self._ends[-1]), parts[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: "slice | Sequence[int] | np.ndarray") -> np.ndarray:
        """Returns rows: those of a slice, or those that have given numbers, from 0."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._between(start, stop)
            index = np.arange(start, stop, step)
        numbers = np.asarray(index, np.int64)
        found = np.empty((len(numbers), self.shape[1]), self.dtype)
        shards = np.searchsorted(self._ends, numbers, side="right")
        for shard in np.unique(shards):
            here = shards == shard
            part = self._parts[shard]
            found[here] = part[numbers[here] - int(self._ends[shard]) + len(part)]
        return found

    def _between(self, start: int, stop: int) -> np.ndarray:
        parts = []
        for part, end in zip(self._parts, self._ends.tolist(), strict=True):
            first = end - len(part)
            if first < stop and start < end:
                parts.append(part[max(0, start - first) : stop - first])
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, self.shape[1]), self.dtype), *parts])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns all rows in memory."""
        rows = self._between(0, len(self))
        return rows if dtype is None else rows.astype(dtype, copy=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Features that are complete.

    Attributes:
        directory: where they are.
        about: what they are of.
        shards: that hold them.
        features: (count, dim), read as they are asked for.
        labels: (count,) int32; None: the images have none.
    """

    directory: pathlib.Path
    about: About
    shards: tuple[Shard, ...]
    features: Rows
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.features)

    @functools.cached_property
    def names(self) -> list[str]:
        """The name of each image: its path, where it is a file or a member of an archive.

        Raises:
            DataError: if they are damaged.
        """
        names: list[str] = []
        for number, shard in enumerate(self.shards):
            path = self.directory / _file("names", number)
            try:
                lines = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
            except (OSError, ValueError) as error:
                raise DataError(f"{path} is damaged ({reason(error)}): {_again(self.directory)}") from error
            if len(lines) != shard.rows:
                raise DataError(f"{path} has {len(lines)} names instead of {shard.rows}: {_again(self.directory)}")
            names += lines
        return names

    @functools.cached_property
    def digest(self) -> str:
        """What tells these features from others, by the digests of their files."""
        return hashlib.sha256(json.dumps([shard.files for shard in self.shards]).encode()).hexdigest()[:32]

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """(count,) int64, the number of each image in its source."""
        spans = []
        for number, shard in enumerate(self.shards):
            whole = self.about.span(number)
            spans.append(np.setdiff1d(np.arange(whole.start, whole.stop), np.array(shard.damaged, np.int64)))
        return np.concatenate(spans)

    @functools.cached_property
    def _class_names(self) -> list[str]:
        return pretrained.display_names(self.about.class_names)

    def label_name(self, row: int) -> str | None:
        """Returns the name of the class of an image for people, or else its number; None if it has no label."""
        if self.labels is None:
            return None
        label = int(self.labels[row])
        return self._class_names[label] if self._class_names else str(label)


def read(directory: str | os.PathLike[str], *, verify: bool = False) -> Features:
    """Opens features, after checking that they are complete and that files, shapes and dtypes are as they should be.

    Args:
        directory: where `extract` has written them.
        verify: also read every file and compare its SHA-256.

    Raises:
        DataError: if they are missing, incomplete or damaged.
    """
    directory = pathlib.Path(directory)
    if not (directory / COMPLETE).is_file():
        if (directory / PROGRESS).is_file():
            about, there = _read_json(directory / PROGRESS)
            done = sum(shard is not None for shard in there)
            raise DataError(
                f"The features in {directory} are not complete, {done} of {about.num_shards} shards: run the command "
                "that makes them again, and it will go on."
            )
        raise DataError(
            f"{directory} holds no features (no {COMPLETE}): make some, `python -m vision_jax features --output=DIR`."
        )
    about, found = _read_json(directory / COMPLETE)
    shards = [shard for shard in found if shard is not None]
    if len(shards) != about.num_shards:
        raise DataError(f"{directory / COMPLETE} is damaged, it lacks shards: {_again(directory)}")
    parts, labels = [], []
    for number, shard in enumerate(shards):
        if problem := shard.problem(directory, verify=verify):
            raise DataError(f"{problem}: {_again(directory)}")
        parts.append(_load(directory / _file("features", number), (shard.rows, about.dim), about.dtype))
        if about.num_classes:
            labels.append(_load(directory / _file("labels", number), (shard.rows,), "int32"))
    return Features(directory, about, tuple(shards), Rows(parts), np.concatenate(labels) if labels else None)


def _load(path: pathlib.Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Returns an array of a file, mapped into memory."""
    try:
        array = np.load(path, mmap_mode="r" if shape[0] else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged ({reason(error)}): {_again(path.parent)}") from error
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise DataError(f"{path} holds {array.shape} {array.dtype} instead of {shape} {dtype}: {_again(path.parent)}")
    return array


def _again(directory: pathlib.Path) -> str:
    return f"run the command that made {directory} again, which makes what is damaged anew."


def _file(kind: str, number: int) -> str:
    return f"{kind}-{number:05d}.{'jsonl' if kind == 'names' else 'npy'}"


def _is_ours(name: str) -> bool:
    """Returns whether a file is one of features, of which a writer may have been killed in its first shard."""
    written = r"\.?(features|labels|names)-\d{5,}\.(npy|jsonl)(\.tmp)?|\.(features|progress)\.json\.tmp"
    return re.fullmatch(rf"{written}|neighbors\.(usearch|json)", name) is not None


def _read_json(path: pathlib.Path) -> tuple[About, list[Shard | None]]:
    """Reads what `_write_json` wrote."""
    try:
        values = json.loads(path.read_text())
        if isinstance(values, dict) and "format" not in values:  # tfds has a file of this name in each data set
            raise DataError(f"{path} is a file of another program, such as tfds: {path.parent} holds no features.")
        version = values.pop("format")
        if version != FORMAT:
            raise DataError(f"{path} is of format {version}, and this version reads {FORMAT}: make the features again.")
        shards = [
            None if each is None else Shard(each["rows"], tuple(each["damaged"]), _as_pairs(each["files"]))
            for each in values.pop("shards")
        ]
        del values["count"]
        return About(**{**values, "class_names": tuple(values["class_names"])}), shards
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({error!r}): delete {path.parent} and make the features again, or copy this file from "
            "another copy of it."
        ) from error


def _as_pairs(files: Mapping[str, Sequence[Any]]) -> dict[str, tuple[int, str]]:
    return {name: (int(size), str(digest)) for name, (size, digest) in files.items()}


# ---- Writing


class ShardWriter:
    """Writes features, shard by shard, each of them whole or not at all.

    Args:
        directory: where they go.
        about: what they are of.

    Attributes:
        shards: what has been written, by the number of the shard; None: not yet.
    """

    def __init__(self, directory: pathlib.Path, about: About):
        self.directory, self.about = directory, about
        self.shards: list[Shard | None] = [None] * about.num_shards

    def open(self) -> list[int]:
        """Finds what is there already, and returns the numbers of the shards that are not.

        Raises:
            ConfigError: if the folder holds anything but these features, complete or not.
            DataError: if it cannot be read.
        """
        kept = next((path for name in (COMPLETE, PROGRESS) if (path := self.directory / name).is_file()), None)
        if kept is None:  # an index may be left of features that were deleted
            if others := sorted(path.name for path in self.directory.glob("*") if not _is_ours(path.name)):
                raise ConfigError(
                    f"--output is {self.directory}, which holds no features but {others[0]}: give another folder."
                )
            return list(range(self.about.num_shards))
        there, shards = _read_json(kept)
        if differences := there.differences(self.about):
            raise ConfigError(
                f"{self.directory} holds other features: {'; '.join(differences)}. Give another --output, or delete it."
            )
        for number, shard in enumerate(shards):
            problem = shard and shard.problem(self.directory, verify=True)
            if problem:
                log.warning("%s: this shard is made again.", problem)
            self.shards[number] = None if problem else shard
        return [number for number, shard in enumerate(self.shards) if shard is None]

    @property
    def damaged(self) -> list[int]:
        """The numbers of the damaged images in the shards so far."""
        return [number for shard in self.shards if shard is not None for number in shard.damaged]

    def write(
        self,
        number: int,
        features: np.ndarray,
        labels: np.ndarray | None,
        names: Sequence[str],
        damaged: Sequence[int],
    ) -> None:
        """Writes a shard.

        Args:
            number: of the shard.
            features: (rows, dim).
            labels: (rows,) integers; None: there are none.
            names: of the images.
            damaged: the numbers of the images that have no features.

        Raises:
            DataError: if the storage fails.
        """
        contents = {_file("features", number): _as_npy(features.astype(self.about.dtype, copy=False))}
        if labels is not None:
            contents[_file("labels", number)] = _as_npy(labels.astype(np.int32, copy=False))
        contents[_file("names", number)] = "".join(f"{json.dumps(name)}\n" for name in names).encode("ascii")
        try:
            for name, data in contents.items():
                _write(self.directory / name, data)
        except OSError as error:
            raise DataError(
                f"Cannot write the features to {self.directory}: {reason(error, path=True)}. Fix the storage and run "
                "the same command again: it goes on from here."
            ) from error
        files = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()}
        self.shards[number] = Shard(len(features), tuple(damaged), files)
        self._write_json(PROGRESS)

    def finish(self) -> None:
        """Writes what makes the features complete.

        Raises:
            DataError: if no image has features, or the storage fails.
        """
        if not any(shard.rows for shard in self.shards if shard is not None):
            raise DataError(f"All {self.about.records} images are damaged: there is nothing to be written.")
        self._write_json(COMPLETE)
        (self.directory / PROGRESS).unlink(missing_ok=True)

    def _write_json(self, name: str) -> None:
        values = {
            "format": FORMAT,
            **dataclasses.asdict(self.about),
            "count": sum(shard.rows for shard in self.shards if shard is not None),
            "shards": [shard and dataclasses.asdict(shard) for shard in self.shards],
        }
        try:
            write_atomically(self.directory / name, json.dumps(values, indent=1) + "\n")
        except CheckpointError as error:
            raise DataError(str(error)) from error


def _as_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def _write(path: pathlib.Path, data: bytes) -> None:
    """Writes a file atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
