"""Parts of a training split: some examples of each class, or the images that a file lists."""

import collections
import logging
import pathlib

import numpy as np

from vision_jax.data import order
from vision_jax.data.listing import shorten
from vision_jax.data.sources import FolderSource, Source, TfdsSource, map_records, read_labels
from vision_jax.errors import DataError, reason

log = logging.getLogger(__name__)


def per_class(source: Source, count: int, num_threads: int | None = None) -> np.ndarray:
    """Returns a random subset with as many examples of each class, the same for every seed.

    It contains that of every smaller count. The labels are read as by `read_labels`.

    Args:
        source: the split.
        count: examples of each class.
        num_threads: that read.

    Returns:
        (count * classes,) int64, the numbers of the records, ascending.

    Raises:
        DataError: if a class has fewer, or labels cannot be read.
    """
    labels = read_labels(source, num_threads)
    found = np.bincount(labels, minlength=source.num_classes)
    if (found < count).any():
        label = int(found.argmin())
        name = repr(source.class_names[label]) if source.class_names else f"number {label}"
        raise DataError(
            f"data.train_per_class is {count}, and the class {name} has {found[label]} examples: lower it, or leave it "
            "unset."
        )
    return order.subset_of_each(labels, count)


def listed(source: Source, path: pathlib.Path, num_threads: int | None = None) -> np.ndarray:
    """Returns the records of the images that a text file lists, one name a line, such as SimCLR's 1percent.txt.

    A name is that of the file, or its path below the split, as CLASS/IMAGE. Names of a folder's images are known, and
    of a data set in tfds' layout they are read from all records, if these have a `file_name`.

    Args:
        source: the split.
        path: of the text file.
        num_threads: that read.

    Returns:
        (names,) int64, the numbers of the records, ascending.

    Raises:
        DataError: if the file cannot be read or lists nothing, or names what is not there, twice, or of several images.
    """
    try:
        lines = [line.strip() for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise DataError(
            f"data.train_list is {str(path)!r}, which cannot be read: {reason(error)}. Give another."
        ) from error
    wanted = [line for line in lines if line]
    if not wanted:
        raise DataError(f"data.train_list is {str(path)!r}, which lists no image: give another.")
    numbers: dict[bytes, list[int]] = collections.defaultdict(list)
    for number, name in enumerate(_names(source, num_threads)):
        numbers[name].append(number)
        if b"/" in name:
            numbers[name.rpartition(b"/")[2]].append(number)
    if missing := [name.decode(errors="replace") for name in wanted if name not in numbers]:
        raise DataError(
            f"{path} lists {len(missing)} images that are not in the split: {shorten(missing)}. Remove them, or "
            "correct data.train_split."
        )
    if several := [name.decode(errors="replace") for name in wanted if len(numbers[name]) > 1]:
        raise DataError(f"{path} has names of several images each, so give CLASS/IMAGE: {shorten(several)}.")
    found = np.asarray([numbers[name][0] for name in wanted], np.int64)
    if len(unique := np.unique(found)) < len(found):
        raise DataError(f"{path} lists {len(found) - len(unique)} images twice: remove them.")
    return unique


def _names(source: Source, num_threads: int | None) -> list[bytes]:
    """Returns the name of each image of a split."""
    if isinstance(source, FolderSource):
        return [bytes(name) for name in source.names]
    if not (isinstance(source, TfdsSource) and source.has_file_names):
        raise DataError("data.train_list is set, and the images of the training split have no names: unset it.")
    log.info("Reading the names of %d records.", len(source))
    return list(map_records(source, lambda _, record: record.get("file_name", b""), num_threads))
