"""Which evaluation sets a folder holds: by the names that their folders and archives have as they are downloaded."""

import dataclasses
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

from vision_jax import pretrained
from vision_jax.data import archives, listing
from vision_jax.errors import ConfigError, DataError, reason
from vision_jax.evaluators.suites import ALEXNET_ERRORS
from vision_jax.preparation.archives import DEVKIT, VALIDATION

log = logging.getLogger(__name__)

# What --sets takes, and what is looked for.
SETS: Mapping[str, str] = {
    "val": f"{VALIDATION} with {DEVKIT}.tar.gz, val/CLASS/IMAGE, val/ with a file of labels, or a prepared data set",
    "real": "real.json, and the validation set",
    "v2": "imagenetv2-matched-frequency, imagenetv2-threshold0.7 and imagenetv2-top-images",
    "a": "imagenet-a",
    "r": "imagenet-r",
    "sketch": "imagenet-sketch or sketch",
    "c": "CORRUPTION/SEVERITY/CLASS/IMAGE, or blur.tar, digital.tar, extra.tar, noise.tar and weather.tar",
    "objectnet": "objectnet-1.0",
    "adversarial": "the validation set; of a model of other classes a prepared data set, or val/ or test/ with images",
}
V2 = ("v2-matched-frequency", "v2-threshold-0.7", "v2-top-images")
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
CORRUPTIONS = (*ALEXNET_ERRORS, *EXTRA_CORRUPTIONS)

_DEPTH = 3  # folders below the one given
# Names in lower case, with - for _ and spaces, and without the suffix of an archive.
_PATTERNS: Mapping[str, re.Pattern[str]] = {
    V2[0]: re.compile(r"imagenet-?v2-(matched-frequency|b-33)(-format-val)?"),
    V2[1]: re.compile(r"imagenet-?v2-(threshold-?0\.7|a-44)(-format-val)?"),
    V2[2]: re.compile(r"imagenet-?v2-(top-?images|c-12)(-format-val)?"),
    "a": re.compile(r"imagenet-a"),
    "r": re.compile(r"imagenet-r"),
    "sketch": re.compile(r"(imagenet-?)?sketch"),
    "objectnet": re.compile(r"objectnet(-1\.0)?(-beta)?"),
}
_CORRUPTION_ARCHIVES = frozenset({"blur", "digital", "extra", "noise", "weather", "imagenet-c", *CORRUPTIONS})
_REAL_FILES = ("real.json", "imagenet_real_labels.json")  # the authors' name, and timm's
_VALIDATION_FOLDERS = ("val", "validation")
_OWN_SPLITS = ("validation", "val", "test")
_CLASS = re.compile(r"n\d{8}|\d+")  # a class folder, in which there is nothing to find
_IMAGENET_ENTRY = re.compile(r"n\d{8}$|ILSVRC2012_val_\d{8}\.")
_OTHER_VALIDATION = re.compile(r"imagenet2012_(corrupted|real|multilabel)")  # tfds' names


@dataclasses.dataclass(frozen=True)
class Validation:
    """Where the validation set is.

    Attributes:
        kind: "archives", "tfds" or "folder".
        directory: with the archives, the data set's files, or the folder of the split.
        split: what the split is called.
    """

    kind: str
    directory: pathlib.Path
    split: str

    @property
    def path(self) -> pathlib.Path:
        """For a person."""
        return self.directory / {"archives": VALIDATION, "tfds": "", "folder": self.split}[self.kind]


@dataclasses.dataclass(frozen=True)
class Found:
    """The sets that a folder holds.

    Attributes:
        root: the folder.
        validation: None: there is none.
        real: the file of ReaL's labels; None: there is none.
        places: by set (those of V2 by variant), its folder or archive.
        corruptions: the folders of ImageNet-C's corruptions, and archives of some of them.
        labeled: a split of whatever classes; None: there is none.
    """

    root: pathlib.Path
    validation: Validation | None = None
    real: pathlib.Path | None = None
    places: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    corruptions: Sequence[pathlib.Path] = ()
    labeled: Validation | None = None

    def sets(self) -> list[str]:
        """Returns the names of the sets that are there, in the order of `SETS`; attacks are no set of their own."""
        there = {
            "val": self.validation is not None,
            "real": self.real is not None and self.validation is not None,
            "v2": any(name in self.places for name in V2),
            "c": bool(self.corruptions),
        }
        return [name for name in SETS if there.get(name, name in self.places)]

    def choose(self, wanted: Sequence[str] | None) -> list[str]:
        """Returns the wanted sets in the order of `SETS`; None: all that are there.

        Raises:
            ConfigError: for an unknown one, one that is not there, or if there is none at all.
        """
        there = self.sets()
        if "adversarial" in (wanted or ()) and (self.validation or self.labeled):
            there.append("adversarial")
        if unknown := [name for name in wanted or () if name not in SETS]:
            raise ConfigError(f"--sets has {unknown[0]!r}: it takes {', '.join(SETS)}.")
        missing = [name for name in wanted or () if name not in there]
        if missing:
            found = f"found: {', '.join(there)}" if there else "found: none"
            looked_for = "; ".join(f"{name}: {SETS[name]}" for name in missing)
            raise ConfigError(f"--sets has {', '.join(missing)}, not found in {self.root} ({found}). {looked_for}.")
        if not there:
            looked_for = "; ".join(f"{name}: {what}" for name, what in SETS.items())
            raise ConfigError(f"{self.root} holds none of the sets. {looked_for}.")
        return [name for name in there if wanted is None or name in wanted]


