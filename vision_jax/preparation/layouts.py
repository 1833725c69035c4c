"""How data sets of image files say which images belong to which split, and what is in them.

A layout is a function of the tree of downloads; `known` says which data set has which. A split whose list is not there
is left out: that all is there has been checked before, unless the user wants what there is.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax.errors import DataError
from vision_jax.preparation.pixels import read_mat
from vision_jax.preparation.tree import Tree


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a layout finds.

    Attributes:
        splits: names of the images in the tree, and their labels, by the name of the split.
        class_names: in the order of the labels.
        display_names: words for class names, as far as there are any.
    """

    splits: Mapping[str, tuple[Sequence[str], Sequence[int]]]
    class_names: Sequence[str]
    display_names: Mapping[str, str] = dataclasses.field(default_factory=dict)


def class_folders(
    tree: Tree, *, splits: Mapping[str, str], lower: bool = False, words: Mapping[str, str] | None = None
) -> Listing:
    """Lists images in folders of classes, FOLDER/CLASS/IMAGE; labels number the sorted names of the first split's.

    Args:
        tree: of the downloads.
        splits: the folder of each split; "": all there is.
        lower: names are sorted as if they were in lower case.
        words: for the names of classes.

    Raises:
        DataError: if a split has a class that the first has not.
    """
    found: dict[str, tuple[list[str], list[int]]] = {}
    class_names: list[str] = []
    for split, folder in splits.items():
        start = len(folder) + 1 if folder else 0
        images = [name for name in tree.images(folder) if "/" in name[start:]]
        if not images:
            continue
        classes = [name[start:].split("/", 1)[0] for name in images]
        class_names = class_names or sorted(set(classes), key=lambda name: (name.lower() if lower else name, name))
        found[split] = images, _labels(folder or split, images, classes, class_names)
    display = {name: words[name] for name in class_names if name in words} if words else {}
    return Listing(found, class_names, display)


def tiny_imagenet(tree: Tree) -> Listing:
    """Lists train/WNID/images/IMAGE, and val/images/IMAGE with val/val_annotations.txt; test images have no labels."""
    class_names = sorted(line for _, line in _lines(tree, "wnids.txt"))
    images = tree.images("train")
    classes = [name.split("/")[1] for name in images]
    splits = {"train": (images, _labels("train", images, classes, class_names))} if images else {}
    if tree.has(file := "val/val_annotations.txt"):
        rows = [line.split("\t") for _, line in _lines(tree, file, columns=2, separator="\t")]
        images = [f"val/images/{row[0]}" for row in rows]
        splits["validation"] = images, _labels(file, images, [row[1] for row in rows], class_names)
    words = [line.split("\t", 1) for _, line in _lines(tree, "words.txt")] if tree.has("words.txt") else []
    known = set(class_names)
    return Listing(splits, class_names, {row[0]: row[1] for row in words if len(row) == 2 and row[0] in known})


def pets(tree: Tree) -> Listing:
    """Reads annotations/trainval.txt and test.txt: a name, the number of its class from 1, the species, the breed.

    The name of a class is in those of its images, in front of their numbers.
    """
    splits = {}
    by_label: dict[int, str] = {}
    for split, file in (("train", "annotations/trainval.txt"), ("test", "annotations/test.txt")):
        if not tree.has(file):
            continue
        images, labels = [], []
        for number, line in _lines(tree, file, columns=4):
            name, label, *_ = line.split()
            images.append(f"images/{name}.jpg")
            labels.append(_integer(file, number, label) - 1)
            breed = name.rpartition("_")[0]
            if by_label.setdefault(labels[-1], breed) != breed:
                raise DataError(
                    f"{file}, line {number}: {name} has the label {label}, and so has {by_label[labels[-1]]}."
                )
        splits[split] = images, labels
    return Listing(splits, _numbered("annotations", by_label))


