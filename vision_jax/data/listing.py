"""What is in a folder of images: the one rule for training, evaluating, preparing and predicting.

An image is a file with a suffix that the decoder knows, in upper or lower case. Hidden files and folders are left out,
and what operating systems leave behind. Links to folders are followed. What is left out is counted by kind and said.
"""

import collections
import concurrent.futures
import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from vision_jax.data.pillow import image_suffixes
from vision_jax.errors import DataError, reason

log = logging.getLogger(__name__)

# Folders that macOS, Synology, Python and ext4 make by themselves.
_NOBODYS_FOLDERS = frozenset({"__MACOSX", "@eaDir", "__pycache__", "lost+found"})
_HIDDEN = "hidden"
_THREADS = 16  # network file systems answer slowly, but many questions at once


@dataclasses.dataclass(frozen=True)
class LabeledImages:
    """Images with their labels, as found in a folder or told by a file.

    Attributes:
        root: the folder that the names are relative to.
        names: (n,) bytes of fixed width, the path of each image below `root`. Trailing zeros are no part of it.
        labels: (n,) int32.
        class_names: one for each label.
    """

    root: pathlib.Path
    names: np.ndarray
    labels: np.ndarray
    class_names: list[str]

    def path(self, index: int) -> bytes:
        """Returns the path of an image."""
        return os.path.join(os.fsencode(self.root), bytes(self.names[index]))


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder of this name is left out whatever it holds."""
    return name.startswith(".") or name in _NOBODYS_FOLDERS


def folders_in(directory: pathlib.Path) -> list[str]:
    """Returns the names of the folders, and of the links to folders, in a folder; sorted as torchvision sorts classes.

    A link to the folder itself, or to one above it, is left out.

    Raises:
        DataError: if it cannot be listed.
    """
    return sorted(
        entry.name
        for entry in _scan(directory)
        if not is_hidden(entry.name) and _is_folder(entry) and not _leads_up(entry, directory)
    )


def _leads_up(entry: os.DirEntry, directory: pathlib.Path) -> bool:
    """Returns whether an entry of a folder is a link to this folder or to one above it."""
    above = os.path.join(os.path.realpath(entry.path), "")
    return entry.is_symlink() and os.path.join(os.path.realpath(directory), "").startswith(above)


def list_images(directory: pathlib.Path) -> tuple[list[str], collections.Counter[str]]:
    """Lists the images in a folder and all folders below it.

    A folder that several links lead to is listed once, and links to a folder above are not followed.

    Returns:
        the paths below `directory`, sorted; and how many of each kind were left out: hidden ones, suffixes, ...

    Raises:
        DataError: if a folder cannot be listed.
    """
    found: list[str] = []
    left_out: collections.Counter[str] = collections.Counter()
    for name in _walk(directory, left_out):
        found.append(name)
    return sorted(found), left_out


def has_images(directory: pathlib.Path) -> bool:
    """Returns whether there is an image in a folder or below it; quicker than a listing."""
    return next(_walk(directory, collections.Counter()), None) is not None


def list_class_names(root: pathlib.Path) -> list[str]:
    """Returns the sorted names of the folders in `root` that hold images, which are the classes."""
    names = folders_in(root)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        filled = list(pool.map(lambda name: has_images(root / name), names))
    return [name for name, is_filled in zip(names, filled, strict=True) if is_filled]


def list_classes(
    root: pathlib.Path, class_names: Sequence[str] | None = None, *, labels_option: str = "data.train_labels"
) -> LabeledImages:
    """Lists a folder of class folders; images come by class and then by path.

    A class folder without an image is no class: it is warned of.

    Args:
        root: the folder.
        class_names: of the training split, whose order numbers the labels; None: the sorted names of the folders.
        labels_option: what takes a file of labels, in the user's words.

    Raises:
        DataError: if there are no classes, or others than `class_names`; one that lacks here is merely warned of.
    """
    folders = folders_in(root)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        listings = dict(zip(folders, pool.map(list_images, [root / name for name in folders]), strict=True))
    left_out = sum((others for _, others in listings.values()), _outside(root))
    filled = [name for name in folders if listings[name][0]]
    if not filled:
        raise DataError(_without_classes(root, folders, left_out, labels_option))
    if empty := [name for name in folders if not listings[name][0]]:
        log.warning("No classes, as they hold no image: %d folders in %s (%s).", len(empty), root, shorten(empty))
    if class_names is None:
        class_names = filled
    else:
        if unknown := [name for name in filled if name not in set(class_names)]:
            raise DataError(
                f"{root} has classes that the training split has not: {shorten(unknown)}. Rename or remove them."
            )
        if missing := sorted(set(class_names) - set(filled)):
            log.warning("Classes without an image in %s: %d (%s).", root, len(missing), shorten(missing))
    log_left_out(root, left_out)
    names = [os.fsencode(f"{name}/{image}") for name in filled for image in listings[name][0]]
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.repeat([label_of[name] for name in filled], [len(listings[name][0]) for name in filled])
    return LabeledImages(root, np.asarray(names), labels.astype(np.int32), list(class_names))


def log_left_out(root: pathlib.Path, left_out: collections.Counter[str]) -> None:
    """Says how many files and folders of each kind are left out; it is no warning if all of them are hidden."""
    if left_out:
        level = logging.INFO if set(left_out) == {_HIDDEN} else logging.WARNING
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items(), key=lambda i: (-i[1], i[0])))
        log.log(level, "Left out in %s: %s.", root, kinds)


def shorten(names: Sequence[str], most: int = 10) -> str:
    """Returns the first of some names, for a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _without_classes(
    root: pathlib.Path, folders: Sequence[str], left_out: collections.Counter[str], labels_option: str
) -> str:
    """Returns what to say of a folder in which no class was found."""
    if images := left_out[_OUTSIDE]:
        return (
            f"{root} holds {images} images, but no class folders: put each class into a folder of its own, or name a "
            f"CSV file of images and their classes by {labels_option}."
        )
    if folders:
        there = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common(5)) or "nothing else"
        return f"{root} holds no images in its class folders ({shorten(folders, 3)}); there is {there}."
    return f"{root} holds no class folders: a class needs a folder of its own."


