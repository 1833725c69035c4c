"""Pascal VOC's layout (Everingham et al. 2010): images with boxes in XML files, or with masks with a palette."""

import math
import os
import pathlib
import xml.etree.ElementTree
from collections.abc import Mapping, Sequence

import numpy as np

from vision_jax.data.boxes import (
    BACKGROUND,
    SKIP,
    AnnotatedImages,
    Box,
    Objects,
    Problems,
    box_problem,
    leads_out,
    mask_problem,
)
from vision_jax.data.decode import image_size
from vision_jax.data.masks import decode_mask, read_mask
from vision_jax.data.sources import digest_of
from vision_jax.errors import DataError, reason

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
Item = tuple[Box, int, bool, float]  # box, label, crowd and area of an object


class VocSource(AnnotatedImages):
    """The images that ImageSets lists for a split, with boxes (Annotations/*.xml) or masks (SegmentationClass/*.png).

    The corners of a box are numbers of pixels, counted from 1, both within the box: it is from xmin - 1 to xmax here.
    `difficult` objects are `crowd`. Parts of objects, such as heads and hands, are not read.

    Args:
        directory: the folder with JPEGImages, such as VOCdevkit/VOC2012.
        split: such as train: ImageSets/Main/SPLIT.txt, or for masks ImageSets/Segmentation/SPLIT.txt.
        masks: whether records have masks instead of boxes.
        classes: names, in the order of their labels; (): VOC's. In masks they are numbered from 1.
        category_ids: number them from 1 in boxes too, with 0 as the background.
        skip_bad: leave out objects and images that are wrong; masks are all read for that.

    Raises:
        DataError: if files are missing or malformed, or something in them is wrong and not to be left out.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        split: str,
        *,
        masks: bool = False,
        classes: Sequence[str] = (),
        category_ids: bool = False,
        skip_bad: bool = False,
    ):
        self._directory, self.has_masks = directory, masks
        names = tuple(classes) or VOC_CLASSES
        first = 1 if masks or category_ids else 0
        self.class_names = [*[BACKGROUND] * first, *names]
        self.box_classes, self.mask_classes = ((), self.class_names) if masks else (self.class_names, ())
        self.num_classes = len(self.class_names)
        self._labels = {name: label for label, name in enumerate(names, first)}
        listed = directory / "ImageSets" / ("Segmentation" if masks else "Main") / f"{split}.txt"
        problems = Problems(os.fspath(listed), skip=skip_bad)
        kept, sizes, objects = [], [], []
        for name in _read_list(listed, problems):
            try:
                size, items = self._read_mask_header(name, skip_bad) if masks else self._read_objects(name, problems)
            except ValueError as error:
                problems.add(str(error))
                continue
            kept.append(name)
            sizes.append(size)
            objects.append(items)
        if not kept:
            raise DataError(f"{listed} has no image that can be used.")
        super().__init__(np.asarray(sizes), np.asarray(kept), None if masks else Objects.join(objects))
        problems.report()

    def _read_mask_header(self, name: str, whole: bool) -> tuple[tuple[int, int], list[Item]]:
        """Returns the size of a mask; with `whole`, all of it is checked."""
        path = self._mask_path(name)
        try:
            data = pathlib.Path(path).read_bytes()
            size = image_size(data)
            image = image_size(pathlib.Path(self._image_path(name)).read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f"{name} or its mask cannot be read: {reason(error, path=True)}") from error
        if image != size:
            raise ValueError(f"{path} has {size[1]}x{size[0]} pixels, and its image {image[1]}x{image[0]}")
        if whole and (problem := mask_problem(decode_mask(data), size, self.num_classes)):
            raise ValueError(f"{path} {problem}")
        return size, []

    def _read_objects(self, name: str, problems: Problems) -> tuple[tuple[int, int], list[Item]]:
        """Returns height and width of an image, and its objects.

        Raises:
            ValueError: if it has none that can be read.
        """
        path = self._directory / "Annotations" / f"{name}.xml"
        if not os.path.isfile(self._image_path(name)):
            raise ValueError(f"{name} is listed, and there is no {self._image_path(name)}")
        try:
            root = xml.etree.ElementTree.parse(path).getroot()
        except (OSError, xml.etree.ElementTree.ParseError) as error:
            raise ValueError(f"{path} cannot be read: {reason(error)}") from error
        height, width = (_number(root, f"size/{side}") for side in ("height", "width"))
        if height > 0 and width > 0:
            size = int(height), int(width)
        else:  # some tools write 0
            size = image_size(pathlib.Path(self._image_path(name)).read_bytes())
        items = []
        for number, element in enumerate(root.findall("object"), 1):
            try:
                items.append(self._item(element, *size))
            except ValueError as error:
                problems.add(f"object {number} of {path} {error}")
        return size, items

    def _item(self, element: xml.etree.ElementTree.Element, height: int, width: int) -> Item:
        """Returns an object; ValueError, "has ...", if it is wrong."""
        name = (element.findtext("name") or "").strip()
        if name not in self._labels:
            raise ValueError(f"has the class {name!r}, which is none of data.dense.categories or VOC's")
        corners = [_number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        box = (corners[0] - 1, corners[1] - 1, corners[2], corners[3])
        if problem := box_problem(box, height, width):
            raise ValueError(problem)
        difficult = (element.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            raise ValueError(f"has difficult={difficult!r}, which is 0 or 1")
        return box, self._labels[name], difficult == "1", (box[2] - box[0]) * (box[3] - box[1])

    def pairs(self) -> list[tuple[str, str]]:
        """Returns the paths of each image and its mask."""
        return [(self._image_path(name), self._mask_path(name)) for name in self.image_ids.tolist()]

    def _mask_path(self, name: str) -> str:
        return os.path.join(self._directory, "SegmentationClass", f"{name}.png")

    def _image_path(self, name: str) -> str:
        return os.path.join(self._directory, "JPEGImages", f"{name}.jpg")

    def _mask(self, index: int) -> np.ndarray:
        path = self._mask_path(str(self.image_ids[index]))
        mask = read_mask(path)
        if problem := mask_problem(mask, self.image_size(index), self.num_classes):
            raise DataError(f"{path} {problem}. Correct it, or {SKIP} to leave it out.")
        return mask

    def describe(self, index: int) -> str:
        return self._image_path(str(self.image_ids[index]))

    def fingerprint(self) -> str:
        parts: Mapping[str, np.ndarray] = {} if self.objects is None else vars(self.objects)
        return digest_of("voc", self.image_ids, self.sizes, list(self.class_names), *parts.values())


def _number(element: xml.etree.ElementTree.Element, path: str) -> float:
    """Returns a number, or NaN if there is none."""
    try:
        return float(element.findtext(path) or math.nan)
    except ValueError:
        return math.nan


def _read_list(path: pathlib.Path, problems: Problems) -> list[str]:
    """Returns the names in a list of ImageSets, of which each line may go on with a flag."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        there = sorted(file.stem for file in path.parent.glob("*.txt"))[:20]
        raise DataError(
            f"{path} cannot be read: {reason(error)}. There are: {', '.join(there) or 'no lists'}. Set data.dir to the "
            "folder with JPEGImages, and data.train_split and data.val_split."
        ) from error
    names: dict[str, None] = {}
    for words in filter(None, (line.split() for line in lines)):
        if leads_out(words[0]):
            problems.add(f"{words[0]!r} is listed, which leads out of the folders of images and annotations")
            continue
        if words[0] in names:
            problems.add(f"{words[0]} is listed twice")
        names[words[0]] = None
    return list(names)
