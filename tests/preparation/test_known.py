"""Known data sets, from miniatures with the true names and layouts of their files."""

import collections
import dataclasses
import json
import pathlib

import numpy as np
import pytest
from conftest import REPOSITORY, encode, picture
from known_miniatures import MINIATURES, Miniature, pack, put
from known_runs import publish, refused, run

from vision_jax.commands import prepare
from vision_jax.data import decode
from vision_jax.data.sources import TfdsSource
from vision_jax.preparation import known, manifest, recognition, shards

Content = dict[str, collections.Counter[tuple[str, bytes]]]


pytestmark = pytest.mark.usefixtures("in_process")


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
    assert recognition.recognize(miniature.write(tmp_path / "archives")) is told
    if miniature.archives and not name.startswith("inaturalist_2021"):
        assert recognition.recognize(miniature.write(tmp_path / "unpacked", unpacked=True)) is told


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


def test_other_archives(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Tar files that the user has decompressed are read in place; some sets are published in other archives too."""
    miniature = MINIATURES["dtd"]()
    publish(monkeypatch, "dtd", miniature)
    put(tmp_path / "downloads" / "dtd-r1.0.1.tar", pack("x.tar", miniature.archives["dtd-r1.0.1.tar.gz"]))
    assert run("--dataset=dtd", "--encoding=original", tmp_path / "downloads", tmp_path / "out") == 0
    assert read(tmp_path / "out", "validation", pixels=False) == expected_of(miniature)["validation"]

    miniature = MINIATURES["eurosat"]()  # that of Zenodo has another name, and so has the folder in it
    publish(monkeypatch, "eurosat", miniature)
    files = {name.replace("2750", "EuroSAT_RGB"): data for name, data in miniature.archives["EuroSAT.zip"].items()}
    put(tmp_path / "zenodo" / "EuroSAT_RGB.zip", pack("x.zip", files))
    assert run("--dataset=eurosat", tmp_path / "zenodo", tmp_path / "out1") == 0
    assert TfdsSource(tmp_path / "out1", "train").num_classes == 10

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


def test_flags_for_other_inputs(image_folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    assert "--subset is for known data sets" in refused(capsys, "--subset", image_folder, tmp_path / "out")
    assert "--seed=3 is for --corrupt" in refused(capsys, "--seed=3", image_folder, tmp_path / "out")


def test_the_documentation_lists_them(capsys: pytest.CaptureFixture):
    assert known.table() in (REPOSITORY / "docs" / "data.md").read_text()
    assert prepare.main(["--datasets"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in known.KNOWN)
