"""Trains tiny runs of every objective under random faults, and compares each end with that of an undisturbed run.

`python tests/faults.py --seed=0 --faults=100 --log=faults.0.jsonl` on Linux. Pieces with other seeds add up:
`python tests/faults.py --summary faults.*.jsonl`. `chaos.py` has the faults of several processes and of full disks.

Each attempt gets one fault or several: between attempts, while it goes on, and one that ends it. Most attempts are
forked from this process, which has imported all modules and started no device; one of five is a program of its own.
When a run is complete, its arrays and its lines of metrics.jsonl must be those of the undisturbed run to the bit, but
for lines that a fault has destroyed. An attempt that ends with status 1 must say why in one message without a
traceback, and the run is started again as the message says. Exit status: 0 if all held, else 1.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import gc
import json
import mmap
import os
import pathlib
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads that a fork would not have
REPOSITORY = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(REPOSITORY))  # before any version that is installed

import fault_cases  # noqa: E402
from fault_cases import STEPS  # noqa: E402

TIMINGS = ("train/images_per_second", "train/input_wait", "train/mfu", "train/failed_saves", "goodput/")
LIMIT = 240  # seconds for an attempt
SLOWER = 0.03  # seconds that a forked attempt rests after each step, so that faults can come between steps

# How often each is done, relative to the others.
ENDING = {"SIGKILL": 2, "SIGTERM": 1, "SIGINT": 1, "worker": 2, "memory": 2, "data": 3, "saving": 4}
PASSING = {"second program": 2, "clock": 2, "metrics": 2, "config": 1}
BETWEEN = {"checkpoint": 2, "metrics": 2, "config": 2}
KINDS = tuple(dict.fromkeys((*ENDING, *PASSING, *BETWEEN)))


class FaultError(Exception):
    """Something did not hold."""


def check(holds: bool, message: str) -> None:
    if not holds:
        raise FaultError(message)


@dataclasses.dataclass
class Fault:
    """What was done and what came of it: a line of the log."""

    seed: int
    number: int
    objective: str
    kind: str
    what: str
    step: int
    phase: str
    process: str
    seconds: float = 0.0
    outcome: str = ""
    held: bool = True


class Shared:
    """What an attempt and this process tell each other: the step that is reached, and how far the clock is off."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16)

    @property
    def step(self) -> int:
        return struct.unpack_from("q", self._memory, 0)[0]

    @step.setter
    def step(self, value: int) -> None:
        struct.pack_into("q", self._memory, 0, value)

    @property
    def offset(self) -> float:
        return struct.unpack_from("d", self._memory, 8)[0]

    @offset.setter
    def offset(self, value: float) -> None:
        struct.pack_into("d", self._memory, 8, value)


class Workdir:
    """What can be seen of a run from outside."""

    def __init__(self, path: pathlib.Path):
        self.path, self.checkpoints, self.metrics = path, path / "checkpoints", path / "metrics.jsonl"
        self.destroyed: set[tuple[int, bool]] = set()  # lines of metrics.jsonl, by `key`

    def lines(self) -> list[dict[str, Any]]:
        """Returns the lines of metrics.jsonl that can be read, without what differs from run to run."""
        found = []
        with contextlib.suppress(OSError):
            for line in self.metrics.read_bytes().split(b"\n"):
                with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                    record = json.loads(line)
                    int(record["step"])
                    found.append({name: value for name, value in record.items() if not name.startswith(TIMINGS)})
        return found

    def saved(self) -> list[int]:
        with contextlib.suppress(OSError):
            return sorted(int(path.name) for path in self.checkpoints.iterdir() if path.name.isdigit())
        return []

    def unfinished(self) -> list[pathlib.Path]:
        """Returns the checkpoint that is being written, if one is."""
        with contextlib.suppress(OSError):
            return [path for path in self.checkpoints.iterdir() if "tmp" in path.name]
        return []

    def digests(self) -> dict[str, Any]:
        return json.loads((self.checkpoints / str(STEPS) / "about" / "metadata").read_text())["arrays"]


def key(line: dict[str, Any]) -> tuple[int, bool]:
    """Returns the step of a line, and whether it is of an evaluation."""
    return int(line["step"]), any(name.endswith("/count") for name in line)


