"""Searches of made-up runs, which take no time: who runs which trial, what is pruned, and what failures lead to."""

import csv
import dataclasses
import json
import math
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from conftest import REPOSITORY, Command
from made_up_run import (
    DIVERGES,
    EVALUATIONS,
    FAILS_AT_ONCE,
    FAILS_LATE,
    HANGS_ALWAYS,
    IS_KILLED,
    WELL,
    WRITES_NOTHING,
    WRONG_FLAGS,
    value_at,
)

from vision_jax.errors import CheckpointError, ConfigError
from vision_jax.sweep import claims, plan, program, results, space, study, trial
from vision_jax.sweep.follow import Point

CONFIG = str(REPOSITORY / "configs" / "quickstart.py")
PROGRAM = (sys.executable, str(REPOSITORY / "tests" / "made_up_run.py"))
RATE = "optimizer.learning_rate"


def make(*settings: str, **fields: Any) -> plan.Search:
    return plan.Search(
        CONFIG, (), space.read(None, settings), **{"metric": "val/top1", "higher": True, "program": PROGRAM, **fields}
    )


def run(search: plan.Search, workdir: pathlib.Path, stops: Callable[[], bool] = lambda: False) -> results.Results:
    return program.Sweep(search, workdir, stops, poll_seconds=0.005).run()


@pytest.fixture
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are complete, or pruned, at once."""

    def run(job: trial.Job) -> trial.Outcome:
        rate = next(float(flag.partition("=")[2]) for flag in job.command if flag.startswith(f"--config.{RATE}="))
        points = [Point(number, number, value_at(rate, number)) for number in range(1, EVALUATIONS + 1)]
        for point in points:
            if job.report(point) and point.number < EVALUATIONS:
                return trial.Outcome(trial.Ending.PRUNED, points[: point.number])
        return trial.Outcome(trial.Ending.COMPLETE, points)

    monkeypatch.setattr(program, "run", run)


def behave(*behaviours: int) -> tuple[str, str]:
    """A grid of trials with these behaviours, one after another."""
    return f"data.prefetch=choice:{','.join(map(str, behaviours))}", f"{RATE}=choice:0.1"


def starts(workdir: pathlib.Path, number: int) -> list[str]:
    """How many evaluations a trial had each time it was started."""
    return (workdir / "trials" / f"{number:04d}" / "starts.txt").read_text().split()


def test_a_grid_is_run_once_and_written_down(tmp_path: pathlib.Path):
    search = make(f"{RATE}=log:0.001:10:5", "optimizer.nesterov=choice:True,False", sampler="grid")
    found = run(search, tmp_path)
    assert [row.values for row in found.rows] == plan.grid(search.space)
    for row in found.rows:
        assert row.ending == "complete"
        assert row.value == value_at(row.values[RATE], EVALUATIONS)
        assert row.step == 10 * EVALUATIONS
        assert starts(tmp_path, row.number) == ["0"]
    assert found.best().number == 4  # 0.1, and the first of two
    assert run(search, tmp_path).rows == found.rows  # nothing is begun again
    assert starts(tmp_path, 4) == ["0"]
    lines = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [float(line[RATE]) for line in lines] == [row.values[RATE] for row in found.rows]
    assert [float(line["value"]) for line in lines] == [row.value for row in found.rows]
    written = json.loads((tmp_path / "sweep.json").read_text())
    assert written["best"] == 4
    assert written["trials"][4]["flags"] == [
        f"--config.{RATE}={found.rows[4].values[RATE]!r}",
        "--config.optimizer.nesterov=True",
    ]
    assert list(written["importance"]) == [RATE, "optimizer.nesterov"]


def test_samples_depend_on_the_seed_and_the_number_alone(tmp_path: pathlib.Path, without_processes: None):
    """So a search that is cut off and goes on has the trials that it would have had."""
    for sampler, trials in (("random", 4), ("tpe", 12)):
        whole = make(f"{RATE}=log:0.001:10", "batch_size=int:16:128:16", sampler=sampler, seed=3, trials=trials)
        expected = [row.values for row in run(whole, tmp_path / sampler).rows]
        assert len({values[RATE] for values in expected}) == trials
        assert {values["batch_size"] for values in expected} <= set(range(16, 129, 16))
        known = study.samples(whole)
        assert known == expected[: len(known)]
        assert len(known) == min(trials, study.RANDOM_TRIALS)
        parts = tmp_path / f"{sampler} in parts"
        for part in (2, trials - 1, trials):
            found = run(dataclasses.replace(whole, trials=part), parts)
        assert [row.values for row in found.rows] == expected
    other = study.samples(dataclasses.replace(whole, seed=4))
    assert other[0] != expected[0]


def test_tpe_learns_from_results(tmp_path: pathlib.Path, without_processes: None):
    """As optuna alone does, with the same seeds and the same values."""
    search = make(f"{RATE}=log:0.001:10", sampler="tpe", trials=13, seed=5)
    found = [row.values[RATE] for row in run(search, tmp_path).rows]
    alone = optuna.create_study(direction="maximize")
    for number, rate in enumerate(found):
        seed = int(np.random.SeedSequence([5, number]).generate_state(1)[0])
        alone.sampler = optuna.samplers.TPESampler(seed=seed)
        asked = alone.ask()
        assert asked.suggest_float(RATE, 0.001, 10, log=True) == rate
        alone.tell(asked, value_at(rate, EVALUATIONS))


@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband"])
def test_what_is_pruned(pruner: str, tmp_path: pathlib.Path, without_processes: None):
    """As optuna's own pruners say of the same values in memory."""
    rates = [0.1, 0.08, 0.12, 0.07, 0.15, 2.0, 0.002, 5.0, 0.003, 0.09]
    reduction = {} if pruner == "median" else {"reduction": 2}
    search = make(f"{RATE}=choice:{','.join(map(str, rates))}", sampler="grid", pruner=pruner, **reduction)
    run(search, tmp_path)
    theirs = {
        "median": optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
        "asha": optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
        "hyperband": optuna.pruners.HyperbandPruner(min_resource=1, reduction_factor=2),
    }
    alone = optuna.create_study(study_name=study.NAME, direction="maximize", pruner=theirs[pruner])
    for rate in rates:
        asked, last, ended = alone.ask(), 0, False
        while last < EVALUATIONS and not ended:
            last += 1
            asked.report(value_at(rate, last), last)
            ended = asked.should_prune() and last < EVALUATIONS
        told = {"state": optuna.trial.TrialState.PRUNED} if ended else {"values": value_at(rate, last)}
        alone.tell(asked, **told)
    mine = study.load_study(tmp_path)[0].trials
    assert [one.state for one in mine] == [one.state for one in alone.trials]
    assert [one.intermediate_values for one in mine] == [one.intermediate_values for one in alone.trials]
    assert [one.state.name for one in mine].count("PRUNED") >= 2


