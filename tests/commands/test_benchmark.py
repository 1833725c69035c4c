import dataclasses
import io
import itertools
import json
import pathlib
import random
import time

import numpy as np
import PIL.Image
import pytest
from conftest import encode, picture

from vision_jax.benchmark import input as input_benchmark
from vision_jax.benchmark import photos, rounds
from vision_jax.benchmark.loaders import LOADERS, Job
from vision_jax.commands import benchmark as command
from vision_jax.data.views import View
from vision_jax.errors import VisionJaxError

VIEWS = (View(size=64),)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    directory = tmp_path_factory.mktemp("benchmark") / "jpeg256"
    return Job(photos.write(directory, photos.make(8, seed=0), "jpeg256", VIEWS, seed=0), 4, 1, seed=0)


def test_made_up_photographs_cost_what_those_of_imagenet_do():
    examples = photos.make(24, seed=0)
    images = [PIL.Image.open(io.BytesIO(data)) for data, _ in examples]
    assert {image.format for image in images} == {"JPEG"}
    assert abs(np.mean([image.width for image in images]) - 500) < 15
    assert abs(np.mean([image.height for image in images]) - 375) < 15
    assert 75 < np.mean([len(data) / 1024 for data, _ in examples]) < 90
    assert len({data for data, _ in examples}) == 24
    assert sorted(label for _, label in examples) == [0] * 12 + [1] * 12
    assert photos.make(2, seed=0) == examples[:2]
    assert photos.make(2, seed=1) != examples[:2]


def test_encodings_are_those_of_prepared_data():
    original = encode(picture(300, 512), quality=96)
    assert photos.encode((original, 3), "original") == (original, 3)
    expected = PIL.Image.open(io.BytesIO(original)).resize((437, 256), PIL.Image.Resampling.LANCZOS)
    raw, label = photos.encode((original, 3), "raw256")
    assert raw.startswith(b"P6\n437 256\n255\n")
    assert label == 3
    jpeg, _ = photos.encode((original, 3), "jpeg256")
    plain, _ = photos.encode((original, 3), "plain256")
    assert b"\xff\xdd" in jpeg  # the interval between restart markers
    assert b"\xff\xdd" not in plain
    for data in (raw, jpeg, plain):
        assert np.abs(np.asarray(PIL.Image.open(io.BytesIO(data)), int) - np.asarray(expected, int)).mean() < 2


def test_small_images_are_not_enlarged():
    raw, _ = photos.encode((encode(picture(40, 50)), 0), "raw256")
    assert raw.startswith(b"P6\n50 40\n")


