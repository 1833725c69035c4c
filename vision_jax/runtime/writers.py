"""What a run writes besides checkpoints: config.json, metrics.jsonl, TensorBoard events, and progress for a person."""

import contextlib
import fcntl
import functools
import json
import logging
import math
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

import tqdm

from vision_jax.errors import CheckpointError
from vision_jax.runtime.appender import Appender, event
from vision_jax.runtime.background import Inline, Worker

log = logging.getLogger(__name__)


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file that is, at any moment, either the old or the new one.

    Raises:
        CheckpointError: if the storage fails.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(
            f"Cannot write {path}: {error}. See to the storage and run the same command again."
        ) from error


@contextlib.contextmanager
def open_workdir(workdir: pathlib.Path, *, enabled: bool = True) -> Iterator[None]:
    """Makes the workdir, or checks that it can be used, and keeps other runs out of it. Nothing in it is changed.

    Args:
        workdir: of the run.
        enabled: False does nothing: one process does it for all.

    Raises:
        CheckpointError: if it cannot be used.
    """
    if not enabled:
        yield
        return
    try:
        workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = workdir / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
        lock = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"Cannot use the workdir {workdir}: {error}. Give another --workdir.") from error
    try:
        _lock(lock, workdir)
        yield
    finally:
        os.close(lock)  # this gives the lock back, as the end of the process does


def _lock(descriptor: int, workdir: pathlib.Path) -> None:
    """Locks an open directory for this process."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CheckpointError(f"Another run is using {workdir}: wait for it, or give another --workdir.") from error
    except OSError as error:  # some network file systems have no locks
        log.warning("%s cannot be locked (%s): see to it that no other run uses it.", workdir, error)


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl. One that a killed run left unfinished is passed over."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(errors="replace").split("\n"), 1):
        try:
            record = json.loads(line or "{}")
            if record:
                records.append({**record, "step": int(record["step"])})
        except (ValueError, TypeError, KeyError):
            log.warning("Line %d of %s is passed over, as it is unfinished or damaged: %.80s", number, path, line)
    return records


def training_records(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl that training wrote, without those of --mode=eval."""
    return [record for record in read_metrics(workdir) if record.get("mode") != "eval"]


def append_evaluation(workdir: pathlib.Path, step: int, metrics: Mapping[str, float]) -> None:
    """Adds a line to metrics.jsonl that says it is of --mode=eval: the data may be other than in training."""
    with (workdir / "metrics.jsonl").open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")  # a killed run left its last line unfinished
        file.write(_line(step, {"mode": "eval", **metrics}).encode())


class MetricWriter:
    """Appends to metrics.jsonl, and to TensorBoard's events.

    Lines after `last_step` are dropped first: a killed run wrote them, and this one will compute them again.

    Args:
        workdir: where the files are.
        last_step: the step from which the run goes on.
        tensorboard: write events too.
        on_error: what storage that fails does; see `Appender`.
        enabled: False writes nothing: one process does it for all.
        worker: writes what `write` is given, later if it is a `Background`, which then tells of errors at the next
            call; None: it is written at once.

    Raises:
        CheckpointError: if the files cannot be written to.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        last_step: int,
        tensorboard: bool,
        on_error: str = "stop",
        enabled: bool = True,
        worker: Worker | None = None,
    ):
        self._workdir = workdir
        self._worker = worker or Inline()
        self._lines = self._events = None
        if not enabled:
            return
        self._lines = Appender(workdir / "metrics.jsonl", on_error=on_error)
        if tensorboard:
            name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
            self._events = Appender(workdir / name, on_error=on_error)
            self._events.write(event(0, file_version="brain.Event:2"))
        self.go_back(last_step)

    def go_back(self, last_step: int) -> None:
        """Drops what is after a step, from which the run is to go on."""
        self._worker.flush()
        if self._lines is not None:
            self._lines.forget(lambda line: json.loads(line)["step"] <= last_step)
            kept = [record for record in read_metrics(self._workdir) if record["step"] <= last_step]
            write_atomically(self._workdir / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))
        if self._events is not None:
            self._events.write(event(last_step + 1, session_log=True))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line. A value that is not finite becomes null, since JSON has no other word for it.

        Raises:
            CheckpointError: with on_error=stop, if this one or one before it cannot be written.
        """
        if self._lines is not None:
            self._worker.do(functools.partial(self._lines.write, _line(step, metrics).encode()))
        if self._events is not None:
            self._worker.do(functools.partial(self._events.write, event(step, metrics)))

    def flush(self) -> None:
        """Waits until all is written that can be: before a save, so that the lines are not behind the checkpoint.

        What storage that failed has kept back is tried once more.

        Raises:
            CheckpointError: with on_error=stop, if something cannot be written.
        """
        self._worker.flush()
        for output in (self._lines, self._events):
            if output is not None:
                output.retry()

    def close(self) -> None:
        """Writes what storage that failed has kept back.

        Raises:
            CheckpointError: if that does not work.
        """
        try:
            self._worker.flush()
        finally:
            for output in (self._lines, self._events):
                if output is not None:
                    output.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except CheckpointError as error:
            if kind is None:
                raise
            log.error("%s", error)  # the error under way is the one to show


def _line(step: int, metrics: Mapping[str, Any]) -> str:
    """Returns {"step": step, **metrics} as a line of JSON."""
    values = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in metrics.items()}
    return json.dumps({"step": step, **values}) + "\n"


class ProgressHandler(logging.Handler):
    """Prints log messages to stderr without breaking a bar that is shown there.

    That they cannot be printed, because the terminal or whatever reads them is gone, does not end a run.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # as the handlers of `logging` do
            self.handleError(record)


class Progress:
    """Shows a person how far a loop is: a bar on a terminal, a line now and then elsewhere.

    Args:
        total: iterations in all.
        initial: iterations done before.
        description: in front of all.
        leave: keep the bar on the screen when it is complete.
        enabled: False shows nothing.
        seconds_between_lines: how often a line is printed where there is no terminal.
    """

    def __init__(
        self,
        total: int,
        *,
        initial: int = 0,
        description: str,
        leave: bool = True,
        enabled: bool = True,
        seconds_between_lines: float = 10.0,
    ):
        self._bar = None
        self._lines = enabled and not sys.stderr.isatty()
        if enabled and not self._lines:
            self._bar = tqdm.tqdm(total=total, initial=initial, desc=description, dynamic_ncols=True, leave=leave)
        self._total, self._initial, self._done, self._description = total, initial, initial, description
        self._seconds, self._start = seconds_between_lines, time.monotonic()
        self._shown = self._start

    def update(self, values: Mapping[str, str]) -> None:
        """Counts one iteration; `values` are shown beside it."""
        self._done += 1
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)
            self._bar.update()
        elif self._lines and (time.monotonic() - self._shown >= self._seconds or self._done == self._total):
            self._shown = time.monotonic()
            left = (self._shown - self._start) / (self._done - self._initial) * (self._total - self._done)
            text = ", ".join(f"{name}={value}" for name, value in values.items())
            log.info(
                "%s %d/%d, %s left%s%s",
                self._description,
                self._done,
                self._total,
                _duration(left),
                text and ": ",
                text,
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _duration(seconds: float) -> str:
    return tqdm.tqdm.format_interval(seconds)
