"""Which images are attacked: all of a set, some of them, or those that a file names, as RobustBench's 5,000."""

import collections
import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from vision_jax.data import listing, order
from vision_jax.data.sources import Record, digest_of
from vision_jax.data.transforms import Copied
from vision_jax.data.views import Field
from vision_jax.errors import ConfigError, DataError, reason
from vision_jax.suite import images as images_lib
from vision_jax.suite.images import Images

log = logging.getLogger(__name__)

FIELDS: Copied = (*images_lib.FIELDS, ("target", Field((), np.dtype(np.int32))))


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which images of a set.

    Attributes:
        examples: how many; None: all.
        first: the first ones; False: a random subset that is always the same, and contains every smaller one.
        image_list: a file that names them; None: there is none.
    """

    examples: int | None = None
    first: bool = False
    image_list: pathlib.Path | None = None

    def of(self, images: Images) -> "Some":
        """Returns them.

        Raises:
            ConfigError: if there are not as many.
            DataError: if the file cannot be read, or names images that are not there.
        """
        if self.image_list is not None:
            return Some(images, listed(images, self.image_list), f"those that {self.image_list.name} names")
        if self.examples is None:
            return Some(images, np.arange(len(images)))
        if self.examples > len(images):
            raise ConfigError(f"--examples is {self.examples}, and there are {len(images)} images: give fewer.")
        if self.first:
            return Some(images, np.arange(self.examples), f"the first {self.examples:,} of {len(images):,}")
        return Some(images, order.subset(len(images), self.examples), f"{self.examples:,} of {len(images):,} at random")


@dataclasses.dataclass(frozen=True)
class Some:
    """Some of the images of a set.

    Attributes:
        images: of the set.
        rows: (n,) integers, ascending: which of them.
        which: for a person; empty: all.
    """

    images: Images
    rows: np.ndarray
    which: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_classes(self) -> int:
        return self.images.num_classes

    @property
    def class_names(self) -> Sequence[str]:
        return self.images.class_names

    def fingerprint(self) -> str:
        return digest_of("some", self.images.fingerprint(), self.rows)


@dataclasses.dataclass(frozen=True)
class Records:
    """Records of some images of a set, each with the class that it is to be taken for; see `sources.Source`.

    Attributes:
        images: of the set.
        rows: (n,) integers, which of them.
        target: (n,) integers.
    """

    images: Images
    rows: np.ndarray
    target: np.ndarray

    @property
    def num_classes(self) -> int:
        return self.images.num_classes

    @property
    def class_names(self) -> Sequence[str]:
        return self.images.class_names

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        return {**self.images[int(self.rows[index])], "target": int(self.target[index])}

    def describe(self, index: int) -> str:
        return self.images.describe(int(self.rows[index]))

    def fingerprint(self) -> str:
        return digest_of("attacked", self.images.fingerprint(), self.rows, self.target)


def listed(images: Images, path: pathlib.Path) -> np.ndarray:
    """Returns which images a file names, (n,) integers, ascending.

    A line is the name of an image's file, perhaps with folders before it, of which the last one is the image's class or
    the folder that it is in, as in RobustBench's imagenet_test_image_ids.txt: n09468604/ILSVRC2012_val_00015253.JPEG.

    Raises:
        DataError: if the file cannot be read, is empty, or a line fits no image or several, or one that is named twice.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"--image_list is {path}, which cannot be read: {reason(error)}.") from error
    wanted = [line for line in lines if line]
    if not wanted:
        raise DataError(f"--image_list is {path}, which names no image.")
    by_file = _by_file(images)
    if not by_file:
        raise DataError("The images have lost the names of their files, by which --image_list finds them: take others.")
    rows: dict[int, str] = {}
    problems = []
    for line in wanted:
        found = _matching(images, by_file, line)
        if len(found) != 1:
            problems.append(f"{line} ({f'fits {len(found)} images' if found else 'is not there'})")
        elif (before := rows.setdefault(found[0], line)) is not line:
            problems.append(f"{line} (is named twice{'' if before == line else f', also as {before}'})")
    if problems:
        raise DataError(
            f"Of the {len(wanted)} images that {path} names, {len(problems)} cannot be taken: "
            f"{listing.shorten(problems, 3)}."
        )
    return np.sort(np.fromiter(rows, np.int64))


def _by_file(images: Images) -> Mapping[str, list[tuple[int, str]]]:
    """Returns the number and the name of the images, by the last part of it."""
    found: dict[str, list[tuple[int, str]]] = collections.defaultdict(list)
    for index in range(len(images)):
        if name := images.name(index):
            found[name.rpartition("/")[2]].append((index, name))
    return found


def _matching(images: Images, by_file: Mapping[str, list[tuple[int, str]]], line: str) -> list[int]:
    """Returns the numbers of the images that a line fits."""
    *_, folder, file = ["", "", *line.split("/")]
    candidates = by_file.get(file, [])
    if not folder:
        return [index for index, _ in candidates]
    return [
        index
        for index, name in candidates
        if f"/{name}".endswith(f"/{folder}/{file}") or images.class_names[images[index]["label"]] == folder
    ]
