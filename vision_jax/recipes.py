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


def rising_sizes(
    size: int, scale: float, start: float, end: float, step: int = 16
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Returns the epochs and sizes of progressive resizing, where the size rises linearly to `size`.

    Args:
        size: the last one, a multiple of `step`.
        scale: the first one as a share of it; rounded to a multiple of 4.
        start: the epoch in which it begins to rise.
        end: the epoch in which it is `size`.
        step: between them there are the multiples of this, each from when the straight line between both passes it.
    """
    first = round(size * scale / 4) * 4
    later = range((first // step + 1) * step, size + 1, step)
    epochs = [start + (end - start) * (x / size - scale) / (1 - scale) for x in later]
    return (0.0, *epochs), (first, *later)
