"""The augmentation of a training step: which parts are on, and their order.

The order is timm's: flip, policy, color jitter, grayscale, blur, then solarize, which timm does not have, at BYOL's
position; after normalization, erasing and Cutout; finally mixup or CutMix of the batch. The shift comes first, because
it is a crop; before mixing, ColOut drops rows and columns of the batch.
"""

import ast
import dataclasses
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from vision_jax.augment import color, float_color, mixing, transforms
from vision_jax.augment.blur import pillow_blur
from vision_jax.augment.erasing import cutout, random_erasing
from vision_jax.augment.notation import Transform, create_policy
from vision_jax.augment.transforms import col_out, random_flip, random_shift
from vision_jax.errors import ConfigError, suggest

ERASE_MODES = ("const", "pixel")
BLUR_SIGMA = (0.1, 2.0)  # range of the standard deviation, in pixels
# Each stage has its own key, derived from its index here, so that switching one on or off does not affect the others.
_STAGES = ("flip", "policy", "color_jitter", "greyscale", "blur", "solarize", "erase", "cutout", "shift")
# The same for operations on the whole batch, where numbers from 0 on are the positions of examples; see
# `example_keys`. `vision_jax.steps` uses 2**32 - 2, for dropout.
_MIX = 2**32 - 1
_COL_OUT = 2**32 - 3


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images. The defaults do nothing.

    Attributes:
        flip: probability of a horizontal flip.
        policy: a string for `create_policy`; "": none.
        color_jitter: strengths of brightness, contrast, saturation and, optionally, hue (at most 0.5); (): none.
        color_jitter_prob: probability of the color jitter.
        greyscale: probability of grayscale.
        solarize: probability of solarization, at 128.
        blur: probability of a Gaussian blur with a sigma of 0.1 to 2 pixels.
        style: how color jitter, grayscale, solarization and blur are done: pillow: in 8 bits, as by torchvision with
            Pillow; simclr: in floating point by TensorFlow's formulas, as in version 2 of SimCLR's code; byol: the
            same, but brightness is added, as in BYOL and version 1 of SimCLR's code. See `color` and `float_color`.
        erase: probability of random erasing.
        erase_mode: const: erase to the mean; pixel: to normal noise.
        erase_count: maximum number of boxes.
        cutout: side of Cutout's square, in pixels; 0: none.
        shift: maximum shift in each direction, in pixels, like the padding of torchvision's random crop.
        shift_mode: what fills the border: constant: black; reflect: the image, mirrored at its outermost pixels.
        col_out: share of the rows and columns of a batch that is dropped, which makes its images smaller.
        mixup, cutmix: alpha of the Beta distribution; 0: off.
        mix_prob: probability of mixing, if one of them is on.
        mix_switch_prob: probability of CutMix, if both are on.
        mix_mode: what one choice is drawn for: batch, pair or elem; see `mixing.mix`.
        mix_group: number of consecutive examples that are mixed with each other; 0, or more than the batch: the whole
            batch.
        mean_color: mean of the data in 0..255, one value per channel, with which policies fill the outside.
    """

    flip: float = 0.0
    policy: str = ""
    color_jitter: tuple[float, ...] = ()
    color_jitter_prob: float = 1.0
    greyscale: float = 0.0
    solarize: float = 0.0
    blur: float = 0.0
    style: str = "pillow"
    erase: float = 0.0
    erase_mode: str = "const"
    erase_count: int = 1
    cutout: int = 0
    shift: int = 0
    shift_mode: str = "constant"
    col_out: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_switch_prob: float = 0.5
    mix_mode: str = "batch"
    mix_group: int = 0
    mean_color: tuple[float, ...] = (124, 116, 104)


# What a batch is mixed by is not up to a crop.
_OF_BATCHES = ("col_out", "mixup", "cutmix", "mix_prob", "mix_switch_prob", "mix_mode", "mix_group")


def parse_crops(text: str, base: AugmentConfig) -> tuple[AugmentConfig, ...]:
    """Reads the augmentation of each crop, such as "blur=1|blur=0.1,solarize=0.2".

    Args:
        text: FIELD=VALUE, separated by commas, and by | between crops; "": nothing.
        base: the fields that are not named.

    Raises:
        ConfigError: for an unknown field, or a value that is no value of it; the message says which.
    """
    fields = [field.name for field in dataclasses.fields(AugmentConfig) if field.name not in _OF_BATCHES]
    crops = []
    for part in text.split("|") if text else ():
        values: dict[str, Any] = {}
        for item in re.split(r",(?![^(]*\))", part) if part.strip() else ():
            name, _, value = (word.strip() for word in item.partition("="))
            if name not in fields:
                raise ConfigError(f"augment.crops has {item.strip()!r}: {suggest(name, fields)}")
            kind = type(getattr(base, name))
            try:
                values[name] = kind(value if kind is str else ast.literal_eval(value))
            except (ValueError, SyntaxError, TypeError) as error:
                raise ConfigError(f"augment.crops has {item.strip()!r}: {name} takes a {kind.__name__}.") from error
        crops.append(dataclasses.replace(base, **values))
    return tuple(crops)


@dataclass(frozen=True)
class _Style:
    """The functions of a style; see `AugmentConfig`.

    Attributes:
        floating: they take floats from 0 to 1, else uint8.
        color_jitter: (key, image, strengths) -> image.
        greyscale, solarize: image -> image.
        blur: (image, sigma) -> image.
    """

    floating: bool
    color_jitter: Callable[..., jax.Array]
    greyscale: Callable[[jax.Array], jax.Array]
    blur: Callable[[jax.Array, jax.Array], jax.Array]
    solarize: Callable[[jax.Array], jax.Array]


_FLOATS = (float_color.greyscale, float_color.blur, float_color.solarize)
_STYLES = {
    "pillow": _Style(False, color.color_jitter, color.greyscale, pillow_blur, transforms.solarize),
    "simclr": _Style(True, float_color.color_jitter, *_FLOATS),
    "byol": _Style(True, functools.partial(float_color.color_jitter, adds_brightness=True), *_FLOATS),
}


@dataclass(frozen=True)
class Augmentation:
    """The augmentation functions of a step; see `create_augmentation`. Stages that are off are not traced.

    Attributes:
        config: what is on.
        policy: of `config.policy`, if there is one.
    """

    config: AugmentConfig
    policy: Transform | None

    def augment_image(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Applies everything before normalization; to be vmapped.

        Args:
            key: of this example.
            image: (height, width, channels) uint8.

        Returns:
            (height, width, channels) uint8.
        """
        config = self.config
        if config.shift:
            image = random_shift(stage_key(key, "shift"), image, config.shift, config.shift_mode)
        if config.flip:
            image = random_flip(stage_key(key, "flip"), image, config.flip)
        if self.policy is not None:
            image = self.policy(stage_key(key, "policy"), image)
        return self.recolor(key, image)

    @property
    def recolors(self) -> bool:
        """Whether `recolor` does anything."""
        config = self.config
        jitters = bool(config.color_jitter) and config.color_jitter_prob > 0
        return jitters or any(probability > 0 for probability in (config.greyscale, config.blur, config.solarize))

    def recolor(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Applies color jitter, grayscale, blur and solarization; arguments as for `augment_image`."""
        config, style = self.config, _STYLES[self.config.style]
        stages: dict[str, tuple[float, Callable[[jax.Array, jax.Array], jax.Array]]] = {
            "color_jitter": (
                config.color_jitter_prob if config.color_jitter else 0.0,
                lambda key, image: style.color_jitter(key, image, config.color_jitter),
            ),
            "greyscale": (config.greyscale, lambda _, image: style.greyscale(image)),
            "blur": (config.blur, lambda key, image: style.blur(image, _random_sigma(key))),
            "solarize": (config.solarize, lambda _, image: style.solarize(image)),
        }
        stages = {name: stage for name, stage in stages.items() if stage[0]}
        floating = bool(stages) and style.floating
        image = image.astype(jnp.float32) / 255 if floating else image
        for name, (probability, transform) in stages.items():
            image = _randomly(stage_key(key, name), image, probability, transform)
        return jnp.round(255 * image).astype(jnp.uint8) if floating else image

    def after_normalize(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Applies everything after normalization; to be vmapped.

        Args:
            key: of this example; the same as for `augment_image`.
            image: (height, width, channels) float, normalized.

        Returns:
            (height, width, channels) of the same dtype.
        """
        config = self.config
        if config.erase:
            key_ = stage_key(key, "erase")
            image = random_erasing(key_, image, config.erase, mode=config.erase_mode, count=config.erase_count)
        if config.cutout:
            image = cutout(stage_key(key, "cutout"), image, config.cutout)
        return image

    def col_out(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Leaves out rows and columns of a batch, between `after_normalize` and `mix`.

        Args:
            key: of the step; the same as for `mix`.
            images: (batch, height, width, channels).

        Returns:
            (batch, height, width, channels) of the same dtype, of a smaller height and width if it is on.
        """
        if not self.config.col_out:
            return images
        return col_out(jax.random.fold_in(key, _COL_OUT), images, self.config.col_out)

    def mix(self, key: jax.Array, images: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Does mixup or CutMix.

        Args:
            key: of the step.
            images: (batch, height, width, channels) float, normalized or not.
            targets: (batch, classes) float, one-hot or smoothed.

        Returns:
            images and targets, of the same shapes.
        """
        config = self.config
        if not config.mixup and not config.cutmix:
            return images, targets
        mix = functools.partial(
            mixing.mix,
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            probability=config.mix_prob,
            switch_probability=config.mix_switch_prob,
            mode=config.mix_mode,
        )
        key = jax.random.fold_in(key, _MIX)
        if not 0 < config.mix_group < len(images):
            return mix(key, images, targets)
        groups = len(images) // config.mix_group
        grouped = [x.reshape(groups, config.mix_group, *x.shape[1:]) for x in (images, targets)]
        mixed, mixed_targets = jax.vmap(mix)(jax.random.split(key, groups), *grouped)
        return mixed.reshape(images.shape), mixed_targets.reshape(targets.shape)


def create_augmentation(config: AugmentConfig) -> Augmentation:
    """Returns the functions that do what `config` says.

    Raises:
        ConfigError: if there is no such policy or mode, or the color jitter has too many or too few strengths.
    """
    choices_of = {
        "style": tuple(_STYLES),
        "erase_mode": ERASE_MODES,
        "mix_mode": mixing.MODES,
        "shift_mode": ("constant", "reflect"),
    }
    for name, choices in choices_of.items():
        if getattr(config, name) not in choices:
            raise ConfigError(f"augment.{name} is {getattr(config, name)!r}: {suggest(getattr(config, name), choices)}")
    if len(config.color_jitter) not in (0, 3, 4):
        raise ConfigError(
            f"augment.color_jitter is {config.color_jitter!r}; give the strengths of brightness, contrast, saturation "
            "and, if you like, hue, such as (0.4, 0.4, 0.4)."
        )
    if config.color_jitter and (min(config.color_jitter) < 0 or max((0, *config.color_jitter[3:])) > 0.5):
        raise ConfigError(
            f"augment.color_jitter is {config.color_jitter!r}; strengths are not negative, and that of hue is at most "
            "0.5, which is every hue."
        )
    if config.erase_count < 1:
        raise ConfigError(
            f"augment.erase_count is {config.erase_count}; it is at least 1. To erase nothing, set erase to 0."
        )
    policy = create_policy(config.policy, config.mean_color) if config.policy else None
    return Augmentation(config, policy)


def stage_key(key: jax.Array, stage: str) -> jax.Array:
    """Returns the key of a stage, of that of an example."""
    return jax.random.fold_in(key, _STAGES.index(stage))


def _randomly(key: jax.Array, image: jax.Array, probability: float, transform: Callable) -> jax.Array:
    """Applies a transform, (key, image) -> image, with a probability."""
    apply_key, key = jax.random.split(key)
    return jnp.where(jax.random.bernoulli(apply_key, probability), transform(key, image), image)


def _random_sigma(key: jax.Array) -> jax.Array:
    return jax.random.uniform(key, minval=BLUR_SIGMA[0], maxval=BLUR_SIGMA[1])
