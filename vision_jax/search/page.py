"""The results of a search as one HTML page, which needs no other file: pictures are within it."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from vision_jax.data.decode import decode
from vision_jax.features import Features
from vision_jax.report.markup import Markup, document, element, image
from vision_jax.search.pictures import Pictures
from vision_jax.search.program import Found, Match

_SIZE = 192  # pixels, which are enough to decode for a thumbnail
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --card: #f5f6f8; --ink: #1b1f24; --muted: #59616b; --line: #d3d8de;
  --bad: #a8430a; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --card: #1d2126; --ink: #e7eaee; --muted: #a3acb6; --line: #3a4149; --bad: #ff9a62; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 1rem 3rem; max-width: 80rem; background: var(--page); color: var(--ink);
  font: 1rem/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.5rem; margin: 1.5rem 0 0.25rem; }
.about, .rank { color: var(--muted); }
.about { margin: 0; font-size: 0.9rem; overflow-wrap: anywhere; }
section { display: grid; grid-template-columns: 11rem 1fr; gap: 1rem; padding: 1.25rem 0;
  border-bottom: 1px solid var(--line); }
h2 { font-size: 0.95rem; font-weight: 600; margin: 0.5rem 0 0; overflow-wrap: anywhere; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: 0.75rem;
  grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 0.5rem; min-width: 0; }
.picture { display: flex; align-items: center; justify-content: center; aspect-ratio: 1; overflow: hidden;
  border-radius: 4px; color: var(--muted); font-size: 0.8rem; text-align: center; }
.none { border: 1px dashed var(--line); }
img { width: 100%; height: 100%; object-fit: contain; }
img.pixels { image-rendering: pixelated; }
p { margin: 0.3rem 0 0; font-size: 0.85rem; line-height: 1.3; overflow-wrap: anywhere; }
.cosine { display: flex; justify-content: space-between; font-variant-numeric: tabular-nums; }
.name { color: var(--muted); font-size: 0.75rem; }
.bad { color: var(--bad); }
@media (max-width: 40rem) {
  section { grid-template-columns: 1fr; }
  section > header { display: grid; grid-template-columns: 6rem 1fr; gap: 0.75rem; align-items: center; }
  ol { grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); }
}
"""


def make_page(
    found: Sequence[Found], features: Features, pictures: Pictures, read_query: Callable[[int], bytes] | None, how: str
) -> str:
    """Returns the page.

    Args:
        found: the results.
        features: what was searched.
        pictures: finds the images of the results.
        read_query: number of a query -> its encoded image; None: queries are words.
        how: a sentence on how it was searched.
    """
    about = features.about
    picture = functools.cache(lambda row: _picture(pictures.read(row), features.names[row]))
    sections = []
    for each in found:
        if each.error is None:
            shown = Markup() if read_query is None else _picture(read_query(each.number), each.query)
            body = element("ol", *(_match(rank, m, picture(m.row)) for rank, m in enumerate(each.matches, 1)))
        else:
            shown, body = _picture(None, ""), element("p", f"damaged: {each.error}", class_="bad")
        sections.append(element("section", element("header", shown, element("h2", each.query)), body))
    origin = f"{about.model}, {about.origin}. {len(features):,} images: {about.images}. {how}"
    heading = [element("h1", "Similar images"), element("p", origin, class_="about")]
    return document("Similar images", _STYLE, *heading, *sections)


def _match(rank: int, match: Match, picture: Markup) -> Markup:
    cosine = element("p", element("span", rank, class_="rank"), f"{match.cosine:.4f}", class_="cosine")
    label = () if match.label is None else element("p", match.label)
    return element("li", picture, cosine, label, element("p", match.name, class_="name"))


def _picture(data: bytes | None, name: str) -> Markup:
    """Returns a thumbnail; without an image, or for one that is damaged, its place."""
    try:
        if data is not None:
            pixels = np.ascontiguousarray(decode(data, 3, least_size=(_SIZE, _SIZE)))
            return element("div", image(pixels, name), class_="picture")
    except ValueError:
        pass  # a result that has been damaged since
    return element("div", "no picture", class_="picture none")