def flowers(tree: Tree, *, class_names: Sequence[str]) -> Listing:
    """Reads imagelabels.mat, labels from 1, and setid.mat, numbers of images from 1."""
    labels = read_mat("imagelabels.mat", tree.read("imagelabels.mat"), ("labels",))["labels"].reshape(-1)
    keys = {"train": "trnid", "validation": "valid", "test": "tstid"}
    numbers = read_mat("setid.mat", tree.read("setid.mat"), tuple(keys.values()))
    splits = {}
    for split, key in keys.items():
        ids = numbers[key].reshape(-1).astype(np.int64)
        if wrong := ids[(ids < 1) | (ids > len(labels))].tolist():
            raise DataError(f"setid.mat: {key} has the image {wrong[0]}, and imagelabels.mat labels {len(labels)}.")
        images = [f"jpg/image_{number:05d}.jpg" for number in ids.tolist()]
        splits[split] = images, (labels[ids - 1].astype(np.int64) - 1).tolist()
    return Listing(splits, class_names)


def food(tree: Tree) -> Listing:
    """Reads meta/train.json and test.json, lists of CLASS/NAME by class, and classes.txt with the names of classes."""
    class_names = [line for _, line in _lines(tree, "meta/classes.txt")]
    splits = {}
    for split in ("train", "test"):
        if not tree.has(file := f"meta/{split}.json"):
            continue
        content = _json(tree, file)
        try:
            pairs = [(name, image) for name, images in content.items() for image in images]
            images, classes = [f"images/{image}.jpg" for _, image in pairs], [name for name, _ in pairs]
        except (AttributeError, TypeError) as error:
            raise DataError(f"{file} holds no lists of images by class.") from error
        splits[split] = images, _labels(file, images, classes, class_names)
    words = [line for _, line in _lines(tree, "meta/labels.txt")] if tree.has("meta/labels.txt") else []
    return Listing(
        splits, class_names, dict(zip(class_names, words, strict=True)) if len(words) == len(class_names) else {}
    )


def textures(tree: Tree, *, fold: int = 1) -> Listing:
    """Reads labels/train1.txt, val1.txt and test1.txt, the first of ten partitions: CLASS/IMAGE in each line."""
    files = {
        "train": f"labels/train{fold}.txt",
        "validation": f"labels/val{fold}.txt",
        "test": f"labels/test{fold}.txt",
    }
    listed = {split: [line for _, line in _lines(tree, file)] for split, file in files.items() if tree.has(file)}
    class_names = sorted({line.split("/")[0] for lines in listed.values() for line in lines})
    splits = {
        split: ([f"images/{line}" for line in lines], [class_names.index(line.split("/")[0]) for line in lines])
        for split, lines in listed.items()
    }
    return Listing(splits, class_names)


def dogs(tree: Tree) -> Listing:
    """Reads train_list.mat and test_list.mat: file_list has CLASS/IMAGE, and labels their numbers from 1."""
    splits = {}
    by_label: dict[int, str] = {}
    for split in ("train", "test"):
        if not tree.has(file := f"{split}_list.mat"):
            continue
        values = read_mat(file, tree.read(file), ("file_list", "labels"))
        labels = (values["labels"].reshape(-1).astype(np.int64) - 1).tolist()
        names = [str(np.asarray(item).reshape(-1)[0]) for item in values["file_list"].reshape(-1)]
        if len(names) != len(labels):
            raise DataError(f"{file} has {len(names)} images and {len(labels)} labels.")
        for name, label in zip(names, labels, strict=True):
            folder = name.split("/")[0]
            if by_label.setdefault(label, folder) != folder:
                raise DataError(f"{file}: {name} has the label {label + 1}, and so has {by_label[label]}.")
        splits[split] = [f"Images/{name}" for name in names], labels
    class_names = _numbered("lists", by_label)
    words = {name: name.partition("-")[2].replace("_", " ") for name in class_names if "-" in name}
    return Listing(splits, class_names, words)


