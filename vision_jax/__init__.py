"""vision_jax: image models in JAX. Importing it is fast: modules that need JAX are imported on first use."""

import importlib
from typing import Any

__version__ = "0.1.0"

_FUNCTIONS = {"create_model": "vision_jax.models", "list_models": "vision_jax.models"}
_MODULES = (
    "augment",
    "config",
    "data",
    "devices",
    "evaluate",
    "evaluators",
    "losses",
    "metrics",
    "models",
    "objectives",
    "optim",
    "predict",
    "pretrained",
    "recipes",
    "train",
)

__all__ = [*_FUNCTIONS, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"vision_jax.{name}")
    raise AttributeError(f"module 'vision_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
