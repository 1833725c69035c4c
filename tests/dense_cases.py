"""Small data sets with boxes and masks, as COCO, Pascal VOC and folders of masks have them."""

import json
import pathlib
from typing import Any

import numpy as np
import PIL.Image
from conftest import encode, picture

SIZES = {7: (40, 60), 3: (50, 30), 12: (32, 32), 20: (24, 48)}  # height and width by the image's id
CATEGORIES = [{"id": 5, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 9, "name": "person"}]
# (id, image, category, bbox, iscrowd, segmentation); the image 20 has none.
ANNOTATIONS = [
    (1, 7, 5, [10, 5, 20, 12], 0, [[10, 5, 30, 5, 30, 17, 10, 17]]),
    (2, 7, 2, [25, 10, 20.5, 20], 0, [[25, 10, 45.5, 10, 45.5, 30, 25, 30]]),
    (3, 7, 9, [0, 30, 60, 10], 1, {"size": [40, 60], "counts": [30, *[10, 30] * 59, 10]}),
    (4, 3, 2, [3.25, 40, 10, 9.5], 0, [[3, 40, 13, 40, 13, 49], [20, 20, 24, 20, 24, 24, 20, 24]]),
    (5, 12, 9, [0, 0, 32, 32], 0, [[0, 0, 32, 0, 32, 32, 0, 32]]),
]


def coco_content() -> dict[str, Any]:
    """What a file of COCO's instances holds."""
    images = [{"id": key, "file_name": f"{key:04}.jpg", "height": h, "width": w} for key, (h, w) in SIZES.items()]
    names = ("id", "image_id", "category_id", "bbox", "iscrowd", "segmentation")
    annotations = [dict(zip(names, values, strict=True)) for values in ANNOTATIONS]
    for annotation in annotations:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3] * 0.7
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def write_coco(directory: pathlib.Path, content: Any = None, split: str = "train2017") -> pathlib.Path:
    """Writes a data set in COCO's layout, and returns its folder."""
    (directory / "annotations").mkdir(parents=True, exist_ok=True)
    (directory / split).mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(coco_content() if content is None else content)
    (directory / "annotations" / f"instances_{split}.json").write_text(text)
    for key, (height, width) in SIZES.items():
        (directory / split / f"{key:04}.jpg").write_bytes(encode(picture(height, width, key)))
    return directory


def voc_xml(objects: str = "", size: tuple[int, int] = (40, 60)) -> str:
    """An annotation of Pascal VOC."""
    height, width = size
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"


def voc_object(name: str, box: tuple[Any, ...], difficult: int = 0) -> str:
    sides = "".join(f"<{side}>{v}</{side}>" for side, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox>{part}</object>"


def palette_png(mask: np.ndarray) -> PIL.Image.Image:
    """A mask with a palette of odd colors."""
    image = PIL.Image.fromarray(mask, "P")
    image.putpalette(np.random.RandomState(0).randint(0, 256, 768).astype(np.uint8).tobytes())
    return image


def write_voc(directory: pathlib.Path, annotations: dict[str, str] | None = None) -> pathlib.Path:
    """Writes a data set in Pascal VOC's layout, and returns its folder."""
    if annotations is None:
        first = voc_object("dog", (1, 1, 20, 40)) + voc_object("aeroplane", (31, 6, 60, 30), difficult=1)
        annotations = {"2007_000001": voc_xml(first), "2007_000002": voc_xml()}
    for folder in ("Annotations", "JPEGImages", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    for number, (name, text) in enumerate(annotations.items()):
        (directory / "Annotations" / f"{name}.xml").write_text(text)
        (directory / "JPEGImages" / f"{name}.jpg").write_bytes(encode(picture(40, 60, number)))
        palette_png(class_mask(40, 60, 21, number)).save(directory / "SegmentationClass" / f"{name}.png")
    lines = "".join(f"{name}  1\n" for name in annotations)
    for kind in ("Main", "Segmentation"):
        (directory / "ImageSets" / kind / "train.txt").write_text(lines)
    return directory


def class_mask(height: int, width: int, num_classes: int, seed: int) -> np.ndarray:
    """Random blocks of classes, (height, width) uint8, some of them 255."""
    random = np.random.RandomState(seed)
    coarse = random.randint(0, num_classes + 1, (-(-height // 8), -(-width // 8)))
    mask = np.kron(coarse, np.ones((8, 8), int))[:height, :width]
    return np.where(mask == num_classes, 255, mask).astype(np.uint8)


def write_masks(directory: pathlib.Path, num_classes: int = 4, folder: str = "masks") -> pathlib.Path:
    """Writes images and masks in folders, and returns theirs."""
    for number, split in enumerate(("training", "validation")):
        for name in ("images", folder):
            (directory / name / split).mkdir(parents=True)
        for i, (height, width) in enumerate(((40, 60), (50, 30), (32, 32))):
            data = encode(picture(height, width, i + 10 * number))
            (directory / "images" / split / f"{i}.jpg").write_bytes(data)
            mask = class_mask(height, width, num_classes, i + 10 * number)
            PIL.Image.fromarray(mask).save(directory / folder / split / f"{i}.png")
    (directory / "classes.txt").write_text("".join(f"class {i}\n" for i in range(num_classes)))
    return directory


def assert_same_record(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == other[name].dtype
            np.testing.assert_array_equal(value, other[name], err_msg=name)
        else:
            assert value == other[name], name
