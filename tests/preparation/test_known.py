"""Known data sets, from miniatures with the true names and layouts of their files."""

import collections
import dataclasses
import gzip
import json
import logging
import pathlib
import re
from collections.abc import Callable

import numpy as np
import pytest
from conftest import REPOSITORY, encode, picture
from known_miniatures import MINIATURES, Miniature, idx, lines, mat, pack, put

from vision_jax.commands import prepare
from vision_jax.data import decode
from vision_jax.data.sources import TfdsSource
from vision_jax.preparation import known, manifest, shards

Content = dict[str, collections.Counter[tuple[str, bytes]]]


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vision_jax")
    monkeypatch.setattr(prepare.console, "configure_logging", lambda: None)
    monkeypatch.setattr(
        shards, "write_shards", lambda job, todo, workers, progress: (job.write(s, lambda: None) for s in todo)
    )


def publish(monkeypatch: pytest.MonkeyPatch, name: str, miniature: Miniature) -> None:
    """Makes the sizes of the miniature the published ones; all else of the description stays."""
    examples = {split: len(records) for split, records in miniature.expected.items()}
    if "all" in examples:
        counts = collections.Counter(label for label, _ in miniature.expected["all"])
        draw = known.KNOWN[name].draw
        assert draw is not None
        train = sum(round(draw.share * n) if draw.per_class is None else draw.per_class for n in counts.values())
        examples = {"train": train, "test": examples["all"] - train}
    description = dataclasses.replace(known.KNOWN[name], examples=examples, num_classes=miniature.classes)
    monkeypatch.setattr(known, "KNOWN", {**known.KNOWN, name: description})


def expected_of(miniature: Miniature) -> Content:
    return {
        split: collections.Counter(
            (label, image.tobytes() if isinstance(image, np.ndarray) else image) for label, image in records
        )
        for split, records in miniature.expected.items()
    }


def read(directory: pathlib.Path, split: str, *, pixels: bool) -> collections.Counter[tuple[str, bytes]]:
    source = TfdsSource(directory, split)
    records = [source[i] for i in range(len(source))]
    return collections.Counter(
        (
            source.class_names[record["label"]],
            decode.decode_with_pillow(record["image"], _channels(record["image"])).tobytes()
            if pixels
            else record["image"],
        )
        for record in records
    )


def _channels(png: bytes) -> int:
    return 1 if png[25] == 0 else 3  # the color type in the header


