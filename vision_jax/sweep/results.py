"""What came out of a search: its trials as rows, the importance of fields, and the files and tables that show them."""

import csv
import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vision_jax.runtime import goodput
from vision_jax.runtime.writers import write_atomically
from vision_jax.sweep import follow
from vision_jax.sweep.follow import Point
from vision_jax.sweep.plan import Values, as_text

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

FEWEST = 4  # completed trials, for the importance of fields


@dataclasses.dataclass(frozen=True)
class Row:
    """A trial.

    Attributes:
        number: of the trial, from 0.
        ending: complete, pruned, diverged, failed or running.
        value: of the metric; of a trial that was pruned, diverged or is running, the last one; None: there is none.
        step: at which it has this value; None: it is unknown.
        points: the values of the metric that its run has written.
        values: of the fields.
        seconds: that its run took; None: it is unknown.
        workdir: of its run.
        reason: why it diverged or failed.
    """

    number: int
    ending: str
    value: float | None
    step: int | None
    points: Sequence[Point]
    values: Values
    seconds: float | None
    workdir: pathlib.Path
    reason: str


@dataclasses.dataclass(frozen=True)
class Results:
    """A search and its trials.

    Attributes:
        workdir: of the search.
        search: its `identity`.
        rows: of the trials, by number.
        importance: share of the variance of the metric that each field explains alone, the largest first; empty: there
            are too few trials, or it was not computed.
    """

    workdir: pathlib.Path
    search: Mapping[str, Any]
    rows: Sequence[Row]
    importance: Mapping[str, float]

    @property
    def metric(self) -> str:
        """The key of metrics.jsonl."""
        return str(self.search["metric"])

    @property
    def fields(self) -> list[str]:
        """The fields that are searched."""
        return list(self.search["space"])

    def ranked(self) -> list[Row]:
        """Returns the rows, the best first: those that are complete, then the others by number."""
        sign = -1 if self.search["higher"] else 1

        def key(row: Row) -> tuple[bool, float, int]:
            complete = row.ending == "complete" and row.value is not None
            return not complete, sign * row.value if complete and row.value is not None else 0.0, row.number

        return sorted(self.rows, key=key)

    def best(self) -> Row | None:
        """Returns the best trial that is complete, the first of several; None: there is none."""
        first = next(iter(self.ranked()), None)
        return first if first is not None and first.ending == "complete" else None


def trial_workdir(workdir: pathlib.Path, number: int) -> pathlib.Path:
    """Returns the workdir of a trial."""
    return workdir / "trials" / f"{number:04d}"


def first_sentence(reason: str) -> str:
    """Returns what has happened, without what could be done about it."""
    sentence, stop, _ = reason.partition(". ")
    return sentence + stop.strip()


def collect(
    workdir: pathlib.Path, study: "optuna.Study", search: Mapping[str, Any], *, with_importance: bool = True
) -> Results:
    """Reads all trials, and what their runs have written.

    Args:
        workdir: of the search.
        study: of it.
        search: its `identity`.
        with_importance: compute the importance of fields, which takes seconds.
    """
    trials = study.get_trials(deepcopy=False)
    rows = [_row(workdir, trial, search) for trial in trials if trial.state.name != "WAITING"]
    return Results(workdir, search, rows, importance(study) if with_importance else {})


def _row(workdir: pathlib.Path, trial: "FrozenTrial", search: Mapping[str, Any]) -> Row:
    folder = trial_workdir(workdir, trial.number)
    points = follow.read(folder / "metrics.jsonl", search["metric"])
    finite = [point for point in points if math.isfinite(point.value)]
    ending = trial.user_attrs.get("ending", "running") if trial.state.is_finished() else "running"
    shown = finite[-1] if finite else None
    if ending == "complete" and finite and search["summary"] == "best":
        shown = (max if search["higher"] else min)(finite, key=lambda point: point.value)
    return Row(
        number=trial.number,
        ending=ending,
        value=trial.value if ending == "complete" else (None if shown is None else shown.value),
        step=None if shown is None else shown.step,
        points=points,
        values={field: trial.params[field] for field in search["space"] if field in trial.params},
        seconds=_seconds(folder),
        workdir=folder,
        reason=trial.user_attrs.get("reason", ""),
    )


