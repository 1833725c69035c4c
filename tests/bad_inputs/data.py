"""Data sets that are missing, empty, damaged, or other ones than the configuration says."""

import itertools
from typing import Any

import numpy as np
from bad_inputs.case import (
    Case,
    Setup,
    as_json,
    changed,
    cut,
    directory,
    image,
    images,
    records,
    remove,
    text,
    training,
)
from conftest import encode

_PREPARE = ("prepare", "data", "out", "--workers=1")
_RGB = ("--config.data.channels=3", "--config.data.mean=(0.5,0.5,0.5)", "--config.data.std=(0.5,0.5,0.5)")


def _data(name: str, source: str, *more: str, before: tuple[Setup, ...], value: str, remedy: str) -> Case:
    """Returns a case of a training on the folder `data`."""
    fields = (f"--config.data.source={source}", "--config.data.dir=data", "--config.batch_size=4", *_RGB)
    return training(name, *fields, *more, before=before, value=value, remedy=remedy, made=("w", "w/*"))


def _dense(name: str, source: str, *more: str, before: tuple[Setup, ...], value: str, remedy: str) -> Case:
    """Returns a case of a training of a detector, or of a segmenter on masks, on the folder `data`."""
    kind = "segmentation" if source == "masks" else "retinanet"
    content = (
        f"from vision_jax import recipes\n\n\ndef get_config():\n    config = recipes.scenes('resnet18', {kind!r})\n"
    )
    content += f"    config.data.source = {source!r}\n    config.data.dir = 'data'\n    config.batch_size = 1\n"
    content += "    config.data.train_split, config.data.val_split = 'train', 'validation'\n    return config\n"
    arguments = ("main", "--config=c.py", "--workdir=w", "--config.data.num_workers=0", *more)
    return Case(name, arguments, value, remedy, before=(text("c.py", content), *before))


def _coco(content: Any = None, **changes: Any) -> tuple[Setup, ...]:
    """Returns COCO's files of an image with a box, with other lists of some kinds."""
    whole = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 20}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "ant"}],
    }
    made = whole | changes if content is None else content
    files = [as_json(f"data/annotations/instances_{split}.json", made) for split in ("train", "validation")]
    return (*files, image("data/train/a.jpg"), image("data/validation/a.jpg"))


def _masks(*, value: int = 1, size: int = 20) -> tuple[Setup, ...]:
    """Returns images with masks of one class."""
    mask = encode(np.full((size, size), value, np.uint8), "PNG")
    splits = ("train", "validation")
    made = itertools.chain(*((image(f"data/images/{s}/a.jpg"), text(f"data/masks/{s}/a.png", mask)) for s in splits))
    return (text("data/classes.txt", "sky\nsea\n"), *made)


