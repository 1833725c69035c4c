"""Figures of a search: the metric by step, by trial and by the value of each field, and the importance of fields."""

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vision_jax.report import curves, drawing
from vision_jax.sweep import space as space_lib
from vision_jax.sweep.plan import as_text
from vision_jax.sweep.results import Results, Row
from vision_jax.sweep.space import Choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BEST = drawing.COLORS[1]
# Of trials, by how they have ended: their color, and the marker of their last value.
_STYLES = {
    "complete": (drawing.COLORS[0], "o"),
    "pruned": (drawing.COLORS[4], "x"),
    "diverged": (drawing.COLORS[3], "v"),
    "failed": (drawing.COLORS[3], "v"),
    "running": (drawing.COLORS[6], "s"),
}


@drawing.styled
def by_step(results: Results) -> "Figure":
    """Returns the metric of all trials by step, that of the best one on top."""
    figure, axes = drawing.new(6.4, 3.4)
    best = results.best()
    for row in results.rows:
        if row.points and row is not best:
            color, marker = _STYLES[row.ending]
            steps, values = [point.step for point in row.points], [point.value for point in row.points]
            axes.plot(steps, values, color=color, linewidth=0.9, alpha=0.6)
            axes.plot(steps[-1:], values[-1:], color=color, marker=marker, markersize=4, linestyle="", alpha=0.8)
    if best is not None:
        steps, values = [point.step for point in best.points], [point.value for point in best.points]
        axes.plot(steps, values, color=_BEST, linewidth=2.0, marker="D", markersize=4)
    axes.set_title(f"{results.metric} by step")
    axes.set_xlabel("step")
    _finish(figure, axes, results)
    return figure


@drawing.styled
def by_trial(results: Results) -> "Figure":
    """Returns the value of each trial in the order in which they were begun, and the best one so far."""
    figure, axes = drawing.new(6.4, 3.4)
    _scatter(axes, results, [row.number for row in results.rows])
    complete = [row for row in results.rows if row.ending == "complete" and row.value is not None]
    values = np.array([row.value for row in complete], np.float64)
    if len(values):
        so_far = np.maximum.accumulate(values) if results.search["higher"] else np.minimum.accumulate(values)
        numbers = [row.number for row in complete]
        axes.step(numbers, so_far, where="post", color=_BEST, linewidth=1.2)
    axes.set_title(f"{results.metric} by trial, and the best so far")
    axes.set_xlabel("trial")
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(figure, axes, results)
    return figure


@drawing.styled
def by_value(results: Results, field: str) -> "Figure":
    """Returns the value of each trial by its value of a field."""
    figure, axes = drawing.new(4.4, 2.75)
    searched = space_lib.parse(field, _spec(results.search["space"][field]))
    rows = results.rows
    if isinstance(searched, Choice):
        places = {value: number for number, value in enumerate(searched.values)}
        _scatter(axes, results, [places.get(as_text(row.values.get(field, "")), math.nan) for row in rows])
        axes.set_xticks(range(len(places)), [drawing.shorten(value, 12) for value in places])
        axes.set_xlim(-0.5, len(places) - 0.5)
    else:
        _scatter(axes, results, [float(row.values.get(field, math.nan)) for row in rows])
        if searched.kind == "log":
            _set_log_scale(axes, searched.low, searched.high)
    axes.set_title(drawing.shorten(field, 40))
    _finish(figure, axes, results, legend=False)
    return figure


@drawing.styled
def importance(results: Results) -> "Figure":
    """Returns a bar for each field: which share of the variance it explains alone."""
    shares = results.importance
    figure, axes = drawing.new(6.4, 0.9 + 0.32 * len(shares))
    axes.barh(range(len(shares)), list(shares.values()), 0.62, color=drawing.COLORS[0])
    axes.set_yticks(range(len(shares)), [drawing.shorten(field, 40) for field in shares])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.grid(axis="y", visible=False)
    from matplotlib.ticker import PercentFormatter

    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.set_title("Share of the variance that a field explains alone")
    return figure


def _set_log_scale(axes: Any, low: float, high: float) -> None:
    """Makes the horizontal axis logarithmic, with numbers that are no formulas, which pages do not show."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 100 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _spec(text: str) -> Any:
    """Returns what `space.parse` read: a list is kept as JSON."""
    return json.loads(text) if text.startswith("[") else text


def _scatter(axes: Any, results: Results, places: Sequence[float]) -> None:
    """Draws the value of each trial at a place, by how it has ended; the best one on top."""
    best = results.best()
    for row, place in zip(results.rows, places, strict=True):
        if row.value is not None and not math.isnan(place):
            color, marker = (_BEST, "D") if row is best else _STYLES[row.ending]
            zorder = 4 if row is best else 3
            axes.plot([place], [row.value], color=color, marker=marker, markersize=5, linestyle="", zorder=zorder)


def _finish(figure: "Figure", axes: Any, results: Results, legend: bool = True) -> None:
    """Sets the format of values, and says what colors and markers mean."""
    if curves.is_share(results.metric):
        from matplotlib.ticker import PercentFormatter

        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.margins(x=0.03)
    if not legend:
        return
    from matplotlib.lines import Line2D

    there = [
        ending for ending in _STYLES if any(row.ending == ending and row.value is not None for row in results.rows)
    ]
    shown = [(ending, *_STYLES[ending]) for ending in there]
    if results.best() is not None:
        shown.insert(0, ("best", _BEST, "D"))
    handles = [Line2D([], [], color=color, marker=marker, linewidth=0.9) for _, color, marker in shown]
    figure.legend(handles, [name for name, _, _ in shown], loc="outside lower center", ncols=5)


def alt(results: Results, what: str, rows: Sequence[Row]) -> str:
    """Returns in words what a figure of some trials shows."""
    known = [row.value for row in rows if row.value is not None]
    if not known:
        return f"{results.metric} {what}. No trial has a value yet."
    return f"{results.metric} {what}, of {len(known)} trials: from {min(known):.4g} to {max(known):.4g}."