def _seconds(workdir: pathlib.Path) -> float | None:
    """Returns the time that all attempts of a run took; None if it is unknown."""
    try:
        return sum(goodput.read(workdir / "goodput.json")["seconds"].values())
    except (OSError, ValueError):  # it has not begun, or was removed
        return None


def importance(study: "optuna.Study") -> dict[str, float]:
    """Returns which share of the variance of the metric each field explains alone, by fANOVA (Hutter et al. 2014).

    A forest of regression trees is fitted to the completed trials, and its variance over the whole space is divided:
    https://proceedings.mlr.press/v32/hutter14.html. Fields that are searched by their logs count by these, as the
    sampler draws them.

    Returns:
        the share by field, in [0, 1], the largest first; what is left is due to several fields together. Empty, if
        there are fewer than `FEWEST` trials, or all have the same value.
    """
    import optuna
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(trials) < FEWEST or len({trial.value for trial in trials}) == 1:
        return {}
    flat = optuna.create_study(direction=study.direction)
    flat.add_trials([_without_logs(trial) for trial in trials])
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return {name: float(share) for name, share in evaluator.evaluate(flat).items()}


def _without_logs(trial: "FrozenTrial") -> "FrozenTrial":
    """Returns a completed trial with the logs of the values that are searched by these."""
    import optuna
    from optuna.distributions import FloatDistribution

    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    for name, distribution in trial.distributions.items():
        params[name], distributions[name] = trial.params[name], distribution
        if isinstance(distribution, FloatDistribution) and distribution.log:
            low, high = math.log(distribution.low), math.log(distribution.high)
            params[name] = min(high, max(low, math.log(trial.params[name])))
            distributions[name] = FloatDistribution(low, high)
    return optuna.trial.create_trial(params=params, distributions=distributions, value=trial.value)


def as_json(results: Results) -> dict[str, Any]:
    """Returns all of it as JSON, in which null stands for what is unknown."""
    rows = [
        {
            **{name: getattr(row, name) for name in ("number", "ending", "value", "step", "seconds", "reason")},
            "workdir": str(row.workdir.relative_to(results.workdir)),
            "values": dict(row.values),
            "flags": [f"--config.{field}={as_text(value)}" for field, value in row.values.items()],
        }
        for row in results.rows
    ]
    best = results.best()
    return {
        "search": dict(results.search),
        "best": None if best is None else best.number,
        "importance": dict(results.importance),
        "trials": rows,
    }


def as_csv(results: Results) -> str:
    """Returns the trials as a table: a line for each, by number."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = ("number", "ending", "value", "step", "seconds")
    writer.writerow([*columns, *results.fields, "workdir", "reason"])
    for row in results.rows:
        values = [as_text(row.values[field]) if field in row.values else "" for field in results.fields]
        facts = ["" if getattr(row, name) is None else getattr(row, name) for name in columns]
        writer.writerow([*facts, *values, row.workdir.relative_to(results.workdir), row.reason])
    return file.getvalue()


def write(results: Results) -> None:
    """Writes sweep.csv and sweep.json.

    Raises:
        CheckpointError: if the storage fails.
    """
    write_atomically(results.workdir / "sweep.csv", as_csv(results))
    write_atomically(results.workdir / "sweep.json", json.dumps(as_json(results), indent=2) + "\n")


def as_text_table(results: Results, most: int = 10) -> str:
    """Returns the best trials as a table for a terminal."""
    ranked = results.ranked()
    heading = ["trial", "ending", results.metric, "step", *results.fields]
    lines = [heading, *([*_facts(row), *_shown(row, results.fields)] for row in ranked[:most])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    if len(ranked) > most:
        text.append(f"and {len(ranked) - most} more, in sweep.csv")
    return "\n".join(text)


def _facts(row: Row) -> list[str]:
    value = "-" if row.value is None else f"{row.value:.5g}"
    return [str(row.number), row.ending, value, "-" if row.step is None else str(row.step)]


def _shown(row: Row, fields: Sequence[str]) -> list[str]:
    values = [row.values.get(field, "-") for field in fields]
    return [f"{value:.5g}" if isinstance(value, float) else str(value) for value in values]
