"""Augmentation on the device: jitted transforms of one image, (key, image) -> image, vmapped over a batch."""

from vision_jax.augment.transforms import example_keys, normalize, random_flip

__all__ = ["example_keys", "normalize", "random_flip"]
