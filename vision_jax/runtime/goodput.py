"""Goodput: where the wall-clock time of a run went, over all attempts (starts of the program).

Every second of an attempt belongs to one category; `down` is the time between attempts. Steps are dispatched
asynchronously, so time is attributed by where the loop blocks:

- `startup`: from the start of the program to the first step, without compilation: imports, opening the data, restoring.
- `compilation`: tracing and compiling the training step, and anything else that XLA compiles in the main thread.
- `input`: the loop waits for a batch. Devices may still be busy with earlier steps, so the time that they wait for
  input is no longer than this.
- `steps`: the rest of the loop: dispatching steps, and waiting for the metrics of a step a few steps back.
- `evaluation`: counted from when the training steps before it have finished.
- `saves`: time in which a save blocks the loop, and waiting for the last one; writing in the background is not counted.
- `lost`: steps that had to be repeated, because they came after the checkpoint from which the run resumed after a
  restart or a rewind. Only their time in `steps` is moved here: time spent waiting for input was not productive anyway.
- `other`: everything else, such as writing a profile and closing files.

Goodput is the share of `steps` in the sum of these. `down` is not in the denominator: a run that was stopped over a
weekend is no worse for it. A killed attempt cannot record when it ended, so the time after its last line of
metrics.jsonl is counted as `down` too.
"""

import collections
import contextlib
import json
import logging
import math
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import numpy as np

from vision_jax.errors import CheckpointError
from vision_jax.runtime import writers
from vision_jax.runtime.background import Inline, Worker

log = logging.getLogger(__name__)

CATEGORIES = ("startup", "compilation", "input", "steps", "evaluation", "saves", "lost", "other")
_COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX reports it after each compilation, with its seconds
_MOST_MARKS = 200  # beyond this, every other one is dropped


