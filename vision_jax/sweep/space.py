"""What is searched: fields of the configuration, and the values that each may take."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from vision_jax.config import flatten
from vision_jax.config.store import parent
from vision_jax.errors import ConfigError, check_no_url, suggest

Value = float | int | str

FORMS = (
    "log:0.01:1 and uniform:0:0.5 (real numbers; :5 at the end is the number of points of a grid), int:2:8 and "
    "int:2:8:2 (integers, with a step), choice:sgd,adamw (any values)"
)
_COMMAS = re.compile(r",(?![^(\[]*[)\]])")  # that are in no parentheses


@dataclasses.dataclass(frozen=True)
class Range:
    """A field that takes numbers.

    Attributes:
        field: its path, such as `optimizer.learning_rate`.
        text: as it was written.
        kind: `log`, `uniform` or `int`.
        low, high: the least and the greatest value, both included.
        step: between integers.
        points: of real numbers in a grid; None: it has not been said.
    """

    field: str
    text: str
    kind: str
    low: float
    high: float
    step: int = 1
    points: int | None = None

    def ends(self) -> list[Value]:
        """Returns the least and the greatest value."""
        return [self.low, self.high]

    def grid(self) -> list[Value]:
        """Returns the values of a grid, ascending; real numbers are as far apart from each other, or from their logs.

        Raises:
            ConfigError: if the number of points has not been said.
        """
        if self.kind == "int":
            return list(range(int(self.low), int(self.high) + 1, self.step))
        if self.points is None:
            raise ConfigError(
                f"{self.field} is {self.text}, which a grid needs a number of points for: {self.text}:5, or choice:…"
            )
        shares = [number / (self.points - 1) for number in range(self.points)]
        if self.kind == "log":
            between = [self.low * (self.high / self.low) ** share for share in shares]
        else:
            between = [self.low + (self.high - self.low) * share for share in shares]
        return [self.low, *between[1:-1], self.high]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A field that takes one of some values.

    Attributes:
        field: its path.
        text: as it was written.
        values: as one writes them behind --config.FIELD=.
    """

    field: str
    text: str
    values: tuple[str, ...]

    def ends(self) -> list[Value]:
        """Returns all values."""
        return list(self.values)

    def grid(self) -> list[Value]:
        """Returns all values, in the order in which they were given."""
        return list(self.values)


Parameter = Range | Choice


def parse(field: str, value: Any) -> Parameter:
    """Reads what a field may be.

    Args:
        field: its path.
        value: a text, in one of `FORMS`; or, from a file, a list of values.

    Raises:
        ConfigError: if it is none.
    """
    if isinstance(value, list):
        return _choice(field, json.dumps(value), [_as_flag(one) for one in value])
    if not isinstance(value, str):
        raise ConfigError(f"The search space of {field} is {value!r}: give {FORMS}, or a list of values.")
    kind, _, rest = value.partition(":")
    if kind == "choice":
        return _choice(field, value, [one.strip() for one in _COMMAS.split(rest)])
    if kind not in ("log", "uniform", "int"):
        raise ConfigError(f"The search space of {field} is {value!r}: give {FORMS}.")
    try:
        numbers = [int(part) if kind == "int" else float(part) for part in rest.split(":")[:2]]
        more = [int(part) for part in rest.split(":")[2:]]
    except ValueError as error:
        raise ConfigError(f"The search space of {field} is {value!r}, which has {error}: give {FORMS}.") from error
    if len(numbers) != 2 or len(more) > 1 or not all(map(math.isfinite, numbers)):
        raise ConfigError(
            f"The search space of {field} is {value!r}: {kind} takes two or three numbers, as in {FORMS}."
        )
    low, high = numbers
    if low >= high:
        raise ConfigError(f"The search space of {field} is {value!r}: the first number must be less than the second.")
    if kind == "log" and low <= 0:
        raise ConfigError(f"The search space of {field} is {value!r}: numbers that have logarithms are above 0.")
    if more and more[0] < (1 if kind == "int" else 2):
        least = "a step is 1 or more" if kind == "int" else "a grid has 2 points or more"
        raise ConfigError(f"The search space of {field} is {value!r}: {least}.")
    if kind == "int":
        step = more[0] if more else 1
        return Range(field, value, kind, low, low + (high - low) // step * step, step=step)
    return Range(field, value, kind, low, high, points=more[0] if more else None)


def _choice(field: str, text: str, values: list[str]) -> Choice:
    if not all(values):
        raise ConfigError(f"The search space of {field} is {text!r}, of which a value is empty.")
    if twice := [one for one in values if values.count(one) > 1]:
        raise ConfigError(f"The search space of {field} is {text!r}, which has {twice[0]} twice.")
    return Choice(field, text, tuple(values))


def _as_flag(value: Any) -> str:
    """Returns a value of JSON as one writes it behind --config.FIELD=."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return value if isinstance(value, str) else repr(tuples(value))


def read(path: str | None, settings: Sequence[str]) -> tuple[Parameter, ...]:
    """Reads the search space of --space and --set.

    Args:
        path: a JSON file, {"optimizer.learning_rate": "log:0.01:1", "data.image_size": [128, 160]}; None: there is
            none.
        settings: such as "optimizer.learning_rate=log:0.01:1".

    Raises:
        ConfigError: if there is nothing to search, or it cannot be read.
    """
    given: list[tuple[str, Any]] = list(_read_file(path).items()) if path is not None else []
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set is {setting!r}: give FIELD=SPACE, with {FORMS}.")
        given.append((field.removeprefix("--config."), text))
    if not given:
        raise ConfigError("Nothing is searched: give --set FIELD=log:0.01:1, or --space=FILE.")
    fields = [field for field, _ in given]
    if twice := [field for field in fields if fields.count(field) > 1]:
        raise ConfigError(f"{twice[0]} is in the search space twice.")
    return tuple(parse(field, value) for field, value in given)


def _read_file(path: str) -> dict[str, Any]:
    check_no_url("--space", path)
    try:
        space = json.loads(pathlib.Path(path).expanduser().read_text())
    except OSError as error:
        raise ConfigError(
            f"--space is {path}, which cannot be read: {error.strerror}; give a file with the search space as JSON."
        ) from error
    except ValueError as error:
        raise ConfigError(f"--space is {path}, which is not JSON: {error}.") from error
    if not isinstance(space, dict):
        raise ConfigError(f'--space is {path}, which must be an object such as {{"FIELD": "log:0.01:1"}}.')
    return space


def check_fields(space: Sequence[Parameter], config: ConfigDict) -> None:
    """Checks that a configuration has the fields, and that ranges are of numbers.

    Raises:
        ConfigError: if not.
    """
    known = [name for name, _ in flatten(config)]
    for one in space:
        if one.field not in known:
            if below := [name for name in known if name.startswith(f"{one.field}.")]:
                raise ConfigError(f"{one.field} cannot be searched as a whole: give a field of it, such as {below[0]}.")
            hint = suggest(one.field, known, "vision_jax/config/fields.py")
            raise ConfigError(f"{one.field} is in the search space, and is no field of the configuration: {hint}")
        node, name = parent(config, one.field)
        if isinstance(one, Range) and (kind := node.get_type(name)) is not float and (one.kind, kind) != ("int", int):
            form = f"int:{one.low:g}:{one.high:g}, or choice:…" if kind is int else "choice:…"
            what = {int: "an integer", bool: "True or False", str: "a text"}.get(kind, "no single number")
            raise ConfigError(f"{one.field} is {what}, and its search space is {one.text}: give {form}.")
