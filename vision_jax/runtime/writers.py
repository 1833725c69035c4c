"""What a run writes besides checkpoints: config.json, metrics.jsonl, TensorBoard events, and progress for people."""

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
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, Self

import tqdm

from vision_jax.errors import CheckpointError, reason
from vision_jax.runtime.appender import Appender, event, png_shape
from vision_jax.runtime.background import Inline, Worker

log = logging.getLogger(__name__)


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file atomically: at any moment it is either the old or the new one. A link to a file stays one.

    Raises:
        CheckpointError: if the storage fails.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(
            f"Cannot write {path}: {reason(error)}. Fix the storage and run the same command again."
        ) from error


@contextlib.contextmanager
def open_workdir(
    workdir: pathlib.Path, *, enabled: bool = True, flag: str = "--workdir", mode: int = 0o700
) -> Iterator[None]:
    """Creates the workdir, or checks that it is usable, and locks it. Nothing in it is changed.

    One that was created, and in which nothing was written, is removed when what it was created for fails.

    Args:
        workdir: of the run, or another folder that one process alone may write to.
        enabled: False does nothing: one process does this for all.
        flag: by which the user named it.
        mode: its permissions, if it is created.

    Raises:
        CheckpointError: if it cannot be used.
    """
    if not enabled:
        yield
        return
    made = [path for path in (workdir, *workdir.parents) if not os.path.exists(path)]
    try:
        workdir.mkdir(mode=mode, parents=True, exist_ok=True)
        probe = workdir / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
        lock = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        what = flag.removeprefix("--")
        raise CheckpointError(f"Cannot use the {what} {workdir}: {reason(error)}. Give another {flag}.") from error
    try:
        _lock(lock, workdir, flag)
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):  # raised where there is something in it
                for path in made:
                    path.rmdir()
            raise
    finally:
        os.close(lock)  # releases the lock, as the end of the process would


def _lock(descriptor: int, workdir: pathlib.Path, flag: str) -> None:
    """Locks an open directory for this process."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CheckpointError(f"Another run is using {workdir}: wait for it, or give another {flag}.") from error
    except OSError as error:  # some network file systems have no locks
        log.warning("%s cannot be locked (%s): make sure that no other run uses it.", workdir, reason(error))


def read_metrics(workdir: pathlib.Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, or of tables.jsonl, without incomplete ones, which a killed run may leave.

    Raises:
        CheckpointError: if the file is there and cannot be read.
    """
    path = workdir / name
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}. Move it away to go on without the lines in it."
        ) from error
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            record = json.loads(line or "{}")
            if record:
                records.append({**record, "step": int(record["step"])})
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            log.warning("Line %d of %s is skipped, as it is incomplete or damaged: %.80s", number, path, line)
    return records


