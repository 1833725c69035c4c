"""The results of a search as one HTML page, which needs no other file: pictures are within it."""

import base64
import functools
import html
import re
from collections.abc import Callable, Sequence

from vision_jax.features import Features
from vision_jax.search.pictures import Pictures, thumbnail
from vision_jax.search.program import Found, Match

# What HTML cannot contain: control characters, and surrogates, which stand for bytes of odd file names.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
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
    found: Sequence[Found], features: Features, pictures: Pictures, read_query: Callable[[int], bytes], how: str
) -> str:
    """Returns the page.

    Args:
        found: the results.
        features: what was searched.
        pictures: finds the images of the results.
        read_query: number of a query -> its encoded image.
        how: a sentence on how it was searched.
    """
    about = features.about
    picture = functools.cache(lambda row: _picture(pictures.read(row), features.names[row]))
    sections = []
    for each in found:
        if each.error is None:
            shown = _picture(read_query(each.number), each.query)
            body = f"<ol>\n{''.join(_match(rank, m, picture(m.row)) for rank, m in enumerate(each.matches, 1))}</ol>"
        else:
            shown, body = _NO_PICTURE, f'<p class="bad">damaged: {_text(each.error)}</p>'
        sections.append(f"<section>\n<header>{shown}<h2>{_text(each.query)}</h2></header>\n{body}\n</section>\n")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Similar images</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>Similar images</h1>\n"
        f'<p class="about">{_text(about.model)}, {_text(about.origin)}. {len(features):,} images: '
        f"{_text(about.images)}. {_text(how)}</p>\n{''.join(sections)}</body>\n</html>\n"
    )


def _match(rank: int, match: Match, picture: str) -> str:
    label = "" if match.label is None else f"<p>{_text(match.label)}</p>"
    return (
        f'<li>{picture}<p class="cosine"><span class="rank">{rank}</span>{match.cosine:.4f}</p>{label}'
        f'<p class="name">{_text(match.name)}</p></li>\n'
    )


_NO_PICTURE = '<div class="picture none">no picture</div>'


def _picture(data: bytes | None, name: str) -> str:
    """Returns the HTML of a thumbnail."""
    small = None if data is None else thumbnail(data)
    if small is None:
        return _NO_PICTURE
    content, media_type = small
    pixels = ' class="pixels"' if media_type == "image/png" else ""
    source = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    return f'<div class="picture"><img{pixels} alt="{_text(name)}" src="{source}"></div>'


def _text(value: str) -> str:
    """Returns text as HTML."""
    return html.escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value))
