"""Labels of images that lie in one folder, from a file with a line for each: its name and its class.

Many data sets have their validation images so, ImageNet's own among them (`LOC_val_solution.csv` of the Kaggle
challenge). Columns are separated by commas, tabs, semicolons or spaces; a header is optional.
"""

import collections
import csv
import dataclasses
import io
import logging
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from vision_jax.data import listing
from vision_jax.data.listing import LabeledImages
from vision_jax.errors import DataError, reason, suggest

log = logging.getLogger(__name__)

# Names of columns, in lower case and without what is no letter.
_NAME_COLUMNS = frozenset(
    ["image", "imageid", "imagename", "imagepath", "img", "id", "file", "filename", "filepath", "name", "path"]
)
_CLASS_COLUMNS = frozenset(
    ["label", "labels", "class", "classname", "classid", "category", "target", "predictionstring", "wnid", "breed"]
)
# ImageNet's solutions: a class and boxes, such as `n02110185 1 2 3 4`, perhaps several times.
_CLASS_AND_BOXES = re.compile(r"(\S+)(\s+-?\d+){4}(\s.*)?")


def find_label_file(directory: pathlib.Path, split: str) -> pathlib.Path | None:
    """Looks for the labels of a split whose images are not in class folders, under the names that are usual.

    Args:
        directory: of the data set, in which `split` is a folder.
        split: as the folder is called.

    Returns:
        the file; None if there is none, or the split has class folders.
    """
    folder = directory / split
    if split == "test" or listing.folders_in(folder) not in ([], ["images"]):
        return None  # test.csv usually has no labels, which is what it is for
    candidates = [
        folder / f"{split}_annotations.txt",  # Tiny ImageNet
        *(where / f"{stem}.csv" for where in (folder, directory) for stem in (split, f"{split}_labels")),
        (directory if split == "train" else folder) / "labels.csv",
        # Kaggle's ImageNet has the images in ILSVRC/Data/CLS-LOC, and this file beside ILSVRC.
        *(where / f"LOC_{split}_solution.csv" for where in (directory, *directory.resolve().parents[:3])),
    ]
    found = next((path for path in candidates if path.is_file()), None)
    if found is not None:
        log.info("The labels of %s are those in %s.", folder, found)
    return found


def locate(value: str, directory: pathlib.Path) -> pathlib.Path:
    """Returns the path of a file of labels: as given, or else below the folder of the data set.

    Raises:
        DataError: if it is in neither.
    """
    path = pathlib.Path(value).expanduser()
    for candidate in (path, directory / path):
        if candidate.is_file():
            return candidate
    raise DataError(f"There is no file of labels {value!r}, neither as it stands nor in {directory}: give another.")


