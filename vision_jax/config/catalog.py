"""The recipes of the package, by what their docstrings say: `python -m vision_jax.main --config=list`."""

import dataclasses
import fnmatch
import inspect
import pathlib
import re
import textwrap

from vision_jax.config import loading
from vision_jax.errors import ConfigError, suggest

# Where the docstrings of recipes, and the list, begin what they say of a result.
_INDENT = 10
_WIDTH = 120


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A config file of the package.

    Attributes:
        name: of its file, as for `--config`.
        title: the first line of its docstring.
        result: what the docstring says of it, the published result above all; "": nothing.
        variants: what may follow the name and a colon.
        default: that which is meant without one; "": there are none.
    """

    name: str
    title: str
    result: str
    variants: tuple[str, ...]
    default: str


def read(path: pathlib.Path) -> Recipe:
    """Returns what a config file says of itself; of one that cannot be executed, why, in place of its title."""
    try:
        module = loading.execute(str(path))
    except ConfigError as error:
        return Recipe(path.stem, f"Cannot be read: {error}", "", (), "")
    text = inspect.cleandoc(module.__doc__ or "")
    found = re.search(rf"^Result:(.*\n(?:(?: {{{_INDENT}}}.*)?\n)*)", text + "\n", re.MULTILINE)
    result = inspect.cleandoc(found[1]) if found else ""
    get_config = getattr(module, "get_config", None)
    parameters = inspect.signature(get_config).parameters if callable(get_config) else {}
    defaults = [option.default for option in parameters.values()]
    variants = tuple(getattr(module, "VARIANTS", ()))
    return Recipe(path.stem, text.partition("\n")[0], result, variants, defaults[0] if defaults and variants else "")


def recipes(pattern: str = "*") -> list[Recipe]:
    """Returns the recipes of the package whose names match a pattern of `fnmatch`, sorted by name.

    Raises:
        ConfigError: if there are none.
    """
    paths = {path.stem: path for path in sorted(loading.recipes_folder().glob("*.py"))}
    names = fnmatch.filter(paths, pattern)
    if not names:
        raise ConfigError(
            f"--config=list:{pattern} matches none of the recipes: {suggest(pattern, paths, loading.LISTED_BY)}"
        )
    return [read(paths[name]) for name in names]


def describe(pattern: str = "*") -> str:
    """Returns the list of the recipes that match a pattern, with their variants and results."""
    found = recipes(pattern)
    return "\n\n".join(
        [
            *map(_describe, found),
            f"Source, known differences and command are in the files: {loading.recipes_folder()}\n"
            "Train one: python -m vision_jax.main --config=NAME or --config=NAME:VARIANT. List some: "
            "--config='list:resnet*'.",
        ]
    )


def _describe(recipe: Recipe) -> str:
    indent = " " * _INDENT
    lines = [recipe.name, recipe.title]
    if recipe.variants:
        names = ", ".join(f"{name} (default)" if name == recipe.default else name for name in recipe.variants)
        variants = f"{'Variants:':{_INDENT}}{names}"
        lines.append(textwrap.fill(variants, _WIDTH, subsequent_indent=indent, break_on_hyphens=False))
    if recipe.result:
        lines.append(f"{'Result:':{_INDENT}}{textwrap.indent(recipe.result, indent).lstrip()}")
    return "\n".join(lines)
