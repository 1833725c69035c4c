"""Finding masks that are wrong before a run starts: all files are read once, and what they hold is remembered."""

import concurrent.futures
import hashlib
import logging
import os
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from vision_jax.data.boxes import SKIP, class_problem
from vision_jax.data.cache import optional_cache_dir, read_arrays, write_arrays
from vision_jax.data.decode import image_size
from vision_jax.data.masks import read_mask, without_zero
from vision_jax.errors import DataError, reason

log = logging.getLogger(__name__)

Pair = tuple[str, str]  # the paths of an image and of its mask
_HEADER = 65536  # bytes of an image that are read for its size, unless its header is longer
_UNKNOWN = (-1, -1)  # the size of an image that is damaged, which the run deals with


def check_masks(
    pairs: Sequence[Pair], num_classes: int, *, reduce_zero_label: bool = False, num_threads: int | None = None
) -> None:
    """Checks that masks have the sizes of their images, and no values but those of classes and 255.

    What files hold is kept in the cache (`vision_jax.data.cache`) and read again when one of them has changed.

    Args:
        pairs: the paths of each image and its mask.
        num_classes: classes are 0 to num_classes - 1.
        reduce_zero_label: after 0 has become 255, and the others one less.
        num_threads: that read; None: the default of `ThreadPoolExecutor`.

    Raises:
        DataError: if a mask is wrong or cannot be read; it names the first one, and how many others there are.
    """
    found = _contents(pairs, num_threads)
    problems = []
    for (image, mask), size, of_image, present in zip(
        pairs, found["mask_sizes"].tolist(), found["image_sizes"].tolist(), found["present"], strict=True
    ):
        if of_image != size and of_image != list(_UNKNOWN):
            problems.append(
                f"{mask} has {size[1]}x{size[0]} pixels, and its image {image} has {of_image[1]}x{of_image[0]}. "
                f"Correct or remove one of them, or {SKIP} to leave them out."
            )
            continue
        values = np.flatnonzero(np.unpackbits(present)).astype(np.uint8)
        values = without_zero(values) if reduce_zero_label else values
        if problem := class_problem(values, num_classes):
            reduced = " after data.dense.reduce_zero_label" if reduce_zero_label else ""
            problems.append(
                f"{mask} {problem}{reduced}. Correct it, name all classes in data.dense.categories (or classes.txt), "
                f"or {SKIP} to leave it out."
            )
    if problems:
        more = f" Of {len(pairs)} masks, {len(problems)} are wrong." if len(problems) > 1 else ""
        raise DataError(problems[0] + more)


def _contents(pairs: Sequence[Pair], num_threads: int | None) -> dict[str, np.ndarray]:
    """Returns what is in masks, and the sizes of images, from the cache if it has that.

    Returns:
        `mask_sizes` and `image_sizes`, (n, 2) int64, height and width; `present` (n, 32) uint8, a bit for each of the
        256 values that a mask may have.

    Raises:
        DataError: if a file cannot be read, or a mask is damaged.
    """
    key = hashlib.sha256()
    for path in (path for pair in pairs for path in pair):
        try:
            status = os.stat(path)
        except OSError as error:
            raise DataError(f"Cannot read {path}: {reason(error)}.") from error
        key.update(
            f"{pathlib.Path(path).absolute()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="replace")
        )
    cache = optional_cache_dir()
    kept = None if cache is None else cache / f"masks-{key.hexdigest()[:32]}.npz"
    if kept is not None and (arrays := read_arrays(kept)) is not None:
        return arrays
    log.info("Reading %d masks, to check their sizes and classes.", len(pairs))
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        rows = list(pool.map(_look, pairs))
    mask_sizes, image_sizes, present = (np.asarray(column) for column in zip(*rows, strict=True))
    arrays = {"mask_sizes": mask_sizes, "image_sizes": image_sizes, "present": present}
    if kept is not None:
        write_arrays(kept, **arrays)
    return arrays


def _look(pair: Pair) -> tuple[tuple[int, ...], tuple[int, int], np.ndarray]:
    """Returns the size of a mask, that of its image, and which values the mask has, as bits."""
    image, path = pair
    mask = read_mask(path)
    return mask.shape, _size(image), np.packbits(np.bincount(mask.reshape(-1), minlength=256) > 0)


def _size(path: str) -> tuple[int, int]:
    """Returns height and width of an image, of which no more is read than its header mostly."""
    try:
        with open(path, "rb") as file:
            start = file.read(_HEADER)
            try:
                return image_size(start, sys.maxsize)
            except ValueError:
                return image_size(start + file.read(), sys.maxsize)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}. Repair or remove it.") from error
    except ValueError:  # damaged images count against data.max_bad_records
        return _UNKNOWN