class Attempt:
    """A training that was started, as a context manager that leaves no process behind."""

    def __init__(self, arguments: Sequence[str], log: pathlib.Path, cache: pathlib.Path, *, forked: bool, full: bool):
        self.shared, self.log, self.forked = Shared(), log, forked
        self._status: int | None = None
        self._program: subprocess.Popen[bytes] | None = None
        self._start = time.monotonic()
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
        environment["PYTHONPATH"] = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"
        with log.open("wb") as file:
            if forked:
                sys.stdout.flush()
                self.pid = os.fork()
                if self.pid == 0:
                    become_program(arguments, file.fileno(), environment, self.shared, full=full)
            else:
                command = [sys.executable, "-m", "vision_jax.main", *arguments]
                self._program = subprocess.Popen(
                    command, cwd=REPOSITORY, env=environment, stdout=file, stderr=file, start_new_session=True
                )
                self.pid = self._program.pid

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        while self._status is None:
            self._poll()
            time.sleep(0.001)

    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def ended(self) -> bool:
        self._poll()
        check(time.monotonic() - self._start < LIMIT, f"it hangs: see {self.log}")
        return self._status is not None

    def _poll(self) -> None:
        """Notes the exit status, if there is one; that of a signal is negative."""
        if self._program is not None:
            self._status = self._program.poll()
        elif self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None

    def status(self) -> int:
        while not self.ended():
            time.sleep(0.005)
        assert self._status is not None
        return self._status

    def wait(self, condition: Callable[[], Any]) -> bool:
        """Waits until something is so, and returns whether it is; not if the attempt ends before."""
        while not self.ended():
            if condition():
                return True
            time.sleep(0.002)
        return False

    def signal(self, number: int) -> None:
        if not self.ended():
            os.kill(self.pid, number)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stops the attempt for a moment, so that nothing is written."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def workers(self) -> list[int]:
        """Returns the processes that load data for it."""
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[1]) == self.pid and b"workers.serve" in (path.parent / "cmdline").read_bytes():
                    found.append(int(path.parent.name))
        return found

    def began_from(self) -> int:
        found = re.search(r"Going on from step (\d+)", self.printed())
        return int(found[1]) if found else 0


def become_program(
    arguments: Sequence[str], log: int, environment: dict[str, str], shared: Shared, *, full: bool
) -> NoReturn:
    """Runs `vision_jax.main` in this forked process, and ends it."""
    status = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(environment)
        os.chdir(REPOSITORY)
        from absl import app

        import vision_jax.main

        count_steps(shared)
        real, real_ns = time.time, time.time_ns
        time.time = lambda: real() + shared.offset
        time.time_ns = lambda: real_ns() + int(shared.offset * 1e9)
        if full:
            os.ftruncate = refuse_memory
        sys.argv = ["main", *arguments]  # in which ml_collections looks for --config
        app.run(vision_jax.main.main, argv=sys.argv, flags_parser=vision_jax.main._parse_flags)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def count_steps(shared: Shared) -> None:
    """Makes training say which step it has reached, and rest after it."""
    from vision_jax.runtime import tracker

    add = tracker.Tracker.add

    def add_and_tell(self: Any, step: int, metrics: Any) -> None:
        add(self, step, metrics)
        shared.step = step
        time.sleep(SLOWER)

    tracker.Tracker.add = add_and_tell  # type: ignore[method-assign]


def refuse_memory(descriptor: int, length: int) -> None:
    """Fails as `os.ftruncate` does where no memory is left for a file in memory."""
    raise OSError(28, os.strerror(28))


def warm_up() -> None:
    """Imports what a training needs, and starts nothing."""
    warnings.filterwarnings("ignore", message=".*fork.*")
    import vision_jax.main  # noqa: F401
    from vision_jax import train  # noqa: F401
    from vision_jax.devices import backend  # noqa: F401

    gc.collect()
    gc.freeze()
    check(len(os.listdir("/proc/self/task")) == 1, "there are threads, which a fork does not have")