CASES = (
    _data("no folder", "folder", before=(), value="'data'", remedy="no such directory"),
    _data("a folder without files", "folder", before=(directory("data"),), value="'data'", remedy="empty"),
    _data("a file for a folder", "folder", before=(text("data", "mine"),), value="'data'", remedy="no such directory"),
    _data(
        "no training split", "folder", before=(images(splits=("val",)),), value="data/train", remedy="data.train_split"
    ),
    _data(
        "images without classes",
        "folder",
        before=(image("data/train/a.jpg"),),
        value="data/train",
        remedy="data.train_labels",
    ),
    _data(
        "other classes in validation",
        "folder",
        before=(images(splits=("train",)), images(classes=("ant", "cat"), splits=("validation",))),
        value="cat",
        remedy="[Rr]ename|same class folders",
    ),
    _data(
        "a damaged image",
        "folder",
        before=(images(), image("data/train/ant/0a.jpg", cut=True)),
        value="0a.jpg",
        remedy="max_bad_records",
    ),
    _data(
        "an image that is text",
        "folder",
        before=(images(), text("data/train/ant/0a.jpg", "mine")),
        value="0a.jpg",
        remedy="max_bad_records",
    ),
    _data(
        "a damaged image in validation",
        "folder",
        before=(images(), image("data/validation/ant/0a.jpg", cut=True)),
        value="0a.jpg",
        remedy="max_bad_eval_records",
    ),
    _data(
        "an image of too many pixels",
        "folder",
        "--config.data.max_pixels=100",
        before=(images(),),
        value="400|20 ?x ?20",
        remedy="max_pixels",
    ),
    _data(
        "a list that is not there",
        "folder",
        "--config.data.train_list=list.txt",
        before=(images(),),
        value="list.txt",
        remedy="Give another",
    ),
    _data(
        "a list of other files",
        "folder",
        "--config.data.train_list=list.txt",
        before=(images(), text("list.txt", "zebra.jpg\n")),
        value="zebra.jpg",
        remedy="Remove them",
    ),
    _data("a folder for tfds", "tfds", before=(images(),), value="data", remedy="data.source=folder"),
    _data(
        "a split that is not there",
        "tfds",
        "--config.data.train_split=trian",
        before=(records(),),
        value="'trian'",
        remedy="did you mean train",
    ),
    _data(
        "a slice of nothing",
        "tfds",
        "--config.data.train_split=train[5:5]",
        before=(records(),),
        value=r"train\[5:5\]",
        remedy="give another",
    ),
    _data(
        "a slice that is none",
        "tfds",
        "--config.data.train_split=train[:x%]",
        before=(records(),),
        value=r"train\[:x%\]",
        remedy="such as train",
    ),
    _data(
        "a missing shard",
        "tfds",
        before=(records(), changed("data", lambda path: remove(next(path.glob("*train*"))))),
        value="train",
        remedy="copy|[Pp]repare",
    ),
    _data(
        "a shard that is cut",
        "tfds",
        before=(records(), changed("data", lambda path: cut(next(path.glob("*train*"))))),
        value="train",
        remedy="copy|[Pp]repare",
    ),
    _data(
        "metadata that are cut",
        "tfds",
        before=(records(), changed("data/features.json", cut)),
        value="data",
        remedy="Prepare it again",
    ),
    _data(
        "a label beyond the classes", "tfds", before=(records(labels=3),), value="label 2", remedy="2 classes.*Correct"
    ),
    _dense(
        "annotations that are not there",
        "coco",
        before=(image("data/train/a.jpg"),),
        value="instances_train.json",
        remedy="data.train_split",
    ),
    _dense(
        "annotations that are no JSON",
        "coco",
        before=(*_coco(), changed("data/annotations/instances_train.json", cut)),
        value="instances_train",
        remedy="Copy",
    ),
    _dense("annotations without a list", "coco", before=_coco({"images": []}), value="annotations", remedy="COCO"),
    _dense(
        "a box outside of its image",
        "coco",
        before=_coco(annotations=[{"id": 7, "image_id": 1, "category_id": 1, "bbox": [9, 9, 50, 50]}]),
        value="7",
        remedy="skip_bad",
    ),
    _dense(
        "a box of an unknown category",
        "coco",
        before=_coco(annotations=[{"id": 7, "image_id": 1, "category_id": 9, "bbox": [2, 2, 9, 9]}]),
        value="9",
        remedy="skip_bad",
    ),
    _dense(
        "an image that is not there",
        "coco",
        before=(*_coco(), changed("data/train/a.jpg", remove)),
        value="a.jpg",
        remedy="skip_bad",
    ),
    _dense(
        "a category that is not there",
        "coco",
        "--config.data.dense.categories=('bee',)",
        before=_coco(),
        value="'bee'",
        remedy="ant",
    ),
    _dense(
        "no masks",
        "masks",
        before=(*_masks(), changed("data/masks", remove)),
        value="data/masks",
        remedy="DIR/masks/SPLIT",
    ),
    Case(
        "a mask of another size",
        _PREPARE,
        "a.jpg has 20x20.*9x9",
        "correct or remove",
        before=_masks(size=9),
        made=("out", "out/*"),
    ),
    Case(
        "a mask of another class",
        _PREPARE,
        r"a.png has the classes \[7\]",
        "skip_bad",
        before=_masks(value=7),
        made=("out", "out/*"),
    ),
    _dense(
        "a mask of another size in a training",
        "masks",
        before=_masks(size=9),
        value=r"data/masks/train/a.png has 9x9.*data/images/train/a.jpg has 20x20",
        remedy="[Cc]orrect.*skip_bad",
    ),
    _dense(
        "a mask of another class in validation",
        "masks",
        before=(*_masks(), text("data/masks/validation/a.png", encode(np.full((20, 20), 7, np.uint8), "PNG"))),
        value=r"data/masks/validation/a.png has the classes \[7\], and there are 2",
        remedy="Correct.*data.dense.categories.*skip_bad",
    ),
    _dense(
        "an image outside of its folder",
        "coco",
        before=_coco(images=[{"id": 1, "file_name": "../validation/a.jpg", "height": 20, "width": 20}]),
        value="image 1 has the file_name '../validation/a.jpg'",
        remedy="skip_bad",
    ),
    _dense(
        "masks of unknown classes",
        "masks",
        before=(*_masks(), changed("data/classes.txt", remove)),
        value="classes",
        remedy="classes.txt",
    ),
)
