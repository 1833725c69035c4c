"""Rows of attacks that are run one after another, of which AutoAttack is one."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from vision_jax.attacks.apgd import apgd
from vision_jax.attacks.base import Attacked
from vision_jax.attacks.fab import fab
from vision_jax.attacks.losses import LEAST_CLASSES
from vision_jax.attacks.square import square
from vision_jax.errors import ConfigError, suggest

TARGETS = 9  # of AutoAttack's targeted attacks
_EOT = 20  # samples of a random model in each step of AutoAttack's version for these
VERSIONS = ("standard", "rand")


class Stage(NamedTuple):
    """An attack of a row of them.

    Attributes:
        name: for a person.
        run: (apply, images, labels, keys, *, eps, norm) -> Attacked, and `target` with `targets`.
        targets: how many classes are taken as targets in turn, by the logits of the clean image; 0: untargeted.
        black_box: whether it uses no gradients.
    """

    name: str
    run: Callable[..., Attacked]
    targets: int = 0
    black_box: bool = False

    @property
    def passes(self) -> int:
        """How often it goes over the images that are left: once for each target."""
        return max(self.targets, 1)


def stages_of_autoattack(classes: int, version: str = "standard") -> tuple[Stage, ...]:
    """Returns AutoAttack (Croce and Hein 2020, arXiv:2003.01690), as fra31/auto-attack has it for linf and l2.

    `standard` is APGD with the cross-entropy (100 steps), APGD with the targeted DLR loss and FAB (9 targets, 100 steps
    each), and Square (5000 queries). `rand`, for models that are random themselves, is APGD with the cross-entropy and
    with the DLR loss, with gradients averaged over 20 samples.

    Args:
        classes: of the model. With fewer than ten, all others are targets. The DLR losses are left out where they are
            not defined, with fewer than three classes, and than four for the targeted one; see `lacking`.
        version: standard or rand.

    Raises:
        ConfigError: if the version is unknown.
    """
    return tuple(stage for stage, least in _autoattack(classes, version) if classes >= least)


def lacking(classes: int, version: str = "standard") -> list[str]:
    """Returns what AutoAttack lacks with so few classes, in sentences; the robust accuracy may be too high by it."""
    found = [
        f"AutoAttack is without {stage.name}, whose loss needs {least} classes, and the model has {classes}: the "
        "robust accuracy may be too high."
        for stage, least in _autoattack(classes, version)
        if classes < least
    ]
    if version == "standard" and classes <= TARGETS:
        found.append(
            f"The model has {classes} classes: AutoAttack's targeted attacks have all {classes - 1} others as targets, "
            f"not {TARGETS}."
        )
    return found


def _autoattack(classes: int, version: str) -> list[tuple[Stage, int]]:
    """Returns the attacks of a version, and how many classes each needs."""
    targets = min(TARGETS, classes - 1)

    def of_loss(name: str, loss: str, targets: int = 0, **options: Any) -> tuple[Stage, int]:
        run = functools.partial(apgd, loss=loss, until_fooled=True, **options)
        return Stage(name, run, targets), LEAST_CLASSES[loss]

    if version == "rand":
        return [of_loss("apgd-ce", "ce", eot=_EOT), of_loss("apgd-dlr", "dlr", eot=_EOT)]
    if version != "standard":
        raise ConfigError(f"The version of AutoAttack is {version!r}: {suggest(version, VERSIONS)}")
    return [
        of_loss("apgd-ce", "ce"),
        of_loss("apgd-t", "dlr-targeted", targets),
        (Stage("fab-t", fab, targets), 2),
        (Stage("square", square, black_box=True), 2),
    ]