@dataclasses.dataclass
class Faults:
    """Runs under faults.

    Args:
        seed: decides what is done and when.
        directory: for workdirs, data and the output of attempts.
        log: to which each fault is appended.
        objectives, kinds: those there may be.
    """

    seed: int
    directory: pathlib.Path
    log: pathlib.Path
    objectives: Sequence[str]
    kinds: Sequence[str]

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.cache = self.directory / "cache"
        self.done: list[Fault] = []
        self.failures = self._attempts = 0
        self._begun = time.monotonic()

    def run(self, faults: int) -> None:
        """Does so many faults."""
        deck: list[str] = []
        number = 0
        while len(self.done) < faults:
            number += 1
            if not deck:
                deck = list(self.objectives)
                self.random.shuffle(deck)
            objective = deck.pop()
            first = len(self.done)
            try:
                # Not too many for one run, so that all objectives have their turn.
                Run(self, objective, number).to_the_end(min(faults, first + 12))
            except FaultError as error:
                self.failures += 1
                print(f"FAILED: {objective}, run {number}: {error}", flush=True)
                for fault in self.done[first:]:
                    fault.held, fault.outcome = False, f"{fault.outcome}; the run failed: {error}"[:500]
            with self.log.open("a") as file:
                for fault in self.done[first:]:
                    file.write(json.dumps(dataclasses.asdict(fault)) + "\n")

    def start(self, arguments: Sequence[str], *, forked: bool = True, full: bool = False) -> Attempt:
        self._attempts += 1
        log = self.directory / f"attempt.{self._attempts}.log"
        return Attempt(arguments, log, self.cache, forked=forked, full=full)

    def say(self, message: str) -> None:
        print(f"{time.monotonic() - self._begun:7.1f} s  {message}", flush=True)


