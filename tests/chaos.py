"""Trains in several processes under random faults, and compares the end with that of a run that nothing disturbs.

`python tests/chaos.py --faults=20 --seed=0` on Linux, where `unshare -rm` may mount a tmpfs. Half of the faults go to
a run whose topology stays the same, and whose end must be the uninterrupted one to the bit; the others to one that each
start continues on another number of processes and devices and with another mesh, and whose parameters and losses must
agree within rounding. When a run is complete before all faults are done, it is compared, and another is begun.

A fault counts if it hit something: if the run had ended, or did not notice, it is done again. What each fault must lead
to is in `Chaos`. Exit status: 0 if all held, else 1.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

REPOSITORY = pathlib.Path(__file__).parent.parent
STEPS, EVALUATIONS, SAVES = 40, 20, 4
ARGUMENTS = (
    f"--config.total_steps={STEPS}",
    f"--config.eval.every_steps={EVALUATIONS}",
    f"--config.checkpoint.every_steps={SAVES}",
    "--config.checkpoint.keep=3",
    "--config.checkpoint.on_error=continue",
    "--config.log.every_steps=1",
    "--config.log.tensorboard=False",
    "--config.watchdog_seconds=20",
)
ENVIRONMENT = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # compiles in less time
# Prefixes of metrics that are timings; and of those that tell of faults, too.
TIMINGS = ("train/images_per_second", "train/input_wait", "train/mfu", "goodput/")
NOT_REPEATABLE = (*TIMINGS, "train/failed_saves")
# How often each is done, relative to the others: SIGSTOP costs the limit of the watchdog.
KINDS = {"SIGKILL": 5, "SIGTERM": 3, "damage": 3, "full": 2, "SIGSTOP": 1}
LIMIT = 300  # seconds for an attempt, in which it must end
GRACE = 5  # seconds that the launcher leaves to the other processes


@dataclasses.dataclass(frozen=True)
class Topology:
    """Processes, devices of each, and the axis of the mesh that two devices are on, if any but data."""

    processes: int
    devices: int
    axis: str = ""

    def arguments(self) -> list[str]:
        return [f"--config.mesh.{self.axis}=2", "--config.mesh.fsdp_min_size=1"] if self.axis else []

    def divides(self) -> bool:
        """Returns whether the processes hold different parts of the state."""
        return self.processes > 1 and self.axis == "fsdp"

    def __str__(self) -> str:
        return f"{self.processes} x {self.devices}" + (f", {self.axis}=2" if self.axis else "")


# What continues a run on one of these does so on another one.
TOPOLOGIES = (
    *(Topology(2, 2), Topology(1, 4), Topology(2, 1, "fsdp"), Topology(1, 1)),
    *(Topology(2, 2, "fsdp"), Topology(1, 2, "tensor"), Topology(4, 1), Topology(2, 1)),
)


class ChaosError(Exception):
    """Something did not hold."""


def check(holds: bool, message: str) -> None:
    if not holds:
        raise ChaosError(message)


@dataclasses.dataclass
class Fault:
    """What was done, at which step and in what, and what came of it."""

    kind: str
    topology: Topology
    what: str = ""
    step: int = 0
    phase: str = ""
    outcome: str = ""
    lost: int | None = None  # steps that were done again


class Workdir:
    """What can be seen of a run from outside."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.checkpoints = path / "checkpoints"

    def lines(self) -> list[dict]:
        with contextlib.suppress(FileNotFoundError):
            # Without what is being written.
            text = (self.path / "metrics.jsonl").read_text()
            return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return []

    def saved(self) -> list[int]:
        """Returns the steps of the complete checkpoints, sorted."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(int(path.name) for path in self.checkpoints.iterdir() if path.name.isdigit())
        return []

    def set_aside(self) -> int:
        """Returns how many checkpoints were found to be damaged."""
        return len(list(self.path.glob("checkpoints.damaged/*")))

    def saves(self) -> bool:
        """Returns whether a checkpoint is being written."""
        return any(self.checkpoints.glob("*tmp*"))

    def complete(self) -> bool:
        return self.saved()[-1:] == [STEPS] and any("val/count" in r and r["step"] == STEPS for r in self.lines())

    def version(self) -> int:
        """Returns a number that changes when an attempt has dropped the lines of steps that it will do again."""
        path = self.path / "metrics.jsonl"
        return path.stat().st_ino if path.exists() else 0

    def digests(self) -> dict[str, list]:
        """Returns shape, dtype and digest of each array in the last checkpoint."""
        return json.loads((self.checkpoints / str(STEPS) / "about" / "metadata").read_text())["arrays"]


class Attempt:
    """A training that was started, as a context manager that leaves nothing of it behind."""

    def __init__(self, config: str, topology: Topology, workdir: Workdir, log: pathlib.Path, cache: pathlib.Path):
        self.topology, self.workdir, self._log = topology, workdir, log
        self._version, self._start = workdir.version(), time.monotonic()
        path = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "launch/local.py", f"--processes={topology.processes}", f"--grace={GRACE}"),
                    *(f"--devices={topology.devices}", "--", f"--config={config}", f"--workdir={workdir.path}"),
                    *ARGUMENTS,
                    *topology.arguments(),
                ],
                cwd=REPOSITORY,
                env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path, "XDG_CACHE_HOME": os.fspath(cache)},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in [self.process.pid, *self.session()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def printed(self) -> str:
        return self._log.read_text(errors="replace")

    def tail(self) -> str:
        """Returns the end of what was printed, for messages."""
        return self.printed()[-3000:]

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def ended(self) -> bool:
        check(self.seconds() < LIMIT, f"it hangs: see {self._log}")
        return self.process.poll() is not None

    def pid(self, index: int) -> int | None:
        found = re.search(rf"^\[launch\] Process {index} has pid (\d+)", self.printed(), re.MULTILINE)
        return int(found[1]) if found else None

    def session(self) -> list[int]:
        """Returns the processes that this attempt has started and that still are there, without the launcher."""
        pids = []
        for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has ended
                state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.process.pid and state != "Z" and int(path.parent.name) != self.process.pid:
                    pids.append(int(path.parent.name))
        return pids

    def began_from(self) -> int | None:
        """Returns the step from which the loop went on, or None if it was not reached."""
        found = re.search(r"Going on from step (\d+)", self.printed())
        return int(found[1]) if found else (0 if self.trains() else None)

    def trains(self) -> bool:
        """Returns whether the loop of steps has begun: the lines of earlier attempts have been cut then."""
        return self.workdir.version() != self._version

    def reached(self) -> int:
        """Returns the last step of this attempt of which there is a line, or 0."""
        lines = self.workdir.lines() if self.trains() else []
        return lines[-1]["step"] if lines else 0

    def phase(self) -> str:
        lines = self.workdir.lines()
        if not self.trains() or not lines:
            return "start-up"
        if self.workdir.saves():
            return "save"
        return "evaluation" if lines[-1]["step"] % EVALUATIONS == 0 and "val/count" not in lines[-1] else "steps"

    def wait(self, condition: Callable[[], bool], seconds: float = LIMIT) -> bool:
        """Waits until something is so, and returns whether it is; not if the attempt ends before, or time is up."""
        end = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.005)
        return False

    def status(self) -> int:
        """Waits for the end, and returns the exit status."""
        while not self.ended():
            time.sleep(0.01)
        check(not self.session(), f"processes are left over: {self.session()}")
        return self.process.returncode


@dataclasses.dataclass
class Chaos:
    """Runs of one training under faults, each of them compared with one that nothing disturbs.

    Args:
        config: of the training.
        topologies: each attempt uses one of them.
        directory: for logs.
        disk: for workdirs; a small file system, if it is to be filled.
        random: decides what is done and when.
        kinds: which faults, and how often relative to each other.
        cache: for data and compiled programs; None: in `directory`.
    """

    config: str
    topologies: Sequence[Topology]
    directory: pathlib.Path
    disk: pathlib.Path
    random: random.Random
    kinds: dict[str, int] = dataclasses.field(default_factory=lambda: KINDS)
    cache: pathlib.Path | None = None

    def __post_init__(self) -> None:
        self.faults: list[Fault] = []
        self._attempts = 0
        self._start = time.monotonic()
        self._deck: list[str] = []
        self._startup = 0.0  # seconds
        self._previous: Topology | None = None

    def run(self, faults: int) -> None:
        """Does so many faults, and prints each.

        Raises:
            ChaosError: if something does not hold.
        """
        expected = Workdir(self.directory / f"{pathlib.Path(self.config).stem}.uninterrupted")
        with self._attempt(expected, self.topologies[0]) as attempt:
            attempt.wait(attempt.trains)
            self._startup = attempt.seconds()
            check(attempt.status() == 0 and expected.complete(), f"without faults it fails: {attempt.tail()}")
        number = 0
        while len(self.faults) < faults:
            number += 1
            workdir = Workdir(self.disk / f"{pathlib.Path(self.config).stem}.{number}")
            while not self._start_once(workdir, faults):
                check(self._attempts < 5 * faults + 20, "the runs make no progress")
            difference = self._compare(expected, workdir)
            self._say(
                f"Run {number} is complete after {len(self.faults)} faults, and as the uninterrupted: {difference}."
            )
            subprocess.run(["rm", "-r", workdir.path], check=True)

    def _start_once(self, workdir: Workdir, faults: int) -> bool:
        """Starts the run, with what is left of the faults, and returns whether it has become complete."""
        before, aside = workdir.saved(), workdir.set_aside()
        damages, damage = len(self.faults) < faults and self._peek() == "damage", None
        topology, counted = self._choose_topology(damages), len(self.faults)
        if damages:
            # With one checkpoint, the run would rightly refuse to go on.
            damage = self._damage(workdir, topology) if len(before) > 1 else self._put_off()
        final = None
        with self._attempt(workdir, topology) as attempt:
            while len(self.faults) + (damage is not None) < faults and final is None and not attempt.ended():
                final = self._disturb(attempt, may_be_early=damage is None)
            status, began = attempt.status(), attempt.began_from()
        allowed = before[-1:] + (before[-2:-1] if damage else []) or [0]
        check(began is None or began in allowed, f"it went on from step {began}, and not from one of {allowed}")
        if damage is not None:
            damage.outcome = "passed over and kept" if workdir.set_aside() > aside else "not needed"
            damage.lost = before[-1] - began if began is not None else None
            if workdir.set_aside() > aside:
                check("*** GOING BACK TO THE CHECKPOINT BEFORE IT. ***" in attempt.printed(), "it was not said")
                self._count(damage)
        self._lose(began)
        if final is not None:
            self._judge(final, status, attempt)
        elif status == 0:
            check(workdir.complete(), "the status is 0, and the run is not complete")
            return True
        else:
            # What was full at the start, or at the end.
            full = any(fault.outcome == "ended with status 1" for fault in self.faults[counted:])
            check(full and status == 1, f"an attempt ended with {status} without a reason:\n{attempt.tail()}")
        return False

    def _disturb(self, attempt: Attempt, *, may_be_early: bool) -> Fault | None:
        """Waits for a moment and does one fault; returns it if it is to end the attempt."""
        kind = self._peek()
        if kind == "damage":  # it comes between attempts: this one is to end
            attempt.wait(lambda: attempt.trains() and len(attempt.workdir.saved()) > 1)
            kind = "SIGKILL"
        elif kind == "SIGSTOP" and attempt.topology.processes == 1:  # nobody is left to find it
            kind = "SIGTERM"
        index = self.random.randrange(attempt.topology.processes)
        # A process that is frozen before it has met the others is found by their limit for that, five minutes.
        if not self._wait_for_moment(attempt, may_be_early=may_be_early and kind != "SIGSTOP"):
            return None
        fault = Fault(kind, attempt.topology, step=attempt.reached(), phase=attempt.phase())
        if kind == "full":
            return self._fill(fault, attempt)
        pid = attempt.pid(index)
        if pid is None or (kind == "SIGTERM" and not attempt.wait(lambda: handles_sigterm(pid))):
            return None
        if attempt.workdir.complete():
            return None
        fault.what = f"process {index}"
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, getattr(signal, kind))
        return fault

    def _wait_for_moment(self, attempt: Attempt, *, may_be_early: bool) -> bool:
        """Waits for a random moment, and returns whether it has come before the end."""
        moment = self.random.choice(("steps", "save", "evaluation", *(("start-up",) if may_be_early else ())))
        if moment == "start-up":
            seconds = self.random.uniform(0.2, self._startup)
            return attempt.wait(lambda: attempt.seconds() > seconds)
        if not attempt.wait(attempt.trains):
            return False
        first = max(attempt.reached(), attempt.began_from() or 0)
        step = min(STEPS, first + self.random.randint(1, STEPS // 3))
        if moment == "save":
            found = attempt.wait(lambda: attempt.reached() >= step - SAVES and attempt.workdir.saves())
        elif moment == "evaluation":
            found = attempt.wait(lambda: attempt.phase() == "evaluation")
        else:
            found = attempt.wait(lambda: attempt.reached() >= step)
        time.sleep(self.random.uniform(0, 0.05))
        return found

    def _fill(self, fault: Fault, attempt: Attempt) -> Fault | None:
        """Fills the file system until the run notices, and makes room; the attempt goes on."""
        printed = len(attempt.printed())
        ballast = self.disk / "ballast"

        def noticed() -> bool:
            return re.search("CONTINUING WITHOUT IT|No space left", attempt.printed()[printed:]) is not None

        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(2**20))
        with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(64))
        found = attempt.wait(noticed, 60)
        if found:
            time.sleep(self.random.uniform(0, 1))
        found = found or noticed()
        if attempt.ended():
            fault.outcome = f"ended with status {attempt.status()}"
            check(attempt.process.returncode == 1 or attempt.workdir.complete(), fault.outcome)
        else:
            fault.outcome = "went on"
        ballast.unlink()
        if found:
            self._count(fault)
        return None

    def _damage(self, workdir: Workdir, topology: Topology) -> Fault:
        """Truncates or deletes a file of the newest checkpoint: the one with a random byte of it."""
        step = workdir.saved()[-1]
        root = workdir.checkpoints / str(step)
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        (path,) = self.random.choices(paths, [path.stat().st_size for path in paths])
        fault = Fault("damage", topology, step=step, phase="between attempts")
        if self.random.random() < 0.5:
            fault.what = f"{path.relative_to(root)} deleted"
            path.unlink()
        else:
            size = self.random.randrange(path.stat().st_size)
            fault.what = f"{path.relative_to(root)} cut to {size} bytes"
            os.truncate(path, size)
        return fault

    def _judge(self, fault: Fault, status: int, attempt: Attempt) -> None:
        """Checks what came of a fault that was to end the attempt."""
        fault.outcome = f"status {status}"
        if attempt.workdir.complete() or status == 0:
            check(attempt.workdir.complete(), "the status is 0, and the run is not complete")
            return self._say(f"{fault.kind} of {fault.what} came too late.")
        if fault.kind == "SIGTERM":
            check(status == 75, f"after SIGTERM the status is {status}:\n{attempt.tail()}")
            check(attempt.workdir.saved()[-1:] >= [fault.step], f"step {fault.step} is lost after SIGTERM")
            ends = re.findall(r"Process \d+ ended with (.*)\.", attempt.printed())
            check(ends == ["status 75"] * attempt.topology.processes, f"after SIGTERM the processes ended with {ends}")
        elif fault.kind == "SIGKILL":
            check(status not in (0, 75), f"after SIGKILL the status is {status}")
        else:
            # Whichever is first: the watchdog of the others, or the heartbeat that does not come.
            missed = status != 79 and "stopped sending heartbeats" in attempt.printed()
            check(status == 79 or missed, f"after SIGSTOP the status is {status}:\n{attempt.tail()}")
            fault.outcome += " by the heartbeat" if missed else " by the watchdog"
            stacks = any(attempt.workdir.path.glob("stacks/process_*.txt"))
            check(missed or stacks, "there are no stacks")
        self._count(fault)

    def _compare(self, expected: Workdir, workdir: Workdir) -> str:
        """Compares the end of two runs, and says how they differ: at most by rounding, where the topology changes."""
        first, second = ([repeatable(line) for line in run.lines()] for run in (expected, workdir))
        check([r.keys() for r in first] == [r.keys() for r in second], "other lines of metrics.jsonl")
        if len(self.topologies) == 1:
            check(first == second, "other metrics than without faults")
            check(expected.digests() == workdir.digests(), "other arrays than without faults")
            return f"all {len(first)} lines of metrics.jsonl and {len(workdir.digests())} arrays to the bit"
        return compare_within_rounding(expected, workdir)

    # What follows keeps the records.

    @contextlib.contextmanager
    def _attempt(self, workdir: Workdir, topology: Topology) -> Iterator[Attempt]:
        self._attempts += 1
        log = self.directory / f"{pathlib.Path(self.config).stem}.{self._attempts}.log"
        with Attempt(self.config, topology, workdir, log, self.cache or self.directory / "cache") as attempt:
            try:
                yield attempt
            except ChaosError as error:
                raise ChaosError(f"{error}\nAttempt {self._attempts} on {topology}: see {log}") from error

    def _choose_topology(self, damages: bool) -> Topology:
        """Returns one at random. The first damage is to be found where one process alone reads what is damaged."""
        wanted = list(self.topologies)
        if damages and not any(fault.kind == "damage" and fault.topology.divides() for fault in self.faults):
            wanted = [each for each in wanted if each.divides()] or wanted
        others = [each for each in wanted if each != self._previous]
        self._previous = self.random.choice(others or wanted)
        return self._previous

    def _peek(self) -> str:
        """Returns what is to be done next; each kind comes once before any comes again."""
        if not self._deck:
            once, others = list(self.kinds), [kind for kind, often in self.kinds.items() for _ in range(often - 1)]
            self.random.shuffle(once)
            self.random.shuffle(others)
            self._deck = [*others, *once]
        return self._deck[-1]

    def _put_off(self) -> None:
        """Moves what is to be done next behind all others."""
        self._deck.insert(0, self._deck.pop())

    def _count(self, fault: Fault) -> None:
        counts = fault.kind in self._deck
        if counts:  # else it was done for another one
            del self._deck[max(i for i, kind in enumerate(self._deck) if kind == fault.kind)]  # the next one
            self.faults.append(fault)
        self._say(
            f"{len(self.faults) if counts else 'also'}: {fault.kind} {fault.what} on {fault.topology} "
            f"at step {fault.step} ({fault.phase}): {fault.outcome}."
        )

    def _lose(self, began: int | None) -> None:
        """Notes how many steps the last fault has lost, now that the run goes on."""
        if began is None:
            return
        for fault in self.faults:
            if fault.kind != "damage" and fault.lost is None:
                fault.lost = max(0, fault.step - began) if fault.outcome.startswith(("status", "ended")) else 0

    def _say(self, message: str) -> None:
        print(f"{time.monotonic() - self._start:6.1f} s  {message}", flush=True)


def handles_sigterm(pid: int) -> bool:
    """Returns whether a process has a handler for SIGTERM, or has ended."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    caught = re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
    return caught is None or bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def repeatable(line: dict) -> dict:
    """Returns a line of metrics.jsonl without what differs from run to run."""
    return {name: value for name, value in line.items() if not name.startswith(NOT_REPEATABLE)}


