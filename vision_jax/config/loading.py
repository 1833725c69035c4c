"""Reading a config file, such as configs/resnet50.py; whatever is wrong with one is said in one line.

A name without a folder and a suffix, `resnet50`, is that of a recipe of the package: in a clone of the repository these
are in `configs/`, and where the package has been installed, in `vision_jax/configs/`.
"""

import hashlib
import importlib.machinery
import importlib.util
import inspect
import pathlib
import sys
import traceback
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from vision_jax.config.fields import OPEN_FIELDS, default_config
from vision_jax.config.store import flatten
from vision_jax.errors import ConfigError, check_no_url, suggest

_WHAT_IT_IS = (
    "A config file is Python with a function get_config() that starts from vision_jax.config.default_config(), changes "
    "fields and returns it, as in configs/quickstart.py."
)
LISTED_BY = "`python -m vision_jax.main --config=list`"
_PACKAGE = pathlib.Path(__file__).parent.parent


def recipes_folder() -> pathlib.Path:
    """Returns the folder of the recipes that belong to this package."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def find(file: str) -> str:
    """Returns the path of a config file.

    Args:
        file: its path, or the name of a recipe.

    Raises:
        ConfigError: if there is neither.
    """
    if pathlib.Path(file).is_file():
        return file
    names = sorted(path.stem for path in recipes_folder().glob("*.py"))
    if file in names:
        return str(recipes_folder() / f"{file}.py")
    name = pathlib.Path(file).stem
    if name in names:
        hint = f"The package has a recipe of that name: --config={name}"
    elif file == name:
        hint = f"Nor is there such a recipe: {suggest(name, names, LISTED_BY)}"
    else:
        hint = _WHAT_IT_IS
    raise ConfigError(f"Cannot load the config file {file!r}: there is no such file. {hint}")


def load(path: str) -> ConfigDict:
    """Returns what the `get_config()` of a config file returns, locked.

    Args:
        path: FILE, or FILE:VARIANT, which is passed to `get_config`. FILE may be the name of a recipe.

    Raises:
        ConfigError: if there is no such file, it fails, or it returns anything but a configuration with all fields.
    """
    check_no_url("--config", path)
    given, *variant = path.split(":", 1)
    file = find(given)
    get_config = getattr(execute(file), "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"{file} has no function get_config(). {_WHAT_IT_IS}")
    signature = inspect.signature(get_config)
    try:
        signature.bind(*variant)
    except TypeError as error:
        passed = f"{variant[0]!r}, what follows the colon in --config" if variant else "nothing"
        raise ConfigError(
            f"{file} has get_config{signature}, which is passed {passed}: {error}. It may take one argument with a "
            "default, the variant."
        ) from error
    try:
        config = get_config(*variant)
    except (Exception, SystemExit) as error:  # a config file is the user's program, and may raise anything
        raise ConfigError(_describe(error, file)) from error
    if not isinstance(config, ConfigDict):
        what = "None" if config is None else f"a {type(config).__name__}"
        raise ConfigError(f"get_config() of {file} returns {what}, not a ConfigDict. {_WHAT_IT_IS}")
    present, fields = dict(flatten(config)), dict(flatten(default_config()))
    if missing := [field for field in fields if field not in present and not field.startswith(OPEN_FIELDS)]:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ConfigError(f"get_config() of {file} returns a configuration without {names}. {_WHAT_IT_IS}")
    return config.lock()


def execute(file: str) -> ModuleType:
    """Returns the module that the config file at a path is.

    Raises:
        ConfigError: if it is not Python, or raises something.
    """
    # One may load another, so each is a module of its own.
    digest = hashlib.sha256(str(pathlib.Path(file).absolute()).encode()).hexdigest()[:16]
    loader = importlib.machinery.SourceFileLoader(f"config_file_{digest}", file)  # whatever its suffix
    module = ModuleType(loader.name)
    module.__file__ = file
    sys.modules[loader.name] = module  # where dataclasses look for the names in their annotations
    try:
        loader.exec_module(module)
    except SyntaxError as error:
        where = "" if error.lineno is None else f" ({error.filename}, line {error.lineno})"
        raise ConfigError(f"{file} is not Python: {error.msg}{where}. {_WHAT_IT_IS}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{_describe(error, file)}. {_WHAT_IT_IS}") from error
    return module


def _describe(error: BaseException, file: str) -> str:
    """Returns what a config file raised, and where."""
    if isinstance(error, ConfigError):
        what = str(error)
    else:
        what = find_hint(error) or f"{type(error).__name__} in the config file: {first_line(error)}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{what} ({file}, line {lines[-1]})" if lines else what


def find_hint(error: BaseException) -> str | None:
    """Returns what ConfigDict says of a field that it does not have, with the nearest one; None if it says nothing."""
    hint = next((line for line in _lines(error) if line.startswith("Did you mean")), None)
    return hint and f"unknown field of the configuration. {hint.partition('?')[0]}?"


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message."""
    return next(iter(_lines(error)), "no message")


def _lines(error: Any) -> list[str]:
    # A KeyError's message is the representation of a string.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = (line.strip().strip('"').strip() for line in text.replace("\\n", "\n").splitlines())
    return [line for line in lines if line]
