"""How figures look, and how they become SVG within a page, in light and dark, or PNG."""

import contextlib
import functools
import html
import io
import re
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec

from vision_jax.errors import ConfigError
from vision_jax.report.markup import Markup, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_P = ParamSpec("_P")

# Text, what is less important, and grids. In a page, these and the colors below are variables of style.css.
INK, MUTED, GRID = "#1b1f24", "#68707a", "#d8dce1"
# For people who are color-blind too: those of Okabe and Ito (2008, https://jfly.uni-koeln.de/color/), without black and
# yellow, and two more.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7d7d7e", "#8f6a1c")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # so that color is not all that tells runs apart
_STYLE: Any = {
    **{
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "legend.fontsize": 8,
        "legend.frameon": False,
    },
    **{"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": MUTED},
    **{"axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"},
    "text.parse_math": False,  # the name of a class may have a $
    "svg.fonttype": "none",  # text stays text: it can be searched for and read aloud, and takes less space
    "figure.constrained_layout.use": True,
}


def check_installed() -> None:
    """Checks that matplotlib can be imported.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("Figures need matplotlib: pip install 'vision_jax[report]', or matplotlib.") from error


@contextlib.contextmanager
def _styled() -> Iterator[None]:
    """Sets matplotlib's style within the context, whatever the user's is.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    check_installed()
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # in a page, the fonts are the reader's
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def styled(draw: "Callable[_P, Figure]") -> "Callable[_P, Figure]":
    """Makes a function that draws a figure do it in the style of this project."""

    @functools.wraps(draw)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> "Figure":
        with _styled():
            return draw(*args, **kwargs)

    return wrapped


def new(width: float, height: float, **options: Any) -> Any:
    """Returns a figure of this size in inches, and its axes; options as for `Figure.subplots`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))  # without pyplot, which keeps figures and may open windows
    return figure, figure.subplots(**options)


def png(figure: "Figure") -> bytes:
    """Returns a figure as a PNG with a white background, at 120 dots per inch."""
    file = io.BytesIO()
    with _styled():
        figure.savefig(file, format="png", dpi=120, facecolor="white")
    return file.getvalue()


def svg(figure: "Figure", name: str, alt: str) -> Markup:
    """Returns a figure as an SVG element, whose colors are those of the page around it.

    Args:
        figure: drawn in the colors above.
        name: unique in the page, of letters, digits and hyphens.
        alt: what it shows, for those who do not see it.
    """
    file = io.StringIO()
    with _styled():
        import matplotlib

        matplotlib.rcParams["svg.hashsalt"] = name  # so that the same figure is the same text
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    head, text = file.getvalue().split("<svg ", 1)[1].split(">", 1)
    # Names of parts are unique in a page, not only in a figure; those that nothing refers to are left out.
    text = text.replace("xlink:href", "href")
    referred = {a or b for a, b in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)}
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in referred else "", text)
    text = re.sub(r'href="#|url\(#', lambda found: f"{found[0]}{name}-", text)
    for color, variable in {INK: "ink", MUTED: "muted", GRID: "grid"}.items():
        text = text.replace(color, f"var(--{variable})")
    for number, color in enumerate(COLORS):
        text = text.replace(color, f"var(--color{number})")
    text = re.sub(r">\s+<", "><", text).strip()
    attributes = {
        "role": "img",
        "aria-label": alt,
        "style": f"--natural:{96 * figure.get_figwidth():.0f}px",  # from which style.css has the limits of its width
        "viewBox": re.findall(r'viewBox="([^"]*)"', head)[0],
    }
    written = " ".join(f'{key}="{html.escape(printable(value))}"' for key, value in attributes.items())
    return Markup(f"<svg {written}>{text}")


def key(number: int) -> Markup:
    """Returns what stands for a run in the key of figures: a line in its color, with its marker."""
    figure, axes = new(0.5, 0.2)
    axes.set_axis_off()
    axes.plot([0, 1, 2], [0, 0, 0], color=COLORS[number], marker=MARKERS[number], markevery=[1], clip_on=False)
    return svg(figure, f"key{number}", f"color {number + 1}")


def shorten(text: str, most: int = 24) -> str:
    """Returns a text that fits beside an axis."""
    text = " ".join(printable(text).split())
    return text if len(text) <= most else f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
