"""The flags --config=FILE and --config.FIELD=VALUE: of training, and of commands that take configurations."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from vision_jax.config import fields, loading
from vision_jax.errors import ConfigError

flags.disclaim_key_flags()  # those of the module that calls `define`, so that its --help shows them


class _OrNone(flags.ArgumentParser):
    """Reads a field of the configuration; None unsets what a recipe has set."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument: Any) -> Any:
        return None if argument in (None, "None") else self._parser.parse(argument)

    def flag_type(self) -> str:
        return self._parser.flag_type()


_PARSERS: dict[type, flags.ArgumentParser] = {
    **{float: flags.FloatParser(), int: flags.IntegerParser(), str: flags.ArgumentParser()},
    bool: flags.BooleanParser(),
}
for _type, _parser in _PARSERS.items():
    config_flags.register_flag_parser_for_type(_type, _OrNone(_parser))


# What the parsers of flags raise, and what to say instead.
_TYPES = {
    r"invalid literal for int\(\) with base 10: ": "it takes an integer",
    "could not convert string to float: ": "it takes a number",
    r"\('Non-boolean argument to boolean flag', ": "it takes true or false",
}


class _ConfigFile(flags.ArgumentParser):
    """Reads a config file, in place of ml_collections' parser, which says of few mistakes what they are."""

    def parse(self, argument: Any) -> ConfigDict:
        return loading.load(argument)

    def flag_type(self) -> str:
        return "config file"


def define(values: flags.FlagValues = flags.FLAGS, argv: Sequence[str] | None = None) -> flags.FlagHolder:
    """Defines --config, and when it is parsed, the --config.FIELD that are given.

    Args:
        values: where they are defined.
        argv: the program's name and its arguments; None: those of the command line.
    """
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "A file such as configs/resnet50.py, or the name of a recipe, resnet50; `list` prints these. "
        "--config.FIELD=VALUE overrides a field of it.",
        flag_values=values,
        lock_config=True,
        sys_argv=None if argv is None else list(argv),
    )
    values["config"].parser = _ConfigFile()
    return holder


def load(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Returns the configuration of a file, with some fields changed.

    Args:
        path: FILE, or FILE:VARIANT.
        overrides: as on the command line, such as --config.data.image_size=160.

    Raises:
        ConfigError: if the file or an override cannot be used.
    """
    argv = ["", f"--config={path}", *overrides]
    return _parse(argv, lambda values: define(values, argv))


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Returns a configuration with some fields changed; `overrides` and errors as for `load`."""
    argv = ["", *overrides]
    return _parse(
        argv,
        lambda values: config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, lock_config=True, sys_argv=argv
        ),
    )


def _parse(argv: Sequence[str], define_flags: Callable[[flags.FlagValues], flags.FlagHolder]) -> ConfigDict:
    """Returns the configuration that flags of a program's own amount to."""
    values = flags.FlagValues()
    try:
        holder = define_flags(values)
        values(argv)
    except flags.Error as error:
        raise ConfigError(flag_problem(error)) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(field_problem(error)) from error
    return holder.value


def flag_problem(error: flags.Error) -> str:
    """Returns what is wrong with a flag; of a value of the wrong type, what it takes instead of what Python says."""
    text = str(error)
    for said, meant in _TYPES.items():
        text = re.sub(f"{said}.*", meant, text)
    return text


def field_problem(error: Exception) -> str:
    """Returns what is wrong with a flag --config.FIELD, of which parsing raised `error`."""
    if hint := loading.find_hint(error):
        return hint
    if isinstance(error, AttributeError | KeyError):
        field = loading.first_line(error).rpartition("Attempting to lookup: ")[2].strip("'")
        return (
            f"the configuration has no field {field!r}; {fields.__file__} lists all of them. An "
            "option of the objective that a recipe has chosen is config.objective.OPTION; further evaluations, and "
            "options of evaluations, are added in a recipe: docs/evaluation.md shows how."
        )
    return f"{type(error).__name__} in a flag --config.FIELD: {loading.first_line(error)}"
