"""COCO's instances: images, and one JSON file with the boxes and masks of their objects (Lin et al. 2014)."""

import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax.data import rle
from vision_jax.data.boxes import (
    BACKGROUND,
    IGNORED,
    UNUSED,
    AnnotatedImages,
    Box,
    Objects,
    Problems,
    box_problem,
    leads_out,
)
from vision_jax.data.decode import image_size
from vision_jax.data.sources import digest_of
from vision_jax.errors import DataError, reason, suggest

# Pascal VOC's 20 classes by COCO's names, in VOC's order: what torchvision's segmentation weights tell apart.
VOC_IN_COCO = (
    *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog"),
    *("horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train", "tv"),
)
Item = tuple[Box, int, bool, float, bytes]  # box, label, crowd, area and RLE of an object


def annotation_file(directory: pathlib.Path, split: str) -> pathlib.Path:
    """Returns the JSON file of a split.

    Raises:
        DataError: if there is none in the usual places.
    """
    places = (f"annotations/instances_{split}.json", f"annotations/{split}.json", f"{split}/_annotations.coco.json")
    for place in (*places, f"{split}.json"):
        if (directory / place).is_file():
            return directory / place
    there = sorted(path.name for path in (directory / "annotations").glob("*.json"))[:10]
    raise DataError(
        f"{directory} has no {' or '.join(places)}. In its annotations there are: {', '.join(there) or 'no JSON files'}"
        ". Set data.dir, data.train_split and data.val_split accordingly, such as train2017 and val2017."
    )