class Run:
    """One run that is disturbed until it is complete.

    Args:
        faults: of which it is a part.
        objective: what is trained.
        number: of the run.
    """

    def __init__(self, faults: Faults, objective: str, number: int):
        self.faults, self.objective, self.random = faults, objective, faults.random
        self.workdir = Workdir(faults.directory / f"run.{number}")
        self.data = faults.directory / f"data.{objective}"
        self.repairs: list[Callable[[], object]] = []
        self.allow_change = self.config_spoilt = False

    def to_the_end(self, most: int) -> None:
        """Starts it until it is complete, and compares its end.

        Args:
            most: no more faults once there are so many in all.
        """
        expected = self._undisturbed()
        for _ in range(40):
            if self._start_once(most, forked=self.random.random() < 0.8):
                self._compare(expected)
                shutil.rmtree(self.workdir.path)
                return
        raise FaultError("it makes no progress")

    def _arguments(self, workdir: Workdir) -> list[str]:
        return [
            f"--config=tests/fault_cases.py:{self.objective}",
            f"--workdir={workdir.path}",
            f"--config.data.dir={self.data}",
        ]

    def _undisturbed(self) -> Workdir:
        expected = Workdir(self.faults.directory / f"undisturbed.{self.objective}")
        if not expected.path.exists():
            if not self.data.exists():
                fault_cases.write_data(self.data, self.objective)
            with self.faults.start(self._arguments(expected)) as attempt:
                if attempt.status() != 0:
                    raise RuntimeError(f"{self.objective} fails without faults: {attempt.printed()[-3000:]}")
            self.faults.say(f"{self.objective} is complete without faults.")
        return expected

    def _fault(self, kind: str, what: str, step: int, phase: str, process: str) -> Fault:
        number = len(self.faults.done) + 1
        return Fault(self.faults.seed, number, self.objective, kind, what, step, phase, process)

    def _choose(self, weights: dict[str, int], share: float) -> str | None:
        """Returns one of several kinds, or with what is left of `share`, None."""
        allowed = {kind: weight for kind, weight in weights.items() if kind in self.faults.kinds}
        if not allowed or self.random.random() > share:
            return None
        return self.random.choices(list(allowed), list(allowed.values()))[0]

    def _start_once(self, most: int, *, forked: bool) -> bool:
        """Starts the run under faults, and returns whether it has become complete."""
        begun = time.monotonic()
        may = len(self.faults.done) < most
        process = "forked" if forked else "program"
        here: list[Fault] = []
        saved = self.workdir.saved()
        kind = self._choose(BETWEEN, 0.5) if may and saved else None
        if kind is not None and (what := self._between(kind, saved)) is not None:
            here.append(self._fault(kind, what, saved[-1], "between attempts", process))
        ending = self._choose(ENDING, 0.9) if may else None
        passing = [kind for share in (0.7, 0.4) if may and (kind := self._choose(PASSING, share)) is not None]
        full = ending == "memory" and forked and self.random.random() < 0.5
        arguments = self._arguments(self.workdir)
        if ending in ("worker", "memory"):
            arguments.append("--config.data.num_workers=2")
        on_error = self.random.choice(("stop", "continue"))
        arguments.append(f"--config.checkpoint.on_error={on_error}")
        if self.allow_change:
            arguments.append("--allow_config_change")
            self.allow_change = False
        began = saved[-1] if saved else 0
        with self.faults.start(arguments, forked=forked, full=full) as attempt:
            if full:
                here.append(self._fault("memory", "no room for shared memory", began, "start-up", process))
            else:
                for moment, kind in sorted((self.random.random(), kind) for kind in passing):
                    step = began + int(moment * (STEPS - began))
                    if self._reach(attempt, step) and (what := self._pass(kind, attempt, arguments)) is not None:
                        here.append(self._fault(kind, what, self._step(attempt), "steps", process))
                if ending is not None and not attempt.ended():
                    step = max(self._step(attempt), began + self.random.randrange(max(1, STEPS - began)))
                    if self._reach(attempt, step) and (what := self._end(ending, attempt)) is not None:
                        here.append(self._fault(ending, what, self._step(attempt), "steps", process))
            self.faults.done.extend(here)  # they count, whatever comes of them
            status = attempt.status()
            needed = here and here[-1].kind in ("data", "worker", "memory") and "written again" not in here[-1].what
            if status == 0 and needed:  # but not if nothing was read any more
                here.pop()
                self.faults.done.pop()
            try:
                outcome = self._judge(status, attempt, here, ending)
            finally:
                for repair in self.repairs:
                    repair()
                self.repairs = []
        for number, fault in enumerate(here):
            fault.number = len(self.faults.done) - len(here) + number + 1
            fault.seconds = round((time.monotonic() - begun) / len(here), 2)
            fault.outcome = fault.outcome or outcome
            self.faults.say(f"{fault.number}: {self.objective}: {fault.kind}, {fault.what}: {fault.outcome}")
        # Whether a checkpoint was spoilt while it was written is seen by whoever reads it: by the next attempt.
        return status == 0 and not any(fault.kind == "saving" for fault in here)

    def _step(self, attempt: Attempt) -> int:
        if attempt.forked:
            return attempt.shared.step
        return max((key(line)[0] for line in self.workdir.lines()), default=0)

    def _reach(self, attempt: Attempt, step: int) -> bool:
        """Waits until an attempt has taken a step and is about to go on, or has ended."""
        if attempt.forked:
            found = attempt.wait(lambda: attempt.shared.step > step)
        else:
            began = self.workdir.metrics.stat().st_ino if self.workdir.metrics.exists() else 0
            found = attempt.wait(
                lambda: (
                    self.workdir.metrics.exists()
                    and (self.workdir.metrics.stat().st_ino != began or "train " in attempt.printed())
                    and self._step(attempt) > step
                )
            )
        time.sleep(self.random.uniform(0, 0.04))
        return found

    # What is done.

    def _between(self, kind: str, saved: list[int]) -> str | None:
        if kind == "metrics":
            return self._spoil_metrics()
        if kind == "config":
            return self._spoil_config()
        if len(saved) < 2:
            return None
        folder = self.workdir.checkpoints / str(saved[-1])
        what = self.random.choice(("cut", "filled with garbage", "deleted", "folder deleted", "folder renamed"))
        if what == "folder deleted":
            shutil.rmtree(folder)
            return what
        if what == "folder renamed":
            folder.rename(folder.with_name(f"{folder.name}.old"))
            return what
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        (path,) = self.random.choices(paths, [path.stat().st_size for path in paths])
        if what == "deleted":
            path.unlink()
        else:
            spoil(path, what, self.random)
        return f"{path.relative_to(folder)} {what}"

    def _spoil_metrics(self) -> str | None:
        if not self.workdir.metrics.exists():
            return None
        before = {key(line) for line in self.workdir.lines()}
        what = self.random.choice(("cut", "filled with garbage", "zeros", "replaced", "deleted", "half a line added"))
        if what == "deleted":
            self.workdir.metrics.unlink()
        else:
            spoil(self.workdir.metrics, what, self.random)
        self.workdir.destroyed |= before - {key(line) for line in self.workdir.lines()}
        return what

    def _spoil_config(self) -> str | None:
        path = self.workdir.path / "config.json"
        if not path.exists():
            return None
        self.config_spoilt = True
        what = self.random.choice(("cut", "filled with garbage", "zeros", "replaced", "deleted"))
        if what == "deleted":
            path.unlink()
        else:
            spoil(path, what, self.random)
        return what

    def _pass(self, kind: str, attempt: Attempt, arguments: Sequence[str]) -> str | None:
        """Does what an attempt should not mind, and says what it was."""
        if kind == "clock":
            if not attempt.forked:
                return None
            attempt.shared.offset = self.random.choice((-1, 1)) * 10 ** self.random.uniform(0, 9)
            return f"jumps by {attempt.shared.offset:.4g} s"
        if kind == "metrics":
            with attempt.frozen():
                return self._spoil_metrics()
        if kind == "config":
            with attempt.frozen():
                return self._spoil_config()
        with attempt.frozen(), self.faults.start(arguments) as second:  # or it could end before the second one looks
            status, printed = second.status(), second.printed()
            if attempt.ended():
                return None
            check(status == 1 and "Another run is using" in printed, f"a second program: {printed[-2000:]}")
            check("Traceback" not in printed, f"a second program: {printed[-2000:]}")
            return "refused"

    def _end(self, kind: str, attempt: Attempt) -> str | None:
        """Does what may end an attempt, and says what it was; None if it came too late."""
        if attempt.ended():
            return None
        if kind.startswith("SIG"):
            attempt.signal(getattr(signal, kind))
            return kind
        if kind in ("worker", "memory"):
            workers = attempt.workers()
            if not workers:
                return None
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.random.choice(workers), signal.SIGBUS if kind == "memory" else signal.SIGKILL)
            return "a page of shared memory cannot be had" if kind == "memory" else "killed"
        if kind == "data":
            return self._replace_data()
        return self._disturb_save(attempt)

    def _replace_data(self) -> str:
        """Replaces one training image, or every third one."""
        paths = fault_cases.train_files(self.data)
        chosen = paths[self.random.randrange(3) :: 3] if self.random.random() < 0.7 else [self.random.choice(paths)]
        ways = ["cut", "replaced", "deleted", "written again"]
        # In a JPEG, garbage may be the code of other pixels, which nothing can tell.
        what = self.random.choice(ways + ["filled with garbage"] * (chosen[0].suffix == ".png"))
        for path in chosen:
            whole = path.read_bytes()
            self.repairs.append(functools.partial(path.write_bytes, whole))
            if what == "deleted":
                path.unlink()
                continue
            other = path.with_name(f".{path.name}")
            other.write_bytes(whole)
            if what != "written again":
                spoil(other, what, self.random)
            other.replace(path)
        return f"{chosen[0].name} {what}" if len(chosen) == 1 else f"{len(chosen)} files {what}"

    def _disturb_save(self, attempt: Attempt) -> str | None:
        folder = self.workdir.checkpoints
        if not attempt.wait(self.workdir.unfinished):
            return None
        time.sleep(self.random.uniform(0, 0.03))
        what = self.random.choice(("removed", "renamed", "all removed", "all renamed", "a file removed", "cut"))
        for path in self.workdir.unfinished():
            with contextlib.suppress(OSError):  # it is complete meanwhile
                if what == "removed":
                    shutil.rmtree(path, ignore_errors=True)  # more is written into it meanwhile
                elif what == "renamed":
                    path.rename(path.with_name("away"))
                elif what == "all removed":
                    shutil.rmtree(folder, ignore_errors=True)
                elif what == "all renamed":
                    folder.rename(folder.with_name(f"checkpoints.away.{time.monotonic_ns()}"))
                else:
                    file = self.random.choice(sorted(p for p in path.rglob("*") if p.is_file()) or [path / "none"])
                    file.unlink() if what == "a file removed" else os.truncate(file, file.stat().st_size // 2)
                return what
        return None

    # What must come of it.

    def _judge(self, status: int, attempt: Attempt, here: Sequence[Fault], ending: str | None) -> str:
        """Checks how an attempt has ended, and returns that."""
        printed = attempt.printed()
        check(not attempt.workers(), "workers are left over")
        kinds = [fault.kind for fault in here]
        signals = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 75, "SIGINT": 130}
        if status == 0:
            check(self.workdir.saved()[-1:] == [STEPS], "the status is 0, and the last step is not saved")
            return "complete"
        if ending in signals and ending in kinds and status == signals[ending]:
            return f"status {status}"
        check(status == 1, f"an attempt ended with {status} after {kinds}: {attempt.log}\n{printed[-2000:]}")
        check("Traceback" not in printed, f"a traceback after {kinds}: {attempt.log}\n{printed[-2000:]}")
        errors = re.findall(r"^error: (.*)$", printed, re.MULTILINE)
        check(len(errors) == 1, f"{len(errors)} messages after {kinds}: {attempt.log}\n{printed[-2000:]}")
        reasons = {"worker", "memory", "data", "saving", "checkpoint"}
        check(bool(reasons & set(kinds)) or self.config_spoilt, f"refused after {kinds}: {errors[0]}")
        if "--allow_config_change" in printed:
            check(self.config_spoilt, f"another configuration after {kinds}: {printed[-2000:]}")
            self.allow_change, self.config_spoilt = True, False
        return f"status 1: {errors[0]}".replace(str(self.faults.directory), "…")[:200]

    def _compare(self, expected: Workdir) -> None:
        """Compares the end of the run with that of the undisturbed one, to the bit."""
        check(expected.digests() == self.workdir.digests(), "other arrays than without faults")
        wanted, found = expected.lines(), self.workdir.lines()
        kept = {key(line) for line in found}
        missing = {key(line) for line in wanted} - kept
        check(missing <= self.workdir.destroyed, f"lines are missing: {sorted(missing - self.workdir.destroyed)}")
        check(found == [line for line in wanted if key(line) in kept], f"other lines than without faults: {found}")
        self.faults.say(f"{self.objective} is complete, and as the undisturbed: {len(found)} of {len(wanted)} lines.")


