"""`prepare --corrupt`: what is written, the same again, and what is refused."""

import io
import json
import pathlib

import numpy as np
import PIL.Image
import pytest
from conftest import encode, picture
from miniature import WNIDS, validation_images, write_archives
from numpy.random import RandomState

from vision_jax.augment import frost as frost_lib
from vision_jax.augment.corruptions import corrupt, random_state
from vision_jax.commands import prepare
from vision_jax.data.sources import TfdsSource
from vision_jax.errors import ConfigError
from vision_jax.preparation import archives
from vision_jax.preparation import corrupt as corruption_lib

CLASSES = ("ant", "bee")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """INPUT/SPLIT/CLASS/IMAGE; of the validation images one is narrow, one wide and one small."""
    root = tmp_path_factory.mktemp("corrupt") / "input"
    for split, sizes in {"train": [(50, 60)], "val": [(100, 70), (70, 131), (30, 40)]}.items():
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number, (height, width) in enumerate(sizes):
                image = encode(picture(height, width, seed=10 * label + number), "PNG")
                (root / split / name / f"{number}.png").write_bytes(image)
    return root


pytestmark = pytest.mark.usefixtures("in_process")


def run(folder: pathlib.Path, output: pathlib.Path, *flags: str) -> int:
    return prepare.main([str(folder), str(output), "--short_side=64", "--crop=56", *flags])


