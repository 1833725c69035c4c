"""Inputs of `prepare`: a miniature of ImageNet's archives with all their oddities, and TFRecord files."""

import io
import pathlib
import struct
import tarfile

import numpy as np
import PIL.Image
from conftest import encode, picture

from vision_jax.preparation import archives

WNIDS = ("n01440764", "n02105855", "n04152593")
CMYK = "n01440764_1.JPEG"
# ILSVRC2012's own numbers of the classes, which are not in the order of the labels.
IDS = {1: "n04152593", 2: "n01440764", 3: "n02105855"}


def saved(image: PIL.Image.Image, image_format: str) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format)
    return file.getvalue()


def cmyk(pixels: np.ndarray, *, ycck: bool = False) -> bytes:
    """A JPEG of four components, inverted as Adobe's programs write them."""
    data = bytearray(saved(PIL.Image.fromarray(pixels).convert("CMYK"), "JPEG"))
    if ycck:
        data[data.index(b"Adobe") + 11] = 2  # the transform: the same bytes now mean YCCK
    return bytes(data)


def exif(orientation: int) -> bytes:
    tags = PIL.Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def train_images() -> dict[str, bytes]:
    """The training images by file name: plain JPEGs, and one of each oddity of ImageNet."""
    images = {
        f"{wnid}_{i}.JPEG": encode(picture(50 + 5 * i, 110 - 7 * i, seed=10 * label + i), quality=95)
        for label, wnid in enumerate(WNIDS)
        for i in range(8)
    }
    images[CMYK] = cmyk(picture(70, 60, seed=1))
    images["n01440764_2.JPEG"] = encode(picture(50, 81, seed=2)[:, :, 0])  # greyscale
    images["n01440764_3.JPEG"] = encode(picture(20, 30, seed=3), quality=80)  # smaller than short_side
    images["n01440764_4.JPEG"] = encode(picture(25, 60, seed=4)[:, :, 1])  # both
    images["n02105855_2933.JPEG"] = encode(picture(64, 48, seed=5), "PNG")
    images["n02105855_2.JPEG"] = saved(PIL.Image.fromarray(picture(40, 48, seed=6)).quantize(64), "PNG")
    images["n02105855_3.JPEG"] = encode(np.dstack([picture(40, 52, seed=7), picture(40, 52, seed=8)[:, :, 0]]), "PNG")
    images["n04152593_17460.JPEG"] = encode(picture(45, 60, seed=9), exif=b"Exif\0\0II*\0garbage, not a directory")
    images["n04152593_1.JPEG"] = encode(picture(45, 60, seed=11), exif=exif(6))
    images["n04152593_2.JPEG"] = encode(picture(300, 500, seed=12))  # reduced while it is decoded
    return images


def validation_images() -> dict[str, bytes]:
    images = {
        f"ILSVRC2012_val_{i + 1:08d}.JPEG": encode(picture(50 + i, 70 - i, seed=100 + i), quality=95) for i in range(9)
    }
    images["ILSVRC2012_val_00000007.JPEG"] = cmyk(picture(50, 60, seed=106), ycck=True)
    return images


VALIDATION_IDS = [3, 1, 2, 2, 1, 3, 3, 2, 1]


def tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def write_devkit(path: pathlib.Path) -> None:
    """meta.mat has the fields of the real one, and a node above the classes."""
    import scipy.io

    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    synsets = np.empty((4, 1), [(name, object) for name in (*fields, "num_train_images")])
    for row, (number, wnid) in enumerate(IDS.items()):
        synsets[row, 0] = (float(number), wnid, f"words of {wnid}, more", "gloss", 0.0, np.zeros((0, 0)), 0.0, 8.0)
    synsets[3, 0] = (4.0, "n00001740", "entity", "gloss", 3.0, np.array([1.0, 2.0, 3.0]), 1.0, 0.0)
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": synsets})
    truth = "".join(f"{number}\n" for number in VALIDATION_IDS).encode()
    members = {
        "ILSVRC2012_devkit_t12/readme.txt": b"hello",
        "ILSVRC2012_devkit_t12/data/meta.mat": file.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth,
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_archives(directory: pathlib.Path, train: dict[str, bytes] | None = None) -> pathlib.Path:
    directory.mkdir()
    train = train_images() if train is None else train
    classes = {f"{w}.tar": tar({n: d for n, d in train.items() if n.startswith(w)}) for w in reversed(WNIDS)}
    (directory / archives.TRAIN).write_bytes(tar(classes))
    (directory / archives.VALIDATION).write_bytes(tar(validation_images()))
    write_devkit(directory / f"{archives.DEVKIT}.tar.gz")
    return directory


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit, as its definition says."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def write_tfrecord(path: pathlib.Path, records: list[bytes]) -> pathlib.Path:
    """A TFRecord file as TensorFlow writes it."""

    def masked(data: bytes) -> bytes:
        crc = crc32c(data)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    with path.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + masked(length) + record + masked(record[:100]))
    return path
