"""The sections of a page on what runs have written: results, curves, time, configuration, environment."""

import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import vision_jax
from vision_jax import config as config_lib
from vision_jax.report import curves, drawing
from vision_jax.report.markup import NOTHING, Markup, element, number, table
from vision_jax.report.runs import Run, Series, is_higher_better
from vision_jax.runtime.goodput import CATEGORIES


def form(metric: str, value: float) -> Markup:
    """Returns the value of a metric: accuracies and the like in percent."""
    if not np.isfinite(value):
        return number(None, "not finite")
    return number(value, f"{value:.2%}" if curves.is_share(metric) else f"{value:.5g}")


def runs_key(runs: Sequence[Run]) -> Markup:
    """Returns the list of runs with their colors and markers in figures."""
    items = [
        element("li", drawing.key(number), element("strong", run.name), " ", element("code", run.workdir))
        for number, run in enumerate(runs)
    ]
    return element("ul", *items, class_="key", aria_label="Runs and their colors")


def results(runs: Sequence[Run]) -> list[Markup]:
    """Returns what was trained, and the last and the best value of each metric of an evaluation."""
    facts: dict[str, list[object]] = {
        "model": [_field(run, "model.name") for run in runs],
        "objective": [_field(run, "objective.name") or "classification" for run in runs],
        "data": [_field(run, "data.source") for run in runs],
        "batch size": [_field(run, "batch_size") for run in runs],
        "optimizer": [_field(run, "optimizer.name") for run in runs],
        "peak learning rate": [_field(run, "optimizer.learning_rate") for run in runs],
        "last step": [_last_step(run) for run in runs],
        "epochs": [_last(run, "train/epoch") for run in runs],
        "parameters": [_parameters(run) for run in runs],
        "images/s, median": [_median(run, "train/images_per_second") for run in runs],
    }
    head = ["", *(run.name for run in runs)]
    groups: dict[str, list[str]] = {"": [n for n in ("train/loss", "train/top1") if any(run.series(n) for run in runs)]}
    for name in dict.fromkeys(name for run in runs for name in run.metrics()):
        group = name.partition("/")[0]
        if group not in ("train", "goodput"):
            groups.setdefault("" if group == "val" else group, []).append(name)
    first = [
        table("What was trained", head, [[name, *values] for name, values in facts.items()], class_="facts"),
        _result_table("Results: the last value, and the best one with its step", groups.pop(""), runs),
    ]
    others = [
        element("details", element("summary", f"Evaluation {group}"), _result_table(f"Results of {group}", names, runs))
        for group, names in groups.items()
    ]
    return [element("div", *first, class_="beside"), *others, *_later_evaluations(runs)]


def _result_table(caption: str, names: Sequence[str], runs: Sequence[Run]) -> Markup:
    """Returns the last and the best value of some metrics, in a row for each."""
    if not names:
        return element("p", "Training has not written any results.")
    heading = [f"{run.name}: {what}" if len(runs) > 1 else what for run in runs for what in ("last", "best")]
    rows = [[name, *(cell for run in runs for cell in _last_and_best(name, run.series(name)))] for name in names]
    return table(caption, ["metric", *heading], rows)


def _last_and_best(name: str, series: Series | None) -> tuple[object, object]:
    if series is None:
        return NOTHING, NOTHING
    last = form(name, series.last()[1])
    higher = None if name.startswith("train/") else is_higher_better(name)
    best = None if higher is None else series.best(higher)
    return last, NOTHING if best is None else Markup(f"{form(name, best[1])} <small>at {best[0]}</small>")


def _later_evaluations(runs: Sequence[Run]) -> list[Markup]:
    """Returns the evaluations that were made after training, with --mode=eval; the data may be other data."""
    rows = [
        [run.name, line["step"], name, form(name, value) if isinstance(value, int | float) else "not finite"]
        for run in runs
        for line in run.evaluations
        for name, value in line.items()
        if "/" in name and (value is None or isinstance(value, int | float))
    ]
    if not rows:
        return []
    shown = table("Of --mode=eval, in the order in which they were made", ["run", "step", "metric", "value"], rows)
    return [element("details", element("summary", f"Evaluations after training ({len(rows)} values)"), shown)]


