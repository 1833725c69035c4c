"""The account of a run's time, with a clock that moves when it is told to."""

import json
import pathlib
import time

import jax
import numpy as np
import pytest

from vision_jax.runtime import writers
from vision_jax.runtime.background import Background
from vision_jax.runtime.goodput import CATEGORIES, Goodput


class Clock:
    """Seconds that pass when a test says so; `Clock()()` is the time."""

    def __init__(self, now: float = 1000.0):
        self.now = now

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def start(path: pathlib.Path, clock: Clock, **options) -> Goodput:
    return Goodput(path, clock=clock, wall=clock, **options)


def run(path: pathlib.Path, clock: Clock, first: int, last: int, *, marks: int = 1) -> Goodput:
    """An attempt: 5 s of start-up, 7 s of compilation, steps of 2 s and 1 s of waiting for each; it just ends."""
    goodput = start(path, clock)
    clock.wait(5)
    goodput.continue_from(first)
    with goodput.phase("compilation"):
        clock.wait(7)
    with goodput.phase("steps"):
        for step in range(first, last):
            with goodput.phase("input"):
                clock.wait(1)
            clock.wait(2)
            if (step + 1) % marks == 0:
                goodput.mark(step + 1)
    return goodput


def test_every_second_is_in_one_category(tmp_path: pathlib.Path, clock: Clock):
    goodput = start(tmp_path / "goodput.json", clock, begun=clock() - 3)
    clock.wait(1)
    goodput.continue_from(0)
    with goodput.phase("compilation"):
        clock.wait(10)
    clock.wait(1)
    with goodput.phase("steps"):
        clock.wait(20)
        with goodput.phase("evaluation"):
            clock.wait(4)
            with goodput.phase("input"):
                clock.wait(2)
            clock.wait(1)
        with goodput.phase("saves"):
            clock.wait(6)
        clock.wait(5)
    clock.wait(8)
    goodput.mark(10)
    expected = {"startup": 5, "compilation": 10, "input": 2, "steps": 25, "evaluation": 5, "saves": 6, "other": 8}
    assert goodput.seconds == {**dict.fromkeys(CATEGORIES, 0), **expected}
    assert goodput.total() == 61
    assert goodput.metrics() == {"goodput/productive": 25 / 61, "goodput/seconds": 61, "goodput/lost_seconds": 0}
    assert "40.98% of 61.0 s in 1 attempt" in goodput.table()
    assert json.loads((tmp_path / "goodput.json").read_text())["seconds"] == goodput.seconds
    with pytest.raises(ValueError, match="no category 'eval'"), goodput.phase("eval"):
        pass


@pytest.mark.parametrize("marks", [1, 4])
def test_a_restart_loses_the_steps_after_the_checkpoint(tmp_path: pathlib.Path, clock: Clock, marks: int):
    """Also where there is no mark at the checkpoint: time is proportional to steps."""
    path = tmp_path / "goodput.json"
    run(path, clock, 0, 12, marks=marks)
    clock.wait(100)
    second = run(path, clock, 6, 20, marks=marks)
    assert second.attempts == 2
    assert second.down == 100
    expected = {"startup": 10, "compilation": 14, "input": 26, "steps": 40, "lost": 12}
    assert second.seconds == pytest.approx({**dict.fromkeys(CATEGORIES, 0), **expected})
    assert second.productive() == pytest.approx(40 / 102)
    assert "100.0 s between attempts" in second.table()


def test_a_killed_attempt_counts_until_its_last_mark(tmp_path: pathlib.Path, clock: Clock):
    path = tmp_path / "goodput.json"
    run(path, clock, 0, 11, marks=4)  # the last three steps are not in the file
    third = run(path, clock, 8, 8)
    assert (third.seconds["steps"], third.seconds["lost"], third.down) == (16, 0, 9)
    again = run(path, clock, 0, 0)  # all checkpoints are gone
    assert (again.seconds["steps"], again.seconds["lost"], again.attempts) == (0, 16, 3)


