"""Made-up scenes with real digits: a data set for detection and segmentation that needs no download.

Each is a canvas of 96x96 pixels with a texture, on which one to three of scikit-learn's digits lie, of 28 to 48 pixels
and of their own colors, that hardly overlap. A box is where the digit has ink, and its mask the convex hull of the ink,
since strokes are thinner than the stride of a backbone: 0 is the background, and d + 1 the digit d.
"""

import pathlib
from typing import NamedTuple

import cv2
import numpy as np
import PIL.Image

from vision_jax.data import digits, jpeg, prepared
from vision_jax.data.boxes import BACKGROUND, Box, Objects
from vision_jax.data.cache import write_once
from vision_jax.data.decode import decode
from vision_jax.data.sources import Record, TfdsSource

VERSION = "1.1.0"
SIZE = 96
EXAMPLES = {"train": 1000, "validation": 200}
_SEEDS = {"train": 1, "validation": 2}
_MOST = 3  # digits of a scene
_SIDES = (28, 48)  # least and greatest, in pixels
_INK = 96  # the gray level from which on a pixel is ink
_OVERLAP = 0.05  # share of a digit's square that others may cover
_ATTEMPTS = 20  # to place a digit
_NAMES = tuple(str(digit) for digit in range(10))


def prepare(root: pathlib.Path) -> pathlib.Path:
    """Writes the scenes into an ArrayRecord data set, unless it is there already.

    The scenes of `train` have only digits of the training split of `vision_jax.data.digits`, and those of `validation`
    only held-out ones.

    Args:
        root: where `scenes/1.1.0` is or will be. Several processes may ask for it at once.

    Returns:
        the folder of the data set.
    """

    def write(folder: pathlib.Path) -> None:
        directory = digits.prepare(root)
        prepared.write_dataset(folder, "scenes", {split: _split(directory, split) for split in EXAMPLES})

    return write_once(root / "scenes" / VERSION, write)


class _Digit(NamedTuple):
    """A digit of the data set: gray levels, (32, 32) uint8, and which digit it is."""

    pixels: np.ndarray
    label: int


def _split(directory: pathlib.Path, split: str) -> tuple[prepared.Table, list[Record]]:
    source = TfdsSource(directory, split)
    stock = []
    for index in range(len(source)):
        record = source[index]
        stock.append(_Digit(decode(record["image"], 1)[:, :, 0], record["label"]))
    source.close()
    random = np.random.RandomState(_SEEDS[split])  # whose numbers are the same in every version of NumPy
    scenes = [_scene(random, stock) for _ in range(EXAMPLES[split])]
    ids = np.arange(1, len(scenes) + 1)
    objects = Objects.join([items for _, _, items in scenes])
    table = prepared.Table(
        np.full((len(scenes), 2), SIZE, np.int32), ids, objects, box_classes=_NAMES, mask_classes=(BACKGROUND, *_NAMES)
    )
    records = [
        {"image": jpeg.encode(PIL.Image.fromarray(image), 95), "image_id": int(ids[i]), "mask": mask, **objects.of(i)}
        for i, (image, mask, _) in enumerate(scenes)
    ]
    return table, records


def _scene(
    random: np.random.RandomState, stock: list[_Digit]
) -> tuple[np.ndarray, np.ndarray, list[tuple[Box, int, bool, float]]]:
    """Returns image, mask and objects of a scene."""
    image = _texture(random)
    mask, taken = np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), bool)
    items: list[tuple[Box, int, bool, float]] = []
    for _ in range(int(random.randint(1, _MOST + 1))):
        digit = stock[int(random.randint(len(stock)))]
        color = random.randint(150, 256, 3)
        for _ in range(_ATTEMPTS):
            side = int(random.randint(_SIDES[0], _SIDES[1] + 1))
            top, left = (int(random.randint(SIZE - side + 1)) for _ in range(2))
            here = slice(top, top + side), slice(left, left + side)
            if taken[here].mean() <= _OVERLAP:
                break
        else:
            continue
        taken[here] = True
        level = cv2.resize(digit.pixels, (side, side), interpolation=cv2.INTER_AREA)
        ink = level >= _INK
        share = (level / 255.0)[..., None]
        image[here] = np.rint(image[here] * (1 - share) + color * share).astype(np.uint8)
        hull = _convex_hull(ink)
        mask[here][hull] = digit.label + 1
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        x1, x2, y1, y2 = (float(side) for side in (columns[0], columns[-1] + 1, rows[0], rows[-1] + 1))
        items.append(((left + x1, top + y1, left + x2, top + y2), digit.label, False, float(hull.sum())))
    return image, mask, items


def _convex_hull(ink: np.ndarray) -> np.ndarray:
    """Returns the convex hull of pixels, (height, width) bool."""
    points = np.argwhere(ink)[:, ::-1].astype(np.int32)
    filled = np.zeros(ink.shape, np.uint8)
    cv2.fillConvexPoly(filled, cv2.convexHull(points), 1)
    return filled.astype(bool)


def _texture(random: np.random.RandomState) -> np.ndarray:
    """Returns dark, smooth colors with some noise, (SIZE, SIZE, 3) uint8."""
    coarse = random.randint(0, 110, (6, 6, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC).astype(np.float64)
    return np.clip(np.rint(smooth + random.normal(0, 6, smooth.shape)), 0, 255).astype(np.uint8)
