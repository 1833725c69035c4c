import io
import json
import logging
import pathlib
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from ml_collections import ConfigDict
from tensorboardX.proto import event_pb2

from vision_jax import config as config_lib
from vision_jax.data import tfrecord
from vision_jax.errors import CheckpointError, ConfigError, check_output
from vision_jax.runtime import writers
from vision_jax.runtime.appender import Appender
from vision_jax.runtime.background import Background


def write(workdir: pathlib.Path, last_step: int, *steps: int) -> None:
    with writers.MetricWriter(workdir, last_step=last_step, tensorboard=True) as writer:
        for step in steps:
            writer.write(step, {"train/loss": step / 10})


def test_lines_and_events(tmp_path: pathlib.Path):
    write(tmp_path, 0, 1, 2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "train/loss": 0.1}, {"step": 2, "train/loss": 0.2}]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


def test_a_restart_drops_the_lines_that_it_will_write_again(tmp_path: pathlib.Path):
    write(tmp_path, 0, 1, 2, 3, 4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train')  # killed while writing
    write(tmp_path, 2, 3, 4, 5)
    assert [record["step"] for record in writers.read_metrics(tmp_path)] == [1, 2, 3, 4, 5]


def test_what_is_not_finite_becomes_null(tmp_path: pathlib.Path):
    with writers.MetricWriter(tmp_path, last_step=0, tensorboard=False) as writer:
        writer.write(1, {"val/loss": float("nan"), "val/top1": 0.5})
    assert writers.read_metrics(tmp_path) == [{"step": 1, "val/loss": None, "val/top1": 0.5}]


def test_damaged_lines_are_passed_over_with_a_warning(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\nrubbish \xff\n{"train/loss": 1}\n{"step": 2}\n')
    assert writers.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]
    assert "Line 2 of" in caplog.text
    assert "Line 3 of" in caplog.text


def test_evaluations_are_told_from_training(tmp_path: pathlib.Path):
    write(tmp_path, 0, 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "tr')
    writers.append_evaluation(tmp_path, 1, {"val/top1": 0.5})
    assert writers.read_metrics(tmp_path)[-1] == {"step": 1, "mode": "eval", "val/top1": 0.5}
    assert writers.training_records(tmp_path) == [{"step": 1, "train/loss": 0.1}]


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Returns what sets how large files of this process may become; of what is larger, a part is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_cuts_no_line(tmp_path: pathlib.Path, small_files, caplog: pytest.LogCaptureFixture):
    with writers.MetricWriter(tmp_path, last_step=0, tensorboard=True, on_error="continue") as writer:
        writer.write(1, {"train/loss": 0.5})
        small_files(len((tmp_path / "metrics.jsonl").read_text()) + 20)
        for step in (2, 3):
            writer.write(step, {"train/loss": 0.5})
            assert [record["step"] for record in writers.read_metrics(tmp_path)] == [1]
        assert not caplog.text.count("incomplete or damaged")
        assert caplog.text.count("metrics.jsonl: File too large. Entries are kept") == 1
        writer.flush()
        assert [record["step"] for record in writers.read_metrics(tmp_path)] == [1]
        small_files(10**6)
        writer.flush()
        assert [record["step"] for record in writers.read_metrics(tmp_path)] == [1, 2, 3]
        writer.write(4, {"train/loss": 0.5})
        assert [record["step"] for record in writers.read_metrics(tmp_path)] == [1, 2, 3, 4]
        (tmp_path / "metrics.jsonl").unlink()
        small_files(0)
        writer.write(5, {"train/loss": 0.5})
        writer.write(6, {"train/loss": 0.5})
        small_files(10**6)
        writer.go_back(5)
    assert [record["step"] for record in writers.read_metrics(tmp_path)] == [5]
    (events,) = tmp_path.glob("events.out.tfevents.*")
    data, index = events.read_bytes(), tfrecord.index_file(events)  # which checks the checksums of the lengths
    records = [event_pb2.Event.FromString(data[start : start + size]) for start, size in zip(*index, strict=True)]
    assert [record.step for record in records if record.HasField("summary")] == [1, 2, 3, 4, 5, 6]
    assert records[0].file_version == "brain.Event:2"
    assert [record.step for record in records if record.HasField("session_log")] == [1, 6]
    assert records[2].summary.value[0].tag == "train/loss"
    assert records[2].summary.value[0].simple_value == 0.5


def test_a_line_is_not_joined_to_what_something_else_has_left(tmp_path: pathlib.Path):
    path = tmp_path / "metrics.jsonl"
    with writers.MetricWriter(tmp_path, last_step=0, tensorboard=False) as writer:
        writer.write(1, {"train/loss": 0.5})
        for step, left in ((2, b'{"step": 1, "trai'), (3, b"\xff\x00"), (4, b"[1, 2]"), (5, b"[" * 100_000), (6, b"")):
            path.write_bytes(left)
            writer.write(step, {"train/loss": 0.5})
            assert path.read_bytes().startswith(left)
            assert [record["step"] for record in writers.read_metrics(tmp_path)] == [step]
    assert path.read_bytes().count(b"\n") == 1


def test_lines_that_cannot_be_read_end_the_run_in_one_message(tmp_path: pathlib.Path):
    assert writers.read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be read: Is a directory\. Move it away"):
        writers.read_metrics(tmp_path)


def test_lines_that_cannot_be_written_end_the_run(tmp_path: pathlib.Path, small_files):
    with writers.MetricWriter(tmp_path, last_step=0, tensorboard=False) as writer:
        small_files(10)
        with pytest.raises(CheckpointError, match=r"Cannot write to .*metrics\.jsonl: .*File too large"):
            writer.write(1, {"train/loss": 0.5})
        small_files(10**6)
    writer = writers.MetricWriter(tmp_path, last_step=0, tensorboard=False, on_error="continue")
    small_files(10)
    writer.write(1, {"train/loss": 0.5})
    with pytest.raises(CheckpointError, match="Cannot write to"):  # not even at the end
        writer.close()


def test_no_step_waits_for_slow_storage(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Lines and events are written by a thread; a save finds all of them on disk, and so does a rewind."""
    flush = Appender._flush
    monkeypatch.setattr(Appender, "_flush", lambda appender: (time.sleep(0.05), flush(appender))[1])
    before = threading.active_count()
    with (
        Background() as background,
        writers.MetricWriter(tmp_path, last_step=0, tensorboard=True, worker=background) as writer,
    ):
        start = time.monotonic()
        for step in range(1, 11):
            writer.write(step, {"train/loss": 0.5})
        assert time.monotonic() - start < 0.5  # and not 20 times 0.05
        writer.flush()
        assert [record["step"] for record in writers.read_metrics(tmp_path)] == [*range(1, 11)]
        writer.write(11, {"train/loss": 0.5})
        writer.go_back(4)
        writer.write(5, {"train/loss": 0.5})
    assert [record["step"] for record in writers.read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    assert threading.active_count() == before


def test_errors_of_the_thread_end_the_run(tmp_path: pathlib.Path, small_files):
    """At the next line, or where lines must be on disk."""

    def train(last_call: Callable[[writers.MetricWriter], None]) -> None:
        with (
            Background() as background,
            writers.MetricWriter(tmp_path, last_step=0, tensorboard=False, worker=background) as writer,
        ):
            small_files(0)
            writer.write(1, {"train/loss": 0.5})
            background._tasks.join()
            last_call(writer)
            pytest.fail("the run goes on")

    for last_call in (lambda writer: writer.write(2, {"train/loss": 0.5}), writers.MetricWriter.flush):
        with pytest.raises(CheckpointError, match=r"Cannot write to .*metrics\.jsonl: .*File too large"):
            train(last_call)
        small_files(10**6)


def open_and_write(workdir: pathlib.Path, config: ConfigDict, *, allow_config_change: bool = False) -> None:
    with writers.open_workdir(workdir):
        config_lib.check_same_config(workdir, config, allow_config_change=allow_config_change)
        config_lib.write_config(workdir, config)


def test_workdir_of_another_configuration(tmp_path: pathlib.Path):
    config, other = config_lib.default_config(), config_lib.default_config()
    other.batch_size, other.augment.flip = 512, 0.25
    open_and_write(tmp_path / "w", other)
    open_and_write(tmp_path / "w", config)  # nothing has been saved by the other
    (tmp_path / "w" / "checkpoints" / "5").mkdir(parents=True)
    open_and_write(tmp_path / "w", config)
    with pytest.raises(CheckpointError, match="another configuration") as caught:
        open_and_write(tmp_path / "w", other)
    assert "augment.flip: 0.5 -> 0.25\n  - batch_size: 256 -> 512\n" in str(caught.value)
    assert json.loads((tmp_path / "w" / "config.json").read_text())["batch_size"] == 256
    open_and_write(tmp_path / "w", other, allow_config_change=True)
    assert json.loads((tmp_path / "w" / "config.json").read_text())["batch_size"] == 512


@pytest.mark.parametrize("left", ["", '{"batch_size": 25', "[1, 2]", "null", "7", "[" * 100_000, "\0" * 9])
def test_a_damaged_config_is_refused_and_replaced_if_told_to(tmp_path: pathlib.Path, left: str):
    config = config_lib.default_config()
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "config.json").write_text(left)
    with pytest.raises(CheckpointError, match=r"its config\.json cannot be read: (?s:.*) pass --allow_config_change"):
        open_and_write(tmp_path, config)
    open_and_write(tmp_path, config, allow_config_change=True)
    open_and_write(tmp_path, config)


def test_fields_that_do_not_change_results_may_be_others(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    config, other = config_lib.default_config(), config_lib.default_config()
    open_and_write(tmp_path, config)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["guard"], stored["mesh"]["fsdp"]  # which an older version did not know
    (tmp_path / "config.json").write_text(json.dumps(stored))
    other.mesh.data, other.data.dir, other.data.num_threads = 4, "/elsewhere", 3
    other.checkpoint.update({"keep": 5, "on_error": "continue"})
    with caplog.at_level(logging.INFO):
        open_and_write(tmp_path, other)
    assert "  - checkpoint.keep: 2 -> 5\n  - checkpoint.on_error: 'stop' -> 'continue'\n  - data.dir" in caplog.text
    other.guard.nonfinite = "skip"
    with pytest.raises(CheckpointError, match=r"another configuration:\n  - guard.nonfinite: 'stop' -> 'skip'\n"):
        open_and_write(tmp_path, other)


def test_workdir_that_cannot_be_used(tmp_path: pathlib.Path):
    config = config_lib.default_config()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"Cannot use the workdir .*Give another --workdir"):
        open_and_write(tmp_path / "file" / "w", config)
    (tmp_path / "w" / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"its config\.json cannot be read"):
        open_and_write(tmp_path / "w", config)


def test_workdir_that_another_run_uses(tmp_path: pathlib.Path):
    config = config_lib.default_config()
    with (
        writers.open_workdir(tmp_path),
        pytest.raises(CheckpointError, match="Another run is using"),
    ):
        open_and_write(tmp_path, config)
    open_and_write(tmp_path, config)


def test_progress_without_a_terminal_is_lines(caplog: pytest.LogCaptureFixture):
    with (
        caplog.at_level(logging.INFO),
        writers.Progress(4, initial=1, description="train", seconds_between_lines=0) as progress,
    ):
        for _ in range(3):
            progress.update({"loss": "0.5"})
    assert [r.getMessage().partition(",")[0] for r in caplog.records] == ["train 2/4", "train 3/4", "train 4/4"]
    assert "loss=0.5" in caplog.text


def test_messages_that_nobody_reads_end_no_run(monkeypatch: pytest.MonkeyPatch):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    log = logging.getLogger("test_writers.gone")
    log.propagate = False
    log.addHandler(writers.ProgressHandler())
    for stream in (Gone(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        log.warning("Is anybody there?")


def test_a_link_to_a_file_stays_one(tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    writers.write_atomically(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"real.json", "link.json"}


def test_an_output_that_is_no_file_is_refused():
    """It would be replaced by one."""
    with pytest.raises(ConfigError, match=r"--json is /dev/null, which is no regular file"):
        check_output("--json", pathlib.Path("/dev/null"))