def run(*arguments: object) -> int:
    return prepare.main([*map(str, arguments), "--workers=1"])


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Runs the command, which must fail with one line, and returns it."""
    assert run(*arguments) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1, printed
    return printed


@pytest.mark.parametrize("unpacked", [False, True], ids=["archives", "unpacked"])
@pytest.mark.parametrize("name", MINIATURES)
def test_round_trip(name: str, unpacked: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    miniature = MINIATURES[name]()
    if unpacked and not miniature.archives:
        pytest.skip("it has no archives")
    publish(monkeypatch, name, miniature)
    downloads, out = miniature.write(tmp_path / "downloads", unpacked=unpacked), tmp_path / "out"
    assert run(f"--dataset={name}", "--encoding=original", downloads, out) == 0
    expected = expected_of(miniature)
    pixels = any(isinstance(image, np.ndarray) for records in miniature.expected.values() for _, image in records)
    splits = manifest.read(out)["splits"]
    if "all" in expected:
        assert set(splits) == {"train", "test"}
        train, test = (read(out, split, pixels=pixels) for split in ("train", "test"))
        assert not train & test
        assert train + test == expected["all"]
        assert min(collections.Counter(label for label, _ in test).values()) > 0
    else:
        assert {split: read(out, split, pixels=pixels) for split in splits} == expected
    assert TfdsSource(out, "train").num_classes == miniature.classes
    assert not (out / "incomplete").exists()
    assert prepare.main(["--verify", str(out)]) == 0


def test_every_data_set_has_a_miniature():
    assert set(MINIATURES) == set(known.KNOWN)


UNTOLD = {"mnist", "fashion_mnist", "kmnist", *(name for name in MINIATURES if name.startswith("emnist"))}


@pytest.mark.parametrize("name", MINIATURES)
def test_the_names_of_the_files_tell(name: str, tmp_path: pathlib.Path):
    """As archives, nearly always; unpacked, unless they are as those of any folder of classes."""
    told = None if name in UNTOLD else known.KNOWN[name]
    miniature = MINIATURES[name]()
    assert known.recognize(miniature.write(tmp_path / "archives")) is told
    if miniature.archives and not name.startswith("inaturalist_2021"):
        assert known.recognize(miniature.write(tmp_path / "unpacked", unpacked=True)) is told


def test_several_or_unknown_names(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    both = MINIATURES["pets"]().write(tmp_path / "both")
    MINIATURES["food101"]().write(both)
    assert "say which by --dataset=pets or --dataset=food101" in refused(capsys, both, tmp_path / "out")
    assert "--dataset=pet is not known: did you mean pets" in refused(capsys, both, tmp_path / "out", "--dataset=pet")
    assert "has neither ILSVRC2012_img_train.tar nor" in refused(capsys, both, tmp_path / "out", "--dataset=imagenet")


def test_the_folder_itself(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """INPUT may be the folder that the archive unpacks to."""
    miniature = MINIATURES["food101"]()
    publish(monkeypatch, "food101", miniature)
    downloads = miniature.write(tmp_path / "downloads", unpacked=True)
    assert run("--dataset=food101", "--encoding=original", downloads / "food-101", tmp_path / "out") == 0
    assert read(tmp_path / "out", "test", pixels=False) == expected_of(miniature)["test"]


def test_decompressed_archives(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """A tar file that the user has decompressed is read in place, as is caltech-101's inner one."""
    miniature = MINIATURES["dtd"]()
    publish(monkeypatch, "dtd", miniature)
    put(tmp_path / "downloads" / "dtd-r1.0.1.tar", pack("x.tar", miniature.archives["dtd-r1.0.1.tar.gz"]))
    assert run("--dataset=dtd", "--encoding=original", tmp_path / "downloads", tmp_path / "out") == 0
    assert read(tmp_path / "out", "validation", pixels=False) == expected_of(miniature)["validation"]

    miniature = MINIATURES["caltech101"]()
    publish(monkeypatch, "caltech101", miniature)
    inner = miniature.archives["caltech-101.zip"]["caltech-101/101_ObjectCategories.tar.gz"]
    put(tmp_path / "old" / "101_ObjectCategories.tar.gz", inner)
    assert run("--dataset=caltech101", "--encoding=original", tmp_path / "old", tmp_path / "out2") == 0
    train, test = (read(tmp_path / "out2", split, pixels=False) for split in ("train", "test"))
    assert train + test == expected_of(miniature)["all"]


def test_seeds_divide_what_has_no_splits(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
):
    miniature = MINIATURES["caltech101"]()
    publish(monkeypatch, "caltech101", miniature)
    downloads = miniature.write(tmp_path / "downloads")
    chosen = {}
    for seed, flags in (("none", ()), ("0", ("--seed=0",)), ("1", ("--seed=1",))):
        assert run("--dataset=caltech101", *flags, downloads, tmp_path / seed) == 0
        chosen[seed] = read(tmp_path / seed, "train", pixels=False)
    assert chosen["none"] == chosen["0"] != chosen["1"]
    assert set(collections.Counter(label for label, _ in chosen["1"]).values()) == {30}
    assert "30 images of each class are for training, by seed 1" in caplog.text
    assert "input.seed: 1 -> 0" in (run("--dataset=caltech101", downloads, tmp_path / "1"), capsys.readouterr().err)[1]
    pets = MINIATURES["pets"]().write(tmp_path / "pets")
    assert "and for known data sets that are published without splits, and" in refused(
        capsys, pets, tmp_path / "x", "--dataset=pets", "--seed=1"
    )


def test_words_for_classes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    words = {
        "tiny_imagenet": {"n01443537": "goldfish, Carassius auratus"},
        "imagewoof": {"n02086240": "Shih-Tzu", "n02115641": "dingo"},
        "food101": {"apple_pie": "Apple pie", "waffles": "Waffles"},
        "stanford_dogs": {"n02085620-Chihuahua": "Chihuahua", "n02115913-dhole": "dhole"},
    }
    for name, expected in words.items():
        miniature = MINIATURES[name]()
        publish(monkeypatch, name, miniature)
        assert run(f"--dataset={name}", miniature.write(tmp_path / name), tmp_path / f"{name}.out") == 0
        assert json.loads((tmp_path / f"{name}.out" / "class_names.json").read_text()) == expected


