"""What is said of the downloads of known data sets when something is wrong with them."""

import dataclasses
import gzip
import pathlib
import re
from collections.abc import Callable

import numpy as np
import pytest
from known_miniatures import MINIATURES, Miniature, idx, lines, mat, pack, put
from known_runs import publish, refused

from vision_jax.preparation import manifest

pytestmark = pytest.mark.usefixtures("in_process")


class Edit:
    """A change of downloads: of one file, loose or in an archive; None takes it away."""

    def __init__(self, name: str, file: str, change: Callable[[bytes], bytes] | None, message: str):
        self.name, self.file, self.change, self.message = name, file, change, message

    def __call__(self) -> Miniature:
        miniature = MINIATURES[self.name]()

        def edited(files: dict[str, bytes]) -> dict[str, bytes]:
            if self.change is None:
                return {name: data for name, data in files.items() if name != self.file}
            return {name: self.change(data) if name == self.file else data for name, data in files.items()}

        archives = {name: edited(members) for name, members in miniature.archives.items() if name != self.file}
        changed = dataclasses.replace(miniature, archives=archives, loose=edited(miniature.loose))
        assert (changed.archives, changed.loose) != (miniature.archives, miniature.loose)
        return changed


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new)

    return change


PUBLISHED = "is published at https://www.robots.ox.ac.uk/~vgg/data/pets/"
EDITS = [
    # IDX
    Edit("mnist", "t10k-labels-idx1-ubyte.gz", None, r"has no t10k-labels-idx1-ubyte\.gz: MNIST is published at http"),
    Edit(
        "mnist",
        "train-images-idx3-ubyte.gz",
        lambda d: d[:-9],
        r"train-images-idx3-ubyte\.gz cannot be read, or is cut",
    ),
    Edit(
        "mnist",
        "train-images-idx3-ubyte.gz",
        lambda d: gzip.compress(b"\0\0\x0d\3"),
        "is no IDX file of bytes: it begins",
    ),
    Edit(
        "mnist", "t10k-labels-idx1-ubyte.gz", lambda d: idx(np.full(11, 10)), r"label of test/000000\.png in test is 10"
    ),
    Edit("mnist", "t10k-labels-idx1-ubyte.gz", lambda d: idx(np.zeros(5)), "they do not belong together"),
    Edit(
        "emnist_letters",
        "gzip/emnist-letters-test-labels-idx1-ubyte.gz",
        lambda d: idx(np.arange(27)),
        "is -1, counted",
    ),
    # CIFAR and SVHN
    Edit("cifar10", "cifar-10-batches-bin/data_batch_4.bin", lambda d: d[:-1], "9218 bytes are not a multiple of 3073"),
    Edit(
        "cifar10",
        "cifar-10-batches-bin/test_batch.bin",
        lambda d: b"\x0a" + d[1:],
        "is 10, counted from 0, and there are 10",
    ),
    Edit(
        "cifar100", "cifar-100-binary/fine_label_names.txt", lambda d: d[:16], "counted from 0, and there are 2 classes"
    ),
    Edit("svhn", "test_32x32.mat", lambda d: d[: len(d) // 2], r"test_32x32\.mat cannot be read, or is cut off"),
    Edit(
        "svhn",
        "test_32x32.mat",
        lambda d: mat(X=np.zeros((32, 32, 3, 1), np.uint8), y=np.array([[0]])),
        "is 0, and none is",
    ),
    Edit(
        "svhn", "test_32x32.mat", lambda d: mat(X=np.zeros((32, 32, 3, 2), np.uint8), y=np.array([[1]])), "and 1 labels"
    ),
    Edit(
        "svhn", "train_32x32.mat", lambda d: mat(digitStruct=1.0), "has no array 'X': it is another file of that name"
    ),
    Edit(
        "cifar10", "cifar-10-batches-bin/data_batch_3.bin", None, "the split train has 12 images, and that of CIFAR-10"
    ),
    # Folders and lists
    Edit(
        "imagenette",
        "imagenette2-160/val/n03888257/n03888257_1.JPEG",
        None,
        "validation has 3 images, and that of Imagenette",
    ),
    Edit(
        "tiny_imagenet",
        "tiny-imagenet-200/val/val_annotations.txt",
        lambda d: d.replace(b"n02124075", b"n0"),
        "is of the class 'n0'",
    ),
    Edit(
        "tiny_imagenet",
        "tiny-imagenet-200/val/images/val_1.JPEG",
        None,
        r"has no val/images/val_1\.JPEG, which is in the list of val",
    ),
    Edit(
        "tiny_imagenet",
        "tiny-imagenet-200/val/val_annotations.txt",
        lambda d: d[:10],
        "line 1: 'val_0.JPEG' has fewer than 2 col",
    ),
    Edit(
        "pets",
        "images.tar.gz",
        None,
        r"has no images\.tar\.gz \(nor, unpacked, images\): Oxford-IIIT Pets " + PUBLISHED,
    ),
    Edit(
        "pets",
        "annotations/test.txt",
        None,
        r"the split test has 0 images, and that of Oxford-IIIT Pets as published 3:",
    ),
    Edit("pets", "annotations/test.txt", lambda d: d + d, "Abyssinian_20.jpg is twice in test"),
    Edit(
        "pets",
        "annotations/test.txt",
        replaced(b"Abyssinian_20 1", b"Abyssinian_1 1"),
        "Abyssinian_1.jpg is in train and in test",
    ),
    Edit(
        "pets",
        "annotations/test.txt",
        replaced(b"Abyssinian_20 1", b"Abyssinian_20 2"),
        "the label 2, and so has american_bulldog",
    ),
    Edit(
        "pets",
        "annotations/test.txt",
        replaced(b"Abyssinian_20 1", b"Abyssinian_20 x"),
        "line 1: 'x' is no number of a class",
    ),
    Edit(
        "flowers",
        "setid.mat",
        lambda d: mat(trnid=[[8]], valid=[[1]], tstid=[[2]]),
        "trnid has the image 8, and imagelabels.mat labels 7",
    ),
    Edit(
        "flowers",
        "imagelabels.mat",
        lambda d: mat(labels=[[103] * 7]),
        "is 102, counted from 0, and there are 102 classes",
    ),
    Edit("flowers", "setid.mat", None, r"has no setid\.mat: Oxford Flowers-102 is published at"),
    Edit("food101", "food-101/meta/train.json", lambda d: d[:-2], r"meta/train\.json is no JSON file, or is cut off"),
    Edit("food101", "food-101/meta/train.json", lambda d: b"[1]", "holds no lists of images by class"),
    Edit(
        "food101",
        "food-101/images/waffles/101.jpg",
        None,
        r"has no images/waffles/101\.jpg, which is in the list of test",
    ),
    Edit(
        "food101",
        "food-101/meta/classes.txt",
        lambda d: lines("apple_pie"),
        "is of the class 'waffles', which is none of the 1",
    ),
    Edit("dtd", "dtd/images/banded/banded_0001.jpg", None, r"has no images/banded/banded_0001\.jpg"),
    Edit("eurosat", "2750/Forest/Forest_3.jpg", None, "the split test has 9 images|the split train has 39 images"),
    Edit("stanford_dogs", "train_list.mat", lambda d: b"MATLAB", r"train_list\.mat cannot be read, or is cut off"),
    Edit(
        "places365", "places365_val.txt", lambda d: d.replace(b" 1", b" 365"), "is 365, counted from 0, and there are 2"
    ),
    Edit(
        "places365",
        "categories_places365.txt",
        lambda d: d.replace(b" 1", b" 2"),
        "no image has the label 1, counted from 0",
    ),
    Edit(
        "inaturalist_2018",
        "val2018.json",
        lambda d: b"{}",
        "is no list of images, annotations and categories: KeyError",
    ),
    Edit(
        "inaturalist_2018",
        "val2018.json",
        lambda d: re.sub(rb'"image_id": \d+', b'"image_id": 1', d, count=1),
        "the label of .* is -1",
    ),
    Edit(
        "inaturalist_2021",
        "val.json.tar.gz",
        None,
        r"has no val\.json\.tar\.gz \(nor, unpacked, val\.json\): iNaturalist 2021",
    ),
]


@pytest.mark.parametrize(
    "edit", EDITS, ids=[f"{edit.name}-{edit.file.rpartition('/')[2]}-{i}" for i, edit in enumerate(EDITS)]
)
def test_what_is_wrong(
    edit: Edit, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    publish(monkeypatch, edit.name, MINIATURES[edit.name]())
    downloads = edit().write(tmp_path / "downloads")
    assert re.search(edit.message, refused(capsys, f"--dataset={edit.name}", downloads, tmp_path / "out"))
    assert not (tmp_path / "out" / manifest.FILE_NAME).exists()  # nothing passes for a whole data set
    assert not (tmp_path / "out" / "features.json").exists()


def test_damaged_archives(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    for name, file in (("food101", "food-101.tar.gz"), ("eurosat", "EuroSAT.zip"), ("stanford_dogs", "images.tar")):
        publish(monkeypatch, name, miniature := MINIATURES[name]())
        downloads = miniature.write(tmp_path / name)
        data = (downloads / file).read_bytes()
        put(downloads / file, data[: len(data) // 2])
        message = refused(capsys, f"--dataset={name}", downloads, tmp_path / f"{name}.out")
        assert re.search(rf"{file} is (damaged|truncated|no zip file, or)", message)
        assert not list((tmp_path / f"{name}.out").rglob("*.tmp"))
    twice = MINIATURES["stanford_dogs"]()
    downloads = twice.write(tmp_path / "twice")
    put(downloads / "images.tar", (downloads / "images.tar").read_bytes()[:-10240].rstrip(b"\0") + b"")
    name, image = next(iter(twice.archives["images.tar"].items()))
    put(downloads / "images.tar", pack("x.tar", {name: image, f"./{name}": image}))
    assert f"images.tar has {name} twice" in refused(capsys, "--dataset=stanford_dogs", downloads, tmp_path / "out")


def test_pickled_cifar_is_refused_with_the_reason(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    for number, (name, file) in enumerate(
        (("cifar10", "cifar-10-python.tar.gz"), ("cifar100", "cifar-100-python/train"))
    ):
        put(tmp_path / str(number) / file, b"\x80\x04pickle")
        for flags in ((), (f"--dataset={name}",)):
            message = refused(capsys, *flags, tmp_path / str(number), tmp_path / "out")
            assert "as Python pickles" in message
            assert "can run any program" in message
            assert f"{name.replace('cifar', 'cifar-')}-binary.tar.gz, from https://www.cs.toronto.edu/~kriz" in message
