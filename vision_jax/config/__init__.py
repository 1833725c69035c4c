"""The configuration: `fields` has all of them, `validation` their checks, `plan` what follows, `store` how it is kept.

Importing it is quick, as recipes do before anything else: what needs JAX is imported when it is first used.
"""

import importlib
from typing import Any

from vision_jax.config.fields import default_config
from vision_jax.config.store import (
    check_same_config,
    differences,
    flatten,
    from_dict,
    reset_mesh,
    to_json,
    write_config,
)

_LATER = {
    **dict.fromkeys(("check_urls", "validate"), "validation"),
    **dict.fromkeys(("Plan", "make_plan", "resolve", "eval_size", "eval_resize"), "plan"),
}

__all__ = [
    "check_same_config",
    "default_config",
    "differences",
    "flatten",
    "from_dict",
    "reset_mesh",
    "to_json",
    "write_config",
    *_LATER,
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"vision_jax.config.{_LATER[name]}"), name)
    raise AttributeError(f"module 'vision_jax.config' has no attribute {name!r}")
