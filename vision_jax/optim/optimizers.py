"""Optimizers by name, as optax transformations."""

from collections.abc import Callable
from typing import Any

import optax

from vision_jax.config import closest
from vision_jax.errors import ConfigError

Mask = Callable[[Any], Any] | Any


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float,
    decay_mask: Mask,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Returns stochastic gradient descent as torch.optim.SGD has it, with coupled weight decay.

    g' = g + weight_decay * p
    m  = momentum * m + g'
    p -= learning_rate * (g' + momentum * m if nesterov else m)
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decay_mask) if weight_decay else optax.identity(),
        optax.trace(momentum, nesterov) if momentum else optax.identity(),
        optax.scale_by_learning_rate(learning_rate),
    )


_OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"sgd": sgd}


def list_optimizers() -> list[str]:
    """Returns the sorted names that `create_optimizer` knows."""
    return sorted(_OPTIMIZERS)


def create_optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.0,
    decay_mask: Mask = None,
    clip_global_norm: float | None = None,
    **kwargs: Any,
) -> optax.GradientTransformation:
    """Returns an optimizer.

    Args:
        name: one of `list_optimizers()`.
        learning_rate: a number, or a function of the number of updates done.
        weight_decay: in the form that the optimizer defines.
        decay_mask: a tree of booleans as the parameters, or a function that makes it of them; None: all decay.
        clip_global_norm: rescales the gradients where their global norm is larger, before all else.
        **kwargs: of the optimizer, in optax's names.

    Raises:
        ConfigError: for an unknown name or argument.
    """
    if name not in _OPTIMIZERS:
        raise ConfigError(f"There is no optimizer {name!r}: {closest(name, list(_OPTIMIZERS))}")
    try:
        optimizer = _OPTIMIZERS[name](learning_rate, weight_decay=weight_decay, decay_mask=decay_mask, **kwargs)
    except TypeError as error:
        raise ConfigError(f"The optimizer {name!r} does not take these arguments: {error}") from error
    if clip_global_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(clip_global_norm), optimizer)