def test_damaged_pets_are_taken_as_others_see_them(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """beagle_116.jpg is damaged, as published; another image must not be."""
    miniature = MINIATURES["pets"]()
    publish(monkeypatch, "pets", miniature)
    whole = encode(picture(64, 64, seed=1), quality=95)
    cut = whole[: len(whole) * 2 // 3] + b"\xff\xd9"
    with pytest.raises(ValueError, match="damaged"):
        decode.decode(cut, 3)
    downloads = miniature.write(tmp_path / "downloads", unpacked=True)
    put(downloads / "images" / "Abyssinian_1.jpg", cut)
    assert "it is damaged" in "".join(
        (str(run("--dataset=pets", downloads, tmp_path / "out")), capsys.readouterr().err)
    )
    damaged = frozenset({"images/Abyssinian_1.jpg"})
    monkeypatch.setitem(known.KNOWN, "pets", dataclasses.replace(known.KNOWN["pets"], damaged=damaged))
    assert "images/beagle_116.jpg" in known._ALL[[k.name for k in known._ALL].index("pets")].damaged
    assert run("--dataset=pets", "--encoding=raw", downloads, tmp_path / "mended") == 0
    images = [image for label, image in read(tmp_path / "mended", "train", pixels=False) if label == "Abyssinian"]
    expected = decode.decode_with_pillow(cut, 3).tobytes()
    assert sum(image.endswith(expected) for image in images) == 1


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


def test_published_sizes_and_subsets(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
):
    miniature = MINIATURES["pets"]()
    downloads, out = miniature.write(tmp_path / "downloads", unpacked=True), tmp_path / "out"
    message = refused(capsys, "--dataset=pets", downloads, out)
    assert "the split train has 6 images, and that of Oxford-IIIT Pets as published 3,680" in message
    assert "or give --subset" in message
    (downloads / "images" / "Egyptian_Mau_20.jpg").unlink()
    assert run("--dataset=pets", "--subset", "--encoding=original", downloads, out) == 0
    assert "Left out of test, as they are not there: 1 (images/Egyptian_Mau_20.jpg)" in caplog.text
    assert "This is what there was of the data set, by --subset" in caplog.text
    expected = expected_of(miniature)
    assert read(out, "train", pixels=False) == expected["train"]
    assert read(out, "test", pixels=False) < expected["test"]
    assert prepare.main(["--verify", str(out)]) == 0


def test_a_split_alone(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    for name, gone in (
        ("places365_small", ["train_256_places365standard.tar"]),
        ("mnist", ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]),
    ):
        miniature = MINIATURES[name]()
        downloads = miniature.write(tmp_path / name)
        for file in gone:
            (downloads / file).unlink()
        assert "(--subset prepares what there is without it)" in refused(
            capsys, f"--dataset={name}", downloads, tmp_path / "x"
        )
        out = tmp_path / f"{name}.out"
        assert run(f"--dataset={name}", "--subset", "--encoding=original", downloads, out) == 0
        assert len(manifest.read(out)["splits"]) == 1


def test_svhn_without_extra(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    publish(monkeypatch, "svhn", miniature := MINIATURES["svhn"]())
    downloads = miniature.write(tmp_path / "downloads")
    (downloads / "extra_32x32.mat").unlink()
    assert run(downloads, tmp_path / "out") == 0  # the names of the files tell
    assert set(manifest.read(tmp_path / "out")["splits"]) == {"train", "test"}


def test_verify_compares_with_what_is_published(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    publish(monkeypatch, "dtd", miniature := MINIATURES["dtd"]())
    assert run("--dataset=dtd", miniature.write(tmp_path / "downloads"), tmp_path / "out") == 0
    content = manifest.read(tmp_path / "out")
    assert content["input"]["published"] == {"train": 2, "validation": 2, "test": 2}
    content["input"]["published"]["test"] = 1880
    shards.write_json(tmp_path / "out" / manifest.FILE_NAME, content)
    assert prepare.main(["--verify", str(tmp_path / "out")]) == 1
    assert "test has 2 examples and 0 were left out, but 1,880 are published" in capsys.readouterr().err


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


def test_flags_for_other_inputs(image_folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    assert "--subset is for known data sets" in refused(capsys, "--subset", image_folder, tmp_path / "out")
    assert "--seed=3 is for --corrupt" in refused(capsys, "--seed=3", image_folder, tmp_path / "out")


def test_the_documentation_lists_them(capsys: pytest.CaptureFixture):
    assert known.table() in (REPOSITORY / "docs" / "data.md").read_text()
    assert prepare.main(["--datasets"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in known.KNOWN)