class CocoSource(AnnotatedImages):
    """The images of a split, ascending by id, with their objects; those without are there too.

    Labels of boxes number the categories from 0, ascending by id. Masks have the background as 0, and the categories
    from 1; a pixel of several objects is ignored, as in torchvision's references.

    Args:
        directory: where the annotations are (see `annotation_file`), and the images, in a folder of the split's name,
            in `images/` of it, or in `images/`.
        split: such as train2017.
        masks: whether records have masks, made of the objects; this takes pycocotools.
        categories: names of those to take, in the order of their labels; others are as if they were not there. (): all.
            ("voc",): VOC's; see `VOC_IN_COCO`.
        category_ids: labels, also of masks, are the ids of the categories, and 0 the background, as in torchvision's
            detection weights, which have 91 classes.
        skip_bad: leave out objects and images that are wrong.

    Raises:
        DataError: if files are missing or malformed, or something in them is wrong and not to be left out.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        split: str,
        *,
        masks: bool = False,
        categories: Sequence[str] = (),
        category_ids: bool = False,
        skip_bad: bool = False,
    ):
        self.path = annotation_file(directory, split)
        content = _read(self.path)
        self.has_masks = masks
        problems = Problems(os.fspath(self.path), skip=skip_bad)
        self._labels = self._number(content["categories"], tuple(categories), category_ids)
        self._folder = _image_folder(directory, split, self.path)
        images = self._images(content["images"], problems)
        objects = self._collect(content, images, problems)
        if not images:
            raise DataError(f"{self.path} has no image that can be used.")
        ids = sorted(images, key=lambda key: (isinstance(key, str), key))
        super().__init__(
            np.asarray([images[key][1] for key in ids]),
            np.asarray(ids),
            Objects.join([[item[:4] for item in objects[key]] for key in ids]),
        )
        self._names = np.asarray([images[key][0] for key in ids])
        if masks:
            codes = [item[4] for key in ids for item in objects[key]]
            self._codes = np.frombuffer(b"".join(codes), np.uint8)
            self._ends = np.cumsum([len(code) for code in codes], dtype=np.int64)
        problems.report()

    def _number(self, listed: Sequence[Any], wanted: tuple[str, ...], category_ids: bool) -> dict[int, int]:
        """Returns the label of each category that is wanted, by id, and sets the classes; of others it is -1."""
        names: dict[int, str] = {}
        for category in listed:
            number, name = (category.get(key) if isinstance(category, dict) else None for key in ("id", "name"))
            if type(number) is not int or not isinstance(name, str):
                raise DataError(f"{self.path} has the category {category!r}: it takes an integer id and a name.")
            if number in names:
                raise DataError(f"{self.path} has two categories of the id {number}: {names[number]!r} and {name!r}.")
            names[number] = name
        wanted = VOC_IN_COCO if wanted == ("voc",) else wanted
        by_name = {name: number for number, name in names.items()}
        for name in wanted:
            if name not in by_name:
                raise DataError(
                    f"data.dense.categories has {name!r}, which is none of {self.path}: {suggest(name, by_name)}"
                )
        chosen = [by_name[name] for name in wanted] or sorted(names)
        if not chosen:
            raise DataError(f"{self.path} has no categories.")
        if category_ids:
            if min(chosen) < 1:
                raise DataError(
                    f"{self.path} has the category id {min(chosen)}: data.dense.category_ids needs 1 or more."
                )
            kept = {number: names[number] for number in chosen}
            self.box_classes = [BACKGROUND, *(kept.get(number, UNUSED) for number in range(1, max(chosen) + 1))]
            self._in_mask, mask_classes = 0, self.box_classes
            labels = {number: number for number in chosen}
        else:
            self.box_classes = [names[number] for number in chosen]
            self._in_mask, mask_classes = 1, [BACKGROUND, *self.box_classes]
            labels = {number: label for label, number in enumerate(chosen)}
        self.mask_classes = mask_classes if self.has_masks else ()
        self.class_names = self.mask_classes or self.box_classes
        self.num_classes = len(self.class_names)
        if self.has_masks and self.num_classes > IGNORED:
            raise DataError(f"{self.path} has {self.num_classes} classes, and a mask at most {IGNORED}.")
        return dict.fromkeys(names, -1) | labels

    def _images(self, listed: Sequence[Any], problems: Problems) -> dict[int | str, tuple[str, tuple[int, int]]]:
        """Returns name of the file, and height and width, of each image by its id."""
        there = _names_in(self._folder)
        images: dict[int | str, tuple[str, tuple[int, int]]] = {}
        for image in listed:
            image = image if isinstance(image, dict) else {}
            key, name = image.get("id"), image.get("file_name")
            if not isinstance(key, int | str) or isinstance(key, bool) or not isinstance(name, str):
                problems.add(f"an image has the id {key!r} and the file_name {name!r}, and needs both")
                continue
            if key in images:
                problems.add(f"two images have the id {key!r}: {images[key][0]} and {name}")
                continue
            if leads_out(name):
                problems.add(f"image {key!r} has the file_name {name!r}, which leads out of {self._folder}")
                continue
            if not there(name):
                problems.add(f"image {key!r} is {name}, and there is no such file in {self._folder}")
                continue
            try:
                images[key] = (name, self._size(image))
            except ValueError as error:
                problems.add(f"image {key!r} ({name}) {error}")
        return images

    def _size(self, image: Mapping[str, Any]) -> tuple[int, int]:
        """Returns height and width that are listed of an image, or where there are none, those of its header.

        Raises:
            ValueError: if they are wrong, or the file cannot be read; the message says how.
        """
        height, width = image.get("height"), image.get("width")
        if height is None and width is None:
            try:
                return image_size((self._folder / image["file_name"]).read_bytes())
            except (OSError, ValueError) as error:
                raise ValueError(f"cannot be read: {reason(error)}") from error
        if type(height) is not int or type(width) is not int or height < 1 or width < 1:
            raise ValueError(f"has the height {height!r} and the width {width!r}")
        return height, width

    def _collect(
        self, content: Mapping[str, Any], images: Mapping[int | str, tuple[str, tuple[int, int]]], problems: Problems
    ) -> dict[int | str, list[Item]]:
        """Returns box, label, crowd, area and RLE of the objects of each image, by its id."""
        objects: dict[int | str, list[Item]] = {key: [] for key in images}
        listed = {image.get("id") for image in content["images"] if isinstance(image, dict)}
        for annotation in content["annotations"]:
            if not isinstance(annotation, dict):
                problems.add(f"an annotation is {annotation!r}")
                continue
            key, category = annotation.get("image_id"), annotation.get("category_id")
            name = f"annotation {annotation.get('id')!r}"
            if type(key) not in (int, str) or key not in objects:
                if type(key) not in (int, str) or key not in listed:  # else the image is left out, which has been said
                    problems.add(f"{name} is of the image {key!r}, which is not listed")
                continue
            if type(category) is not int or category not in self._labels:
                problems.add(f"{name} has the category {category!r}, which is not listed")
            elif self._labels[category] >= 0:
                try:
                    objects[key].append(self._item(annotation, self._labels[category], *images[key][1]))
                except ValueError as error:
                    problems.add(f"{name} of image {key!r} ({images[key][0]}): {error}")
        return objects

    def _item(self, annotation: Mapping[str, Any], label: int, height: int, width: int) -> Item:
        """Returns box, label, crowd, area and RLE of an object.

        Raises:
            ValueError: if it is wrong; the message says how.
        """
        box, crowd = annotation.get("bbox"), annotation.get("iscrowd", 0)
        if not isinstance(box, list) or len(box) != 4 or not all(type(side) in (int, float) for side in box):
            raise ValueError(f"it has the bbox {box!r}, which is not four numbers")
        corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
        if problem := box_problem(corners, height, width):
            raise ValueError(f"it {problem}")
        if crowd not in (0, 1):
            raise ValueError(f"it has the iscrowd {crowd!r}, which is 0 or 1")
        area = annotation.get("area", box[2] * box[3])
        if type(area) not in (int, float) or not 0 <= area < math.inf:
            raise ValueError(f"it has the area {area!r}, which is a number of pixels")
        code = rle.encode(annotation.get("segmentation"), height, width) if self.has_masks else b""
        return corners, label, bool(crowd), float(area), code

    def _mask(self, index: int) -> np.ndarray:
        """Returns the classes of the pixels: those of the one object that each is in."""
        assert self.objects is not None  # COCO has boxes
        height, width = self.image_size(index)
        mask, depth = np.zeros((2, height, width), np.uint8)
        for number in range(int(self.objects.starts[index]), int(self.objects.starts[index + 1])):
            first = int(self._ends[number - 1]) if number else 0
            inside = rle.decode(self._codes[first : int(self._ends[number])].tobytes(), height, width)
            depth += inside & (depth < 2)
            np.maximum(mask, inside * np.uint8(self.objects.labels[number] + self._in_mask), out=mask)
        mask[depth > 1] = IGNORED
        return mask

    def describe(self, index: int) -> str:
        return os.path.join(self._folder, str(self._names[index]))

    def fingerprint(self) -> str:
        assert self.objects is not None
        parts = (self.objects.starts, self.objects.boxes, self.objects.labels, self.objects.crowd, self.objects.area)
        codes = (self._codes,) if self.has_masks else ()
        return digest_of("coco", self._names, self.image_ids, self.sizes, list(self.class_names), *parts, *codes)


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Returns what a JSON file holds, with `images`, `annotations` and `categories` as lists."""
    try:
        with path.open("rb") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}. Copy it again.") from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{path} has no list of {name}, as COCO's instances have.")
    return content


def _image_folder(directory: pathlib.Path, split: str, annotations: pathlib.Path) -> pathlib.Path:
    """Returns the folder with the images of a split."""
    folders = (directory / split, directory / "images" / split, directory / "images")
    for folder in folders:
        if folder.is_dir():
            return folder
    raise DataError(f"{annotations} is there, but none of the folders of its images: {', '.join(map(str, folders))}.")


def _names_in(folder: pathlib.Path) -> Callable[[str], bool]:
    """Returns a function that says whether a file is there, by its path below a folder; the folder is listed once."""
    names = {entry.name for entry in os.scandir(folder)}
    return lambda name: name in names or ("/" in name and (folder / name).is_file())
