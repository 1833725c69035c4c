"""What a run writes besides checkpoints: config.json, metrics.jsonl, TensorBoard events, and progress for a person."""

import json
import logging
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any, Self

import tqdm
from ml_collections import ConfigDict

from vision_jax import config as config_lib
from vision_jax.errors import CheckpointError

log = logging.getLogger(__name__)


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file that is, at any moment, either the old or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def open_workdir(workdir: pathlib.Path, config: ConfigDict, *, allow_config_change: bool) -> None:
    """Makes the workdir, or checks that it is this configuration's; then writes config.json.

    Raises:
        CheckpointError: if it cannot be written to, or was made by another configuration.
    """
    path = workdir / "config.json"
    try:
        workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
        old_text = path.read_text() if path.exists() else None
    except OSError as error:
        raise CheckpointError(f"Cannot use the workdir {workdir}: {error}. Give another --workdir.") from error
    if old_text is None and any(workdir.glob("checkpoints/*")) and not allow_config_change:
        raise CheckpointError(
            f"{workdir} has checkpoints but no config.json to compare with: give another --workdir, or pass "
            "--allow_config_change to continue it."
        )
    if old_text is not None:
        try:
            old = json.loads(old_text)
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged ({error}): restore it, or give another --workdir.") from error
        changed = config_lib.differences(old, json.loads(config_lib.to_json(config)))
        if changed and not allow_config_change:
            lines = "\n".join(f"  - {line}" for line in changed)
            raise CheckpointError(
                f"{workdir} was made by another configuration:\n{lines}\nGive another --workdir, or pass "
                "--allow_config_change to continue with the new values."
            )
        for line in changed:
            log.warning("The configuration of this workdir changes: %s", line)
    try:
        write_atomically(path, config_lib.to_json(config))
    except OSError as error:
        raise CheckpointError(f"Cannot write to the workdir {workdir}: {error}. Give another --workdir.") from error


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl. A last line that a killed run left unfinished is passed over.

    Raises:
        CheckpointError: if another line is not JSON.
    """
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):  # no newline after it
                break
            raise CheckpointError(f"Line {number} of {path} is not JSON: {error}. Repair or remove the line.") from error
    return records


class MetricWriter:
    """Appends to metrics.jsonl, and to TensorBoard's events.

    Lines after `last_step` are dropped first: a killed run wrote them, and this one will compute them again.

    Args:
        workdir: where the files are.
        last_step: the step from which the run goes on.
        tensorboard: write events too.
        enabled: False writes nothing: one process does it for all.
    """

    def __init__(self, workdir: pathlib.Path, *, last_step: int, tensorboard: bool, enabled: bool = True):
        self._file: Any = None
        self._events: Any = None
        if not enabled:
            return
        path = workdir / "metrics.jsonl"
        kept = [record for record in read_metrics(workdir) if record["step"] <= last_step]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a")
        if tensorboard:
            import tensorboardX

            self._events = tensorboardX.SummaryWriter(os.fspath(workdir), purge_step=last_step + 1 if last_step else None)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line. A value that is not finite becomes null, since JSON has no other word for it."""
        if self._file is not None:
            write_line(self._file, step, metrics)
        if self._events is not None:
            for name, value in metrics.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        for output in (self._file, self._events):
            if output is not None:
                output.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_line(file: Any, step: int, metrics: Mapping[str, float]) -> None:
    """Writes {"step": step, **metrics} as a line of JSON, in one piece, at once."""
    values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    file.write(json.dumps({"step": step, **values}) + "\n")
    file.flush()


class ProgressHandler(logging.Handler):
    """Prints log messages to stderr without breaking a bar that is shown there."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.tqdm.write(self.format(record), file=sys.stderr)


class Progress:
    """Shows a person how far a loop is: a bar on a terminal, a line now and then elsewhere.

    Args:
        total: iterations in all.
        initial: iterations done before.
        description: in front of all.
        enabled: False shows nothing.
        seconds_between_lines: how often a line is printed where there is no terminal.
    """

    def __init__(
        self, total: int, *, initial: int = 0, description: str, enabled: bool = True, seconds_between_lines: float = 10.0
    ):
        self._bar = None
        self._lines = enabled and not sys.stderr.isatty()
        if enabled and not self._lines:
            self._bar = tqdm.tqdm(total=total, initial=initial, desc=description, dynamic_ncols=True, leave=True)
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
            log.info("%s %d/%d, %s left%s%s", self._description, self._done, self._total, _duration(left), text and ": ", text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _duration(seconds: float) -> str:
    return tqdm.tqdm.format_interval(seconds)
