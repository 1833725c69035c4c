"""Folders of images, each with a mask of its size: a PNG whose pixels are numbers of classes."""

import concurrent.futures
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from vision_jax.data import listing
from vision_jax.data.boxes import IGNORED, SKIP, AnnotatedImages, Problems, mask_problem
from vision_jax.data.decode import image_size
from vision_jax.data.pillow import MAX_PIXELS, open_image
from vision_jax.data.sources import digest_of
from vision_jax.errors import DataError, reason

CLASSES_FILE = "classes.txt"


def decode_mask(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Returns the numbers that a grayscale or palette image stores, (height, width) uint8; colors mean nothing.

    Raises:
        ValueError: if it is damaged, or has colors or more than 8 bits.
    """
    with open_image(data, max_pixels) as image:
        if image.mode not in ("P", "L"):
            raise ValueError(f"it is no image of 8 bits with a palette or of gray levels, but Pillow's {image.mode}")
        return np.asarray(image, np.uint8)


def without_zero(mask: np.ndarray) -> np.ndarray:
    """Returns a mask in which 0 is ignored, and the classes from 1 on are numbered from 0 (`reduce_zero_label`)."""
    reduced = mask - np.uint8(1)  # 0 becomes 255
    reduced[mask == IGNORED] = IGNORED
    return reduced


def read_mask(path: str) -> np.ndarray:
    """Returns the mask in a file, as `decode_mask` does.

    Raises:
        DataError: if it cannot be read; it names the file.
    """
    try:
        with open(path, "rb") as file:
            return decode_mask(file.read())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}. Repair or remove it.") from error


class MasksSource(AnnotatedImages):
    """The images of DIR/images/SPLIT with the masks of DIR/masks/SPLIT, or DIR/annotations/SPLIT as in ADE20K.

    The mask of a.jpg is a.png. Those without a class are 255.

    Args:
        directory: DIR.
        split: the name of the folders, such as training.
        class_names: of the classes from 0 on, after `reduce_zero_label`; (): a line each of DIR/classes.txt.
        num_classes: where classes have no names.
        reduce_zero_label: the classes begin at 1, and 0 is ignored, as in ADE20K's benchmark.
        skip_bad: leave out images that do not fit their masks, or whose masks are wrong; all files are read for that.

    Raises:
        DataError: if files are missing, or the number of classes is not known.
    """

    has_masks = True

    def __init__(
        self,
        directory: pathlib.Path,
        split: str,
        *,
        class_names: Sequence[str] = (),
        num_classes: int | None = None,
        reduce_zero_label: bool = False,
        skip_bad: bool = False,
    ):
        self._images = directory / "images" / split
        candidates = [directory / name / split for name in ("masks", "annotations")]
        folders = [folder for folder in candidates if folder.is_dir()]
        if not self._images.is_dir() or not folders:
            raise DataError(
                f"There is no {self._images}, or none of {' and '.join(map(str, candidates))}: images are in "
                "DIR/images/SPLIT, their masks in DIR/masks/SPLIT. Set data.dir, data.train_split and data.val_split."
            )
        self._masks, self._reduces = folders[0], reduce_zero_label
        self.class_names = list(class_names) or _read_classes(directory)
        if not self.class_names and num_classes is None:
            raise DataError(
                f"The classes of the masks in {self._masks} are not known: name them in {directory / CLASSES_FILE}, a "
                "line each, or in data.dense.categories, or set model.num_classes."
            )
        self.num_classes = len(self.class_names) or int(num_classes or 0)
        if not 0 < self.num_classes <= IGNORED:
            raise DataError(f"There are {self.num_classes} classes, and masks of 8 bits have at most {IGNORED}.")
        self.mask_classes = self.class_names or [str(number) for number in range(self.num_classes)]
        problems = Problems(os.fspath(self._masks), skip=skip_bad)
        self._find(problems)
        if skip_bad:
            self._leave_out_bad(problems)
        if not len(self):
            raise DataError(f"{self._images} has no image with a mask in {self._masks}.")
        problems.report()

    def _find(self, problems: Problems) -> None:
        """Lists the images, and reads the sizes of their masks from the headers."""
        names, left_out = listing.list_images(self._images)
        listing.log_left_out(self._images, left_out)
        kept, sizes, lengths = [], [], []
        for name in names:
            try:
                with open(self._mask_path(os.fsdecode(name)), "rb") as file:
                    size, length = image_size(file.read(4096)), os.fstat(file.fileno()).st_size
            except (OSError, ValueError) as error:
                problems.add(f"the mask of {os.fsdecode(name)} cannot be read: {reason(error, path=True)}")
            else:
                kept.append(os.fsdecode(name))
                sizes.append(size)
                lengths.append(length)
        super().__init__(np.asarray(sizes), np.asarray([os.path.splitext(name)[0] for name in kept]), None)
        self._names, self._lengths = np.asarray(kept), np.asarray(lengths)

    def _leave_out_bad(self, problems: Problems) -> None:
        def problem(index: int) -> str:
            try:
                self[index]
            except (DataError, OSError, ValueError) as error:
                return f"{self.describe(index)}: {reason(error)}"
            return ""

        with concurrent.futures.ThreadPoolExecutor() as pool:
            found = list(pool.map(problem, range(len(self))))
        for message in filter(None, found):
            problems.add(message)
        good = [not message for message in found]
        self._names, self._lengths = self._names[good], self._lengths[good]
        self.image_ids, self.sizes = self.image_ids[good], self.sizes[good]

    def pairs(self) -> list[tuple[str, str]]:
        """Returns the paths of each image and its mask."""
        return [(self.describe(index), self._mask_path(str(name))) for index, name in enumerate(self._names)]

    def _mask_path(self, name: str) -> str:
        return os.path.join(self._masks, os.path.splitext(name)[0] + ".png")

    def _mask(self, index: int) -> np.ndarray:
        """Returns a mask.

        Raises:
            DataError: if it is damaged, or has a class that is none; it names the file.
        """
        path = self._mask_path(str(self._names[index]))
        mask = read_mask(path)
        mask = without_zero(mask) if self._reduces else mask
        if problem := mask_problem(mask, self.image_size(index), self.num_classes):
            reduced = " after data.dense.reduce_zero_label" if self._reduces else ""
            raise DataError(f"{path} {problem}{reduced}. Correct it, or {SKIP} to leave it out.")
        return mask

    def describe(self, index: int) -> str:
        return os.path.join(self._images, str(self._names[index]))

    def fingerprint(self) -> str:
        classes = list(self.class_names), self.num_classes, self._reduces
        return digest_of("masks", self._names, self.sizes, self._lengths, *classes)


def _read_classes(directory: pathlib.Path) -> list[str]:
    """Returns the lines of DIR/classes.txt; () if it is not there."""
    path = directory / CLASSES_FILE
    if not path.is_file():
        return []
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error