def _field(run: Run, path: str) -> Any:
    return dict(config_lib.flatten(run.config)).get(path)


def _last_step(run: Run) -> int:
    return max(record["step"] for record in run.records) if run.records else max(run.steps, default=0)


def _last(run: Run, metric: str) -> object:
    series = run.series(metric)
    return NOTHING if series is None else form(metric, series.last()[1])


def _median(run: Run, metric: str) -> object:
    series = run.series(metric)
    if series is None or not np.isfinite(series.values).any():
        return NOTHING
    return form(metric, float(np.nanmedian(series.values)))


def _parameters(run: Run) -> object:
    shapes = [shape for name, (shape, *_) in run.about.get("arrays", {}).items() if name.startswith("model/params/")]
    count = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes)
    return number(count, f"{count:,}") if shapes else NOTHING


def curve_figures(runs: Sequence[Run]) -> list[Markup]:
    """Returns a figure for each metric; those of further evaluations can be unfolded."""
    groups: dict[str, list[Markup]] = {}
    for count, panel in enumerate(curves.panels(runs)):
        drawn = drawing.svg(curves.metric_figure(panel, runs), f"curve{count}", _describe(panel, runs))
        groups.setdefault(panel.group, []).append(element("figure", drawn, class_="drawing"))
    parts = [element("div", *figures, class_="figures")] if (figures := groups.pop("training", [])) else []
    for group, figures in groups.items():
        summary = element("summary", f"Evaluation {group}: {len(figures)} metrics")
        parts.append(element("details", summary, element("div", *figures, class_="figures")))
    return parts


def _describe(panel: curves.Panel, runs: Sequence[Run]) -> str:
    """Returns in words what a figure shows: the first and the last value of each line."""
    found = []
    for run in runs:
        for metric in (panel.training, panel.weights, panel.ema):
            if metric and (series := run.series(metric)) is not None:
                first, last = f"{series.values[0]:.4g}", f"{series.last()[1]:.4g}"
                found.append(
                    f"{run.name}, {metric}: {first} at step {series.steps[0]}, {last} at step {series.last()[0]}"
                )
    return f"{panel.title} by step. {'; '.join(found)}."


def time_spent(runs: Sequence[Run]) -> list[Markup]:
    """Returns where the time went; nothing if that is unknown of all runs."""
    known = [(run, run.goodput) for run in runs if run.goodput is not None]
    if not known:
        return []
    totals = [sum(goodput["seconds"].values()) for _, goodput in known]
    rows: list[list[object]] = []
    for category in CATEGORIES:
        row: list[object] = [category]
        for (_, goodput), total in zip(known, totals, strict=True):
            seconds = goodput["seconds"][category]
            row += [
                number(seconds, f"{seconds:,.1f} s"),
                number(seconds / max(total, 1e-9), f"{seconds / max(total, 1e-9):.1%}"),
            ]
        rows.append(row)
    for name, values in (
        ("all", totals),
        ("down, between attempts", [goodput["down"] for _, goodput in known]),
    ):
        rows.append([name, *(cell for value in values for cell in (number(value, f"{value:,.1f} s"), ""))])
    rows.append(["attempts", *(cell for _, goodput in known for cell in (goodput["attempts"], ""))])
    heading = [
        "category",
        *(x for run, _ in known for x in (f"{run.name}: seconds" if len(runs) > 1 else "seconds", "share")),
    ]
    shares = "; ".join(
        f"{run.name}: {goodput['seconds']['steps'] / max(total, 1e-9):.1%} in steps that were kept"
        for (run, goodput), total in zip(known, totals, strict=True)
    )
    drawn = drawing.svg(curves.goodput_figure(runs), "goodput", f"Shares of the time by category. {shares}.")
    text = ["Goodput is the share of ", element("code", "steps"), ": of training steps that were kept."]
    left = element("div", element("p", *text), element("figure", drawn, class_="drawing large", tabindex=0))
    return [element("div", left, table("Time by category", heading, rows), class_="beside")]


