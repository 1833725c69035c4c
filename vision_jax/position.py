"""The position of a run, in epochs and learning rate, when it resumes with another configuration than before."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vision_jax import build
from vision_jax import config as config_lib
from vision_jax.errors import ConfigError


def find(config: ConfigDict, num_examples: int, step: int) -> tuple[float, float]:
    """Returns the epoch and the learning rate of a run after a number of updates.

    Args:
        config: of the run.
        num_examples: in its training split.
        step: the number of updates.

    Raises:
        ConfigError: if there is no such run, for example because the batch is larger than the split.
    """
    plan = config_lib.make_plan(config, num_examples)
    return step / plan.steps_per_epoch, float(build.make_schedule(config, plan)(step))


def check_same_classes(about: Mapping[str, Any], num_classes: int, class_names: Sequence[str]) -> None:
    """Checks that the labels mean what they meant when a checkpoint was saved.

    Args:
        about: of the checkpoint.
        num_classes, class_names: of the training data; (): the classes have no names.

    Raises:
        ConfigError: if they have other names, or another number.
    """
    before = list(about["class_names"])
    if not before or not class_names or before == list(class_names):
        return
    gone, new = (sorted(set(a) - set(b)) for a, b in ((before, class_names), (class_names, before)))
    lists = [f"{what} {', '.join(names[:5])}" for what, names in (("without", gone), ("with", new)) if names]
    raise ConfigError(
        f"The training data has {num_classes} classes, and they are not the {about['num_classes']} of the checkpoint: "
        f"{' and '.join(lists) or 'their order differs'}. Labels would mean something else. Restore the data, or start "
        "a new run from this one: --config.model.pretrained=WORKDIR, with another --workdir."
    )


def describe_change(about: Mapping[str, Any], config: ConfigDict, num_examples: int, step: int) -> str | None:
    """Returns a sentence on the position of a step when it was saved, and now; None if they are the same.

    A run resumes at a number of updates. With another batch size, length or learning rate that is a different position.

    Args:
        about: of the checkpoint; older versions do not contain the number of examples, which is then assumed unchanged.
        config: of the run that resumes.
        num_examples: in its training split.
        step: of the checkpoint.
    """
    epoch, rate = find(config, num_examples, step)
    try:
        before = find(config_lib.from_dict(about["config"]), about.get("num_examples", num_examples), step)
    except ConfigError as error:
        now = f"Step {step} is epoch {epoch:.6g} now, with a learning rate of {rate:.4g}."
        return f"{now} What it was is not known: {error}"
    if math.isclose(epoch, before[0]) and math.isclose(rate, before[1], rel_tol=1e-6, abs_tol=1e-12):
        return None
    return (
        f"Step {step} was epoch {before[0]:.6g} and is epoch {epoch:.6g} now; the learning rate was {before[1]:.4g} "
        f"and is {rate:.4g}."
    )