def find_sets(root: pathlib.Path) -> Found:
    """Returns the sets in a folder and up to three folders below it; nothing is opened.

    Of a set that is there several times, a folder comes before an archive, and what is less deep before what is deeper.

    Raises:
        ConfigError: if there is no such folder.
        DataError: if one cannot be listed.
    """
    if not root.is_dir():
        raise ConfigError(f"--data is {root}, which is no folder: give the one with the evaluation sets.")
    places: dict[str, list[pathlib.Path]] = {}
    validation: list[Validation] = []
    real: list[pathlib.Path] = []
    corruptions: list[pathlib.Path] = []
    for directory in _directories(root):
        validation += _validation_in(directory, likely=directory != root)
        real += [directory / name for name in _REAL_FILES if (directory / name).is_file()]
        if name := _named(directory):
            places.setdefault(name, []).append(directory)
        elif _is_corruption(directory):
            corruptions.append(directory)
        for path in _archives(directory):
            if name := _named(path):
                places.setdefault(name, []).append(path)
            elif _normal(path.name) in _CORRUPTION_ARCHIVES:
                corruptions.append(path)
    for name, paths in places.items():
        paths.sort(key=lambda path: path.is_file())  # stable
        _log_others(name, paths)
    _log_others("val", [one.path for one in validation])
    _log_others("real", real)
    corruptions.sort(key=lambda path: path.is_file())
    labeled = next((one for one in map(_labeled_in, _directories(root)) if one is not None), None)
    first = {name: paths[0] for name, paths in places.items()}
    return Found(root, next(iter(validation), None), next(iter(real), None), first, corruptions, labeled)


def _log_others(name: str, paths: Sequence[pathlib.Path]) -> None:
    if len(paths) > 1:
        log.info("%s is there several times: %s is used, not %s.", name, paths[0], ", ".join(map(str, paths[1:])))


def _directories(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a folder and those below that may hold a set, or are one; the less deep ones first."""
    level = [root]
    for depth in range(_DEPTH + 1):
        below = []
        for directory in level:
            yield directory
            if depth < _DEPTH and not _named(directory) and not _is_corruption(directory):
                names = listing.folders_in(directory)
                below += [directory / name for name in names if not _is_split_or_class(name)]
        level = below


def _is_split_or_class(name: str) -> bool:
    return name in ("train", *_VALIDATION_FOLDERS) or _CLASS.fullmatch(name) is not None


def _archives(directory: pathlib.Path) -> list[pathlib.Path]:
    if _named(directory) or _is_corruption(directory):
        return []
    try:
        with os.scandir(directory) as entries:
            return sorted(pathlib.Path(e.path) for e in entries if archives.is_archive(e.name) and e.is_file())
    except OSError as error:
        raise DataError(f"Cannot list {directory}: {reason(error)}.") from error


def _normal(name: str) -> str:
    stem = archives.without_suffix(name).lower()
    return stem if stem in CORRUPTIONS else re.sub(r"[_ ]", "-", stem)


def _named(path: pathlib.Path) -> str | None:
    """Returns the set that a folder or archive is called as."""
    name = _normal(path.name)
    return next((key for key, pattern in _PATTERNS.items() if pattern.fullmatch(name)), None)


def _is_corruption(directory: pathlib.Path) -> bool:
    return directory.name in CORRUPTIONS and any((directory / str(level)).is_dir() for level in range(1, 6))


def _validation_in(directory: pathlib.Path, *, likely: bool) -> list[Validation]:
    """Returns the validation sets in a folder itself, in the order in which they are preferred.

    Args:
        directory: the folder.
        likely: leave out folders that look like the validation images of other data.
    """
    found = []
    if (directory / VALIDATION).is_file():
        found.append(Validation("archives", directory, "validation"))
    if (directory / "features.json").is_file() and (split := _tfds_split(directory)):
        found.append(Validation("tfds", directory, split))
    for name in _VALIDATION_FOLDERS:
        if (directory / name).is_dir() and (not likely or _like_imagenet(directory / name)):
            found.append(Validation("folder", directory, name))
    return found


def _labeled_in(directory: pathlib.Path) -> Validation | None:
    """Returns the split of a folder by which a model of other classes than ImageNet's is measured."""
    if (directory / "features.json").is_file():
        splits = _tfds_splits(directory)
        return next((Validation("tfds", directory, name) for name in _OWN_SPLITS if name in splits), None)
    there = (name for name in _OWN_SPLITS if (directory / name).is_dir())
    return next((Validation("folder", directory, name) for name in there), None)


def _tfds_splits(directory: pathlib.Path) -> list[str]:
    try:
        return [split["name"] for split in json.loads((directory / "dataset_info.json").read_text("utf-8"))["splits"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.info("%s is not taken for a data set: %s.", directory, error)
        return []


def _like_imagenet(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds class folders called by WordNet ids, or files as ILSVRC2012 calls them."""
    try:
        with os.scandir(folder) as entries:
            return any(_IMAGENET_ENTRY.match(entry.name) for entry in entries)
    except OSError as error:
        raise DataError(f"Cannot list {folder}: {reason(error)}.") from error


def _tfds_split(directory: pathlib.Path) -> str | None:
    """Returns the validation split of a data set in tfds' layout, if it is ImageNet's."""
    try:
        info = json.loads((directory / "dataset_info.json").read_text("utf-8"))
        names = (directory / "label.labels.txt").read_text("utf-8").split()
        splits = [split["name"] for split in info["splits"]]
        known = set(names) <= set(pretrained.imagenet_classes()) and not _OTHER_VALIDATION.match(str(info["name"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.info("%s is not taken for ImageNet: %s.", directory, error)
        return None
    return next((name for name in ("validation", "val") if name in splits), None) if known else None
