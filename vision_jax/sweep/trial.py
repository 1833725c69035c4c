"""Running a trial: an ordinary run in a process of its own, which is followed, resumed, and ended early."""

import dataclasses
import enum
import logging
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from vision_jax.errors import STATUS_DIVERGED, STATUS_HANG, STATUS_PREEMPTED, ConfigError, printable, suggest
from vision_jax.sweep.follow import Follower, Point

log = logging.getLogger(__name__)

MOST_ATTEMPTS = 3  # in a row that get no further
_GRACE_SECONDS = 600.0  # for saving the state; then the run is killed
_WRONG_FLAGS = 2
_SHELL_SIGNAL = 128  # what shells and launchers add to the number of a signal


class Ending(enum.Enum):
    """How a trial has ended."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    DIVERGED = "diverged"  # its loss or gradients, or the metric, are not finite
    FAILED = "failed"
    STOPPED = "stopped"  # it was cut off, and goes on later


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came out of a trial.

    Attributes:
        ending: how it has ended.
        points: the values of the metric.
        reason: why it diverged or failed, in a line; "": it did not.
        trained: whether it has written anything of a step.
    """

    ending: Ending
    points: Sequence[Point] = ()
    reason: str = ""
    trained: bool = True


@dataclasses.dataclass(frozen=True)
class Job:
    """What is run, and how it is watched.

    Attributes:
        command: the program and its arguments.
        workdir: of the run.
        log: the file for what it prints.
        metric: a key of metrics.jsonl.
        report: is called for each value of the metric, as it comes; returns whether the trial is pruned there.
        stops: returns whether to end now, and go on later.
        poll_seconds: between looks.
    """

    command: Sequence[str]
    workdir: pathlib.Path
    log: pathlib.Path
    metric: str
    report: Callable[[Point], bool]
    stops: Callable[[], bool]
    poll_seconds: float = 0.2


def run(job: Job) -> Outcome:
    """Runs a trial, or goes on with it, until it has ended or is to stop.

    A run that was ended by a signal or saved its state, without being told to from here, is resumed, and so is one that
    hung; but not after `MOST_ATTEMPTS` in a row that got no further.

    Raises:
        ConfigError: for what no other trial would do without: the flags are wrong, or there is no such metric.
    """
    follower = Follower(job.workdir / "metrics.jsonl", job.metric)
    attempts = 0
    while True:
        follower.read()
        before, printed = follower.last_step, job.log.stat().st_size if job.log.exists() else 0
        status, pruned = _attempt(job, follower)
        trained = follower.last_step is not None
        if status == 0:
            return _complete(job, follower)
        if pruned:
            return Outcome(Ending.PRUNED, follower.points)
        if job.stops():
            return Outcome(Ending.STOPPED, follower.points, trained=trained)
        reason = _last_line(job.log, printed)
        if status == STATUS_DIVERGED:
            return Outcome(Ending.DIVERGED, follower.points, reason)
        if status == _WRONG_FLAGS:
            raise ConfigError(f"{reason.removeprefix('error: ')} (all of it is in {job.log})")
        if not _may_resume(status):
            return Outcome(Ending.FAILED, follower.points, reason or f"status {status}", trained)
        attempts = attempts + 1 if follower.last_step == before else 0
        if attempts == MOST_ATTEMPTS:
            reason = f"it ended {attempts} times in a row with {_describe(status)}, and got no further"
            return Outcome(Ending.FAILED, follower.points, reason, trained)
        log.warning("The run in %s has ended with %s, and is resumed.", job.workdir, _describe(status))


def _attempt(job: Job, follower: Follower) -> tuple[int, bool]:
    """Runs the command once and returns its status, and whether it was ended because the trial is pruned."""
    job.workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with job.log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vision_jax.sweep.child", str(os.getpid()), *job.command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C in a terminal reaches the whole group: it is to have SIGTERM from here instead
        )
    try:
        told = False
        reported = 0
        while True:
            status = process.poll()  # before the file is read: what was written before the end is read in any case
            if follower.read() and not told:
                for point in follower.points:
                    if point.number > reported:
                        reported = point.number
                        told = told or job.report(point)
                if told and status is None:
                    _end(process)
                    follower.read()
                    return process.returncode, True
            if status is not None:
                return status, told
            if job.stops():
                _end(process)
                follower.read()
                return process.returncode, False
            time.sleep(job.poll_seconds)
    except BaseException:
        _end(process)
        raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a run, which saves its state."""
    try:
        process.terminate()
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        log.warning("The process %d has not ended within %g s of SIGTERM, and is killed.", process.pid, _GRACE_SECONDS)
    finally:  # also if it is interrupted a second time
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            process.wait()


def _complete(job: Job, follower: Follower) -> Outcome:
    """Returns the outcome of a run that has ended well."""
    if not follower.points:
        there = sorted(follower.metrics)
        hint = suggest(job.metric, there) if there else "it wrote no metrics at all."
        raise ConfigError(f"--metric is {job.metric}, and the run in {job.workdir} did not write it: {hint}")
    if math.isnan(follower.points[-1].value):
        last = follower.points[-1]
        return Outcome(Ending.DIVERGED, follower.points, f"{job.metric} is not finite at step {last.step}")
    return Outcome(Ending.COMPLETE, follower.points)


def _may_resume(status: int) -> bool:
    return status in (STATUS_PREEMPTED, STATUS_HANG) or status < 0 or status > _SHELL_SIGNAL


def _describe(status: int) -> str:
    """Returns a status in words."""
    number = -status if status < 0 else status - _SHELL_SIGNAL
    known = {one.value for one in signal.Signals}
    return signal.Signals(number).name if number in known else f"status {status}"


def _last_line(path: pathlib.Path, start: int) -> str:
    """Returns the error of this package that a run has printed, or else the last line, after so many bytes."""
    with path.open("rb") as file:
        file.seek(max(start, path.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    lines = [re.sub(r"^\[\d+\] ", "", line).strip() for line in text.splitlines()]  # without a launcher's number
    lines = [line for line in lines if line]
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if errors:  # it may have several lines, one for each problem
        shown = [line for line in lines[errors[-1] :] if line is lines[errors[-1]] or line.startswith("- ")]
        return printable(" ".join(shown).removeprefix("error: "))
    return printable(lines[-1]) if lines else ""
