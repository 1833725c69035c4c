"""Which of several methods is faithful: deletion and insertion over all images, beside pixels in random order."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from vision_jax.explain.curves import area
from vision_jax.report import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANDOM = "random order"  # in place of a method's name: what a map that knows nothing would reach


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """How the probability of the explained class changes as pixels are replaced, those of the highest values first.

    Attributes:
        deletion: (points,) float32, as they are replaced by the mean color.
        insertion: (points,) float32, as they replace those of the blurred image.
    """

    deletion: np.ndarray
    insertion: np.ndarray

    def areas(self) -> dict[str, float]:
        """Returns the areas under both."""
        return {name: float(area(jnp.asarray(values))) for name, values in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Faithfulness:
    """What the curves of a method say, as means over images.

    Attributes:
        images: how many.
        deletion: the area under the curve; the lower, the better.
        insertion: that of the other; the higher, the better.
        curves: the means of the curves.
    """

    images: int
    deletion: float
    insertion: float
    curves: Curves

    @property
    def overall(self) -> float:
        """Insertion minus deletion, as Group-CAM sums them up (Zhang et al. 2021, arXiv:2103.13859)."""
        return self.insertion - self.deletion

    def as_json(self) -> dict[str, Any]:
        """Returns it as plain data."""
        return {
            **{"images": self.images, "deletion_auc": self.deletion, "insertion_auc": self.insertion},
            **{"overall": self.overall},
            **{f"{name}_curve": values.tolist() for name, values in dataclasses.asdict(self.curves).items()},
        }


class Means:
    """Adds up curves, image by image."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}

    def add(self, curves: Mapping[str, Curves]) -> None:
        """Adds those of an image, by method."""
        for name, each in curves.items():
            count, *sums = self._sums.get(name, (0, np.zeros(()), np.zeros(())))
            self._sums[name] = (count + 1, sums[0] + each.deletion, sums[1] + each.insertion)

    def results(self) -> dict[str, Faithfulness]:
        """Returns the means by method, the most faithful first."""
        found = {}
        for name, (count, deletion, insertion) in self._sums.items():
            means = Curves(deletion / count, insertion / count)
            found[name] = Faithfulness(count, curves=means, **means.areas())
        return dict(sorted(found.items(), key=lambda item: -item[1].overall))


def as_text(found: Mapping[str, Faithfulness]) -> str:
    """Returns a table for a terminal, the most faithful first."""
    width = max(len(name) for name in found) + 2
    lines = [f"{'':{width}}{'deletion':>10}{'insertion':>11}{'difference':>12}"]
    for name, each in found.items():
        lines.append(f"{name:{width}}{each.deletion:10.4f}{each.insertion:11.4f}{each.overall:12.4f}")
    return "\n".join(lines)


@drawing.styled
def figure(found: Mapping[str, Faithfulness], methods: Sequence[str]) -> "Figure":
    """Returns the mean curves of all methods, whose colors are those of their order in `methods`."""
    from matplotlib.ticker import PercentFormatter

    drawn, both = drawing.new(8.4, 3.0, ncols=2, sharey=True)
    for axes, kind, better in zip(both, ("deletion", "insertion"), ("lower", "higher"), strict=True):
        for number, name in enumerate((*methods, RANDOM)):
            values = getattr(found[name].curves, kind)
            style: dict[str, Any] = {"color": drawing.COLORS[number % len(drawing.COLORS)], "linewidth": 1.5}
            if number >= len(drawing.COLORS):
                style["linestyle"] = "--"
            if name == RANDOM:
                style |= {"color": drawing.MUTED, "linestyle": ":"}
            axes.plot(np.linspace(0, 1, len(values)), values, label=name if kind == "deletion" else None, **style)
        axes.set_title(f"{kind.capitalize()}: the {better}, the better")
        axes.set_xlabel("pixels replaced")
        axes.xaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes.set_ylim(0, None)
        axes.margins(x=0.02)
    both[0].set_ylabel("probability of the class")
    drawn.legend(loc="outside lower center", ncols=4)
    return drawn
