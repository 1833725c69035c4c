"""Classes by their names, and the sentences that they are put into."""

import pathlib
import stat
from collections.abc import Sequence

import numpy as np

from vision_jax.errors import ConfigError, DataError, reason
from vision_jax.text.tokenizers import Tokenizer

PLACE = "{}"
_SHOWN = 60  # characters of an argument in an error
PLAIN = ("a photo of a {}.",)  # what CLIP's paper begins with, section 3.1.4


def read_classes(given: str, flag: str = "--classes") -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Reads the names of classes.

    Args:
        given: names with commas between them, or a text file with one a line. There, what the folder of a class's
            labelled images is called may come first, with a tab behind it.
        flag: that it is the value of, for errors.

    Returns:
        the names, and what their folders are called: the same, unless the file says otherwise.

    Raises:
        ConfigError: if there is none, or one is empty or there twice, or a single name is that of no file.
        DataError: if the file cannot be read.
    """
    lines = _lines(given) if _is_file(given) else given.split(",")
    if lines == [given] and given.strip():
        raise ConfigError(f"{flag} is {given!r}: there is no such file, and a choice needs several names with commas.")
    pairs = [line.rpartition("\t") for line in lines]
    names = tuple(" ".join(name.split()) for _, _, name in pairs)
    folders = tuple(folder.strip() or name for name, (folder, _, _) in zip(names, pairs, strict=True))
    if not all(names):
        raise ConfigError(f"{flag} is {_shown(given)}, where class {names.index('') + 1} is empty: give each a name.")
    for each in (names, folders):
        if twice := sorted(name for name in set(each) if each.count(name) > 1):
            raise ConfigError(f"{flag} names {twice[0]!r} {each.count(twice[0])} times: give each class once.")
    return names, folders


def read_templates(path: str | None, default: tuple[str, ...] = PLAIN) -> tuple[str, ...]:
    """Reads sentences with a place for the name of a class, `{}`, from a text file with one a line.

    Returns:
        the sentences; without a file, `default`.

    Raises:
        ConfigError: if there is none, or one has no place.
        DataError: if the file cannot be read.
    """
    if path is None:
        return default
    templates = tuple(line.strip() for line in _lines(path) if line.strip())
    if not templates:
        raise ConfigError(f"--templates is {path}, which is empty: write a sentence with {PLACE} a line.")
    for template in templates:
        if template.count(PLACE) != 1:
            raise ConfigError(f"{path} has the template {template!r}: write {PLACE} once, for the name of the class.")
    return templates


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Returns each class in each sentence: all sentences of the first class, then those of the second, and so on."""
    return [template.replace(PLACE, name) for name in names for template in templates]


def table(tokenizer: Tokenizer, names: Sequence[str], templates: Sequence[str]) -> np.ndarray:
    """Returns the tokens of each class in each sentence, (classes, templates, context_length) int32."""
    return tokenizer(prompts(names, templates)).reshape(len(names), len(templates), -1)


def _is_file(given: str) -> bool:
    try:
        return not stat.S_ISDIR(pathlib.Path(given).expanduser().stat().st_mode)  # a pipe is one as well
    except (OSError, ValueError):  # many names are too long for that of a file
        return False


def _shown(given: str) -> str:
    return repr(given if len(given) <= _SHOWN else given[:_SHOWN] + "...")


def _lines(path: str) -> list[str]:
    try:
        lines = pathlib.Path(path).expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error
    while lines and not lines[-1].strip():
        lines.pop()  # at the end of the file
    return lines or [""]
