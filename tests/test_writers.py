import json
import logging
import pathlib

import pytest

from vision_jax import config as config_lib
from vision_jax import writers
from vision_jax.errors import CheckpointError


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


def test_a_broken_line_is_named(tmp_path: pathlib.Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match="Line 2 of"):
        writers.read_metrics(tmp_path)


def test_workdir_of_another_configuration(tmp_path: pathlib.Path):
    config = config_lib.default_config()
    writers.open_workdir(tmp_path / "w", config, allow_config_change=False)
    writers.open_workdir(tmp_path / "w", config, allow_config_change=False)
    other = config_lib.default_config()
    other.batch_size, other.data.flip = 512, 0.25
    with pytest.raises(CheckpointError, match="another configuration") as caught:
        writers.open_workdir(tmp_path / "w", other, allow_config_change=False)
    assert "batch_size: 256 -> 512\n  - data.flip: 0.5 -> 0.25\n" in str(caught.value)
    assert json.loads((tmp_path / "w" / "config.json").read_text())["batch_size"] == 256
    writers.open_workdir(tmp_path / "w", other, allow_config_change=True)
    assert json.loads((tmp_path / "w" / "config.json").read_text())["batch_size"] == 512


def test_workdir_that_cannot_be_used(tmp_path: pathlib.Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Cannot use the workdir .*Give another --workdir"):
        writers.open_workdir(tmp_path / "file" / "w", config_lib.default_config(), allow_config_change=False)
    (tmp_path / "w" / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        writers.open_workdir(tmp_path / "w", config_lib.default_config(), allow_config_change=False)


def test_progress_without_a_terminal_is_lines(caplog: pytest.LogCaptureFixture):
    with (
        caplog.at_level(logging.INFO),
        writers.Progress(4, initial=1, description="train", seconds_between_lines=0) as progress,
    ):
        for _ in range(3):
            progress.update({"loss": "0.5"})
    assert [r.getMessage().partition(",")[0] for r in caplog.records] == ["train 2/4", "train 3/4", "train 4/4"]
    assert "loss=0.5" in caplog.text
