"""HTML that is escaped by construction: what is no `Markup` is text."""

import base64
import html
import importlib.resources
import io
import re
from collections.abc import Iterable, Sequence

import numpy as np
import PIL.Image

NOTHING = "\N{EN DASH}"  # in a cell of a table

_VOID = ("img", "meta", "link", "br")
_LARGEST = 160  # pixels: photographs are shown no larger
_PIXELATED = 64  # below this, single pixels are what one looks at
# What neither HTML nor XML may contain: control characters, and surrogates, which stand for bytes of odd file names.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """A string that is HTML. Any other string is escaped by `element`."""


def printable(text: str) -> str:
    """Returns the text with a replacement character for each one that a page cannot contain."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def escape(value: object) -> Markup:
    """Returns a value as HTML: markup as it is, the parts of a sequence one after another, anything else as text."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, list | tuple):
        return join(value)
    return Markup(html.escape(printable(str(value))))


def join(parts: Iterable[object], separator: str = "") -> Markup:
    """Returns the parts as HTML, one after another."""
    return Markup(separator.join(escape(part) for part in parts))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """Returns an element.

    Args:
        name: of the tag.
        children: what it contains, in order; see `escape`.
        attributes: by name, `_` being `-`, without one at the end (`class_`). True is an attribute without a value, and
            None and False are none.
    """
    text = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(printable(str(value)))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{text}>" if name in _VOID else f"<{name}{text}>{join(children)}</{name}>")


def table(caption: str, heading: Sequence[object], rows: Iterable[Sequence[object]], *, class_: str = "") -> Markup:
    """Returns a table that scrolls if it is wider than the page. The first cell of each row is its heading.

    Args:
        caption: what it is a table of.
        heading: of the columns.
        rows: their cells; those that are numbers, or `number`, are aligned to the right.
        class_: of the table.
    """

    def is_number(value: object) -> bool:
        return isinstance(value, int | float) or value == NOTHING or str(value).startswith("<data")

    def cell(value: object) -> Markup:
        return element("td", value, class_="number" if is_number(value) else None)

    rows = list(rows)
    aligned = [False, *map(is_number, rows[0][1:])] if rows else [False] * len(heading)
    head = element(
        "tr",
        *(
            element("th", title, scope="col", class_="number" if right else None)
            for title, right in zip(heading, aligned, strict=True)
        ),
    )
    body = [element("tr", element("th", first, scope="row"), *map(cell, rest)) for first, *rest in rows]
    whole = element(
        "table", element("caption", caption), element("thead", head), element("tbody", *body), class_=class_ or None
    )
    # It can be reached, and then scrolled, with the keyboard.
    return element("div", whole, class_="wide", tabindex=0, role="group", aria_label=caption)


def number(value: float | np.generic | None, text: str) -> Markup:
    """Returns a number as `text`, and exactly for programs that read the page."""
    exact = value.item() if isinstance(value, np.generic) else value
    return element("data", text, value="nan" if exact is None else repr(exact))


def document(title: str, style: str, *body: object, generator: str | None = None) -> str:
    """Returns a whole page: HTML of ASCII characters, which is the same in every encoding.

    Args:
        title: of its window.
        style: CSS, which is ASCII.
        body: what it contains, in order; see `escape`.
        generator: what made it, for programs; None: it is not said.
    """
    head = [
        element("meta", charset="utf-8"),
        *([] if generator is None else [element("meta", name="generator", content=generator)]),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(style)),
    ]
    page = join(["\n", element("head", *head), "\n", element("body", join(body, "\n")), "\n"])
    whole = f"<!doctype html>\n{element('html', page, lang='en')}\n"
    return whole.encode("ascii", "xmlcharrefreplace").decode()


def report_style() -> str:
    """Returns the CSS of the pages that show runs, which is light or dark as the reader's screen is."""
    return (importlib.resources.files("vision_jax.report") / "style.css").read_text("ascii")


def image(pixels: np.ndarray, alt: str, largest: int = _LARGEST) -> Markup:
    """Returns an image, within the page.

    Args:
        pixels: (height, width, 1 or 3) uint8.
        alt: what it shows, for those who do not see it.
        largest: pixels of height and width; what is larger is made smaller.
    """
    picture = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    small = max(picture.size) <= _PIXELATED
    picture.thumbnail((largest, largest))
    file = io.BytesIO()
    if small:
        picture.save(file, "PNG", optimize=True)
    else:
        picture.save(file, "JPEG", quality=88)
    source = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"
    width, height = picture.size
    return element("img", src=source, alt=alt, width=width, height=height, class_="pixels" if small else None)