def training_records(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl that training wrote, without those of --mode=eval."""
    return [record for record in read_metrics(workdir) if record.get("mode") != "eval"]


def append_evaluation(
    workdir: pathlib.Path, step: int, metrics: Mapping[str, float], tables: Mapping[str, Any] | None = None
) -> None:
    """Adds lines to metrics.jsonl and, if there are tables, to tables.jsonl.

    They are marked as those of --mode=eval: the data may differ from that in training.
    """
    _append(workdir / "metrics.jsonl", _line(step, {"mode": "eval", **metrics}))
    if tables:
        _append(workdir / "tables.jsonl", _line(step, {"mode": "eval", **tables}))


def _append(path: pathlib.Path, line: str) -> None:
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")  # a killed run left its last line incomplete
        file.write(line.encode())


class Copies(Protocol):
    """What else gets the lines and images of a run: `experiments.Experiments`."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None: ...


class MetricWriter:
    """Appends to metrics.jsonl, to TensorBoard events, and to tables.jsonl, which exists only if there are tables.

    Lines after `last_step` are dropped first: a killed run wrote them, and this one will compute them again.

    Args:
        workdir: where the files are.
        last_step: the step from which the run resumes.
        tensorboard: write events too.
        on_error: what to do if the storage fails; see `Appender`.
        enabled: False writes nothing: one process does this for all.
        worker: does the writing, asynchronously if it is a `Background`, which reports errors at the next call; None:
            it is done at once.
        copies: gets lines and images too, also those that are dropped and computed again.

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
        copies: Copies | None = None,
    ):
        self._workdir = workdir
        self._worker = worker or Inline()
        self._lines = self._tables = self._events = self._copies = None
        if not enabled:
            return
        self._copies = copies
        self._lines = Appender(workdir / "metrics.jsonl", on_error=on_error, lines=True)
        self._tables = Appender(workdir / "tables.jsonl", on_error=on_error, lines=True)
        if tensorboard:
            name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
            self._events = Appender(workdir / name, on_error=on_error)
            self._events.write(event(0, file_version="brain.Event:2"))
        self.go_back(last_step)

    def go_back(self, last_step: int) -> None:
        """Drops everything after a step, from which the run is to resume."""
        self._worker.flush()
        if self._lines is not None and self._tables is not None:
            for output in (self._lines, self._tables):
                output.forget(lambda line: json.loads(line)["step"] <= last_step)
            kept = [record for record in read_metrics(self._workdir) if record["step"] <= last_step]
            self._rewrite("metrics.jsonl", kept)
            if (self._workdir / "tables.jsonl").exists():
                # Tables are written before the line of their evaluation: what has none is going to be repeated.
                evaluated = {record["step"] for record in kept if any(name.endswith("/count") for name in record)}
                tables = read_metrics(self._workdir, "tables.jsonl")
                self._rewrite("tables.jsonl", [table for table in tables if table["step"] in evaluated])
        if self._events is not None:
            self._events.write(event(last_step + 1, session_log=True))

    def _rewrite(self, name: str, lines: list[dict[str, Any]]) -> None:
        write_atomically(self._workdir / name, "".join(json.dumps(line) + "\n" for line in lines))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line. Values that are not finite become null, since JSON cannot express them.

        Raises:
            CheckpointError: with on_error=stop, if this one or one before it cannot be written.
        """
        if self._lines is not None:
            self._worker.do(functools.partial(self._lines.write, _line(step, metrics).encode()))
        if self._events is not None:
            self._worker.do(functools.partial(self._events.write, event(step, metrics)))
        if self._copies is not None:
            self._copies.write(step, metrics)

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None:
        """Writes images to TensorBoard events and experiment trackers, which are the only ones to keep them.

        Args:
            step: that they belong to.
            images: PNG files by name, such as `val/mistakes`.

        Raises:
            ValueError: if one is no PNG file.
            CheckpointError: as `write`.
        """
        for name, png in images.items():
            try:
                png_shape(png)
            except ValueError as error:
                raise ValueError(f"The image {name} {error}.") from None
        self._worker.do(functools.partial(self._send_images, step, images))

    def draw(self, step: int, make: Callable[[], Mapping[str, bytes]]) -> None:
        """Writes the images that `make` returns, which is called where files are written, so that no step waits for it.

        If nothing takes images, it is not called. If it fails, the run goes on without these images, with a warning.

        Raises:
            CheckpointError: as `write`.
        """
        if self._events is None and not self._copies:
            return

        def draw() -> None:
            try:
                images = make()
            except Exception:  # a picture is no reason to end a run
                log.warning("The pictures of step %d cannot be drawn:", step, exc_info=True)
                return
            self._send_images(step, images)

        self._worker.do(draw)

    def _send_images(self, step: int, images: Mapping[str, bytes]) -> None:
        if not images:
            return
        if self._events is not None:
            self._events.write(event(step, images=images))
        if self._copies is not None:
            self._copies.write_images(step, images)

    def write_tables(self, step: int, tables: Mapping[str, Any]) -> None:
        """Writes a line of tables.jsonl: the tables by name, as JSON.

        Raises:
            CheckpointError: as `write`.
        """
        if self._tables is not None:
            self._worker.do(functools.partial(self._tables.write, _line(step, tables).encode()))

    def flush(self) -> None:
        """Waits until everything is written: called before a save, so that no checkpoint is ahead of the lines.

        Entries that failing storage has held back are tried again.

        Raises:
            CheckpointError: with on_error=stop, if something cannot be written.
        """
        self._worker.flush()
        for output in (self._lines, self._tables, self._events):
            if output is not None:
                output.retry()

    def close(self) -> None:
        """Writes the entries that failing storage has held back.

        Raises:
            CheckpointError: if that fails.
        """
        try:
            self._worker.flush()
        finally:
            for output in (self._lines, self._tables, self._events):
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
            log.error("%s", error)  # the exception being handled is the one to propagate


def _line(step: int, metrics: Mapping[str, Any]) -> str:
    """Returns {"step": step, **metrics} as a line of JSON."""
    values = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in metrics.items()}
    return json.dumps({"step": step, **values}) + "\n"


class ProgressHandler(logging.Handler):
    """Prints log messages to stderr without breaking a progress bar.

    A run does not end because they cannot be printed, when the terminal or the reading process is gone.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # as the handlers of `logging` do
            self.handleError(record)


class Progress:
    """Shows the progress of a loop: a bar on a terminal, periodic lines elsewhere.

    Args:
        total: total number of iterations.
        initial: iterations done before.
        description: prefix of the bar or line.
        leave: keep the bar on the screen when it is complete.
        enabled: False shows nothing.
        seconds_between_lines: interval between lines, without a terminal.
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