_OUTSIDE = "images outside of class folders"
_LISTED = "links to folders that are listed already"


def _outside(root: pathlib.Path) -> collections.Counter[str]:
    """Counts what lies beside the class folders."""
    kinds: collections.Counter[str] = collections.Counter()
    for entry in _scan(root):
        if is_hidden(entry.name):
            kinds[_HIDDEN] += 1
        elif _is_folder(entry):
            if _leads_up(entry, root):
                kinds[_LISTED] += 1
        else:
            kinds[_OUTSIDE if (kind := _kind(entry)) is None else kind] += 1
    return kinds


def _walk(directory: pathlib.Path, left_out: collections.Counter[str]) -> Iterator[str]:
    """Yields the paths of images below a folder, and counts what else there is.

    Real folders are walked before links, so that what is found does not depend on the order on disk.
    """
    start = os.path.realpath(directory)
    seen = {start}
    # Path below `directory`, and the real path, by which loops are known.
    folders, links = [("", start)], list[tuple[str, str]]()
    while folders or links:
        if not folders:
            links.sort(reverse=True)
            name, real = links.pop()
            if real in seen or start.startswith(os.path.join(real, "")):
                left_out[_LISTED] += 1
                continue
            seen.add(real)
            folders.append((name, real))
        prefix, real = folders.pop()
        for entry in _scan(pathlib.Path(real)):
            name = f"{prefix}{entry.name}"
            if is_hidden(entry.name):
                left_out[_HIDDEN] += 1
            elif _is_folder(entry):
                if entry.is_symlink():
                    links.append((f"{name}/", os.path.realpath(entry.path)))
                elif entry.path not in seen:  # else a link has led here
                    seen.add(entry.path)
                    folders.append((f"{name}/", entry.path))
            elif (kind := _kind(entry)) is None:
                yield name
            else:
                left_out[kind] += 1


def _kind(entry: os.DirEntry[str]) -> str | None:
    """Returns the kind of what is no image; None for an image."""
    suffix = os.path.splitext(entry.name)[1].lower()
    try:
        if entry.is_file():
            return None if suffix in image_suffixes() else suffix or "without a suffix"
    except OSError:  # a link to itself
        pass
    return "links that lead nowhere" if entry.is_symlink() else "special files"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _scan(directory: pathlib.Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"Cannot list {directory}: {reason(error)}.") from error
