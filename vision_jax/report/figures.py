"""Figures of what a classifier predicts: the confusion matrix, the scores of classes, and calibration.

`table_images` makes PNGs of the tables of an evaluation, for others who show pictures.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vision_jax.report import drawing
from vision_jax.report.classes import SCORES, ClassTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_IN_MATRIX = 20  # classes whose names and numbers can be read
MOST_BARS = 24  # classes; of more, half as many of the worst and of the best


# Columns of tables of classes that have no confusion matrix.
OF_BOXES_OR_MASKS = frozenset({"AP", "iou"})


def table_images(tables: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns pictures of the tables of an evaluation, as PNG.

    Args:
        tables: as `evaluate.measure` passes them on; of those called `NAME/classes` and `NAME/ema_classes`, which the
            kind `per_class` gives, there are pictures. Those of boxes and masks have the same names.

    Returns:
        by name: `NAME/confusion_matrix` and `NAME/class_scores`, with `ema_` before the latter part for the EMA.

    Raises:
        ConfigError: if matplotlib is not installed.
        DataError: if a table is damaged.
    """
    images = {}
    for key, table in tables.items():
        group, _, kind = key.rpartition("/")
        if kind not in ("classes", "ema_classes") or table.keys() & OF_BOXES_OR_MASKS:
            continue
        classes, prefix = ClassTable.from_json(table), f"{group}/{kind.removesuffix('classes')}"
        images[f"{prefix}confusion_matrix"] = drawing.png(confusion_matrix(classes))
        images[f"{prefix}class_scores"] = drawing.png(class_bars(classes))
    return images


@drawing.styled
def confusion_matrix(table: ClassTable, most: int = MOST_IN_MATRIX) -> "Figure":
    """Returns the confusion matrix: of all classes, or if there are more than `most`, of the most confused ones.

    Numbers are examples, and colors the share of the label's examples: blue for correct predictions, and orange, up to
    the largest error, for wrong ones. Empty cells are 0.
    """
    import matplotlib
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import rgb_to_hsv
    from matplotlib.patches import Rectangle

    shown = table.most_confused(most)
    place = {int(number): i for i, number in enumerate(shown)}
    entries = [row for row in table.confusion.tolist() if row[0] in place and row[1] in place]
    shares = [count / max(1, int(table.support[label])) for label, _, count in entries]
    worst = max((share for (label, guess, _), share in zip(entries, shares, strict=True) if label != guess), default=1)
    maps = {True: matplotlib.colormaps["Blues"], False: matplotlib.colormaps["Oranges"]}
    side = max(3.2, 0.3 * len(shown))
    figure, axes = drawing.new(side + 1.7, side + 1.4)
    patches, colors = [], []
    for (label, guess, count), share in zip(entries, shares, strict=True):
        is_right = label == guess
        color = maps[is_right](0.2 + 0.7 * (share if is_right else share / worst))
        patches.append(Rectangle((place[guess] - 0.47, place[label] - 0.47), 0.94, 0.94))
        colors.append(color)
        is_dark = rgb_to_hsv(color[:3])[1] > 0.55 and np.dot(color[:3], (0.299, 0.587, 0.114)) < 0.55
        text = f"{count}" if count < 10_000 else f"{count / 1000:.0f}k"
        size = 7.5 if len(text) < 4 else 6
        ink = "white" if is_dark else "black"
        axes.text(place[guess], place[label], text, ha="center", va="center", fontsize=size, color=ink)
    axes.add_collection(PatchCollection(patches, facecolors=colors, edgecolors="none"))
    names = [drawing.shorten(table.names[i], 18) for i in shown]
    is_long = max(map(len, names), default=0) > 3
    axes.set_xticks(range(len(shown)), names, rotation=60 if is_long else 0, ha="right" if is_long else "center")
    if is_long:
        for tick in axes.get_xticklabels():
            tick.set_rotation_mode("anchor")
    axes.set_yticks(range(len(shown)), names)
    axes.set_xlim(-0.5, len(shown) - 0.5)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    if len(shown) < len(table.names):
        what = "the most confused ones" if table.is_wrong.any() else "none is confused"
        axes.set_title(f"{len(shown)} of {len(table.names)} classes: {what}")
    return figure


@drawing.styled
def class_bars(table: ClassTable, most: int = MOST_BARS) -> "Figure":
    """Returns bars of precision, recall and F1, the worst F1 first: of all classes, or of the worst and the best.

    Classes that are neither label nor prediction of an example are left out.
    """
    ranked = table.ranked()
    number, gap = len(ranked), len(ranked) > most
    shown = np.concatenate([ranked[: most // 2], ranked[number - most // 2 :]]) if gap else ranked
    places = np.arange(len(shown), dtype=float)
    if gap:
        places[most // 2 :] += 1
    figure, axes = drawing.new(5.2, 1.3 + 0.34 * (len(shown) + gap))
    for i, (name, color) in enumerate(zip(SCORES, drawing.COLORS[:3], strict=True)):
        label = {"f1": "F1"}.get(name, name)
        axes.barh(places + 0.27 * (i - 1), table.scores[name][shown], 0.24, color=color, label=label)
    names = [f"{drawing.shorten(table.names[i], 20)} ({table.support[i]})" for i in shown]
    axes.set_yticks(places, names)
    axes.set_ylim(places.max(initial=0) + 0.6, -0.6)
    axes.set_xlim(0, 1)
    axes.grid(axis="y", visible=False)
    if gap:
        text = f"{number - 2 * (most // 2)} classes between"
        axes.text(0.5, most // 2, text, ha="center", va="center", fontsize=8, color=drawing.MUTED)
    axes.set_title("Class (examples), by F1")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@drawing.styled
def reliability(sums: Mapping[str, np.ndarray], ece: float) -> "Figure":
    """Returns the reliability diagram: accuracy against confidence, and how many examples have which confidence.

    Args:
        sums: of bins; see `evaluators.calibration.bin_sums`.
        ece: the expected calibration error, which is written into it.
    """
    from matplotlib.ticker import PercentFormatter

    count = sums["count"]
    bins, there = len(count), count > 0
    width = 1 / bins
    left = np.arange(bins) * width
    figure, (axes, below) = drawing.new(4.4, 4.4, nrows=2, sharex=True, height_ratios=(3, 1))
    accuracy = sums["correct"][there] / count[there]
    confidence = sums["confidence"][there] / count[there]
    axes.bar(left[there], accuracy, width * 0.92, align="edge", color=drawing.COLORS[0], label="accuracy")
    axes.plot(confidence, accuracy, "D", color=drawing.COLORS[1], markersize=4, label="at its mean confidence")
    axes.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color=drawing.MUTED, label="calibrated")
    axes.set_ylim(0, 1.04)
    axes.set_ylabel("accuracy")
    axes.set_title(f"ECE {ece:.4f}, in {bins} bins")
    figure.legend(loc="outside lower center", ncols=3)
    below.bar(left, count / max(1.0, float(count.sum())), width * 0.92, align="edge", color=drawing.COLORS[6])
    below.set_ylabel("examples")
    below.set_xlabel("confidence")
    below.set_xlim(0, 1)
    for each in (axes.yaxis, below.yaxis, below.xaxis):
        each.set_major_formatter(PercentFormatter(xmax=1))
    return figure