class Goodput:
    """Measures the goodput of a run, and keeps it in a file that is rewritten at each mark.

    Until `continue_from` is called, it covers this attempt only, and nothing is read or written. Time before the first
    `phase("steps")` is start-up; after it, time outside all phases is `other`. A context manager: on exit it writes the
    file and logs the table.

    Args:
        path: of the file.
        begun: `clock()` at the start of the program; None: now.
        clock: a monotonic clock, in seconds.
        wall: the wall-clock time in seconds, for the time between attempts.
        enabled: False measures but writes no file: one process writes it for all.
        worker: writes the file, asynchronously if it is a `Background`, which skips outdated states; None: it is
            written at once.
    """

    def __init__(
        self,
        path: pathlib.Path,
        *,
        begun: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        enabled: bool = True,
        worker: Worker | None = None,
    ):
        self._worker = worker or Inline()
        self._latest: collections.deque[str] = collections.deque(maxlen=1)  # what the file is to hold
        self.seconds = dict.fromkeys(CATEGORIES, 0.0)
        self.down = 0.0
        self.attempts = 1
        self._path, self._clock, self._wall, self._enabled = path, clock, wall, enabled
        self._since = clock() if begun is None else begun
        self._phases = ["startup"]
        self._marks: list[list[float]] = []  # [step, seconds in steps until then], ascending
        self._continues, self._has_failed = False, False
        self._thread = threading.get_ident()

    @contextlib.contextmanager
    def phase(self, category: str) -> Iterator[None]:
        """Attributes the time inside to a category. Phases may be nested; time in an inner one counts only there."""
        if category not in self.seconds:
            raise ValueError(f"There is no category {category!r}: use one of {', '.join(CATEGORIES)}.")
        self._tick()
        if category == "steps":
            self._phases[0] = "other"
        self._phases.append(category)
        try:
            yield
        finally:
            self._tick()
            self._phases.pop()

    def _tick(self) -> None:
        """Attributes the time since the last call."""
        now = self._clock()
        self.seconds[self._phases[-1]] += now - self._since
        self._since = now

    def _compiled(self, event: str, duration_secs: float, **_: str | int) -> None:
        """Moves the time of a compilation out of the phase in which it happened."""
        if event == _COMPILED and self._phases[-1] != "compilation" and threading.get_ident() == self._thread:
            self._tick()
            self.seconds[self._phases[-1]] -= duration_secs
            self.seconds["compilation"] += duration_secs

    def continue_from(self, step: int) -> None:
        """Adds the times of earlier attempts, and starts writing the file.

        Args:
            step: of the state from which this attempt continues.
        """
        self._tick()
        begun = self._wall() - sum(self.seconds.values())
        earlier = self._read(step) if self._enabled else None
        if earlier is not None:
            for category, seconds in earlier["seconds"].items():
                self.seconds[category] += seconds
            self.down = earlier["down"] + max(0.0, begun - earlier["written"])
            self.attempts = earlier["attempts"] + 1
            self._marks = earlier["marks"]
        self.lose_steps_after(step)
        self._continues = True
        self._write()

    def lose_steps_after(self, step: int) -> None:
        """Moves the time of the steps after this one to `lost`, as the run resumes from it after a restart or a rewind.

        Time is interpolated linearly between marks.
        """
        self._tick()
        kept = self.seconds["steps"]
        if self._marks and step <= self._marks[-1][0]:
            marks = np.array(self._marks)
            kept = float(np.interp(step, marks[:, 0], marks[:, 1]))
        self.seconds["lost"] += self.seconds["steps"] - kept
        self.seconds["steps"] = kept
        self._marks = [mark for mark in self._marks if mark[0] < step] + [[step, kept]]

    def mark(self, step: int) -> None:
        """Records that this step has been reached, and writes the file."""
        self._tick()
        if not self._marks or self._marks[-1][0] < step:
            self._marks.append([step, self.seconds["steps"]])
        if len(self._marks) > _MOST_MARKS:
            self._marks = [*self._marks[:-1:2], self._marks[-1]]
        self._write()

    def total(self) -> float:
        """Returns the seconds of all attempts, without the time between them."""
        return sum(self.seconds.values())

    def productive(self) -> float:
        """Returns the share of the time that went into steps that were kept."""
        return self._share("steps")

    def _share(self, category: str) -> float:
        return self.seconds[category] / max(self.total(), 1e-9)

    def metrics(self) -> dict[str, float]:
        """Returns the goodput metrics of a line of metrics.jsonl: productive share, total and lost seconds."""
        return {
            "goodput/productive": self.productive(),
            "goodput/seconds": self.total(),
            "goodput/lost_seconds": self.seconds["lost"],
        }

    def table(self) -> str:
        """Returns a table for people, with the share of each category."""
        lines = [f"  {name:12}{self.seconds[name]:12.1f} s{self._share(name):9.2%}" for name in CATEGORIES]
        attempts = "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
        return "\n".join(
            [
                f"{self.productive():.2%} of {self.total():.1f} s in {attempts} went into steps that were kept:",
                *lines,
                *([f"  {'down':12}{self.down:12.1f} s between attempts"] if self.attempts > 1 else []),
            ]
        )

    def _read(self, step: int) -> dict[str, Any] | None:
        """Returns the content of the file; None, with a warning, if it is missing or damaged."""
        try:
            return read(self._path)
        except FileNotFoundError:
            if step:
                log.warning("%s is missing: the time of earlier attempts is not counted.", self._path)
        except (OSError, ValueError) as error:
            log.warning("%s is damaged (%s): the time of earlier attempts is not counted.", self._path, error)
        return None

    def _write(self) -> None:
        """Writes the file. Failing storage only causes a warning."""
        if not self._continues or not self._enabled:
            return
        values = {
            "productive": self.productive(),
            "seconds": self.seconds,
            "down": self.down,
            "attempts": self.attempts,
            "marks": self._marks,
            "written": self._wall(),
        }
        self._latest.append(json.dumps(values) + "\n")
        self._worker.do(self._write_latest)

    def _write_latest(self) -> None:
        if not self._latest:  # an earlier task has written it already
            return
        try:
            writers.write_atomically(self._path, self._latest.pop())
        except CheckpointError as error:
            if not self._has_failed:
                log.warning("Goodput is not recorded: %s The run continues.", error)
            self._has_failed = True

    def __enter__(self) -> Self:
        jax.monitoring.register_event_duration_secs_listener(self._compiled)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._compiled)
        self._tick()
        self._write()
        if self._continues:
            log.info("%s", self.table())


def read(path: pathlib.Path) -> dict[str, Any]:
    """Returns the content of the file of a `Goodput`.

    Returns:
        seconds: of each of `CATEGORIES`.
        down: seconds between the attempts.
        attempts: how many there were.
        productive, marks, written: as they are written.

    Raises:
        OSError: if the file is missing or cannot be read.
        ValueError: if it is damaged.
    """
    try:
        values = json.loads(path.read_text())
        numbers = {name: float(values["seconds"][name]) for name in CATEGORIES}
        down, written = float(values["down"]), float(values["written"])
        marks = [[int(at), float(seconds)] for at, seconds in values["marks"]]
        attempts = int(values["attempts"])
    except (TypeError, KeyError) as error:
        raise ValueError(f"something is missing in it: {error!r}") from error
    if not all(math.isfinite(x) for x in (*numbers.values(), down, written, *(x for _, x in marks))):
        raise ValueError("it contains numbers that are not finite")
    return {**values, "seconds": numbers, "down": down, "written": written, "attempts": attempts, "marks": marks}
