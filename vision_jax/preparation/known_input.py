"""The downloads of a data set that `known` describes, as an input of `prepare`."""

import dataclasses
import hashlib
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vision_jax.data import listing
from vision_jax.errors import DataError, one_line
from vision_jax.preparation import downloads, pixels
from vision_jax.preparation.description import Draw, Known
from vision_jax.preparation.inputs import Index, check_class_names, make_records
from vision_jax.preparation.layouts import Listing
from vision_jax.preparation.tree import Tree, TreeReader

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a user says of a known data set.

    Attributes:
        dataset: its name; None: the names of the files tell.
        subset: take what there is of it, whatever is missing.
        seed: of the division of images that are published without splits; None: 0. Others take none.
    """

    dataset: str | None = None
    subset: bool = False
    seed: int | None = None


class KnownInput:
    """The downloads of a known data set in one folder.

    Args:
        directory: the folder.
        known: the data set.
        choice: what the user says of it.

    Raises:
        DataError: if a file is missing, or there under several names.
    """

    def __init__(self, directory: pathlib.Path, known: Known, choice: Choice):
        self.name, self.kind = known.name, known.title
        self.small, self.is_drawn = known.small, known.draw is not None
        self._directory, self._known, self._choice = directory, known, choice
        self._found: list[downloads.Found] = []
        missing = []
        for download in known.downloads:
            if (found := downloads.find(directory, known.tops, download)) is not None:
                self._found.append(found)
            elif not download.optional:
                missing.append(download)
        if missing and (not choice.subset or not self._found):
            raise DataError(_lacking(directory, known, missing))

    def identity(self) -> dict[str, Any]:
        choice: dict[str, Any] = {"subset": True} if self._choice.subset else {}
        if self._known.draw is not None:
            choice["seed"] = self._choice.seed or 0
        return {
            "kind": self.kind,
            "files": downloads.identity(self._found),
            "published": dict(self._known.examples),
            **choice,
        }

    def index(self, cache: pathlib.Path) -> Index:
        """Lists the records; see `Input`.

        Raises:
            DataError: if the files are damaged, do not fit together, or have other numbers of images than published.
        """
        if self._known.homepage:
            log.info("%s, %s; terms of use: %s.", self.kind, self._known.homepage, self._known.terms)
        tree = Tree(self._found, self._known.tops, cache)
        content = self._known.layout(tree)
        index = self._of_images(tree, content) if isinstance(content, Listing) else self._of_arrays(content, cache)
        if not index.splits:
            raise DataError(f"{self._directory} has no image of {self.kind}.")
        self._check_counts(index)
        check_class_names(index.class_names)
        return index

    def _of_images(self, tree: Tree, content: Listing) -> Index:
        splits: dict[str, np.ndarray] = {}
        seen: dict[str, str] = {}
        for split, (names, labels) in content.splits.items():
            for name in names:
                if name in seen:
                    where = f"twice in {split}" if seen[name] == split else f"in {seen[name]} and in {split}"
                    raise DataError(f"{self.kind}: {one_line(name)} is {where}.")
                seen[name] = split
            self._check_labels(split, names, labels, len(content.class_names))
            places, missing = tree.locate(names)
            if missing and not self._choice.subset:
                raise DataError(
                    f"{self._directory} has no {one_line(missing[0])}, which is in the list of {split}"
                    f"{f', nor {len(missing) - 1} others' if missing[1:] else ''}: download {self.kind} again, or give "
                    "--subset to leave out what is missing."
                )
            if missing:
                log.warning(
                    "Left out of %s, as they are not there: %d (%s).", split, len(missing), listing.shorten(missing)
                )
            there = places[:, 0] >= 0
            if there.any():
                splits[split] = make_records(
                    [os.fsencode(name) for name, kept in zip(names, there, strict=True) if kept],
                    np.asarray(labels, np.int64)[there],
                    *places[there].T,
                )
        if self._known.draw is not None and "train" in splits:
            splits = _drawn(splits["train"], self._known.draw, self._choice.seed or 0)
        reader = TreeReader(tuple(tree.packs), self._known.damaged)
        return Index(splits, content.class_names, content.display_names, reader)

    def _of_arrays(self, content: pixels.Arrays, cache: pathlib.Path) -> Index:
        class_names: Sequence[str] = self._known.class_names or content.class_names
        if not class_names:
            most = max((int(part.labels.max()) for part in content.splits.values()), default=-1)
            class_names = [str(label) for label in range(most + 1)]
        splits, files = {}, []
        for number, (split, (images, labels)) in enumerate(content.splits.items()):
            names = [f"{split}/{i:06d}.png" for i in range(len(labels))]
            self._check_labels(split, names, labels.tolist(), len(class_names))
            files.append(cache / f"images-{split}.npy")
            pixels.write_images(images, files[-1])
            splits[split] = make_records(
                [name.encode() for name in names],
                labels,
                number,
                np.arange(len(labels)),
                np.full(len(labels), images[0].size),
            )
        return Index(splits, class_names, {}, pixels.PixelReader(tuple(files)))

    def _check_labels(self, split: str, names: Sequence[str], labels: Sequence[int], num_classes: int) -> None:
        for name, label in zip(names, labels, strict=True):
            if not 0 <= label < num_classes:
                raise DataError(
                    f"{self.kind}: the label of {one_line(name)} in {split} is {label}, counted from 0, and there are "
                    f"{num_classes} classes: a file is damaged, or of another data set."
                )

    def _check_counts(self, index: Index) -> None:
        if self._choice.subset:
            return
        advice = f"download it again from {self._known.homepage}, or give --subset to prepare what there is."
        for split, count in self._known.examples.items():
            if split not in index.splits and split in self._known.optional:
                continue
            if (there := len(index.splits.get(split, ()))) != count:
                raise DataError(
                    f"{self._directory}: the split {split} has {there:,} images, and that of {self.kind} as published "
                    f"{count:,}: {advice}"
                )
        if self._known.num_classes not in (None, len(index.class_names)):
            raise DataError(
                f"{self._directory} has {len(index.class_names)} classes, and {self.kind} as published "
                f"{self._known.num_classes}: {advice}"
            )


def _lacking(directory: pathlib.Path, known: Known, missing: Sequence[downloads.Download]) -> str:
    """Returns what to say of downloads that are not there."""
    if known.name.startswith("cifar") and (pickled := pixels.pickled_cifar(directory)):
        return pickled_message(directory, pickled, known)
    files = "; ".join(download.describe() for download in missing)
    others = "" if len(missing) == len(known.downloads) else " (--subset prepares what there is without it)"
    return f"{directory} has no {files}: {known.title} is published at {known.homepage}{others}."


def pickled_message(directory: pathlib.Path, pickled: str, known: Known) -> str:
    """Returns why CIFAR's pickled version is refused, and what to do."""
    return (
        f"{directory} holds CIFAR as Python pickles ({pickled}), which can run any program and are not read: download "
        f"the binary version, {known.downloads[0].file}, from {known.homepage}."
    )


def _drawn(records: np.ndarray, draw: Draw, seed: int) -> dict[str, np.ndarray]:
    """Divides the records of each class by a hash of the seed and their names."""

    def key(row: int) -> bytes:
        return hashlib.sha256(b"vision_jax.draw\0%d\0%s" % (seed, bytes(records["name"][row]))).digest()

    train = np.zeros(len(records), bool)
    for label in np.unique(records["label"]):
        rows = sorted(np.flatnonzero(records["label"] == label).tolist(), key=key)
        count = round(draw.share * len(rows)) if draw.per_class is None else draw.per_class
        if not 0 < count < len(rows):
            raise DataError(
                f"A class has {len(rows)} images, of which {draw.describe()} are to be for training and some for the "
                "test: the data set is not whole."
            )
        train[rows[:count]] = True
    log.info(
        "The images have no published splits: %s of each class are for training, by seed %d.", draw.describe(), seed
    )
    return {"train": records[train], "test": records[~train]}