def test_a_rewind_loses_steps_too(tmp_path: pathlib.Path, clock: Clock):
    goodput = run(tmp_path / "goodput.json", clock, 0, 10)
    goodput.lose_steps_after(4)
    assert (goodput.seconds["steps"], goodput.seconds["lost"]) == (8, 12)
    with goodput.phase("steps"):
        clock.wait(6)
        goodput.mark(7)
    goodput.lose_steps_after(4)
    assert (goodput.seconds["steps"], goodput.seconds["lost"]) == (8, 18)


def test_marks_stay_few_and_exact_enough(tmp_path: pathlib.Path, clock: Clock):
    path = tmp_path / "goodput.json"
    run(path, clock, 0, 500)
    assert len(json.loads(path.read_text())["marks"]) <= 200
    assert run(path, clock, 321, 321).seconds["lost"] == pytest.approx(2 * (500 - 321))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"seconds": {}}', '{"seconds": 3, "down": "x"}', "\x00", None, "nan"], ids=range(7)
)
def test_a_file_that_cannot_be_used_is_begun_anew(
    tmp_path: pathlib.Path, clock: Clock, caplog: pytest.LogCaptureFixture, text: str | None
):
    path = tmp_path / "goodput.json"
    if text == "nan":
        run(path, clock, 0, 3)
        text = path.read_text().replace('"steps": 6.0', '"steps": NaN')
    if text is not None:
        path.write_text(text)
    goodput = run(path, clock, 3, 5)
    assert goodput.seconds["steps"] == json.loads(path.read_text())["seconds"]["steps"] == 4
    assert goodput.attempts == 1
    (record,) = caplog.records
    assert ("is missing" if text is None else "is damaged") in record.getMessage()


def test_a_full_disk_costs_one_warning(
    tmp_path: pathlib.Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers.os, "fsync", full)
    assert run(tmp_path / "goodput.json", clock, 0, 9).seconds["steps"] == 18
    assert [record.getMessage().count("No space left") for record in caplog.records] == [1]


def test_marks_that_pile_up_are_written_once(tmp_path: pathlib.Path, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    """Storage that is slower than the steps holds up neither them nor what is written after the account."""
    written, write_atomically = [], writers.write_atomically

    def slowly(path: pathlib.Path, text: str) -> None:
        time.sleep(0.1)
        written.append(json.loads(text)["marks"][-1][0])
        write_atomically(path, text)

    monkeypatch.setattr(writers, "write_atomically", slowly)
    with Background() as background, start(tmp_path / "goodput.json", clock, worker=background) as goodput:
        goodput.continue_from(0)
        for step in range(1, 50):
            goodput.mark(step)
        assert len(written) < 10
        background.flush()
    assert written[-1] == 49
    assert len(written) < 10
    assert json.loads((tmp_path / "goodput.json").read_text())["marks"][-1][0] == 49


def test_only_the_first_process_writes(tmp_path: pathlib.Path, clock: Clock):
    goodput = start(tmp_path / "goodput.json", clock, enabled=False)
    with goodput:
        goodput.continue_from(0)
        goodput.mark(1)
    assert not list(tmp_path.iterdir())


def test_compiling_within_an_evaluation_is_compilation(tmp_path: pathlib.Path):
    """By the real clock, since it is JAX that says how long it took."""
    with Goodput(tmp_path / "goodput.json") as goodput, goodput.phase("evaluation"):
        jax.jit(lambda x: np.pi * x + 0.123)(1.0).block_until_ready()
    compiled = goodput.seconds["compilation"]
    assert compiled > 0
    assert goodput.seconds["evaluation"] >= 0
    jax.jit(lambda x: np.pi * x + 0.124)(1.0).block_until_ready()
    assert goodput.seconds["compilation"] == compiled  # after its end it does not listen