def compare_within_rounding(expected: Workdir, workdir: Workdir) -> str:
    """Compares losses and parameters, and returns the largest differences.

    That of an array is the root of the mean square of the difference, relative to that of the array. Both may be 1e-5;
    one step changes some arrays by a thousand times as much.
    """
    import numpy as np

    losses = [[line.get("train/loss", line.get("val/loss")) for line in run.lines()] for run in (expected, workdir)]
    loss = float(np.max(np.abs(np.subtract(*losses)) / np.abs(losses[0])))
    first, second = read_model(expected), read_model(workdir)
    check(first.keys() == second.keys(), "other arrays than without faults")
    array = max(rms(second[name] - value) / max(rms(value), 1e-12) for name, value in first.items() if value.ndim)
    check(loss <= 1e-5, f"losses differ by up to {loss:.2g}")
    check(array <= 1e-5, f"arrays differ by up to {array:.2g}")
    return f"losses to {loss:.1e}, arrays to {array:.1e}"


def rms(values) -> float:
    """Returns the root of the mean square."""
    import numpy as np

    return float(np.sqrt(np.mean(np.square(values.astype(np.float64)))))


def read_model(workdir: Workdir) -> dict:
    """Returns the arrays of the last checkpoint's model, by name, wherever they were saved."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    path = (workdir.checkpoints / str(STEPS) / "model").absolute()
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(path).item_metadata.tree
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        model = reader.restore(path, restore_args=arguments)
    return {jax.tree_util.keystr(key): leaf for key, leaf in jax.tree_util.tree_flatten_with_path(model)[0]}


def table(chaoses: Sequence[Chaos]) -> str:
    """Returns what was done and what came of it, as a table in Markdown."""
    rows = [
        "| fault | processes x devices | at step | during | outcome | steps done again |",
        "|---|---|---|---|---|---|",
    ]
    for chaos in chaoses:
        for fault in chaos.faults:
            what = f"{fault.kind} {fault.what}".strip()
            lost = "" if fault.lost is None else str(fault.lost)
            rows.append(f"| {what} | {fault.topology} | {fault.step} | {fault.phase} | {fault.outcome} | {lost} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20, help="in all; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="decides what is done, and when; default: %(default)s")
    parser.add_argument("--processes", type=int, default=2, help="of the first run; default: %(default)s")
    parser.add_argument("--directory", type=pathlib.Path, help="for logs; default: a temporary one")
    parser.add_argument("--disk", type=pathlib.Path, help="a small file system to fill; default: a tmpfs of 64 MiB")
    options = parser.parse_args(arguments)
    directory = (options.directory or pathlib.Path(tempfile.mkdtemp(prefix="chaos-"))).absolute()
    (directory / "disk").mkdir(parents=True, exist_ok=True)
    if options.disk is None:
        # In namespaces of its own it needs no rights, and nobody else sees it.
        mount = 'mount -t tmpfs -o size=64m none "$0" && exec "$@"'
        command = [sys.executable, __file__, *(sys.argv[1:] if arguments is None else arguments)]
        flags = [f"--directory={directory}", f"--disk={directory / 'disk'}"]
        sys.stdout.flush()
        os.execvp("unshare", ["unshare", "-rm", "sh", "-c", mount, os.fspath(directory / "disk"), *command, *flags])
    os.environ["JAX_PLATFORMS"] = "cpu"
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # ends what was started, too
    choices = random.Random(options.seed)
    print(f"Logs are in {directory}.", flush=True)
    same = Chaos(
        "tests/small_resnet.py", (Topology(options.processes, 2),), directory, options.disk.absolute(), choices
    )
    other = Chaos("tests/small_vit.py", TOPOLOGIES, directory, options.disk.absolute(), choices)
    problem = None
    try:
        other.run(options.faults // 2)
        same.run(options.faults - options.faults // 2)
    except ChaosError as error:
        problem = error
    print(f"\n{table((same, other))}\n")
    print(f"FAILED: {problem}" if problem else f"{len(same.faults) + len(other.faults)} faults, and all held.")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
