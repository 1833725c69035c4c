"""What a search is: a configuration, the space, the metric, and how trials are chosen and ended."""

import dataclasses
import json
import pathlib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vision_jax import config as config_lib
from vision_jax.config import command_line
from vision_jax.config.plan import metric_directions
from vision_jax.errors import CheckpointError, ConfigError, suggest
from vision_jax.sweep import space as space_lib
from vision_jax.sweep.space import Parameter, Value

PROGRAM = (sys.executable, "-m", "vision_jax.main")
_TRAINING = {"train/loss": False, "train/top1": True}  # metrics of training steps, and whether high is better

Values = Mapping[str, Value]


@dataclasses.dataclass(frozen=True)
class Search:
    """A search, but for where it is kept.

    Attributes:
        config: FILE, or FILE:VARIANT.
        overrides: --config.FIELD=VALUE that all trials have.
        space: what is searched.
        metric: a key of metrics.jsonl.
        higher: whether a higher value of it is better.
        summary: one of `sweep.SUMMARIES`: which value of a run counts.
        sampler: one of `sweep.SAMPLERS`.
        seed: of the sampler.
        pruner: one of `sweep.PRUNERS`.
        reduction: of `asha` and `hyperband`: of so many trials, one goes on at each rung.
        min_evaluations: before a trial may be pruned.
        trials: how many there are, in all processes together; of a grid, all of its points.
        program: what runs a trial, before its flags.
    """

    config: str
    overrides: tuple[str, ...]
    space: tuple[Parameter, ...]
    metric: str
    higher: bool
    summary: str = "last"
    sampler: str = "tpe"
    seed: int = 0
    pruner: str = "none"
    reduction: int = 3
    min_evaluations: int = 1
    trials: int = 20
    program: tuple[str, ...] = PROGRAM

    def flags(self, values: Values) -> list[str]:
        """Returns the flags --config.FIELD=VALUE of a trial: those of all, and its own."""
        return [*self.overrides, *(f"--config.{name}={as_text(value)}" for name, value in values.items())]

    def command(self, values: Values, workdir: pathlib.Path) -> list[str]:
        """Returns the command that runs a trial, or goes on with it."""
        return [*self.program, f"--config={self.config}", f"--workdir={workdir}", *self.flags(values)]

    def shown(self, values: Values, workdir: pathlib.Path) -> str:
        """Returns the command as one writes it in a shell."""
        command = self.command(values, workdir)
        return shlex.join(["python", *command[1:]] if command[0] == sys.executable else command)

    def load(self, values: Values | None = None) -> ConfigDict:
        """Returns the configuration of a trial; without values, what they all start from.

        Raises:
            ConfigError: if it cannot be read, or a value is of a wrong type.
        """
        return command_line.load(self.config, self.flags(values or {}))

    def identity(self) -> dict[str, Any]:
        """Returns what must be the same when a search goes on, as JSON."""
        same = ("metric", "higher", "summary", "sampler", "seed", "pruner", "reduction", "min_evaluations")
        return {
            "space": {one.field: one.text for one in self.space},
            **{name: getattr(self, name) for name in same},
            "config": json.loads(config_lib.to_json(self.load())),
        }


def as_text(value: Value) -> str:
    """Returns a value as one writes it behind --config.FIELD=, exactly."""
    return value if isinstance(value, str) else repr(value)


def describe(values: Values) -> str:
    """Returns the values of a trial for a person, in a line."""
    shown = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in values.items()}
    return ", ".join(f"{name}={value}" for name, value in shown.items())


def check_same(known: Mapping[str, Any], search: Search, workdir: pathlib.Path) -> None:
    """Checks that the search that a workdir holds is this one.

    Fields of the configuration that do not change results may differ.

    Args:
        known: the `identity` of what it holds.
        search: this one.
        workdir: where it is kept.

    Raises:
        CheckpointError: if it is another one.
    """
    mine = search.identity()
    lines = [
        f"{name}: {known.get(name)!r} -> {mine[name]!r}"
        for name in mine
        if name != "config" and known.get(name) != mine[name]
    ]
    lines += config_lib.differences(known["config"], mine["config"])[0]
    if lines:
        listed = "\n".join(f"  - {line}" for line in lines)
        raise CheckpointError(f"{workdir} holds another search:\n{listed}\nGive another --workdir.")


def find_direction(config: ConfigDict, metric: str, direction: str | None) -> bool:
    """Returns whether a higher value of a metric is better.

    Args:
        config: of the runs.
        metric: a key of metrics.jsonl.
        direction: "max" or "min", as the user says; None: as is known of the metric.

    Raises:
        ConfigError: if there is no such metric, or the direction is unknown.
    """
    known = {**metric_directions(config), **_TRAINING}
    if metric not in known and not metric.startswith(("train/", "goodput/")):
        raise ConfigError(
            f"--metric is {metric!r}, which the evaluations of the configuration do not give: {suggest(metric, known)}"
        )
    if direction is not None:
        return direction == "max"
    if metric not in known:
        raise ConfigError(f"--metric is {metric!r}: is it best high or low? Give --direction=max or --direction=min.")
    return known[metric]


def check(search: Search) -> None:
    """Checks a search before anything begins: its fields, their types, and that each value can work.

    A value is refused if neither with the first nor with the last values of the other fields it makes a configuration
    that passes the checks of training that need neither data nor devices.

    Raises:
        ConfigError: if something cannot work.
    """
    config = search.load()
    space_lib.check_fields(search.space, config)
    if search.sampler == "grid":
        grid(search.space)
    names = {one.field for one in search.space}
    if both := [flag for flag in search.overrides if flag.removeprefix("--config.").partition("=")[0] in names]:
        raise ConfigError(f"{both[0]} sets a field that is searched: leave it out.")
    first = {one.field: one.ends()[0] for one in search.space}
    last = {one.field: one.ends()[-1] for one in search.space}
    for one in search.space:
        for value in one.ends():
            problems = [_problem(search, {**others, one.field: value}) for others in (first, last)]
            if all(problems):
                raise ConfigError(f"In the search space, {one.field}={as_text(value)} cannot work: {problems[0]}")


def _problem(search: Search, values: Values) -> str | None:
    """Returns what is wrong with the configuration of a trial; None: nothing."""
    try:
        config = config_lib.resolve(search.load(values))
        config_lib.reset_mesh(config)  # it is not known here which devices a trial will have
        config_lib.validate(config, 1)
    except ConfigError as error:
        return str(error)
    return None


def grid(space: Sequence[Parameter]) -> list[dict[str, Value]]:
    """Returns the points of a grid; the last field changes fastest.

    Raises:
        ConfigError: if a field has no number of points.
    """

    def points(space: Sequence[Parameter]) -> Iterator[dict[str, Value]]:
        if not space:
            yield {}
            return
        for value in space[0].grid():
            for rest in points(space[1:]):
                yield {space[0].field: value, **rest}

    return list(points(space))
