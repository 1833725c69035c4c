"""Miniatures of ImageNet's evaluation sets, with their true folders and names, and a model whose predictions are known.

A picture of one color is a point of a grid: class 123 is the color (1, 2, 3). The model predicts the nearest class, and
the next nearest is the second.
"""

import io
import json
import pathlib
import tarfile
import zipfile

import numpy as np
from conftest import encode

from vision_jax import build, config, pretrained
from vision_jax.devices import sharding
from vision_jax.models import registry
from vision_jax.models.layers import Classifier, ImageModel, global_mean
from vision_jax.suite.find import CORRUPTIONS

SIZE = 16
WNIDS = pretrained.imagenet_classes()
FAR = 500  # a class that is far from all others that are used here


class Colors(ImageModel, kw_only=True):
    """A linear classifier of the mean color."""

    residual = False

    def setup(self):
        self.fc = Classifier(self.num_classes)

    def feature_maps(self, images, *, train):
        return {1: self.prepare(images)}

    def features(self, images, *, train):
        return global_mean(self.feature_maps(images, train=train)[1])

    def classify(self, features, *, train):
        return self.fc(features)


if "colors" not in registry.list_models():
    registry.register("colors", Colors, registry.InputSpec(SIZE), library="")


def coordinates(number: int) -> np.ndarray:
    return np.asarray([number // 100, number // 10 % 10, number % 10], float)


def right(number: int) -> np.ndarray:
    """Returns the color of a class."""
    return coordinates(number)


def near(number: int) -> np.ndarray:
    """Returns a color that is nearest to the class before, and next nearest to this one."""
    return coordinates(number) - [0, 0, 0.7]


def png(color: np.ndarray, size: int = 20, border: int = 0) -> bytes:
    pixels = np.empty((size + 2 * border, size + 2 * border, 3), np.uint8)
    pixels[:] = (255, 0, 0)
    pixels[border : border + size, border : border + size] = _pixel(color)
    return encode(pixels, "PNG")


def framed(inner: np.ndarray, frame: np.ndarray) -> bytes:
    """Returns a picture whose outer two pixels, of 16, have another color."""
    pixels = np.empty((16, 16, 3), np.uint8)
    pixels[:] = _pixel(frame)
    pixels[2:14, 2:14] = _pixel(inner)
    return encode(pixels, "PNG")


def _pixel(color: np.ndarray) -> np.ndarray:
    return np.round(10 + 25 * color).astype(np.uint8)


def trained(class_names: tuple[str, ...] = WNIDS, order: np.ndarray | None = None, shift: float = 0.0):
    """Returns the model; its i-th logit is that of class `order[i]`, and `shift` makes it another one that predicts the
    same."""
    fields = config.default_config()
    fields.model.name, fields.dtype = "colors", "float32"
    fields.data.update({"image_size": SIZE, "eval_size": SIZE, "eval_resize": 20, "num_threads": 2})
    fields.data.update({"mean": (0.0,) * 3, "std": (1.0,) * 3})
    codes = np.stack([(10 + 25 * coordinates(number)) / 255 for number in range(1000)])
    codes = codes if order is None else codes[order]
    classifier = {"kernel": 2 * codes.T * 50, "bias": -np.square(codes).sum(1) * 50 + shift}
    variables = {"params": {"fc": {name: value.astype(np.float32) for name, value in classifier.items()}}}
    mesh = sharding.make_mesh(fields.mesh)
    placed = sharding.place({**variables, "batch_stats": {}}, sharding.replicated(mesh))
    objective = build.make_objective(fields, len(codes))
    return build.TrainedModel(fields, objective, placed, class_names, "a model of colors", mesh)


# By number: label and color.
VALIDATION = {
    1: (11, near(11)),  # 11, among ImageNet-A's or -R's classes
    2: (6, right(6)),
    3: (0, right(0)),
    4: (999, right(FAR)),
    5: (15, right(15)),
    6: (1, right(FAR)),
}
REAL = [[11], [6], [], [FAR, 7], [15], [1], [3], [3]]
V2 = {"0": right(0), "1": right(1), "2": right(FAR), "10": right(10), "100": right(100)}
A = {WNIDS[11]: near(11), WNIDS[6]: right(6), WNIDS[15]: right(FAR)}
R = {WNIDS[1]: right(1), WNIDS[2]: right(FAR)}
SKETCH = {WNIDS[0]: right(0), WNIDS[999]: right(999), WNIDS[5]: right(FAR)}
FRAMED = framed(right(112), right(116))  # 114 on the whole, 112 or 113 without the outermost pixels


def members(classes: dict[str, np.ndarray], prefix: str) -> dict[str, bytes]:
    """Returns a PNG for each class folder. Its name says another format, as some of ImageNet's do."""
    return {f"{prefix}/{name}/0.JPEG": png(color) for name, color in classes.items()}


def write(directory: pathlib.Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_tar(path: pathlib.Path, files: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_zip(path: pathlib.Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def validation_files() -> dict[str, bytes]:
    return {
        f"{WNIDS[label]}/ILSVRC2012_val_{number:08d}.JPEG": png(color) for number, (label, color) in VALIDATION.items()
    }


def corruption_files(corruptions: tuple[str, ...] = CORRUPTIONS) -> dict[str, bytes]:
    """Returns a picture of each corruption and severity: all are predicted correctly but frost's from severity 4."""
    return {
        f"{name}/{level}/{WNIDS[112 if name == 'frost' and level > 3 else 114]}/ILSVRC2012_val_00000009.JPEG": FRAMED
        for name in corruptions
        for level in range(1, 6)
    }


def objectnet_files() -> dict[str, bytes]:
    """The alarm clock is one of two classes of ImageNet; the air freshener is none."""
    colors = {"alarm_clock": right(530), "banana": right(FAR), "air_freshener": right(0)}
    return {f"objectnet-1.0/images/{name}/a.png": png(color, border=2) for name, color in colors.items()}


def write_folders(directory: pathlib.Path) -> pathlib.Path:
    """Writes all sets but ImageNet-C, unpacked."""
    write(directory / "imagenet" / "val", validation_files())
    (directory / "real.json").write_text(json.dumps(REAL))
    for variant in ("matched-frequency", "threshold0.7", "top-images"):
        write(directory, members(V2, f"imagenetv2/imagenetv2-{variant}-format-val"))
    write(directory, members(A, "imagenet-a") | members(R, "imagenet-r") | members(SKETCH, "sketch"))
    write(directory, objectnet_files())
    return directory


def write_archives(directory: pathlib.Path) -> pathlib.Path:
    """Writes the same sets as they are downloaded."""
    write(directory / "val", validation_files())
    (directory / "real.json").write_text(json.dumps(REAL))
    for variant in ("matched-frequency", "threshold0.7", "top-images"):
        files = members(V2, f"imagenetv2-{variant}-format-val")
        write_tar(directory / f"imagenetv2-{variant}.tar.gz", files, "w:gz")
    write_tar(directory / "imagenet-a.tar", {"imagenet-a/README.txt": b"", **members(A, "imagenet-a")})
    write_tar(directory / "imagenet-r.tar", members(R, "imagenet-r"))
    write_zip(directory / "ImageNet-Sketch.zip", members(SKETCH, "sketch"))
    write_zip(directory / "objectnet-1.0.zip", objectnet_files())
    return directory