def test_command_measures_ours_beside_pillow(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(type(LOADERS["torch"]), "is_installed", lambda loader: loader.module != "torch")
    flags = ["--images=9", "--batch_size=4", "--image_size=160", "--rounds=1", "--seconds=0.1", "--encoding=jpeg256"]
    loaders = "--loaders=vision_jax,processes,pillow,torch"
    assert command.main(["input", *flags, "--threads=1", loaders, f"--json={tmp_path / 'out.json'}"]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    (run,) = report["encodings"]
    assert (run["encoding"], run["images"]) == ("jpeg256", 8)  # whole batches
    assert 250 < run["mean_height"] < 260
    assert "pillow" in report["environment"]["versions"]

    ours, pillow = run["loaders"]["vision_jax"], run["loaders"]["pillow"]
    assert pillow["error"] == 0
    assert 0 < ours["error"] < 2  # it neither decodes nor resizes as Pillow, but the crops are the same
    assert run["loaders"]["torch"] == {"problem": "not installed (pip install torch)"}
    assert run["loaders"]["processes"]["error"] == ours["error"]
    for result in (ours, pillow):
        (measurement,) = result["rounds"]
        assert measurement["seconds"] >= 0.1
        assert measurement["images"] % 4 == 0
        assert measurement["images"] / measurement["seconds"] == pytest.approx(result["images_per_second"])
    assert ours["ratio"] == 1
    assert pillow["ratio"] == pytest.approx(ours["images_per_second"] / pillow["images_per_second"])

    budget = run["budget"]
    assert list(budget["steps"]) == ["read", "parse", "header", "crop choice", "decode", "resize", "rest"]
    assert sum(budget["steps"].values()) == pytest.approx(budget["whole"])
    assert min(budget["steps"][step] for step in ("read", "header", "crop choice", "decode", "resize")) > 0
    assert 0 < budget["without_lock"]["simplejpeg.decode_jpeg"] <= budget["steps"]["decode"]
    assert budget["lock"] == pytest.approx(budget["whole"] - sum(budget["without_lock"].values()))
    assert budget["ceiling"] == pytest.approx(1e6 / budget["lock"])
    assert budget["simulated_rate"] > 0
    printed = capsys.readouterr().out
    assert f"{pillow['images_per_second']:9.0f}" in printed
    assert "torch         not installed (pip install torch)" in printed


def test_command_measures_views_of_one_decoding(tmp_path: pathlib.Path):
    flags = ["--images=4", "--batch_size=4", "--rounds=1", "--seconds=0.1", "--encoding=original", "--threads=1"]
    views = ["--views=2x96:0.14-1,3x32:0.05-0.14", "--filter=bicubic", "--loaders=vision_jax,pillow,tf.data"]
    assert command.main(["input", *flags, *views, f"--json={tmp_path / 'out.json'}"]) == 0
    (run,) = json.loads((tmp_path / "out.json").read_text())["encodings"]
    assert run["loaders"]["pillow"]["error"] == 0
    assert 0 < run["loaders"]["vision_jax"]["error"] < 4  # small crops are cut out of pixels that were halved
    assert run["loaders"]["vision_jax"]["rounds"][0]["images"] % 4 == 0  # images, not crops
    assert "problem" in run["loaders"]["tf.data"]


def test_what_torch_pipelines_do_on_the_host():
    """Of a grey square, jitter changes only the brightness, by factors of 0.6 to 1.4, and the rest changes nothing."""
    random.seed(0)
    square = PIL.Image.new("RGB", (8, 8), (100, 100, 100))
    values = []
    for _ in range(300):
        pixels = np.asarray(photos.augment_by_pillow(square))
        assert pixels.shape == (8, 8, 3)
        assert (pixels == pixels[0, 0, 0]).all()
        values.append(int(pixels[0, 0, 0]))
    assert 60 <= min(values) < 65
    assert 135 < max(values) <= 140
    assert 0.15 < values.count(100) / 300 < 0.3  # without jitter


def test_error_tells_other_crops(job: Job):
    other = photos.write(job.dataset.directory.with_name("other"), photos.make(8, seed=0), "jpeg256", VIEWS, seed=1)
    (crops,), (others,) = (photos.reference(dataset, range(8), "bilinear") for dataset in (job.dataset, other))
    assert np.abs(crops.astype(int) - others).mean() > 10


def test_reference_is_pillows_crop(job: Job):
    ((top, left, height, width),) = job.dataset.boxes[5].tolist()
    with PIL.Image.open(job.dataset.files[5]) as image:
        assert 0 <= top < top + height <= image.height
        assert 0 <= left < left + width <= image.width
        pixels = np.asarray(image)[top : top + height, left : left + width]
    expected = PIL.Image.fromarray(pixels).resize((64, 64), PIL.Image.Resampling.BILINEAR)
    assert (photos.reference(job.dataset, [5], "bilinear")[0][0] == np.asarray(expected)).all()


def test_worker_runs_only_while_it_is_measured(job: Job):
    with rounds.Worker("pillow", job) as worker:
        assert worker.records.tolist() == [0, 1, 2, 3]
        stat = pathlib.Path(f"/proc/{worker._process.pid}/stat")
        deadline = time.monotonic() + 10
        while (state := stat.read_text().rpartition(")")[2].split()[0]) != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state == "T"
        measurement = worker.measure(0.1)
        assert measurement.images > 0
        assert measurement.seconds >= 0.1
    assert not stat.exists()


def test_failing_peer_is_shown(job: Job):
    files = [*job.dataset.files[:3], job.dataset.directory / "missing.jpg", *job.dataset.files[4:]]
    dataset = dataclasses.replace(job.dataset, files=files)
    broken = dataclasses.replace(job, dataset=dataset)
    results = input_benchmark.compare(broken, "jpeg256", ["pillow"], rounds=1, seconds=0.1)
    assert results["pillow"].problem.startswith("failed: FileNotFoundError")
    assert "missing.jpg" in results["pillow"].problem


def test_failure_of_our_loader_is_an_error():
    with (
        pytest.raises(VisionJaxError, match=r"loader of vision_jax failed: no luck"),
        input_benchmark._failures_noted("vision_jax", input_benchmark.Result(cores=1)),
    ):
        raise rounds.LoaderFailed("no luck")


def test_ratios_are_taken_by_core_within_a_round():
    ours = input_benchmark.Result(2, [rounds.Measurement(400, 1.0, 2.0), rounds.Measurement(100, 1.0, 0.5)])
    its = input_benchmark.Result(1, [rounds.Measurement(100, 1.0, 1.0), rounds.Measurement(50, 2.0, 1.0)])
    assert ours.ratios(its) == [0.5, 0.5]
    assert its.ratios(ours) == [2.0, 2.0]
    assert (ours.rate, its.rate) == (250, 62.5)
    assert (ours.per_cpu_second, its.per_cpu_second) == (200, 75)


def test_images_are_counted_until_the_time_is_over():
    def batches() -> rounds.Batches:
        for _ in itertools.count():
            time.sleep(0.03)
            yield np.arange(5), (np.zeros((5, 2, 2, 3), np.uint8),) * 3

    images, seconds = rounds.measure(batches(), 0.1)
    assert images % 5 == 0
    assert seconds >= 0.1
    assert images <= 5 * seconds / 0.03


def test_sample_of_a_folder(image_folder: pathlib.Path):
    examples = photos.sample(image_folder, "train", 6)
    assert len(examples) == 6
    assert {label for _, label in examples} == {0, 1, 2}
    assert len(photos.sample(image_folder, "validation", 100)) == 9
    with pytest.raises(VisionJaxError, match=r"nowhere, which is no folder"):
        photos.sample(image_folder / "nowhere", "train", 6)


def test_undecodable_image_is_an_error(tmp_path: pathlib.Path):
    with pytest.raises(VisionJaxError, match=r"cannot be decoded"):
        photos.write(tmp_path / "data", [(b"no image", 0)], "original", VIEWS, seed=0)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--threads=100000", "--threads is 100000, but this process may use only"),
        ("--loaders=vision_jax,tfdata", "--loaders has 'tfdata': did you mean tf.data"),
        ("--loaders=pillow", "which must be there"),
        ("--json=/nowhere/x.json", "there is no folder /nowhere"),
        ("--json=gs://bucket/x.json", "--json is 'gs://bucket/x.json': URLs are not supported here"),
        ("--data=s3://bucket/x", "--data is 's3://bucket/x': URLs are not supported here"),
        ("--views=2x0", "--views: '2x0' in '2x0': "),
    ],
)
def test_flags_that_cannot_work(flag: str, message: str, capsys: pytest.CaptureFixture[str]):
    assert command.main(["input", flag]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--rounds=0", "--seconds=nan", "--encoding=png", "--images=many"])
def test_wrong_flags(flag: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        command.main(["input", flag])
    assert stop.value.code == 2
    assert "error: argument" in capsys.readouterr().err


def test_images_with_boxes_and_masks_are_measured(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    flags = ["--images=6", "--batch_size=2", "--rounds=1", "--seconds=0.1", "--threads=1", f"--json={tmp_path}/a.json"]
    assert command.main(["input", "--dense=fit,range", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["fit", "range"]
    measured = json.loads((tmp_path / "a.json").read_text())["dense"]
    assert measured.keys() == {"fit", "range"}
    for kind, result in measured.items():
        assert len(result["rates"]) == len(result["pillow"]) == 1
        assert min(result["rates"] + result["pillow"]) > 0
        assert 0 <= result["padding"] < (0.3 if kind == "fit" else 0.6)
    assert command.main(["input", "--dense=fits", *flags]) == 1
    assert "did you mean fit" in capsys.readouterr().err