def configuration(runs: Sequence[Run]) -> list[Markup]:
    """Returns the fields that differ from the defaults or between runs, and all of them."""
    defaults = dict(config_lib.flatten(json.loads(config_lib.to_json(config_lib.default_config()))))
    known = [run for run in runs if run.config]
    fields = [dict(config_lib.flatten(run.config)) for run in known]
    paths = sorted({path for values in fields for path in values})

    def value(values: Mapping[str, object], path: str) -> object:
        return values[path] if path in values else defaults.get(path)

    def row(path: str) -> list[object]:
        shown = [
            element("code", _json(value(values, path))) if path in values or path in defaults else NOTHING
            for values in (defaults, *fields)
        ]
        return [element("code", path), *shown]

    def differs(path: str) -> bool:
        return any(value(values, path) != value(fields[0], path) for values in fields)

    changed = [path for path in paths if differs(path) or any(value(v, path) != defaults.get(path) for v in fields)]
    between = [path for path in paths if differs(path)]
    heading = ["field", "default", *(run.name for run in known)]
    parts = []
    if len(known) > 1:
        title = f"Fields that differ between the runs: {len(between)}"
        parts.append(table(title, heading, map(row, between), class_="values"))
    parts.append(table(f"Fields that are not the default: {len(changed)}", heading, map(row, changed), class_="values"))
    whole = table(f"All fields: {len(paths)}", heading, map(row, paths), class_="values")
    return [*parts, element("details", element("summary", "The whole configuration"), whole)] if known else []


def _json(value: object) -> str:
    return "None" if value is None else json.dumps(value, ensure_ascii=False)


def environment(runs: Sequence[Run], devices: str | None) -> list[Markup]:
    """Returns versions and devices, and what the checkpoints and workdirs say beside that.

    Args:
        runs: that are shown.
        devices: those that the report was made on; None: none was used.
    """
    versions = [run.about.get("versions", {}) for run in runs]
    rows: dict[str, list[object]] = {"workdir": [element("code", run.workdir) for run in runs]}
    rows["devices in training"] = [_devices(run) for run in runs]
    for name in dict.fromkeys(name for known in versions for name in known):
        rows[f"{name} (last checkpoint)"] = [known.get(name, NOTHING) for known in versions]
    rows["checkpoints, by step"] = [", ".join(map(str, run.steps)) or "none" for run in runs]
    for key, title in (("num_examples", "training examples"), ("num_classes", "classes")):
        rows[title] = [run.about.get(key, NOTHING) for run in runs]
    rows["rewinds"] = [
        ", ".join(f"from {bad} to {good}" for bad, good in run.about.get("rewinds", [])) or "none" for run in runs
    ]
    rows["learning rate, last"] = [_last(run, "train/learning_rate") for run in runs]
    rows["last written"] = [_time((run.workdir / "metrics.jsonl").stat().st_mtime) for run in runs]
    made = [
        ["vision_jax", vision_jax.__version__],
        ["python", platform.python_version()],
        ["system", platform.platform()],
        ["devices", devices or "none was used"],
    ]
    of_runs = [[name, *cells] for name, cells in rows.items()]
    parts = [
        table("Of the runs", ["", *(run.name for run in runs)], of_runs, class_="facts"),
        table("Of this report", ["", "value"], made),
    ]
    return [element("div", *parts, class_="beside")]


def _devices(run: Run) -> object:
    """Returns how many devices there were: what all of them did, by what one did."""
    rates, each = (run.series(f"train/images_per_second{end}") for end in ("", "_per_device"))
    if rates is None or each is None or not each.values[-1] > 0 or not np.isfinite(rates.values[-1]):
        return NOTHING
    return round(rates.values[-1] / each.values[-1])


def _time(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def now() -> str:
    """Returns the time, for people."""
    return _time(datetime.datetime.now(datetime.UTC).timestamp())
