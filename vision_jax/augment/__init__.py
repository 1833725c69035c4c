"""Augmentation on the device: jitted transforms of one image, (key, image) -> image, vmapped over a batch."""

from vision_jax.augment.notation import create_policy, list_policies
from vision_jax.augment.pipeline import Augmentation, AugmentConfig, create_augmentation, parse_crops
from vision_jax.augment.transforms import batch_key, example_keys, normalize, random_flip

__all__ = [
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