def read_class_names(path: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """Returns the sorted classes that a file of labels names for the images in a folder."""
    return list_labeled_images(folder, path).class_names


def list_labeled_images(
    folder: pathlib.Path, path: pathlib.Path, class_names: Sequence[str] | None = None
) -> LabeledImages:
    """Lists the images that a file of labels names, in the order of their paths.

    Images may be named with or without suffix, and with or without the folders that they are in.

    Args:
        folder: with the images, at any depth.
        path: the file.
        class_names: of the training split, whose order numbers the labels; None: the sorted names in the file.

    Raises:
        DataError: if the file cannot be read, names an image twice, one that is not there, or an unknown class.
            Images that it does not name are left out with a warning.
    """
    images, left_out = listing.list_images(folder)
    finder = _Finder(images)
    entries = _entries(path, finder, class_names)
    if not entries:
        raise DataError(f"{path} names no image.")
    line_of: dict[int, int] = {}
    words: dict[int, str] = {}
    missing = []
    for entry in entries:
        index = finder.find(entry.name)
        if index is None:
            missing.append(entry)
            continue
        if index in line_of:
            raise DataError(f"{path}, line {entry.line}: {entry.name!r} is in line {line_of[index]} already.")
        line_of[index], words[index] = entry.line, entry.label
    if missing:
        more = f" (and {len(missing) - 1} others are missing)" if len(missing) > 1 else ""
        raise DataError(f"{path}, line {missing[0].line}: there is no image {missing[0].name!r} in {folder}{more}.")
    if class_names is None:
        class_names = sorted(set(words.values()))
    label_of = {name: label for label, name in enumerate(class_names)}
    rows = sorted(words)
    for index in rows:
        if words[index] not in label_of:
            raise DataError(
                f"{path}, line {line_of[index]}: {words[index]!r} is no class of the training split: "
                f"{suggest(words[index], class_names, 'the names of its class folders')}"
            )
    if len(rows) < len(images):
        left_out["images that the file of labels does not name"] = len(images) - len(rows)
    listing.log_left_out(folder, left_out)
    names = np.asarray([os.fsencode(images[index]) for index in rows])
    labels = np.asarray([label_of[words[index]] for index in rows], np.int32)
    return LabeledImages(folder, names, labels, list(class_names))


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A line of a file of labels."""

    line: int
    name: str
    label: str


class _Finder:
    """Finds images by what a file calls them: the path, its end, or the name, with or without suffix."""

    def __init__(self, images: Sequence[str]):
        self._by_path: dict[str, int] = {}
        self._by_name: collections.defaultdict[str, set[int]] = collections.defaultdict(set)
        for index, path in enumerate(images):
            self._by_path[path] = index
            for key in {os.path.splitext(path)[0], os.path.basename(path), os.path.splitext(os.path.basename(path))[0]}:
                self._by_name[key].add(index)

    def find(self, name: str) -> int | None:
        """Returns the number of the image of a name; None if there is none.

        Raises:
            DataError: if there are several.
        """
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        for start in range(len(parts)):  # `val/1.jpg` is `1.jpg` in the folder `val`
            tail = "/".join(parts[start:])
            if (index := self._by_path.get(tail)) is not None:
                return index
            if len(found := self._by_name.get(tail, set())) > 1:
                raise DataError(f"The name {name!r} in a file of labels is that of {len(found)} images: give its path.")
            if found:
                return next(iter(found))
        return None


def _entries(path: pathlib.Path, finder: _Finder, class_names: Sequence[str] | None) -> list[_Entry]:
    """Returns the lines of a file of labels, without its header.

    Raises:
        DataError: if it is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.split("\n", 1)[0]
        separator = max("\t,;", key=first.count)
        separator = separator if separator in first else " "
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
        rows = [
            (reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The file of labels {path} cannot be read: {reason(error)}.") from error
    for line, row in rows:
        if len(row) < 2:
            raise DataError(f"{path}, line {line}: {row[0]!r} has no second column, the class.")
    if not rows:
        return []
    known = set(class_names or ())
    name_column, class_column = 0, 1
    header = [re.sub(r"[^a-z]", "", cell.lower()) for cell in rows[0][1]]
    if _is_header(rows[0][1], header, finder, known):
        name_column = next((i for i, cell in enumerate(header) if cell in _NAME_COLUMNS), 0)
        others = [i for i in range(len(header)) if i != name_column]
        class_column = next((i for i in others if header[i] in _CLASS_COLUMNS), others[0])
        rows = rows[1:]
    entries = []
    for line, row in rows:
        if len(row) <= max(name_column, class_column):
            raise DataError(f"{path}, line {line}: it has {len(row)} columns, fewer than the header.")
        label = row[class_column]
        if label not in known and (match := _CLASS_AND_BOXES.fullmatch(label)):
            label = match[1]
        entries.append(_Entry(line, row[name_column], label))
    return entries


def _is_header(row: Sequence[str], words: Sequence[str], finder: _Finder, class_names: set[str]) -> bool:
    """Returns whether a first line names columns: it names no image and no class, or the usual columns."""
    if finder.find(row[0]) is not None or row[1] in class_names:
        return False
    if os.path.splitext(row[0])[1].lower() in listing.image_suffixes():
        return False
    return bool(set(words) & _NAME_COLUMNS) or not any(re.search(r"\d", cell) for cell in row[:2])