def test_a_trial_that_is_pruned_saves_its_state_and_ends(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Even if what ends it is killed before this is told."""
    monkeypatch.setenv("MADE_UP_SECONDS", "0.4")
    search = make(f"{RATE}=choice:0.1,2.0", sampler="grid", pruner="asha", reduction=2)
    found = run(search, tmp_path)
    assert [row.ending for row in found.rows] == ["complete", "pruned"]
    assert 1 <= len(found.rows[1].points) < EVALUATIONS
    assert found.rows[1].value == found.rows[1].points[-1].value
    assert "Trace" not in (tmp_path / "trials" / "0001.log").read_text()
    assert found.best().number == 0

    monkeypatch.setattr(study, "tell", lambda *_: sys.exit("killed"))
    again = tmp_path / "again"
    search = make(f"{RATE}=choice:2.0", sampler="grid", pruner="asha", min_evaluations=1)
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda self: True)
    with pytest.raises(SystemExit):
        run(search, again)
    monkeypatch.undo()
    assert [row.ending for row in run(search, again).rows] == ["pruned"]
    assert starts(again, 0) == ["0"]


def test_importance_is_the_share_of_the_variance():
    """Of 3 u + v with u and v uniform, 9 and 1 parts of 10; u is the log of what is searched."""
    draws = np.random.RandomState(0)
    known = optuna.create_study(direction="maximize")
    spaces = {
        "a": optuna.distributions.FloatDistribution(1e-3, 1e3, log=True),
        "b": optuna.distributions.FloatDistribution(0, 1),
        "c": optuna.distributions.CategoricalDistribution(["x", "y"]),
    }
    for _ in range(150):
        u, v = draws.uniform(size=2)
        params = {"a": 10 ** (6 * u - 3), "b": v, "c": "xy"[draws.randint(2)]}
        known.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=3 * u + v))
    found = results.importance(known)
    assert list(found) == ["a", "b", "c"]
    assert found == pytest.approx({"a": 0.9, "b": 0.1, "c": 0.0}, abs=0.04)


def test_trials_that_fail_for_themselves_do_not_end_the_search(tmp_path: pathlib.Path):
    search = make(*behave(FAILS_AT_ONCE, DIVERGES, FAILS_LATE, IS_KILLED, HANGS_ALWAYS, WELL), sampler="grid")
    found = run(search, tmp_path)
    assert [row.ending for row in found.rows] == ["failed", "diverged", "failed", "complete", "failed", "complete"]
    at_once, diverged, late, killed, hangs, well = found.rows
    assert at_once.reason == f"There is no data set for {at_once.workdir}. Make one."
    assert diverged.reason == "At step 15 the loss is nan. Lower the learning rate."
    assert results.first_sentence(diverged.reason) == "At step 15 the loss is nan."
    assert diverged.value == value_at(0.1, 1)
    assert late.reason == "RuntimeError: RESOURCE_EXHAUSTED"
    assert starts(tmp_path, killed.number) == ["0", "1"]  # it is resumed
    assert killed.value == well.value == value_at(0.1, EVALUATIONS)
    assert starts(tmp_path, hangs.number) == ["0", "1", "1", "1"]
    assert "3 times in a row with status 79" in hangs.reason
    # The samplers take one that diverged for one of the worst.
    known = study.load_study(tmp_path)[0].trials[1]
    assert known.state is optuna.trial.TrialState.PRUNED
    assert math.isnan(known.intermediate_values[2])


def test_what_makes_all_trials_fail_ends_the_search(tmp_path: pathlib.Path):
    search = make("data.prefetch=choice:4", f"{RATE}=choice:0.1,0.2,0.3", sampler="grid")
    for begun in (1, 2):  # again, once whatever it was may have been mended
        with pytest.raises(
            ConfigError, match=r"No trial has begun to train \(tried: 0, 1\).*There is no data set for "
        ):
            run(search, tmp_path)
        assert starts(tmp_path, 0) == starts(tmp_path, 1) == ["0"] * begun
        assert not (tmp_path / "trials" / "0002").exists()
    assert {trial.state.name for trial in study.load_study(tmp_path)[0].trials} == {"RUNNING"}
    with pytest.raises(ConfigError, match=r"tried: 0\)"):  # there is no other to compare it with
        run(make(*behave(FAILS_AT_ONCE), sampler="grid"), tmp_path / "one")
    with pytest.raises(ConfigError, match=r"there are arguments that are not flags: x"):
        run(make(*behave(WRONG_FLAGS, WELL), sampler="grid"), tmp_path / "flags")
    with pytest.raises(ConfigError, match=r"--metric is val/top1, .* did not write it: there are: train/loss"):
        run(make(*behave(WRITES_NOTHING, WELL), sampler="grid"), tmp_path / "metric")


def test_another_search_is_refused_and_more_trials_are_not(tmp_path: pathlib.Path):
    search = make(f"{RATE}=log:0.01:1", sampler="random", trials=1)
    run(search, tmp_path)
    changes = (
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"overrides": ("--config.batch_size=32",)}, "batch_size: 64 -> 32"),
        ({"space": space.read(None, [f"{RATE}=log:0.01:2"])}, "space: .*log:0.01:1.* -> .*log:0.01:2"),
    )
    for change, message in changes:
        with pytest.raises(CheckpointError, match=rf"holds another search:\n  - {message}"):
            run(dataclasses.replace(search, **change), tmp_path)
    free = dataclasses.replace(search, trials=2, overrides=("--config.log.every_steps=7",))
    assert len(run(free, tmp_path).rows) == 2
    (tmp_path / "sweep.db").write_bytes(b"not a database, but as long as the head of one would be" * 20)
    with pytest.raises(CheckpointError, match=r"Cannot use .*sweep\.db: .*not a database"):
        run(search, tmp_path)


def test_a_config_file_that_changes_ends_the_search(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Or trials would be compared that differ in more than what is searched."""
    config = tmp_path / "config.py"
    config.write_text(pathlib.Path(CONFIG).read_text())

    def run_and_edit(job: trial.Job) -> trial.Outcome:
        config.write_text(config.read_text().replace("config.label_smoothing = 0.1", "config.label_smoothing = 0.2"))
        return trial.Outcome(trial.Ending.COMPLETE, [Point(1, 1, 0.5)])

    monkeypatch.setattr(program, "run", run_and_edit)
    search = dataclasses.replace(make(f"{RATE}=choice:0.1,0.2", sampler="grid"), config=str(config))
    with pytest.raises(CheckpointError, match=r"holds another search:\n  - label_smoothing: 0\.1 -> 0\.2"):
        run(search, tmp_path / "w")


def test_a_search_goes_on_when_it_is_told_to_stop(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MADE_UP_SECONDS", "0.5")
    search = make(f"{RATE}=choice:0.1,0.2", sampler="grid")
    metrics = tmp_path / "trials" / "0000" / "metrics.jsonl"
    found = run(search, tmp_path, stops=lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 2)
    assert [row.ending for row in found.rows] == ["running"]
    monkeypatch.setenv("MADE_UP_SECONDS", "0")
    found = run(search, tmp_path)
    assert [row.ending for row in found.rows] == ["complete", "complete"]
    first, second = starts(tmp_path, 0)
    assert first == "0"
    assert int(second) >= 2
    assert len(found.rows[0].points) == EVALUATIONS  # none twice
    assert starts(tmp_path, 1) == ["0"]


def arguments(workdir: pathlib.Path, *more: str) -> tuple[str, ...]:
    given = ("--config", CONFIG, f"--workdir={workdir}", f"--program={' '.join(PROGRAM)}", *more)
    return ("sweep", *given)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_processes_share_a_search_and_go_on_with_what_a_killed_one_left(command: Command, tmp_path: pathlib.Path):
    rates = ",".join(str(0.01 * number) for number in range(1, 9))
    given = arguments(tmp_path, "--set", f"{RATE}=choice:{rates}", "--sampler=grid")
    killed, other = (
        command.start(*given, module="vision_jax", MADE_UP_SECONDS="0.5", start_new_session=True) for _ in range(2)
    )
    trials, lost = tmp_path / "trials", []

    def has_begun() -> bool:
        """Whether the first process is in the middle of a trial, and which one it is."""
        for child in pathlib.Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split():
            flags = pathlib.Path(f"/proc/{child}/cmdline").read_text().split("\0")
            lost[:] = [int(pathlib.Path(flag).name) for flag in flags if flag.startswith("--workdir=")]
        metrics = trials / f"{lost[0] if lost else 0:04d}" / "metrics.jsonl"
        return bool(lost) and metrics.exists() and len(metrics.read_text().splitlines()) in (1, 2)

    wait_for(lambda: len(list(trials.glob("*/metrics.jsonl"))) >= 3 and has_begun())
    killed.kill()
    _, err = killed.communicate()
    printed, errors = other.communicate(timeout=120)
    assert other.returncode == 0, errors
    assert [number for number in range(8) if len(starts(tmp_path, number)) > 1] == lost
    begun = [int(number) for number in re.findall(r"Trial (\d+) begins", err + errors)]
    assert sorted(set(begun)) == list(range(8))
    assert {number for number in begun if begun.count(number) > 1} <= set(lost)
    assert re.findall(r"Trial (\d+) begins", err)  # both took some
    assert re.findall(r"Trial (\d+) begins", errors)
    assert starts(tmp_path, lost[0])[0] == "0"
    assert "The best one is in" in printed
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert [trial["ending"] for trial in found["trials"]] == ["complete"] * 8
    assert all(
        len((trials / f"{number:04d}" / "metrics.jsonl").read_text().splitlines()) == EVALUATIONS for number in range(8)
    )


def test_signals_are_passed_on(command: Command, tmp_path: pathlib.Path):
    """The run saves its state, and the same command goes on; nothing of it outlives the search."""
    metrics = tmp_path / "trials" / "0000" / "metrics.jsonl"
    for number, status in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        before = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        given = arguments(tmp_path, "--set", f"{RATE}=choice:0.1", "--sampler=grid")
        process = command.start(*given, module="vision_jax", MADE_UP_SECONDS="2")
        wait_for(lambda before=before: metrics.exists() and len(metrics.read_text().splitlines()) > before)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == status, errors
        assert not claims.is_locked(metrics.parent)
    assert starts(tmp_path, 0)[0] == "0"
    assert int(starts(tmp_path, 0)[1]) >= 1


def test_a_run_whose_search_was_killed_is_waited_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Its lock is free, and its run is still saving."""
    monkeypatch.setenv("MADE_UP_SECONDS", "0.5")
    search, metrics = make(f"{RATE}=choice:0.1", sampler="grid"), tmp_path / "trials" / "0000" / "metrics.jsonl"
    assert run(search, tmp_path, stops=metrics.exists).rows[0].ending == "running"
    monkeypatch.setenv("MADE_UP_SECONDS", "0")
    folder = str(metrics.parent)
    lock = f"fcntl.flock(os.open({folder!r}, os.O_RDONLY), fcntl.LOCK_EX)"
    code = f"import fcntl, os, sys; {lock}; print(flush=True); sys.stdin.read()"
    saving = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert saving.stdout.readline()
    asked = []

    def stops() -> bool:
        """Ends what is saving once it has been waited for."""
        asked.append(True)
        if len(asked) == 4:
            saving.communicate()
        return False

    with caplog.at_level("INFO", logger="vision_jax"):
        assert [row.ending for row in run(search, tmp_path, stops).rows] == ["complete"]
    assert caplog.text.count("its run is saving its state: waiting for it") == 1
