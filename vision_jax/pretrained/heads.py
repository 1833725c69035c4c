"""Reads what a method keeps beside its backbone, such as a decoder or a queue, from a file of the method's authors."""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vision_jax.errors import DataError
from vision_jax.pretrained import files, methods, naming
from vision_jax.pretrained.files import WeightFile
from vision_jax.pretrained.tensors import Tensor, assemble, tensors_of, to_numpy

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class OfficialNames:
    """How the authors of a method call what it has beside its backbone, without `module.`, and behind any prefix.

    Attributes:
        heads: from the beginning of a tensor's name here, as torch would call it, to that of theirs, such as
            {"projector.": "encoder_q.fc."}. The first one that fits counts.
        teacher: where there is one, the beginning of the names of the network, and what is in the place of it in those
            of the teacher, such as ("encoder_q.", "encoder_k."). What does not begin so the teacher does not have.
        state: names of further tensors that are read, such as a queue.
    """

    heads: Mapping[str, str] = dataclasses.field(default_factory=dict)
    teacher: tuple[str, str] | None = None
    state: tuple[str, ...] = ()

    @property
    def roots(self) -> list[str]:
        """Beginnings of the names of heads in the file, those of the teacher included."""
        theirs = list(self.heads.values())
        return theirs + [name for name in map(self.teachers, theirs) if name is not None]

    def name_of(self, name: str) -> str | None:
        """Returns their name of a head's tensor; None: it is not read."""
        fitting = ((ours, theirs) for ours, theirs in self.heads.items() if name.startswith(ours))
        return next((theirs + name.removeprefix(ours) for ours, theirs in fitting), None)

    def teachers(self, name: str | None) -> str | None:
        """Returns the name of the teacher's tensor in the place of one of the network's; None: it has none."""
        if self.teacher is None or name is None or not name.startswith(self.teacher[0]):
            return None
        return self.teacher[1] + name.removeprefix(self.teacher[0])


@dataclasses.dataclass(frozen=True)
class Beside:
    """What a file holds beside a backbone.

    Attributes:
        heads: their `params` and `batch_stats`, float32; both are empty if the file has none.
        teacher: the same of the teacher's; None: there is no teacher, or the file has no heads.
        state: further tensors, under the names that were asked for, as in the file.
    """

    heads: dict[str, Any]
    teacher: dict[str, Any] | None = None
    state: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def found(self) -> bool:
        """Whether the file has heads."""
        return any(self.heads.values())


def load_heads(
    path: str | pathlib.Path | WeightFile, variables: Mapping[str, Any], official: OfficialNames, objective: str = ""
) -> Beside:
    """Reads the variables of heads, and what else a method needs to go on, if a file has them.

    Args:
        path: see `load`.
        variables: `params` and `batch_stats` of the heads alone, arrays or their shapes.
        official: their names.
        objective: what they are of, by its name; a file of another method is told, and one of the same must have heads.

    Returns:
        all of it, or nothing.

    Raises:
        DataError: if the file has some of the tensors but not all, or of other shapes.
    """
    file = files.read(path)
    file = file.renamed(naming.unwrapped)
    tensors = {tensor: name for tensor in tensors_of(variables) if (name := official.name_of(tensor.name)) is not None}
    taught = {tensor: name for tensor, own in tensors.items() if (name := official.teachers(own)) is not None}
    place = naming.find(file.tensors, {"authors": [*tensors.values(), *taught.values(), *official.state]})
    method = methods.method_of(file.tensors)
    if method and objective and method.objective != objective and variables.get("params"):
        log.warning(
            "%s is a checkpoint of %s (%s), not of %s: only its backbone is used, and what is beside it is new.",
            *(file, method.title, method.objective, objective),
        )
        return Beside({"params": {}, "batch_stats": {}})
    if not any(place.prefix + name in file.tensors for name in tensors.values()):
        if tensors and method and method.objective == objective:
            raise DataError(
                f"{file} is a checkpoint of {method.title}, but has none of the {len(tensors)} tensors of its heads, "
                f"such as {naming.some(list(tensors.values()))}: set the options of the objective to those of the file."
            )
        if variables.get("params"):
            log.info("%s: there is nothing in it but the backbone: what is beside it is new.", file)
        return Beside({"params": {}, "batch_stats": {}})
    values, wrong = _match(file, place.prefix, tensors)
    teachers, wrong_teachers = _match(file, place.prefix, taught)
    state = {name: file.tensors.get(place.prefix + name) for name in official.state}
    wrong += wrong_teachers + [f"{name} is missing" for name, value in state.items() if value is None]
    wrong += _left_over(file, place.prefix, official, {*tensors.values(), *taught.values(), *state})
    count = len(tensors) + len(taught) + len(state)
    if wrong:
        raise DataError(
            f"{file}: {len(wrong)} of the {count} tensors beside the backbone do not fit, such as "
            f"{naming.some(wrong, '; ')}: set the options of the objective to those of the file. All of them must be "
            "there to go on; a file of the backbone alone begins with new ones."
        )
    log.info("%s: %d tensors beside the backbone are read, such as %s.", file, count, next(iter(tensors.values())))
    return Beside(
        assemble(list(tensors), values),
        assemble(list(taught), teachers) if official.teacher else None,
        {name: to_numpy(value) for name, value in state.items()},
    )


def networks(file: WeightFile, official: OfficialNames) -> tuple[WeightFile, WeightFile]:
    """Returns a file without all but the backbone of the network, and without all but that of the teacher."""
    assert official.teacher is not None
    network, teacher = official.teacher
    file = file.renamed(naming.unwrapped)

    def rest(*parts: str) -> WeightFile:
        return file.renamed(lambda name: None if any(naming.within(name, part) for part in parts) else name)

    return rest(teacher, *official.roots), rest(network, *official.roots)


def _match(file: WeightFile, prefix: str, names: Mapping[Tensor, str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the values of tensors, and what is wrong with others."""
    values, wrong = {}, []
    for tensor, name in names.items():
        value = file.tensors.get(prefix + name)
        if value is None:
            wrong.append(f"{name} is missing")
        elif tuple(value.shape) != tensor.shape:
            wrong.append(f"{name} has the shape {tuple(value.shape)}, not {tensor.shape}")
        else:
            values[tensor.name] = to_numpy(value)
    return values, wrong


def _left_over(file: WeightFile, prefix: str, official: OfficialNames, known: set[str]) -> list[str]:
    """Returns what is wrong with tensors of heads that these do not have here."""
    names = [name.removeprefix(prefix) for name in file.tensors if name.startswith(prefix)]
    return [
        f"{name} is left over"
        for name in names
        if name.startswith(tuple(official.roots)) and name not in known and not naming.NO_WEIGHTS.search(name)
    ]