def spoil(path: pathlib.Path, how: str, random: random.Random) -> None:
    """Spoils a file in one of several ways."""
    size = path.stat().st_size
    if how == "cut":
        os.truncate(path, random.randrange(size) if size else 0)
    elif how == "replaced":  # by something of the wrong kind
        path.write_bytes(random.choice((b"", b"[1, 2]", b"null", b"7\n", b'{"step": "x"}\n', random.randbytes(200))))
    elif how == "half a line added":
        with path.open("ab") as file:
            file.write(b'{"step": 3, "train/lo')
    else:
        start = random.randrange(size) if size else 0
        count = min(max(1, size - start), 100)
        with path.open("r+b") as file:
            file.seek(start)
            file.write(bytes(count) if how == "zeros" else random.randbytes(count))


def summary(paths: Sequence[pathlib.Path]) -> tuple[str, int]:
    """Returns tables of the faults in several logs, in Markdown, and how many runs of them failed."""
    faults = [Fault(**json.loads(line)) for path in paths for line in path.read_text().splitlines()]
    objectives = sorted({fault.objective for fault in faults})
    counts = collections.Counter((fault.objective, fault.kind) for fault in faults)
    rows = [["objective", *KINDS, "all"]]
    for objective in objectives:
        each = [counts[objective, kind] for kind in KINDS]
        rows.append([objective, *(str(n or "") for n in each), str(sum(each))])
    each = [sum(counts[objective, kind] for objective in objectives) for kind in KINDS]
    rows.append(["all", *map(str, each), str(len(faults))])
    table = [f"| {' | '.join(row)} |" for row in rows]
    table.insert(1, "|---" * len(rows[0]) + "|")
    failed = [fault for fault in faults if not fault.held]
    seeds = sorted({fault.seed for fault in faults})
    hours = sum(fault.seconds for fault in faults) / 3600
    text = f"{len(faults)} faults of the seeds {seeds} in {hours:.2f} h, {len(failed)} in runs that failed.\n"
    lines = [f"FAILED: seed {f.seed}, {f.number}: {f.objective}, {f.kind}, {f.what}: {f.outcome}" for f in failed]
    return "\n".join([text, *table, *lines]), len(failed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="decides what is done, and when; default: %(default)s")
    parser.add_argument("--faults", type=int, default=50, help="how many; default: %(default)s")
    parser.add_argument("--log", type=pathlib.Path, help="one line of JSON for each fault is appended to it")
    parser.add_argument("--objective", action="append", choices=fault_cases.NAMES, help="default: all")
    parser.add_argument("--kind", action="append", choices=KINDS, help="default: all")
    parser.add_argument("--directory", type=pathlib.Path, help="for runs; default: a temporary one")
    parser.add_argument("--summary", nargs="+", type=pathlib.Path, metavar="LOG", help="count what logs have, and end")
    options = parser.parse_args(arguments)
    if options.summary:
        text, failures = summary(options.summary)
        print(text)
        return int(failures > 0)
    directory = (options.directory or pathlib.Path(tempfile.mkdtemp(prefix="faults-"))).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    log = (options.log or directory / "faults.jsonl").absolute()
    warm_up()
    objectives, kinds = options.objective or fault_cases.NAMES, options.kind or KINDS
    faults = Faults(options.seed, directory, log, objectives, kinds)
    begun = time.monotonic()
    faults.run(options.faults)
    hours = (time.monotonic() - begun) / 3600
    print(f"{len(faults.done)} faults, {len(faults.done) / hours:.0f} an hour; {faults.failures} runs failed: {log}")
    return int(faults.failures > 0)


if __name__ == "__main__":
    sys.exit(main())