def places(tree: Tree, *, train: str, validation: str) -> Listing:
    """Reads places365_train_standard.txt and places365_val.txt: a path and a label; and categories_places365.txt.

    Args:
        tree: of the downloads.
        train, validation: the folders of the images.
    """
    by_label = {}
    for number, line in _lines(tree, "categories_places365.txt", columns=2):
        name, label = line.rsplit(maxsplit=1)
        by_label[_integer("categories_places365.txt", number, label)] = name
    splits = {}
    lists = (("train", "places365_train_standard.txt", train), ("validation", "places365_val.txt", validation))
    for split, file, folder in lists:
        if not tree.has(file):
            continue
        images, labels = [], []
        for number, line in _lines(tree, file, columns=2):
            name, label = line.rsplit(maxsplit=1)
            images.append(f"{folder}/{name.lstrip('/')}")
            labels.append(_integer(file, number, label))
        splits[split] = images, labels
    return Listing(splits, _numbered("categories_places365.txt", by_label))


def inaturalist(tree: Tree, *, train: str, validation: str, categories: str = "") -> Listing:
    """Reads lists of images, annotations and categories in COCO's format (https://github.com/visipedia/inat_comp).

    Args:
        tree: of the downloads.
        train, validation: the JSON files of the splits.
        categories: a file with the names of the species, which are not in those of some years.
    """
    splits, names = {}, list[str]()
    for split, file in (("train", train), ("validation", validation)):
        if not tree.has(file):
            continue
        content = _json(tree, file)
        try:
            label_of = {int(item["image_id"]): int(item["category_id"]) for item in content["annotations"]}
            pairs = [(str(item["file_name"]), label_of.get(int(item["id"]), -1)) for item in content["images"]]
            names = names or _category_names(file, content["categories"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file} is no list of images, annotations and categories: {error!r}.") from error
        splits[split] = [name for name, _ in pairs], [label for _, label in pairs]
    if categories and tree.has(categories):
        names = _category_names(categories, _json(tree, categories))
    return Listing(splits, names)


def _category_names(file: str, categories: Any) -> list[str]:
    """Returns the names of categories by their numbers; where several have one name, with the number."""
    try:
        by_label = {int(item["id"]): str(item["name"]).strip() for item in categories}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} is no list of categories with their names: {error!r}.") from error
    names = _numbered(file, by_label)
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({label})" for label, name in enumerate(names)]


def _numbered(file: str, by_label: Mapping[int, str]) -> list[str]:
    """Returns the names of classes in the order of their labels, which must be 0 to n - 1."""
    if sorted(by_label) != list(range(len(by_label))):
        missing = min(set(range(max(by_label, default=0) + 1)) - set(by_label), default=min(by_label, default=0))
        raise DataError(f"{file}: the labels are not without gaps: no image has the label {missing}, counted from 0.")
    return [by_label[label] for label in range(len(by_label))]


def _labels(where: str, images: Sequence[str], classes: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Returns the labels of images, whose classes must be known."""
    label_of = {name: label for label, name in enumerate(class_names)}
    for image, name in zip(images, classes, strict=True):
        if name not in label_of:
            raise DataError(f"{where}: {image} is of the class {name!r}, which is none of the {len(class_names)}.")
    return [label_of[name] for name in classes]


def _lines(tree: Tree, name: str, *, columns: int = 1, separator: str | None = None) -> Iterator[tuple[int, str]]:
    """Yields the lines of a text file that are not blank, with their numbers."""
    try:
        text = tree.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is no text file: {error}.") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        if len(line.split(separator)) < columns:
            raise DataError(f"{name}, line {number}: {line.strip()!r} has fewer than {columns} columns.")
        yield number, line.strip()


def _integer(file: str, number: int, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise DataError(f"{file}, line {number}: {text!r} is no number of a class.") from error


def _json(tree: Tree, name: str) -> Any:
    try:
        return json.loads(tree.read(name))
    except ValueError as error:
        raise DataError(f"{name} is no JSON file, or is cut off: {error}.") from error
