"""Attacks and radii as a person writes them: `pgd-50-10`, `autoattack`, `4/255`."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping

from vision_jax.attacks import base
from vision_jax.attacks.apgd import apgd
from vision_jax.attacks.base import Attacked
from vision_jax.attacks.pgd import fgsm, mi_fgsm, pgd
from vision_jax.attacks.stages import Stage, lacking, stages_of_autoattack
from vision_jax.errors import ConfigError, suggest

_OF_AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")
_VERSIONS = {"autoattack": "standard", "autoattack-rand": "rand"}
_LINF_ONLY = ("fgsm", "mi-fgsm")
_ALSO = {"mifgsm": "mi-fgsm"}  # other spellings
_MOST = 2**31 - 1  # of steps and of restarts, which are counted in int32
NAMES = (
    *("fgsm", "mi-fgsm", "pgd-STEPS", "pgd-STEPS-RESTARTS", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"),
    *_VERSIONS,
)


@dataclasses.dataclass(frozen=True)
class Epsilon:
    """A radius.

    Attributes:
        value: of images in [0, 1].
        reading: how it was read, for a person.
    """

    value: float
    reading: str


def parse_epsilon(text: str, norm: str = "linf") -> Epsilon:
    """Reads a radius.

    A fraction such as 4/255, and a number below 1 such as 0.0157, are taken as they are. In linf a whole number is one
    of 1/255, as 4 is 4/255; in l2 it is taken as it is.

    Args:
        text: such as 4/255, 0.0157 or 4.
        norm: linf or l2.

    Raises:
        ConfigError: if it is no number, is not above 0, or cannot be meant: in linf, above 0.5 every image may become
            gray.
    """
    base.check_norm(norm)
    number = r"\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?"
    match = re.fullmatch(rf"\s*({number})\s*(?:/\s*({number})\s*)?", text)
    if match is None:
        raise ConfigError(f"The radius is {text!r}: give a positive number, such as 4/255 or 0.0157.")
    given, divisor = float(match[1]), float(match[2] or 1)
    whole = match[2] is None and match[1].isdigit()
    if norm == "linf" and whole:
        divisor = 255.0
    value = given / divisor if divisor else math.inf
    if not 0 < value < math.inf:
        raise ConfigError(f"The radius is {text!r}: give a finite one above 0, such as 4/255.")
    if norm == "linf" and value > 0.5:
        hint = f", or {match[1]}/255" if match[2] is None and 1 < given <= 127 else ""
        raise ConfigError(
            f"The radius is {text!r}, which is {value:.4g} of pixels in [0, 1]: above 0.5, any image may become gray. "
            f"Give 0.5 or less{hint}."
        )
    taken = f"{text.strip()} is read as {given:.6g}/255, " if norm == "linf" and whole else ""
    return Epsilon(value, f"{taken}{norm} radius {value:.6g} of pixels in [0, 1] ({255 * value:.4g}/255)")


def find_stages(name: str, classes: int) -> tuple[Stage, ...]:
    """Returns the attacks of a name, for `evaluate_robustness`.

    - fgsm, mi-fgsm: as published; see there.
    - pgd-STEPS: as MadryLab/robustness evaluates: from the image, steps of 2.5 eps / STEPS, the best iterate.
    - pgd-STEPS-RESTARTS: as Fast AT evaluates: random starts, steps of eps / 4, which is 1/255 at 4/255.
    - apgd-ce, apgd-t, fab-t, square: that part of AutoAttack alone; apgd-dlr: APGD with the untargeted DLR loss.
    - autoattack, autoattack-rand: its standard version, and that for models that are random (`random=True` there).

    Args:
        name: one of these, or mifgsm.
        classes: of the model.

    Raises:
        ConfigError: if the name is unknown, or the model has too few classes.
    """
    name = canonical(name)
    simple: Mapping[str, Callable[..., Attacked]] = {
        "fgsm": _only_linf("fgsm", fgsm),
        "mi-fgsm": _only_linf("mi-fgsm", mi_fgsm),
        "apgd-dlr": functools.partial(apgd, loss="dlr", until_fooled=True),
    }
    if name in simple:
        return (Stage(name, simple[name]),)
    if name in _VERSIONS:
        return stages_of_autoattack(classes, _VERSIONS[name])
    if name in _OF_AUTOATTACK:
        found = tuple(stage for stage in stages_of_autoattack(classes) if stage.name == name)
        if not found:
            raise ConfigError(f"The attack {name} needs more than {classes} classes, which is what the model has.")
        return found
    match = re.fullmatch(r"pgd-([1-9][0-9]*)(?:-([1-9][0-9]*))?", name)
    if match and all(int(number) <= _MOST for number in match.groups(default="1")):
        return (Stage(name, _pgd(int(match[1]), match[2] and int(match[2]))),)
    if name.startswith("pgd"):
        raise ConfigError(
            f"The attack is {name!r}: give pgd-STEPS or pgd-STEPS-RESTARTS, such as pgd-20 or pgd-50-10, with numbers "
            f"from 1 to {_MOST}."
        )
    raise ConfigError(f"The attack is {name!r}: {suggest(name, NAMES)}")


def canonical(name: str) -> str:
    """Returns the spelling of a name in `NAMES`."""
    return _ALSO.get(name, name)


def check(name: str, norm: str) -> None:
    """Checks the name of an attack, and that there is such an attack in a norm.

    Raises:
        ConfigError: if not.
    """
    base.check_norm(norm)
    find_stages(name, 1000)
    _check_linf(canonical(name), norm)


def _check_linf(name: str, norm: str) -> None:
    if name in _LINF_ONLY and norm != "linf":
        raise ConfigError(f"The attack {name} is one in linf, and the norm is {norm}: take pgd-1 or another.")


def is_random(name: str) -> bool:
    """Returns whether an attack is for models that are random themselves, which take a key after the images."""
    return name == "autoattack-rand"


def lacks(name: str, classes: int) -> list[str]:
    """Returns what an attack lacks on a model with so few classes; see `stages.lacking`."""
    return lacking(classes, _VERSIONS[name]) if name in _VERSIONS else []


def _pgd(steps: int, restarts: int | str | None) -> Callable[..., Attacked]:
    def run(*arguments: object, eps: float, norm: str) -> Attacked:
        given: dict[str, object] = {"eps": eps, "norm": norm, "steps": steps}
        if restarts is None:
            given |= {"random_start": False, "best_iterate": True}
        else:
            given |= {"restarts": restarts, "step_size": eps / 4}
        return pgd(*arguments, **given)  # type: ignore[arg-type]

    return run


def _only_linf(name: str, attack: Callable[..., Attacked]) -> Callable[..., Attacked]:
    def run(*arguments: object, eps: float, norm: str) -> Attacked:
        _check_linf(name, norm)
        return attack(*arguments, eps=eps)

    return run
