"""Experiment trackers: what the libraries have written, in files, is read back by their own readers or formats."""

import json
import logging
import pathlib
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import PIL.Image
import pytest
from conftest import REPOSITORY, encode, picture, records
from ml_collections import ConfigDict
from tensorboardX.proto import event_pb2

from vision_jax import config as config_lib
from vision_jax import train
from vision_jax.config import validation
from vision_jax.data import tfrecord
from vision_jax.errors import ConfigError, Preempted
from vision_jax.runtime import experiments, writers
from vision_jax.runtime.background import Background
from vision_jax.runtime.experiment_services import Ending, RunIds
from vision_jax.runtime.experiments import Experiments, Feed, track
from vision_jax.runtime.preemption import Preemption
from vision_jax.runtime.watchdog import Watchdog
from vision_jax.runtime.writers import MetricWriter

PNG = encode(picture(6, 8), "PNG")


@pytest.fixture(autouse=True)
def offline(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes both libraries write into `tmp_path`, and nothing else that the user's environment may say."""
    for name in ("PROJECT", "ENTITY", "RUN_ID", "NAME", "DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name in ("EXPERIMENT_NAME", "EXPERIMENT_ID", "RUN_ID"):
        monkeypatch.delenv(f"MLFLOW_{name}", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "0.1")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # which needs no database to be made, which takes seconds
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # it reads the environment once


def follow(workdir: pathlib.Path, *names: str, **fields: Any) -> Experiments:
    workdir.mkdir(exist_ok=True)
    config = {"seed": 0, "data": {"mean": [0.5, 0.5]}, **fields}
    return track(workdir, names, config, dict(config_lib.flatten(config)))


# Weights & Biases


def wandb_records(workdir: pathlib.Path) -> list[list[Any]]:
    """Returns the records of each start of a run, in order: W&B's `.wandb` files are in LevelDB's log format.

    Seven bytes of its own, then blocks of 32 KiB: https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    starts = []
    for path in sorted(workdir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        data, position, entry, found = path.read_bytes(), 7, b"", []
        while position + 7 <= len(data):
            if (left := 2**15 - position % 2**15) < 7:
                position += left
                continue
            _, size, kind = struct.unpack("<IHB", data[position : position + 7])
            entry += data[position + 7 : position + 7 + size]
            position += 7 + size
            if kind in (1, 4):  # a whole entry, or the last part of one
                found.append(pb.Record.FromString(entry))
                entry = b""
        starts.append(found)
    return starts


def wandb_lines(start: list[Any]) -> list[dict[str, Any]]:
    """Returns what was logged, without W&B's own values."""
    lines = []
    for record in start:
        if record.WhichOneof("record_type") == "history":
            items = {item.key or item.nested_key[0]: item for item in record.history.item}
            lines.append({k: json.loads(i.value_json) for k, i in items.items() if not k.startswith("_")})
    return lines


def test_wandb_gets_lines_images_and_the_configuration_and_goes_on_in_its_run(tmp_path: pathlib.Path):
    pytest.importorskip("wandb")
    workdir = tmp_path / "small"
    with follow(workdir, "wandb") as copies:
        for step in (1, 2, 3):
            copies.write(step, {"train/loss": step / 2})
        copies.write_images(3, {"val/mistakes": PNG})

    def go_on() -> None:
        with follow(workdir, "wandb", seed=1) as copies:
            copies.write(2, {"train/loss": float("nan")})  # the run resumes from step 1
            raise Preempted(2)

    with pytest.raises(Preempted):
        go_on()
    first, second = wandb_records(workdir)
    assert wandb_lines(first)[:3] == [{"step": step, "train/loss": step / 2} for step in (1, 2, 3)]
    assert wandb_lines(second)[0]["step"] == 2
    assert wandb_lines(second)[0]["train/loss"] != wandb_lines(second)[0]["train/loss"]  # NaN
    (image,) = workdir.glob("wandb/*/files/media/images/val/mistakes_*.png")
    assert PIL.Image.open(image).size == (8, 6)

    runs = [next(r.run for r in start if r.WhichOneof("record_type") == "run") for start in (first, second)]
    assert runs[0].run_id == runs[1].run_id == json.loads((workdir / "trackers.json").read_text())["wandb"]
    assert [(run.project, run.display_name, run.resume) for run in runs] == [
        ("vision_jax", "small", True),
        ("vision_jax", "", True),  # whatever it is called by then
    ]
    config = [{item.key: json.loads(item.value_json) for item in run.config.update} for run in runs]
    assert [(c["seed"], c["data"]) for c in config] == [(0, {"mean": [0.5, 0.5]}), (1, {"mean": [0.5, 0.5]})]
    kinds = [[record.WhichOneof("record_type") for record in start] for start in (first, second)]
    assert ("preempting" in kinds[0], "preempting" in kinds[1]) == (False, True)
    exits = [
        next(r.exit.exit_code for r in start if r.WhichOneof("record_type") == "exit") for start in (first, second)
    ]
    assert exits == [0, 75]
    metric = next(r.metric for r in first if r.WhichOneof("record_type") == "metric")
    assert (metric.glob_name, metric.step_metric) == ("*", "step")


def test_wandb_without_a_key_says_what_to_do_and_asks_nobody(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "none"))
    with follow(tmp_path, "wandb") as copies:
        copies.write(1, {"train/loss": 1.0})
    assert "no API key: run `wandb login`" in caplog.text
    assert "The tracker wandb is missing 1 line of this run" in caplog.text


def test_wandb_that_is_disabled_keeps_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with follow(tmp_path, "wandb") as copies:
        copies.write(1, {"train/loss": 1.0})
        copies.write_images(1, {"val/mistakes": PNG})
    assert [*tmp_path.iterdir()] == []


# MLflow


def mlflow_client() -> Any:
    return pytest.importorskip("mlflow").MlflowClient()


def mlflow_run(workdir: pathlib.Path) -> Any:
    client = mlflow_client()
    (run,) = client.search_runs([client.get_experiment_by_name("vision_jax").experiment_id])
    assert run.info.run_id == json.loads((workdir / "trackers.json").read_text())["mlflow"]
    return run


def test_mlflow_gets_lines_images_and_the_configuration_and_goes_on_in_its_run(tmp_path: pathlib.Path):
    client, workdir = mlflow_client(), tmp_path / "small"
    long = "x" * 10_000
    with follow(workdir, "mlflow", note="", long=long) as copies:
        for step in (1, 2, 3):
            copies.write(step, {"train/loss": step / 2})
        copies.write_images(3, {"val/mistakes": PNG})
    run = mlflow_run(workdir)
    assert (run.info.run_name, run.info.status) == ("small", "FINISHED")
    assert (run.data.params["seed"], run.data.params["data.mean"], run.data.params["note"]) == ("0", "[0.5, 0.5]", "")

    def go_on() -> None:
        with follow(workdir, "mlflow", note="", long=long, seed=1, new=True) as copies:
            copies.write(2, {"train/loss": 7.0})
            raise Preempted(2)

    with pytest.raises(Preempted):
        go_on()
    run = mlflow_run(workdir)
    assert run.info.status == "KILLED"
    assert (run.data.params["seed"], run.data.params["new"]) == ("0", "True")
    assert {k: v for k, v in run.data.tags.items() if k.startswith("changed.")} == {"changed.seed": "1"}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 1.0), (3, 1.5), (2, 7.0)]
    names = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    (image,) = (name for name in names if name.endswith(".png"))
    assert image.startswith("images/val~mistakes+step+3+")
    assert PIL.Image.open(client.download_artifacts(run.info.run_id, image)).size == (8, 6)


