"""Figures of what runs have written: metrics by step, and where the time went."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vision_jax.report import drawing
from vision_jax.report.runs import Run, Series
from vision_jax.runtime.goodput import CATEGORIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 400  # of a line; more could not be told apart
_TITLES = {
    "loss": "Loss",
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "AP": "Average precision (AP)",
    "AP50": "AP at an IoU of 0.5",
    "AP75": "AP at an IoU of 0.75",
    "miou": "Mean IoU",
    "pixel_accuracy": "Accuracy of pixels",
    "mean_accuracy": "Mean accuracy of the classes",
    "learning_rate": "Learning rate",
    "grad_norm": "Norm of the gradient",
    "images_per_second": "Images per second",
    "input_wait": "Share of time waiting for input",
    "mfu": "Model FLOPs utilization (MFU)",
    "productive": "Goodput: share of time in steps that were kept",
    "skipped_steps": "Skipped steps",
    "rewinds": "Rewinds",
    "failed_saves": "Failed saves",
    "replaced_records": "Replaced records",
}
_LEFT_OUT = ("train/epoch", "train/images_per_second_per_device", "goodput/seconds", "goodput/lost_seconds")
_SHARES = (
    *("top1", "top5", "input_wait", "mfu", "productive"),
    *("AP", "AP50", "AP75", "mAP", "mAP07", "miou", "pixel_accuracy", "mean_accuracy"),
)


@dataclasses.dataclass(frozen=True)
class Panel:
    """Metrics that share a figure.

    Attributes:
        title: of the figure.
        training: the metric of training steps; None: there is none.
        weights, ema: those of an evaluation, of the weights and of their EMA; None: there is none.
        group: the evaluation that it belongs to, or `training`.
    """

    title: str
    training: str | None = None
    weights: str | None = None
    ema: str | None = None
    group: str = "training"

    @property
    def is_share(self) -> bool:
        """Whether the values are shown in percent."""
        name = (self.training or self.weights or self.ema or "").rpartition("/")[2]
        return name.removeprefix("ema_") in _SHARES


def is_share(metric: str) -> bool:
    """Returns whether a metric such as val/ema_top1 is shown in percent."""
    return metric.rpartition("/")[2].removeprefix("ema_") in _SHARES


def panels(runs: Sequence[Run]) -> list[Panel]:
    """Returns the figures of all metrics of some runs.

    A metric of training steps and that of the evaluation `val` share one, such as train/loss and val/loss; a metric of
    the weights and that of their EMA do, too.
    """
    names = [name for name in dict.fromkeys(name for run in runs for name in run.metrics()) if name not in _LEFT_OUT]
    there, found, used = set(names), [], set()
    order = list(_TITLES)
    training = [name for name in names if name.startswith(("train/", "goodput/"))]
    for name in sorted(training, key=lambda n: order.index(_base(n)) if _base(n) in order else len(order)):
        weights, ema = (other if other in there else None for other in (f"val/{_base(name)}", f"val/ema_{_base(name)}"))
        found.append(Panel(_TITLES.get(_base(name), name), name, weights, ema))
        used |= {name, weights, ema}
    for name in names:
        group, _, metric = name.rpartition("/")
        metric = metric.removeprefix("ema_")
        if name in used or metric == "count":
            continue
        weights, ema = (other if other in there else None for other in (f"{group}/{metric}", f"{group}/ema_{metric}"))
        title = f"{group}: {_TITLES.get(metric, metric.replace('_', ' '))}"
        found.append(Panel(title, None, weights, ema, "training" if group == "val" else group))
        used |= {weights, ema}
    return found


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def thin(series: Series, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns steps, values, minima and maxima of at most so many runs of successive points.

    Steps and values are the means of their points; (points,) float64 each. What is not finite is left out of a mean;
    if no point of it is finite, the mean is NaN, and a line has a gap there.
    """
    parts = np.array_split(np.arange(len(series.steps)), min(most, len(series.steps)))
    steps = np.array([series.steps[part].mean() for part in parts])
    rows = []
    for part in parts:
        values = series.values[part]
        finite = values[np.isfinite(values)]
        rows.append((finite.mean(), finite.min(), finite.max()) if len(finite) else (np.nan,) * 3)
    values, low, high = np.array(rows).T
    return steps, values, low, high


def _line_style(kind: str, marker: str) -> dict[str, Any]:
    """Returns how a line is drawn that shows single `steps` of training, the `weights`, or their `EMA`."""
    if kind == "steps":
        return {"linewidth": 1.0, "alpha": 0.75}
    style: dict[str, Any] = {"linewidth": 1.5, "marker": marker, "markersize": 3.5}
    return style if kind == "weights" else {**style, "linestyle": (0, (3, 1.5)), "markerfacecolor": "none"}


@drawing.styled
def metric_figure(panel: Panel, runs: Sequence[Run]) -> "Figure":
    """Returns the figure of a panel, with a color and a marker for each run.

    Steps of training are a thin line: the metrics of single steps, or if there are very many, their mean in a band from
    the lowest to the highest. Evaluations of the weights are a line with markers, and those of the EMA a dashed one.
    """
    figure, axes = drawing.new(4.4, 2.75)
    shown: dict[str, Any] = {}
    for number, run in enumerate(runs):
        color, marker = drawing.COLORS[number], drawing.MARKERS[number]
        for kind, metric in (("steps", panel.training), ("weights", panel.weights), ("EMA", panel.ema)):
            series = run.series(metric) if metric else None
            if series is None:
                continue
            steps, values, low, high = thin(series)
            style = _line_style(kind, marker)
            if len(steps) == 1:
                style["marker"] = marker  # a line of one point would not be seen
            axes.plot(steps, values, color=color, **style)
            if len(series.steps) > len(steps):
                axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
            shown.setdefault(kind, style)
    axes.set_title(panel.title)
    axes.set_xlabel("step")
    axes.margins(x=0.02)
    if panel.is_share:
        from matplotlib.ticker import PercentFormatter

        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    if len(shown) > 1 or "EMA" in shown:
        from matplotlib.lines import Line2D

        # What the lines are; whose they are, by color, is said above the figures.
        labels = {"steps": "training step", "weights": "validation", "EMA": "validation, EMA"}
        if panel.training is None:
            labels["weights"], labels["EMA"] = "weights", "EMA"
        handles = [
            Line2D([], [], **{**style, "color": drawing.INK, "marker": "o" if "marker" in style else None})
            for style in shown.values()
        ]
        figure.legend(handles, [labels[kind] for kind in shown], loc="outside lower center", ncols=3)
    return figure


@drawing.styled
def goodput_figure(runs: Sequence[Run]) -> "Figure":
    """Returns a bar for each run, divided into the categories of `runtime.goodput`."""
    shown = [run for run in runs if run.goodput is not None]
    figure, axes = drawing.new(6.4, 1.35 + 0.42 * len(shown))
    left = np.zeros(len(shown))
    order = ("steps", *(category for category in CATEGORIES if category != "steps"))
    for number, category in enumerate(order):
        seconds = np.array([run.goodput["seconds"][category] for run in shown if run.goodput is not None])
        totals = np.array([sum(run.goodput["seconds"].values()) for run in shown if run.goodput is not None])
        shares = seconds / np.maximum(totals, 1e-9)
        axes.barh(range(len(shown)), shares, 0.62, left, label=category, color=drawing.COLORS[number])
        left += shares
    axes.set_yticks(range(len(shown)), [drawing.shorten(run.name) for run in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.grid(axis="y", visible=False)
    from matplotlib.ticker import PercentFormatter

    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    figure.legend(loc="outside lower center", ncols=4)
    return figure
