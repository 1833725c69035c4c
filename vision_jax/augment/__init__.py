"""Augmentation on the device: jitted transforms of one image, (key, image) -> image, vmapped over a batch.

`corruptions` and `frost` compute on the host, in processes that need no JAX: so what needs it is imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vision_jax.augment.notation import POLICIES, create_policy, list_policies
    from vision_jax.augment.pipeline import Augmentation, AugmentConfig, create_augmentation, parse_crops
    from vision_jax.augment.transforms import batch_key, example_keys, normalize, random_flip

__all__ = [
    "POLICIES",
    "AugmentConfig",
    "Augmentation",
    "batch_key",
    "create_augmentation",
    "create_policy",
    "example_keys",
    "list_policies",
    "normalize",
    "parse_crops",
    "random_flip",
]

_LATER = {
    **dict.fromkeys(("POLICIES", "create_policy", "list_policies"), "notation"),
    **dict.fromkeys(("Augmentation", "AugmentConfig", "create_augmentation", "parse_crops"), "pipeline"),
    **dict.fromkeys(("batch_key", "example_keys", "normalize", "random_flip"), "transforms"),
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"vision_jax.augment.{_LATER[name]}"), name)
    raise AttributeError(f"module 'vision_jax.augment' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
