"""What the files in `configs/` share."""

from collections.abc import Mapping
from typing import TypeVar

from ml_collections import ConfigDict

from vision_jax.config import closest, default_config
from vision_jax.errors import ConfigError

T = TypeVar("T")


def choose(variants: Mapping[str, T], name: str) -> T:
    """Returns the variant of a recipe that is asked for by `--config=configs/FILE.py:NAME`.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in variants:
        raise ConfigError(f"This recipe has no variant {name!r}: {closest(name, list(variants))}")
    return variants[name]


def imagenet(model: str) -> ConfigDict:
    """Returns what all recipes for ImageNet begin with: `default_config()` for a model of 1,000 classes."""
    config = default_config()
    config.model.name = model
    config.model.num_classes = 1000
    return config


def deit_augmentation(config: ConfigDict) -> None:
    """Sets the augmentation of DeiT (Touvron et al. 2020, arXiv:2012.12877), which Swin and ConvNeXt took over."""
    config.label_smoothing = 0.1
    config.data.train_filter = "pillow-bicubic"
    config.data.eval_filter = "bicubic"
    config.augment.policy = "rand-m9-mstd0.5-inc1"
    config.augment.erase = 0.25
    config.augment.erase_mode = "pixel"
    config.augment.mixup = 0.8
    config.augment.cutmix = 1.0
