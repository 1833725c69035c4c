"""What a run has written, read without its data or its devices; what is damaged or missing in it is noted."""

import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax.errors import CheckpointError, ConfigError, DamagedError, check_no_url, reason
from vision_jax.evaluators import EVALUATORS
from vision_jax.objectives import OBJECTIVES
from vision_jax.runtime import goodput, writers
from vision_jax.runtime.checkpoint import Checkpointer, read_about

log = logging.getLogger(__name__)

MOST_RUNS = 8  # as many colors as can be told apart

# Metric -> whether a higher value is better, for every kind of evaluation and objective.
_HIGHER = {
    name: higher
    for kind in (*EVALUATORS.values(), *OBJECTIVES.values())
    for name, higher in kind.metrics.items()  # type: ignore[attr-defined]
}


@dataclasses.dataclass(frozen=True)
class Series:
    """The values of a metric.

    Attributes:
        steps: (n,) int64, ascending.
        values: (n,) float64; NaN where it was not finite.
    """

    steps: np.ndarray
    values: np.ndarray

    def last(self) -> tuple[int, float]:
        """Returns the last step and its value."""
        return int(self.steps[-1]), float(self.values[-1])

    def best(self, higher: bool) -> tuple[int, float] | None:
        """Returns the step of the best value, the first one if tied, and the value; None if none is finite."""
        if not np.isfinite(self.values).any():
            return None
        signed = np.where(np.isfinite(self.values), self.values if higher else -self.values, -np.inf)
        index = int(np.argmax(signed))
        return int(self.steps[index]), float(self.values[index])


@dataclasses.dataclass(frozen=True)
class Run:
    """What the files of a workdir say of a run.

    Attributes:
        name: unique among the runs that are shown.
        workdir: its folder.
        records: the lines of metrics.jsonl that training wrote.
        evaluations: those of --mode=eval.
        tables: the lines of tables.jsonl.
        config: the configuration, as JSON; {}: unknown.
        goodput: where the time went; None: unknown.
        steps: of the checkpoints, ascending.
        about: of the latest one that can be read; {}: there is none.
        notes: on what is missing or damaged, a sentence each.
    """

    name: str
    workdir: pathlib.Path
    records: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    tables: list[dict[str, Any]]
    config: dict[str, Any]
    goodput: dict[str, Any] | None
    steps: list[int]
    about: dict[str, Any]
    notes: tuple[str, ...]

    def metrics(self) -> list[str]:
        """Returns the names of the metrics that training wrote, in the order in which they appear."""
        return [name for name in dict.fromkeys(key for record in self.records for key in record) if "/" in name]

    def series(self, metric: str) -> Series | None:
        """Returns what training wrote of a metric; None if nothing."""
        pairs = sorted(
            ((record["step"], _value(record[metric])) for record in self.records if metric in record),
            key=lambda pair: pair[0],
        )
        if not pairs:
            return None
        steps, values = zip(*pairs, strict=True)
        return Series(np.array(steps, np.int64), np.array(values, np.float64))

    def class_table(self) -> tuple[str, Mapping[str, Any]] | None:
        """Returns the latest table of classes, of the EMA if there is one, and a description; None if there is none."""
        for line in reversed(self.tables):
            keys = [key for key in line if key.endswith(("/ema_classes", "/classes"))]
            for key in sorted(keys, key=lambda key: not key.endswith("/ema_classes")):
                if isinstance(line[key], dict):
                    mode = ", of --mode=eval" if line.get("mode") == "eval" else ""
                    return f"{key} at step {line['step']}{mode}", line[key]
        return None


def _value(value: Any) -> float:
    """Returns a number of a line of metrics.jsonl; NaN for null, and for what is damaged."""
    return float(value) if isinstance(value, int | float) else math.nan


def is_higher_better(metric: str) -> bool | None:
    """Returns whether a metric such as val/ema_top1 is better if it is higher; None if it is neither."""
    return _HIGHER.get(metric.rpartition("/")[2].removeprefix("ema_"))


def read_runs(workdirs: Sequence[str | pathlib.Path]) -> list[Run]:
    """Reads runs. They are named by their folders, or if two are called the same, by their paths.

    Raises:
        CheckpointError: if one has no metrics, or cannot be read.
        ConfigError: if one is no folder, or there are none or too many.
    """
    if not 1 <= len(workdirs) <= MOST_RUNS:
        raise ConfigError(f"There are {len(workdirs)} workdirs: a report shows 1 to {MOST_RUNS} runs.")
    for workdir in workdirs:
        check_no_url("WORKDIR", str(workdir))
    paths = [pathlib.Path(workdir).expanduser() for workdir in workdirs]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(f"A workdir is named twice: {', '.join(map(str, paths))}. Name each once.")
    names = [path.resolve().name for path in paths]
    return [
        read_run(path, name if names.count(name) == 1 else str(path)) for path, name in zip(paths, names, strict=True)
    ]


def read_run(workdir: pathlib.Path, name: str) -> Run:
    """Reads what a workdir holds, but for the arrays of its checkpoints.

    Raises:
        CheckpointError: if it has no metrics, or cannot be read.
        ConfigError: if it is no folder.
    """
    if not workdir.is_dir():
        raise ConfigError(
            f"WORKDIR is {workdir}: {'it is no folder' if workdir.exists() else 'it does not exist'}. "
            "Give one of a run."
        )
    notes: list[str] = []
    try:
        lines = writers.read_metrics(workdir)
        tables = writers.read_metrics(workdir, "tables.jsonl")
    except OSError as error:
        raise CheckpointError(f"Cannot read the metrics of {workdir}: {reason(error, path=True)}.") from error
    if not any("/" in key for line in lines for key in line):
        there = "has no metrics" if (workdir / "metrics.jsonl").exists() else "has no metrics.jsonl"
        raise CheckpointError(f"{workdir} {there}: it is no workdir of a run, or the run has not written any yet.")
    checkpointer = Checkpointer(workdir / "checkpoints")
    steps = checkpointer.steps()
    about: dict[str, Any] = {}
    for step in reversed(steps):
        try:
            about = read_about(checkpointer.directory / str(step))
            break
        except DamagedError as error:
            notes.append(str(error))
    return Run(
        name=name,
        workdir=workdir,
        records=[line for line in lines if line.get("mode") != "eval"],
        evaluations=[line for line in lines if line.get("mode") == "eval"],
        tables=tables,
        config=_read_config(workdir, about, notes),
        goodput=_read_goodput(workdir, notes),
        steps=steps,
        about=about,
        notes=tuple(notes),
    )


def _read_config(workdir: pathlib.Path, about: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Returns the configuration; that of the checkpoint if config.json is missing or damaged; {} without either."""
    path = workdir / "config.json"
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError(f"it holds a {type(config).__name__}")
        return config
    except (OSError, ValueError) as error:
        instead = "the configuration is that of the latest checkpoint" if about else "the configuration is unknown"
        notes.append(f"{path} cannot be read ({reason(error)}): {instead}.")
        return dict(about.get("config", {}))


def _read_goodput(workdir: pathlib.Path, notes: list[str]) -> dict[str, Any] | None:
    path = workdir / "goodput.json"
    try:
        return goodput.read(path)
    except (OSError, ValueError) as error:
        notes.append(f"{path} cannot be read ({reason(error)}): where the time went is unknown.")
        return None