def content(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def as_torchvision_crops(path: pathlib.Path) -> np.ndarray:
    """Resize(64) and CenterCrop(56)."""
    image = PIL.Image.open(path).convert("RGB")
    width, height = image.size
    if width < height:
        image = image.resize((64, int(64 * height / width)), PIL.Image.Resampling.BILINEAR)
    else:
        image = image.resize((int(64 * width / height), 64), PIL.Image.Resampling.BILINEAR)
    left, top = round((image.width - 56) / 2.0), round((image.height - 56) / 2.0)
    return np.asarray(image.crop((left, top, left + 56, top + 56)))


def test_the_validation_split_is_cropped_corrupted_and_saved_as_published(folder: pathlib.Path, tmp_path: pathlib.Path):
    assert run(folder, tmp_path / "out", "--corrupt=fog:3,gaussian_noise:5") == 0
    for name, severity in (("fog", 3), ("gaussian_noise", 5)):
        directory = tmp_path / "out" / name / str(severity)
        about = json.loads((directory / "manifest.json").read_text())
        assert about["options"]["quality"] == 85
        assert about["options"]["name"] == f"input_{name}_{severity}"
        assert list(about["splits"]) == ["validation"]
        source = TfdsSource(directory, "validation")
        assert len(source) == 6
        for record in source:
            file = record["file_name"].decode()
            assert CLASSES[record["label"]] == file.split("/")[0]
            clean = as_torchvision_crops(folder / "val" / file)
            random = random_state(0, name, severity, record["file_name"])
            saved = io.BytesIO()
            image = PIL.Image.fromarray(corrupt(clean, name, severity, random))
            image.save(saved, "JPEG", quality=85, optimize=True)  # as the authors do
            expected, found = (np.asarray(PIL.Image.open(file)) for file in (saved, io.BytesIO(record["image"])))
            np.testing.assert_array_equal(found, expected)


def test_the_same_bytes_whatever_the_number_of_shards_and_the_order(folder: pathlib.Path, tmp_path: pathlib.Path):
    flags = ("--corrupt=spatter:2", "--encoding=raw")
    assert run(folder, tmp_path / "a", *flags) == 0
    assert run(folder, tmp_path / "b", *flags) == 0
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert run(folder, tmp_path / "c", *flags, "--shards=3") == 0
    assert run(folder, tmp_path / "d", *flags, "--seed=1") == 0
    images = {}
    for name in "acd":
        source = TfdsSource(tmp_path / name / "spatter" / "2", "validation")
        images[name] = {record["file_name"]: record["image"] for record in source}
    assert images["a"] == images["c"]
    assert all(images["a"][key] != images["d"][key] for key in images["a"])
    assert run(folder, tmp_path / "a", *flags) == 0  # it is there already


def test_of_imagenets_archives_the_validation_images_alone_are_read(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    downloads = write_archives(tmp_path / "downloads")
    monkeypatch.setattr(archives, "_index_train", None)  # it would be called
    assert run(downloads, tmp_path / "out", "--corrupt=contrast:5") == 0
    source = TfdsSource(tmp_path / "out" / "contrast" / "5", "validation")
    assert {record["file_name"] for record in source} == {name.encode() for name in validation_images()}
    assert list(source.class_names) == list(WNIDS)


def test_frost_of_given_pictures(folder: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    pictures = tmp_path / "frost"
    pictures.mkdir()
    for number in range(1, 6):  # of one color, smaller than the images, so that they are enlarged
        PIL.Image.new("RGB", (30, 40), (200, 100, number)).save(pictures / f"frost{number}.png")
    assert run(folder, tmp_path / "a", "--corrupt=frost:1", "--encoding=raw") == 0
    assert "The frost is made up" in caplog.text
    caplog.clear()
    flags = ("--corrupt=frost:1", "--encoding=raw", f"--frost={pictures}")
    assert run(folder, tmp_path / "b", *flags) == 0
    assert "made up" not in caplog.text
    for record in TfdsSource(tmp_path / "b" / "frost" / "1", "validation"):
        clean = as_torchvision_crops(folder / "val" / record["file_name"].decode())
        found = np.asarray(PIL.Image.open(io.BytesIO(record["image"])))
        np.testing.assert_array_equal(found[..., :2], np.minimum(clean[..., :2] + np.array([80, 40]), 255))
    # Other pictures are another data set.
    PIL.Image.new("RGB", (300, 300), "white").save(pictures / "frost3.png")
    assert run(folder, tmp_path / "b", *flags) == 1
    (pictures / "frost4.png").unlink()
    assert run(folder, tmp_path / "c", *flags) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--corrupt=fogg:3"], "--corrupt has 'fogg', which is no corruption: did you mean fog"),
        (["--corrupt=fog:6"], "--corrupt has 'fog:6': severities are 1 to 5."),
        (["--corrupt=fog:"], "--corrupt has 'fog:': severities are 1 to 5."),
        (["--corrupt=fog:1", "--crop=300"], "--crop is 300, more than --short_side=64"),
        (["--corrupt=fog:1", "--short_side=0"], "it has 40x30 pixels, fewer than --crop=56: lower that"),
        (["--corrupt=fog:1", "--short_side=20", "--crop=0"], "corruptions need 32 each way: enlarge it"),
        (["--corrupt=frost:1", "--frost=nowhere"], "--frost is nowhere, which is no folder"),
        (["--corrupt=frost:1", "--frost=."], "has 0 pictures frost1.png or .jpg, and one is needed"),
    ],
)
def test_what_is_refused(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, flags: list[str], message: str
):
    assert run(folder, tmp_path / "out", *flags) == 1
    assert message in capsys.readouterr().err


def test_folders_and_flags_that_do_not_fit(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    (tmp_path / "fog" / "1").mkdir(parents=True)
    (tmp_path / "fog" / "1" / "notes.txt").write_text("mine")
    assert run(folder, tmp_path, "--corrupt=fog:1") == 1
    assert "fog/1 is not empty (notes.txt)" in capsys.readouterr().err
    assert prepare.main([str(folder), str(tmp_path / "out"), "--seed=1"]) == 1
    assert "--seed=1 is for --corrupt=NAME:SEVERITY, and for known" in capsys.readouterr().err
    for flags in (["--crop=1"], ["--corrupt=fog:1", "--encoding=original"]):
        with pytest.raises(SystemExit):
            prepare.main([str(folder), str(tmp_path / "out"), *flags])


def test_groups_of_corruptions():
    assert corruption_lib.parse("fog:2,brightness:1,fog:2") == [("fog", 2), ("brightness", 1)]
    assert corruption_lib.parse("snow") == [("snow", severity) for severity in range(1, 6)]
    assert [name for name, _ in corruption_lib.parse("noise:1")] == ["gaussian_noise", "shot_noise", "impulse_noise"]
    assert len(corruption_lib.parse("all")) == 75
    assert len(corruption_lib.parse("all,extra")) == 95


def test_images_that_are_not_uint8_or_too_small():
    random = RandomState(0)
    with pytest.raises(ValueError, match="not uint8"):
        corrupt(np.zeros((40, 40, 3)), "fog", 1, random)
    with pytest.raises(ValueError, match="40x31 pixels"):
        corrupt(np.zeros((31, 40, 3), np.uint8), "fog", 1, random)
    with pytest.raises(ConfigError, match="Severity 0 of fog"):
        corrupt(np.zeros((40, 40, 3), np.uint8), "fog", 0, random)
    assert frost_lib.made_up(random, 33, 50).shape == (33, 50, 3)
