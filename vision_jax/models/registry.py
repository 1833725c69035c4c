"""Names of models, and how one is made from its name."""

import dataclasses
import fnmatch
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vision_jax.config import closest
from vision_jax.errors import ConfigError

_MODELS: dict[str, Callable[..., nn.Module]] = {}


def register(name: str, create: Callable[..., nn.Module]) -> None:
    """Makes `create(**options)` known as `name`."""
    if name in _MODELS:
        raise ValueError(f"There is a model {name!r} already.")
    _MODELS[name] = create


def list_models(pattern: str = "*") -> list[str]:
    """Returns the sorted names that match a pattern of `fnmatch`, such as `resnet*`."""
    return sorted(fnmatch.filter(_MODELS, pattern))


def create_model(name: str, *, dtype: Any = jnp.float32, **options: Any) -> nn.Module:
    """Returns a model: a module to be called as `module.apply(variables, images, train=False)`.

    Images are (batch, height, width, channels), normalized; logits are (batch, num_classes) float32. The method
    "features" gives the pooled representation, (batch, features) float32.

    Args:
        name: one of `list_models()`.
        dtype: what it computes in; parameters and batch statistics are float32.
        **options: fields of the module, such as `num_classes`.

    Raises:
        ConfigError: for an unknown name or option.
    """
    if name not in _MODELS:
        raise ConfigError(f"There is no model {name!r}: {closest(name, list_models())}")
    create = _MODELS[name]
    fields = [field.name for field in dataclasses.fields(create()) if field.name not in ("parent", "name")]
    if unknown := sorted(options.keys() - set(fields)):
        raise ConfigError(f"{name} has no option {unknown[0]!r}: {closest(unknown[0], fields)}")
    return create(dtype=jnp.dtype(dtype), **options)
