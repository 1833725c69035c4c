"""How the pages are built from the guides and docstrings: `sphinx-build -W --keep-going docs build/docs`.

Guides are written for those who read them in the repository, so links that leave this folder are adapted; those that
lead nowhere, in guides and README, are warnings, and with `-W` errors.
"""

import importlib.metadata
import pathlib
import pkgutil
import re

from sphinx.application import Sphinx
from sphinx.util import logging

import vision_jax

project = "vision_jax"
version = release = importlib.metadata.version(project)
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "alabaster"  # comes with Sphinx; its sidebar is short, so that hundreds of modules take seconds
html_title = f"{project} {version}"
html_show_sourcelink = False
html_theme_options = {"description": "Train image models in JAX", "fixed_sidebar": True, "page_width": "1100px"}
exclude_patterns = ["results"]

myst_heading_anchors = 4  # links to headings are as on the pages of a repository
autodoc_default_options = {"members": True, "ignore-module-all": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # as they are written: `jax.nn.relu`, not an address
autodoc_typehints_format = "short"
default_role = "code"  # docstrings mark code as Markdown does
napoleon_numpy_docstring = False
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # attributes of several classes have the same name

_ROOT = pathlib.Path(__file__).parent.parent
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def adapt_links(text: str, folder: pathlib.Path) -> str:
    """Rewrites links that leave the folder of the guides.

    One to the README leads to the first page, one to a file stays and offers it. Pages have no place for folders and
    other Markdown files: only the text remains of these links.

    Args:
        text: Markdown.
        folder: what its links are relative to.
    """

    def adapt(link: re.Match[str]) -> str:
        name, target, anchor = link[1], (folder / link[2]).resolve(), link[3] or ""
        if not target.exists():
            logging.getLogger(__name__).warning("%s links to %s, which is not there", folder, link[2])
        if target == _ROOT / "README.md":
            return f"[{name}](index.md{anchor})"
        if target.parent == _ROOT / "docs":
            return f"[{name}]({target.name}{anchor})"
        if target.is_dir() or target.suffix == ".md":
            return name
        return f"[{name}](../{target.relative_to(_ROOT)})"

    return _LINK.sub(adapt, text)


def to_restructured_text(lines: list[str]) -> list[str]:
    """Rewrites a docstring so that reStructuredText means what Markdown does.

    Outside of code, asterisks, bars and underscores are characters; a list needs no empty line before it; what follows
    an empty line and is indented by four more is code.
    """
    rewritten: list[str] = []
    code: int | None = None  # the indentation of the text around it
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip() and code is not None and indent <= code:
            code = None
        if code is not None or not line.strip():
            rewritten.append(line)
            continue
        text = next((before for before in reversed(rewritten) if before.strip()), "")
        around = len(text) - len(text.lstrip())
        if rewritten and not rewritten[-1].strip() and indent >= around + 4:
            rewritten += [" " * around + "::", "", line]
            code = around
            continue
        if line.lstrip().startswith("- ") and text and not _within_list(rewritten, line):
            rewritten.append("")
        parts = line.split("`")
        parts[::2] = [re.sub(r"([*|]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
        rewritten.append("`".join(parts))
    return rewritten


def _within_list(lines: list[str], line: str) -> bool:
    """Returns whether a line that begins with a dash follows another item of its list."""
    indent = len(line) - len(line.lstrip())
    for before in reversed(lines):
        if len(before) - len(before.lstrip()) <= indent:
            return before.startswith(" " * indent + "- ")
    return False


def _write_pages(app: Sphinx) -> None:
    """Writes a page for each module or package at the top; called by Sphinx before it looks for pages."""
    folder = pathlib.Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    pages: dict[str, list[str]] = {}
    for module in pkgutil.walk_packages(vision_jax.__path__, "vision_jax."):
        if not module.name.endswith("__main__"):
            pages.setdefault(".".join(module.name.split(".")[:2]), []).append(module.name)
    for name, modules in pages.items():
        parts = [f"{title}\n{(mark * len(title))}\n\n.. automodule:: {title}\n" for title, mark in _titles(modules)]
        page, text = folder / f"{name}.rst", "\n".join(parts)
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


def _titles(modules: list[str]) -> list[tuple[str, str]]:
    """Returns the headings of a page, and what underlines each."""
    return [(name, "=" if number == 0 else "-") for number, name in enumerate(modules)]


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts the README onto the first page, and adapts links; called by Sphinx before it parses a file."""
    if not docname.startswith("api/"):
        source[0] = adapt_links(source[0], _ROOT / "docs")
    if docname == "index":
        source[0] = adapt_links((_ROOT / "README.md").read_text(), _ROOT) + source[0]


def _skip(app: Sphinx, what: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Leaves out fields of named tuples, which the docstrings of these describe."""
    return True if type(member).__name__ == "_tuplegetter" else None


def _process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = to_restructured_text(lines)


def setup(app: Sphinx) -> None:
    """Registers what is above with Sphinx."""
    app.connect("builder-inited", _write_pages)
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _process, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", _skip)