def test_a_run_that_mlflow_does_not_have_is_created_anew(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    client = mlflow_client()
    RunIds(tmp_path / "trackers.json").keep("mlflow", "0" * 32)
    with follow(tmp_path, "mlflow"):
        pass
    assert f"has no run {'0' * 32}" in caplog.text
    run = mlflow_run(tmp_path)
    client.delete_run(run.info.run_id)
    with follow(tmp_path, "mlflow") as copies:
        copies.write(1, {"train/loss": 1.0})
    assert mlflow_run(tmp_path).data.metrics == {"train/loss": 1.0}


def test_what_the_environment_names_is_used(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    client = mlflow_client()
    pytest.importorskip("wandb")
    there = client.create_run(client.create_experiment("pets")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", there)
    monkeypatch.setenv("WANDB_PROJECT", "pets")
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.setenv("WANDB_NAME", "Cats")
    with follow(tmp_path / "small", "wandb", "mlflow") as copies:
        copies.write(1, {"train/loss": 0.5})
    assert client.get_run(there).data.metrics == {"train/loss": 0.5}
    (start,) = wandb_records(tmp_path / "small")
    run = next(record.run for record in start if record.HasField("run"))
    assert (run.project, run.run_id, run.display_name) == ("pets", "mine", "Cats")
    assert json.loads((tmp_path / "small" / "trackers.json").read_text()) == {"mlflow": there, "wandb": "mine"}
    monkeypatch.setenv("MLFLOW_RUN_ID", "another")
    with follow(tmp_path / "small", "mlflow") as copies:
        copies.write(2, {"train/loss": 0.25})
    assert client.get_run(there).data.metrics == {"train/loss": 0.25}


@pytest.mark.exhaustive
def test_mlflow_keeps_runs_in_a_sqlite_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Which is its default, and what the extra's other two packages are for."""
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with follow(tmp_path, "mlflow", note="") as copies:
        copies.write(1, {"train/loss": float("nan"), "val/loss": float("inf"), "val/top1": 0.5})
    run = mlflow_run(tmp_path)
    assert (run.info.status, run.data.metrics["val/top1"]) == ("FINISHED", 0.5)
    assert run.data.metrics["train/loss"] != run.data.metrics["train/loss"]


# Both, in processes of their own

RUN = """
import pathlib, sys, time
sys.path.insert(0, {repository!r})
from vision_jax.runtime.experiments import track
workdir, first, wait = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
with track(workdir, ("wandb", "mlflow"), {{"seed": 0}}, {{"seed": 0}}) as copies:
    for step in (first, first + 1):
        copies.write(step, {{"train/loss": float(step)}})
    print("begun", flush=True)
    time.sleep(wait)
"""


def start(workdir: pathlib.Path, first: int, wait: float) -> subprocess.Popen:
    code = RUN.format(repository=str(REPOSITORY))
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(workdir), str(first), str(wait)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_killed_and_interrupted_processes_go_on_in_the_same_runs(tmp_path: pathlib.Path):
    client = mlflow_client()
    pytest.importorskip("wandb")

    def losses() -> list[float]:
        try:
            run = mlflow_run(tmp_path)
        except (AttributeError, FileNotFoundError, ValueError):
            return []
        return [metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")]

    process = start(tmp_path, 1, 600)
    with process:
        wait_until(lambda: losses() == [1, 2] and [len(wandb_lines(s)) for s in wandb_records(tmp_path)] == [2])
        process.kill()
    assert mlflow_run(tmp_path).info.status == "RUNNING"
    with start(tmp_path, 2, 600) as process:
        wait_until(
            lambda: losses() == [1, 2, 2, 3] and [len(wandb_lines(s)) for s in wandb_records(tmp_path)] == [2, 2]
        )
        process.send_signal(signal.SIGINT)
    assert mlflow_run(tmp_path).info.status == "KILLED"
    with start(tmp_path, 3, 0) as process:
        pass
    assert process.returncode == 0
    assert losses() == [1, 2, 2, 3, 3, 4]
    assert mlflow_run(tmp_path).info.status == "FINISHED"
    starts = wandb_records(tmp_path)
    assert [[line["train/loss"] for line in wandb_lines(start)] for start in starts] == [[1, 2], [2, 3], [3, 4]]
    assert len({record.run.run_id for start in starts for record in start if record.run.run_id}) == 1
    exits = [record.exit.exit_code for start in starts for record in start if record.HasField("exit")]
    assert exits == [255, 0]


class StopsOnce(Preemption):
    """Is told to stop before step 4, as by SIGTERM."""

    steps = 0

    def should_stop(self) -> bool:
        self.steps += 1
        return self.steps == 4


def test_a_training_that_is_preempted_goes_on_in_its_run(image_folder: pathlib.Path, tmp_path: pathlib.Path):
    client, workdir = mlflow_client(), tmp_path / "w"
    config = config_lib.default_config()
    config.model.name, config.batch_size, config.schedule.warmup_epochs = "lenet5", 8, 0.0
    config.total_steps, config.log.every_steps, config.compilation_cache = 6, 1, ""
    config.data.source, config.data.dir, config.data.image_size, config.data.eval_resize = (
        "folder",
        str(image_folder),
        28,
        28,
    )
    config.log.tensorboard, config.log.trackers = False, ("mlflow", "tensorboard")
    stops = StopsOnce()
    with pytest.raises(Preempted):
        train.train_and_evaluate(config, workdir, preemption=stops)
    assert mlflow_run(workdir).info.status == "KILLED"
    config.log.every_steps = 2  # which may be another
    train.train_and_evaluate(config, workdir, preemption=stops)
    run = mlflow_run(workdir)
    assert run.info.status == "FINISHED"
    assert (run.data.params["data.image_size"], run.data.params["model.name"]) == ("28", "lenet5")
    assert run.data.tags["changed.log.every_steps"] == "2"
    for name in ("train/loss", "val/top1", "goodput/seconds"):
        lines = [(line["step"], line[name]) for line in records(workdir) if name in line]
        assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] == lines
    assert [line["step"] for line in records(workdir) if "train/loss" in line] == [1, 2, 3, 4, 6]
    assert len([*workdir.glob("events.out.tfevents.*")]) == 2


# Trackers that fail


class Service:
    """A tracker in memory, whose calls do what `act` does first."""

    def __init__(self, act: Callable[[str], object] = lambda call: None):
        self.act, self.lines = act, []
        self.ending: Ending | None = None

    def open(self) -> str:
        self.act("open")
        return "here"

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.act("write")
        self.lines.append(step)

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None:
        self.act("write_images")
        self.lines.append(step)

    def close(self, ending: Ending) -> None:
        self.act("close")
        self.ending = ending


def settle(feed: Feed) -> None:
    """Waits until a feed has nothing to do."""
    wait_until(lambda: not feed._waiting and feed._since is None)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (None, Ending.FINISHED),
        (Preempted(3), Ending.PREEMPTED),
        (KeyboardInterrupt(), Ending.INTERRUPTED),
        (ConfigError("no"), Ending.FAILED),
    ],
)
def test_trackers_are_told_how_the_run_ends(error: BaseException | None, ending: Ending):
    service = Service()
    before = threading.active_count()

    def run() -> None:
        with Experiments([Feed("one", service)]) as copies:
            copies.write(1, {"train/loss": 1.0})
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    assert (service.lines, service.ending) == ([1], ending)
    assert threading.active_count() == before


def test_a_tracker_that_fails_is_told_once_and_when_it_works_again(caplog: pytest.LogCaptureFixture):
    broken = threading.Event()

    def act(call: str) -> None:
        if broken.is_set():
            raise OSError("no route to host")

    service, other = Service(act), Service()
    feed, second = Feed("one", service), Feed("two", other)
    with Experiments([feed, second]) as copies:
        for step in range(1, 8):
            (broken.set if 3 <= step <= 5 or step == 7 else broken.clear)()
            copies.write(step, {"train/loss": 1.0})
            settle(feed)
        broken.clear()
    assert service.lines == [1, 2, 6]
    assert other.lines == [*range(1, 8)]
    assert service.ending is Ending.FINISHED
    assert warnings(caplog) == [
        "The tracker one fails: OSError: no route to host. The run goes on; metrics.jsonl has what one is missing.",
        "The tracker one works again. It has lost 3 lines so far.",
        "The tracker one is missing 4 lines of this run; see metrics.jsonl.",  # step 7 so soon after: not told again
    ]


def test_a_tracker_that_cannot_be_opened_yet_misses_nothing(caplog: pytest.LogCaptureFixture):
    tries = []

    def act(call: str) -> None:
        if call == "open":
            tries.append(call)
            if len(tries) < 4:
                raise ConnectionError("no network")

    service = Service(act)
    feed = Feed("one", service, pause=0.02)
    with Experiments([feed]) as copies:
        copies.write(1, {"train/loss": 1.0})
        wait_until(lambda: service.lines == [1])
    assert len(tries) == 4
    assert [message.partition(":")[0] for message in warnings(caplog)] == [
        "The tracker one fails",
        "The tracker one works again. It has lost 0 lines so far.",
    ]


@pytest.mark.parametrize("error", [None, Preempted(3)], ids=["finished", "stopped"])
def test_a_tracker_that_hangs_slows_neither_steps_nor_saves_nor_the_end(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, error: Exception | None
):
    """Nor is the wait at the end, which is bounded, taken for a hang of the run."""
    release, service = threading.Event(), Service(lambda call: release.wait())
    feed = Feed("one", service, limit=5, patience=0.05)
    watchdog = Watchdog(0)
    suspended = mock.Mock(wraps=watchdog.suspended)
    watchdog.suspended = suspended
    copies = Experiments([feed], watchdog=watchdog, **{"seconds_when_stopped" if error else "seconds_at_end": 0.2})
    began = time.monotonic()

    def run() -> None:
        with copies, writers.MetricWriter(tmp_path, last_step=0, tensorboard=False, copies=copies) as writer:
            writer.write(1, {"train/loss": 1.0})
            time.sleep(0.1)
            for step in range(2, 12):
                writer.write(step, {"train/loss": 1.0})
            writer.flush()
            writer.go_back(10)
            if error:
                raise error

    if error:
        with pytest.raises(Preempted):
            run()
    else:
        run()
    assert time.monotonic() - began < 5
    assert experiments.hanging_threads() == ["tracker-one"]
    suspended.assert_called_once()
    assert [record["step"] for record in records(tmp_path)] == [*range(1, 11)]
    assert warnings(caplog) == [
        "The tracker one fails: it has not answered for 0 s. The run goes on; metrics.jsonl has what one is missing.",
        "The tracker one has not finished in time, and is not waited for.",
        "The tracker one is missing 11 lines of this run; see metrics.jsonl.",
    ]
    release.set()
    wait_until(lambda: not experiments.hanging_threads())


def test_images_that_wait_are_bounded_by_their_size(caplog: pytest.LogCaptureFixture):
    release, service = threading.Event(), Service(lambda call: release.wait())
    feed = Feed("one", service, max_bytes=2 * len(PNG))
    with Experiments([feed]) as copies:
        for step in (1, 2, 3):
            copies.write_images(step, {"a": PNG})
        copies.write(4, {"train/loss": 1.0})
        release.set()
        settle(feed)
        copies.write_images(5, {"a": PNG, "b": PNG})
    assert service.lines == [1, 2, 4, 5]
    assert warnings(caplog)[0].startswith("The tracker one fails: it is too slow, and too much is waiting for it.")


def test_a_damaged_file_of_ids_means_new_runs(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "trackers.json"
    for text in ('{"wandb": "a', "[1]", "\xff"):
        path.write_text(text, encoding="latin-1")
        assert RunIds(path).get("wandb") is None
    assert caplog.text.count("trackers.json cannot be read") == 3
    RunIds(path).keep("wandb", "abc")
    RunIds(path).keep("mlflow", "def")
    assert json.loads(path.read_text()) == {"wandb": "abc", "mlflow": "def"}


# The configuration


@pytest.fixture
def unimported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes Python forget the libraries."""
    for library in ("wandb", "mlflow"):
        monkeypatch.delitem(sys.modules, library, raising=False)


def with_trackers(*names: object) -> ConfigDict:
    config = config_lib.default_config()
    config.data.source, config.log.trackers = "synthetic", names
    return config


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("wandbb",), r"log\.trackers: 'wandbb' is no tracker: did you mean wandb\?"),
        (("wandb,mlflow",), "'wandb,mlflow' is no tracker"),
        ((3,), r"log\.trackers is \[3\]; it takes names"),
    ],
)
def test_misspelled_trackers_are_refused(names: tuple, problem: str):
    with pytest.raises(ConfigError, match=problem):
        validation.validate(with_trackers(*names), 1, train=False)


def test_libraries_that_are_installed_are_not_imported_to_check_it(unimported: None):
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    for library in ("wandb", "mlflow"):
        del sys.modules[library]
    validation.validate(with_trackers("tensorboard", "wandb", "mlflow"), 1)
    assert not {"wandb", "mlflow"} & sys.modules.keys()


def test_missing_libraries_are_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, unimported: None):
    """Also where there is a folder of the name, as W&B leaves one behind."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    config = with_trackers("tensorboard", "wandb", "mlflow")
    with pytest.raises(ConfigError) as caught:
        validation.validate(config, 1)
    for library in ("wandb", "mlflow"):
        assert f"not installed: pip install 'vision_jax[{library}]'" in str(caught.value)
    validation.validate(config, 1, train=False)  # evaluating such a run does not need them


# TensorBoard


def test_images_are_written_to_events(tmp_path: pathlib.Path):
    with writers.MetricWriter(tmp_path, last_step=0, tensorboard=True) as writer:
        writer.write_images(3, {"val/mistakes": PNG, "grey": encode(picture(5, 7)[..., 0], "PNG")})
        with pytest.raises(ValueError, match="The image val/mistakes is no PNG file"):
            writer.write_images(4, {"val/mistakes": encode(picture(6, 8))})
    (events,) = tmp_path.glob("events.out.tfevents.*")
    data, index = events.read_bytes(), tfrecord.index_file(events)
    found = [event_pb2.Event.FromString(data[begin : begin + size]) for begin, size in zip(*index, strict=True)]
    (summary,) = (event for event in found if event.HasField("summary"))
    assert summary.step == 3
    images = {value.tag: value.image for value in summary.summary.value}
    assert {name: (i.height, i.width, i.colorspace) for name, i in images.items()} == {
        "val/mistakes": (6, 8, 3),
        "grey": (5, 7, 1),
    }
    assert images["val/mistakes"].encoded_image_string == PNG


def test_pictures_are_drawn_in_the_background_and_are_no_reason_to_end_a_run(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    drawn_by = []

    def draw() -> dict[str, bytes]:
        drawn_by.append(threading.current_thread().name)
        return {"val/confusion_matrix": PNG}

    def fail() -> dict[str, bytes]:
        raise ZeroDivisionError("nothing to be drawn")

    with (
        Background() as background,
        MetricWriter(tmp_path, last_step=0, tensorboard=True, worker=background) as writer,
    ):
        writer.draw(1, fail)
        writer.draw(2, draw)
    assert drawn_by == ["writer"]
    assert "The pictures of step 1 cannot be drawn:" in caplog.text
    (path,) = tmp_path.glob("events.out.tfevents.*")
    assert PNG in path.read_bytes()
    with MetricWriter(tmp_path, last_step=0, tensorboard=False, copies=Experiments([])) as writer:
        writer.draw(3, fail)  # is not called: nothing would show them
