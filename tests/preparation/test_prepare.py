"""`python -m vision_jax prepare` on a miniature of ImageNet's archives with all its oddities, and on other inputs."""

import hashlib
import importlib.util
import io
import json
import logging
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import PIL.Image
import pytest
from conftest import REPOSITORY, Command, encode, picture
from miniature import CMYK, IDS, VALIDATION_IDS, WNIDS, train_images, validation_images, write_archives, write_tfrecord

from vision_jax.commands import prepare
from vision_jax.data import decode, sources, tfds_format
from vision_jax.preparation import archives, manifest, shards

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF")


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_archives(tmp_path_factory.mktemp("imagenet") / "downloads")


def content(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def read(directory: pathlib.Path, split: str, *, decoded: bool = True) -> list[dict]:
    """The examples as tfds reads them."""
    import tensorflow_datasets as tfds

    decoders = None if decoded else {"image": tfds.decode.SkipDecoding()}
    source = tfds.builder_from_directory(str(directory)).as_data_source(split, decoders=decoders)
    return [source[i] for i in range(len(source))]


def as_pillow_has_it(data: bytes, short_side: int) -> np.ndarray:
    image = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    short = min(image.size)
    if short > short_side:
        size = [int(side * short_side / short + 0.5) for side in image.size]
        image = image.resize(size, PIL.Image.Resampling.BICUBIC)
    return np.asarray(image)


@pytest.mark.usefixtures("in_process")
def test_imagenet_with_its_oddities(downloads: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    out = tmp_path / "out"
    assert prepare.main([str(downloads), str(out), "--short_side=32", "--shards=3"]) == 0
    originals = {"train": train_images(), "validation": validation_images()}
    for split, images in originals.items():
        examples, encoded = read(out, split), read(out, split, decoded=False)
        names = [example["file_name"] for example in examples]
        key = b"vision_jax.prepare\0" + split.encode() + b"\0"
        assert names == sorted((n.encode() for n in images), key=lambda n: hashlib.sha256(key + n).digest())
        for example, raw in zip(examples, encoded, strict=True):
            name = example["file_name"].decode()
            wnid = name[:9] if split == "train" else IDS[VALIDATION_IDS[int(name[15:23]) - 1]]
            assert WNIDS[example["label"]] == wnid
            expected = as_pillow_has_it(images[name], 32)
            assert example["image"].shape == expected.shape
            # Colours that change from pixel to pixel are what JPEG keeps least.
            tolerance = 8 if name in ("ILSVRC2012_val_00000007.JPEG", "n02105855_2.JPEG") else 4
            assert np.abs(example["image"].astype(int) - expected).mean() < tolerance, name
            # What needs no change is not encoded a second time; all else is a JPEG of three components.
            assert (raw["image"] == images[name]) == (name == "n01440764_3.JPEG")
            assert PIL.Image.open(io.BytesIO(raw["image"])).mode == "RGB"
    assert json.loads((out / "class_names.json").read_text()) == {wnid: f"words of {wnid}, more" for wnid in WNIDS}
    assert (out / "label.labels.txt").read_text().split() == list(WNIDS)
    assert manifest.read(out)["splits"]["train"]["examples"] == len(originals["train"]) == 26
    assert [shard["examples"] for shard in manifest.read(out)["splits"]["train"]["shards"]] == [9, 8, 9]
    assert "a part of ImageNet: 3 of 1,000 classes" in caplog.text


@pytest.mark.usefixtures("in_process")
def test_raw_and_original(downloads: pathlib.Path, tmp_path: pathlib.Path):
    images = train_images()
    assert prepare.main([str(downloads), str(tmp_path / "raw"), "--short_side=32", "--encoding=raw"]) == 0
    assert prepare.main([str(downloads), str(tmp_path / "original"), "--encoding=original"]) == 0
    assert prepare.main([str(downloads), str(tmp_path / "all"), "--encoding=raw", "--short_side=0"]) == 0
    for raw, whole in zip(read(tmp_path / "raw", "train"), read(tmp_path / "all", "train"), strict=True):
        name = raw["file_name"].decode()
        expected = as_pillow_has_it(images[name], 32)
        assert np.abs(raw["image"].astype(int) - expected).mean() < 3
        # Nothing was lost; libjpeg and Pillow round differently from CMYK to RGB.
        assert np.abs(whole["image"].astype(int) - as_pillow_has_it(images[name], 1000)).max() <= (name == CMYK)
    for example in read(tmp_path / "raw", "train", decoded=False):  # Pillow and our decoder read them as well
        (height, width), pixels = decode.image_size(example["image"]), decode.decode(example["image"], 3)
        assert pixels.shape == (height, width, 3)
        assert example["image"].endswith(pixels.tobytes())
    examples = read(tmp_path / "original", "train", decoded=False)
    assert {example["file_name"].decode(): example["image"] for example in examples} == images


class Session:
    """The command in a session of its own, so that none of its processes can hide."""

    def __init__(self, *arguments: object, path: object = ""):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vision_jax", "prepare", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{path}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def others(self) -> list[int]:
        """The other processes of the session: the workers, and what multiprocessing needs."""
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(session) == self.process.pid != int(path.name) and state != "Z":
                found.append(int(path.name))
        return found

    def end(self, status: int) -> str:
        """Waits for the end; returns what was printed once none of the processes is left."""
        printed = self.process.communicate(timeout=60)[0]
        assert self.process.returncode == status, printed
        deadline = time.monotonic() + 10
        while self.others():
            assert time.monotonic() < deadline, "processes are left"
            time.sleep(0.01)
        return printed

    def wait_for_receipts(self, out: pathlib.Path, count: int) -> None:
        while self.process.poll() is None and len(list(out.glob("incomplete/*-of-*.json"))) < count:
            time.sleep(0.002)


def test_killed_runs_end_with_the_same_bytes(
    downloads: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO, "vision_jax")
    monkeypatch.setattr(prepare.console, "configure_logging", lambda: None)
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise AssertionError('TensorFlow was imported')")
    flags = ("--short_side=48", "--shards=26")
    once, often = tmp_path / "once", tmp_path / "often"
    printed = Session(downloads, once, *flags, "--workers=2", path=tmp_path).end(0)
    assert "35 images/35" in printed or "images 35/35" in printed
    assert "train 26, validation 9 in 35 shards" in printed
    assert not (once / "incomplete").exists()
    for receipts in (0, 2, 18, 34):
        session = Session(downloads, often, *flags, "--workers=2", path=tmp_path)
        session.wait_for_receipts(often, receipts)
        session.process.kill()
        printed = session.end(-signal.SIGKILL)
        assert not (often / "features.json").exists()  # nothing passes for a data set before it is whole
    done = len(list(often.glob("incomplete/*-of-*.json")))
    assert done >= 34

    # What is there already was made with other options, or was changed meanwhile.
    printed = run(capsys, downloads, often, "--short_side=40", *flags[1:], status=1)
    assert "options.short_side: 48 -> 40" in printed
    min(often.glob("*-validation.array_record-*-of-*")).write_bytes(b"cut short")  # any: one may not be there yet

    printed = Session(downloads, often, *flags).end(0)
    assert "Going on with" in printed
    assert content(often) == content(once)
    run(capsys, downloads, often, *flags)
    assert "complete already" in caplog.text
    assert "options.quality: 90 -> 80" in run(capsys, downloads, often, *flags, "--quality=80", status=1)
    assert content(often) == content(once)


def test_ctrl_c_and_a_dead_worker_leave_nothing_behind(downloads: pathlib.Path, tmp_path: pathlib.Path):
    out = tmp_path / "out"
    session = Session(downloads, out, "--shards=26", "--workers=2")
    session.wait_for_receipts(out, 3)
    os.killpg(session.process.pid, signal.SIGINT)  # as a terminal does: to all processes
    printed = session.end(130)
    assert "interrupted: the same command goes on" in printed
    assert "Traceback" not in printed

    session = Session(downloads, out, "--shards=26", "--workers=2")
    while not (workers := [p for p in session.others() if b"spawn_main" in command_line(p)]):
        time.sleep(0.005)
    printed = Session(downloads, out, "--shards=26").end(1)
    assert "Another run is writing" in printed
    os.kill(workers[0], signal.SIGKILL)
    printed = session.end(1)
    assert "A worker process was killed" in printed
    assert "Traceback" not in printed


def command_line(process: int) -> bytes:
    try:
        return pathlib.Path(f"/proc/{process}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """DIR/CLASS/IMAGE with two classes of ten images."""
    root = tmp_path_factory.mktemp("folder") / "My Images"
    for label, name in enumerate(("ant", "bée")):
        (root / name / "sub").mkdir(parents=True)
        for i in range(10):
            path = root / name / ("sub" if i == 3 else "") / f"{i}.jpg"
            path.write_bytes(encode(picture(24, 30, seed=10 * label + i)))
    (root / "ant" / "notes.txt").write_text("no image")
    return root


def run(capsys: pytest.CaptureFixture, *arguments: object, status: int = 0) -> str:
    """Runs the command in this process and returns what it printed."""
    try:
        got = prepare.main([str(a) for a in arguments])
    except SystemExit as end:
        got = end.code
    out, err = capsys.readouterr()
    assert got == status, out + err
    return out + err


@pytest.mark.usefixtures("in_process")
def test_verify(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out"
    run(capsys, folder, out, "--shards=2")
    printed = run(capsys, "--verify", out)
    assert "train: 20 examples in 2 shards" in printed
    assert "as it was prepared" in printed

    first, second = sorted(out.glob("*.array_record-*"))
    data = first.read_bytes()
    first.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    second.unlink()
    (out / "features.json").write_text((out / "features.json").read_text() + " ")
    (out / "my_images-train.array_record-00000-of-00003").touch()
    printed = run(capsys, folder, out, "--shards=2", status=1)
    assert f"{out} is not as it was written: features.json has" in printed
    assert f"{second.name} is missing. Delete the folder and prepare it again" in printed
    printed = run(capsys, "--verify", out, status=1)
    assert f"{first.name} is damaged: its SHA-256" in printed
    assert f"{second.name} is missing" in printed
    assert "features.json has" in printed
    assert "00000-of-00003 does not belong" in printed
    assert printed.count("error: ") == 4
    (out / "manifest.json").write_text("{}")
    assert "manifest.json is damaged" in run(capsys, "--verify", out, status=1)
    (out / "manifest.json").unlink()
    assert "has no manifest.json" in run(capsys, "--verify", out, status=1)


def test_verify_knows_how_many_images_imagenet_has():
    splits = {"train": {"examples": 1_281_167, "skipped": []}, "validation": {"examples": 49_999, "skipped": [{}]}}
    whole = {"options": {"name": "imagenet2012"}, "num_classes": 1000, "splits": splits}
    assert manifest.imagenet_problems(whole) == []
    assert not manifest.is_part_of_imagenet(whole)
    splits["train"]["examples"] -= 1
    splits["validation"]["skipped"] = []
    train, validation = manifest.imagenet_problems(whole)
    assert train.startswith("train has 1,281,166 examples and 0 were left out, but ImageNet has 1,281,167")
    assert validation.startswith("validation has 49,999")
    assert manifest.imagenet_problems({**whole, "options": {"name": "mine"}}) == []
    assert manifest.is_part_of_imagenet({**whole, "splits": {"train": splits["train"]}})
    assert manifest.is_part_of_imagenet({**whole, "num_classes": 100})


@pytest.mark.usefixtures("in_process")
def test_folders(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, caplog):
    run(capsys, folder, tmp_path / "held", "--holdout=0.2")
    splits = {split: read(tmp_path / "held", split) for split in ("train", "validation")}
    for split, per_class in (("train", 8), ("validation", 2)):
        assert sorted(example["label"] for example in splits[split]) == [0] * per_class + [1] * per_class
    names = [example["file_name"] for examples in splits.values() for example in examples]
    assert sorted(names) == sorted(
        f"{name}/{'sub/' if i == 3 else ''}{i}.jpg".encode() for name in ("ant", "bée") for i in range(10)
    )
    assert "My Images: 1 .txt." in caplog.text
    assert (tmp_path / "held" / "label.labels.txt").read_text().split() == ["ant", "bée"]
    assert (tmp_path / "held" / "my_images-train.array_record-00000-of-00001").exists()
    run(capsys, folder, tmp_path / "again", "--holdout=0.2")
    assert content(tmp_path / "again") == content(tmp_path / "held")
    assert "rounds to no image" in run(capsys, folder, tmp_path / "x", "--holdout=0.01", status=1)

    # With splits; a class is called "test" and is no split.
    tree = tmp_path / "tree"
    for split in ("train", "val"):
        for name in ("test", "bee"):
            (tree / split / name).mkdir(parents=True)
            (tree / split / name / "1.PNG").write_bytes(encode(picture(9, 9), "PNG"))
    run(capsys, tree, tmp_path / "split", "--name=mine")
    (example, other) = read(tmp_path / "split", "validation")
    assert {example["file_name"], other["file_name"]} == {b"bee/1.PNG", b"test/1.PNG"}
    assert "are not splits" not in caplog.text
    run(capsys, tree / "train", tmp_path / "train")
    assert len(read(tmp_path / "train", "train")) == 2
    assert "--holdout=0.5 is for a folder with nothing but" in run(
        capsys, tree, tmp_path / "y", "--holdout=0.5", status=1
    )
    (tree / "val" / "cat").mkdir()
    run(capsys, tree, tmp_path / "empty")
    assert "as they hold no image: 1 folders in" in caplog.text
    (tree / "val" / "cat" / "1.png").write_bytes(encode(picture(9, 9), "PNG"))
    assert "has classes that the training split has not: cat" in run(capsys, tree, tmp_path / "z", status=1)


def flat_tree(root: pathlib.Path) -> pathlib.Path:
    """Class folders in train, and validation images without any."""
    for i in range(6):
        for path in (root / "train" / f"n0{i % 2}" / f"{i}.png", root / "val" / f"ILSVRC2012_val_{i:08d}.JPEG"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(picture(12, 9, seed=i), "PNG"))
    return root


@pytest.mark.usefixtures("in_process")
def test_files_of_labels(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture):
    tree = flat_tree(tmp_path / "ILSVRC" / "Data" / "CLS-LOC")
    printed = run(capsys, tree, tmp_path / "none", status=1)
    assert "val holds images, but no class folders: give their labels by --labels=val=FILE" in printed
    words = [1, 0, 0, 1, 1, 0]
    lines = [f"ILSVRC2012_val_{i:08d},n0{word} 1 2 3 4 " for i, word in enumerate(words)]
    table = tmp_path / "LOC_val_solution.csv"
    table.write_text("\n".join(["ImageId,PredictionString", *reversed(lines)]))

    def labels(directory: pathlib.Path) -> list[int]:
        return [example["label"] for example in sorted(read(directory, "validation"), key=lambda e: e["file_name"])]

    run(capsys, tree, tmp_path / "found")  # where Kaggle's archive has it
    assert labels(tmp_path / "found") == words
    assert (tmp_path / "found" / "label.labels.txt").read_text().split() == ["n00", "n01"]
    table.rename(tmp_path / "mine.csv")
    run(capsys, tree, tmp_path / "given", "--name=cls_loc", f"--labels=val={tmp_path / 'mine.csv'}")
    assert content(tmp_path / "given") == content(tmp_path / "found")
    (tmp_path / "mine.csv").write_text("\n".join(lines).replace("n01", "n00"))
    printed = run(capsys, tree, tmp_path / "given", f"--labels=val={tmp_path / 'mine.csv'}", status=1)
    assert "was prepared from other input" in printed
    (tmp_path / "mine.csv").write_text("\n".join(lines).replace("n01", "n02"))
    printed = run(capsys, tree, tmp_path / "x", f"--labels=val={tmp_path / 'mine.csv'}", status=1)
    assert "line 1: 'n02' is no class of the training split" in printed

    # Images to be tested on mostly have no labels; they are left out, and it is said.
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    shutil.copytree(tree / "val", tree / "test")
    run(capsys, tree, tmp_path / "test", f"--labels=val={tmp_path / 'mine.csv'}")
    assert f"the images in {tree / 'test'} have no labels" in caplog.text
    assert set(manifest.read(tmp_path / "test")["splits"]) == {"train", "validation"}
    # A single folder with a file for all of its images.
    run(capsys, tree / "val", tmp_path / "one", f"--labels=train={tmp_path / 'mine.csv'}", "--holdout=0.34")
    assert [values["examples"] for values in manifest.read(tmp_path / "one")["splits"].values()] == [4, 2]


@pytest.mark.usefixtures("in_process")
def test_labels_are_kept_beside_the_shards(folder: pathlib.Path, tmp_path: pathlib.Path, capsys):
    out = tmp_path / "out"
    run(capsys, folder, out, "--shards=3", "--holdout=0.2")
    for split, count in (("train", 16), ("validation", 4)):
        source = sources.TfdsSource(out, split)
        labels = source.prepared_labels()
        assert labels is not None
        assert labels.tolist() == [source[i]["label"] for i in range(count)] == [e["label"] for e in read(out, split)]
    path = tfds_format.labels_path(out, "train")
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    assert "labels-train.npy is damaged" in run(capsys, "--verify", out, status=1)


@pytest.mark.usefixtures("in_process")
def test_corrupt_images(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, caplog):
    images = tmp_path / "images"
    shutil.copytree(folder, images)
    (images / "ant" / "1.jpg").write_bytes((images / "ant" / "1.jpg").read_bytes()[:500])
    (images / "bée" / "2.jpg").write_bytes(b"")
    for arguments in ((), ("--skip_corrupt=1",), ("--skip_corrupt=1", "--shards=20"), ("--encoding=original",)):
        out = tmp_path / f"out{len(arguments)}"
        printed = run(capsys, images, out, *arguments, status=1)
        assert "ant/1.jpg: " in printed or "2.jpg: it is empty" in printed
        assert printed.count("error: ") == 1
        assert not (out / "manifest.json").exists()
    out = tmp_path / "out2"  # goes on from there, as the limit decides no byte
    run(capsys, images, out, "--skip_corrupt=2", "--shards=20")
    run(capsys, images, tmp_path / "once", "--skip_corrupt=9", "--shards=20")
    assert content(out) == content(tmp_path / "once")
    assert len(read(out, "train")) == 18
    skipped = manifest.read(out)["splits"]["train"]["skipped"]
    assert {item["file_name"] for item in skipped} == {"ant/1.jpg", "bée/2.jpg"}
    assert "Left out of train: bée/2.jpg: it is empty" in caplog.text
    assert "Left out of train" in run(capsys, "--verify", out)
    printed = run(capsys, folder, tmp_path / "z", "--max_pixels=700", status=1)
    assert "30x24 pixels, more than --max_pixels=700" in printed


@pytest.mark.usefixtures("in_process")
def test_archives_without_some_parts(downloads: pathlib.Path, tmp_path: pathlib.Path, capsys, caplog):
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(downloads / archives.TRAIN, only)
    run(capsys, only, tmp_path / "train")
    assert len(read(tmp_path / "train", "train")) == 26
    assert "there will be no validation split" in caplog.text
    assert not (tmp_path / "train" / "class_names.json").exists()
    (only / archives.TRAIN).unlink()
    shutil.copy(downloads / archives.VALIDATION, only)
    with tarfile.open(downloads / f"{archives.DEVKIT}.tar.gz") as devkit:
        devkit.extractall(only, filter="data")  # unpacked, it will do too
    run(capsys, only, tmp_path / "validation")
    labels = {e["file_name"].decode(): e["label"] for e in read(tmp_path / "validation", "validation")}
    assert [labels[f"ILSVRC2012_val_{i:08d}.JPEG"] for i in range(1, 10)] == [
        WNIDS.index(IDS[number]) for number in VALIDATION_IDS
    ]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize("file_names", [True, False])
def test_data_sets_of_tfds(tmp_path: pathlib.Path, capsys, file_format: str, file_names: bool):
    directory = tmp_path / "theirs" / "mine" / "3.0.0"
    directory.mkdir(parents=True)
    images = [encode(picture(40 + i, 50), ("JPEG", "PNG")[i % 2]) for i in range(9)]
    records = [
        tfds_format.serialize_example(image, i % 3, b"file%d.jpg" % i if file_names else None)
        for i, image in enumerate(images)
    ]
    lengths = {"train": [4, 3], "val": [2]}
    tfds_format.write_metadata(
        directory, "mine", lengths, {"train": 1, "val": 1}, ["a", "b", "c"], file_names=file_names
    )
    parts = {("train", 0): records[:4], ("train", 1): records[4:7], ("val", 0): records[7:]}
    for (split, i), part in parts.items():
        path = directory / tfds_format.shard_name("mine", split, i, len(lengths[split]))
        if file_format == "tfrecord":
            write_tfrecord(path.with_name(path.name.replace("array_record", "tfrecord")), part)
        else:
            writer = tfds_format.open_shard(path)
            for record in part:
                writer.write(record)
            writer.close()
    if file_format == "tfrecord":
        info = directory / "dataset_info.json"
        info.write_text(info.read_text().replace("array_record", "tfrecord"))

    out = tmp_path / "out"
    run(capsys, tmp_path / "theirs", out, "--encoding=original", "--shards=3")
    train, validation = read(out, "train", decoded=False), read(out, "validation", decoded=False)
    # In the order of tfds, which has shuffled them: slices of the split stay the same images.
    assert [example["image"] for example in train + validation] == images
    assert [example["label"] for example in train + validation] == [i % 3 for i in range(9)]
    expected = [b"file%d.jpg" % i for i in range(9)]
    if not file_names:
        expected = [b"train/%08d" % i for i in range(7)] + [b"validation/%08d" % i for i in range(2)]
    assert [example["file_name"] for example in train + validation] == expected
    assert (out / "label.labels.txt").read_text().split() == ["a", "b", "c"]
    run(capsys, directory, tmp_path / "small", "--short_side=20")
    assert [min(example["image"].shape[:2]) for example in read(tmp_path / "small", "train")] == [20] * 7
    if file_format == "tfrecord":
        info.write_text(info.read_text().replace('"4"', '"5"'))
        assert "has 4 records, but the metadata beside it say 5" in run(capsys, directory, tmp_path / "other", status=1)
    next(directory.glob("*train*00001-of*")).unlink()
    assert "is missing, but the metadata" in run(capsys, directory, tmp_path / "other", status=1)


@pytest.mark.usefixtures("in_process")
def test_what_cannot_be_used(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").touch()
    for arguments, status, message in (
        (("/nowhere", tmp_path / "x"), 1, "/nowhere is not a folder"),
        ((full, tmp_path / "x"), 1, "holds no class folders"),
        ((folder, full), 1, "is not empty (thesis.tex)"),
        ((folder, "/dev/null/x"), 1, "Cannot use /dev/null/x"),
        ((folder, folder / "out"), 1, "is inside"),
        (
            ("gs://bucket/images", tmp_path / "x"),
            1,
            "INPUT is 'gs://bucket/images': URLs are not supported here; mount",
        ),
        ((folder, "s3://bucket/out"), 1, "OUTPUT is 's3://bucket/out': URLs"),
        (("--verify", "gs://bucket/out"), 1, "--verify is 'gs://bucket/out': URLs"),
        ((folder, tmp_path / "x", "--labels=dev=a.csv"), 2, "'dev=a.csv' is not SPLIT=FILE with one of train, val"),
        ((folder, tmp_path / "x", "--labels=val=gone.csv"), 1, "no file of labels 'gone.csv'"),
        ((folder, tmp_path / "x", "--labels=val=ant/notes.txt"), 1, "--labels=validation=FILE is given, but"),
        ((folder,), 2, "give INPUT and OUTPUT"),
        ((folder, tmp_path / "x", "--verify", full), 2, "--verify DIR alone"),
        ((folder, tmp_path / "x", "--quality=101"), 2, "101 is not between 1 and 100"),
        ((folder, tmp_path / "x", "--holdout=1"), 2, "1.0 is not between 0 and 1"),
        ((folder, tmp_path / "x", "--name=My Images"), 2, "'My Images' is not made of"),
        ((folder, tmp_path / "x", "--encoding=original", "--apply_exif_orientation"), 2, "changes images"),
    ):
        assert message in run(capsys, *arguments, status=status)
    plain = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorflow" else plain(name))
    assert "tfds needs TensorFlow to download and prepare mnist" in run(capsys, "tfds:mnist", tmp_path / "x", status=1)


@pytest.mark.usefixtures("in_process")
def test_stopped_at_the_end_or_before_the_first_receipt(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    once, often = tmp_path / "once", tmp_path / "often"
    run(capsys, folder, once, "--shards=2")
    plain = shards.write_json

    def stop_before(name: str) -> None:
        def write_json(path: pathlib.Path, value: object) -> None:
            if path.name.endswith(name):
                raise KeyboardInterrupt
            plain(path, value)

        monkeypatch.setattr(shards, "write_json", write_json)

    stop_before("00000-of-00003.json")
    run(capsys, folder, often, "--shards=3", status=130)
    assert len(list(often.glob("*.array_record-*"))) == 1  # it has no receipt, so other options may follow
    stop_before("manifest.json")
    run(capsys, folder, often, "--shards=2", status=130)
    monkeypatch.undo()
    monkeypatch.setattr(prepare.console, "configure_logging", lambda: None)
    run(capsys, folder, often, "--shards=2")
    assert content(often) == content(once)
    (often / "incomplete").mkdir()  # killed between the manifest and the last of cleaning up
    run(capsys, folder, often, "--shards=2")
    assert content(often) == content(once)
    assert not (often / "incomplete").exists()


@pytest.mark.usefixtures("in_process")
def test_a_full_disk(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, previous[1]))
        printed = run(capsys, folder, tmp_path / "out", status=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
        signal.signal(signal.SIGXFSZ, handler)
    assert "Cannot write to" in printed
    assert "File too large" in printed
    run(capsys, folder, tmp_path / "out")
    assert len(read(tmp_path / "out", "train")) == 20


def test_prepared_archives_train(
    downloads: pathlib.Path, tmp_path: pathlib.Path, command: Command, in_process: None, monkeypatch: pytest.MonkeyPatch
):
    """CMYK, a PNG, broken EXIF and all: what was prepared is what a training and its evaluation read."""
    assert prepare.main([str(downloads), str(tmp_path / "data"), "--short_side=48", "--workers=1"]) == 0
    command(
        "--config=configs/quickstart.py",
        "--config.data.source=tfds",
        f"--config.data.dir={tmp_path / 'data'}",
        "--config.batch_size=13",
        "--config.eval.batch_size=4",
        "--config.total_steps=2",
        "--config.schedule.warmup_epochs=0",
        "--config.log.tensorboard=False",
        f"--workdir={tmp_path / 'w'}",
    )
    lines = [json.loads(line) for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 2]
    assert lines[-1]["val/count"] == 9


@pytest.mark.parametrize("name", [b"a\nb", b" a", b"\xe9t\xe9"])
def test_names_of_classes_that_tfds_cannot_store(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, in_process: None, name: bytes
):
    folder = os.path.join(os.fsencode(tmp_path / "images"), name)
    os.makedirs(folder)
    with open(os.path.join(folder, b"1.png"), "wb") as file:
        file.write(encode(picture(8, 8), "PNG"))
    assert prepare.main([str(tmp_path / "images"), str(tmp_path / "data"), "--workers=1"]) == 1
    assert "rename it" in capsys.readouterr().err


def test_damaged_records_of_a_data_set_are_skipped_or_named(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, in_process: None
):
    directory = tmp_path / "set"
    directory.mkdir()
    images = [(encode(picture(40, 50, seed=i), quality=95), i % 2) for i in range(6)]
    tfds_format.write_dataset(directory, "mine", {"train": images}, ["a", "b"])
    (shard,) = directory.glob("*.array_record-*")
    data = bytearray(shard.read_bytes())
    data[data.index(images[3][0]) + 100] ^= 1
    shard.write_bytes(data)
    assert prepare.main([str(directory), str(tmp_path / "data"), "--workers=1"]) == 1
    assert "train/00000003: it cannot be read" in capsys.readouterr().err
    assert prepare.main([str(directory), str(tmp_path / "data"), "--workers=1", "--skip_corrupt=1"]) == 0
    assert manifest.read(tmp_path / "data")["splits"]["train"]["examples"] == 5
    (tmp_path / "data" / "manifest.json").write_text('{"splits": {"train": 3}, "options": {"name": "a"}}')
    assert prepare.main(["--verify", str(tmp_path / "data")]) == 1
    assert "is damaged" in capsys.readouterr().err
