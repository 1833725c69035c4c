"""Policies by name: `create_policy("rand-m9-mstd0.5-inc1")`.

| string | what | source |
|---|---|---|
| `rand-m9-n2-p0.5-mstd0.5-mmax10-inc1` | RandAugment in timm's notation | arxiv.org/abs/1909.13719, timm |
| `autoaugment` or `original`, `originalr` | AutoAugment for ImageNet | arxiv.org/abs/1805.09501, timm |
| `v0`, `v0r` | the same of Google's EfficientNet code | timm |
| `autoaugment_cifar10` | AutoAugment for CIFAR-10 | arxiv.org/abs/1805.09501, torchvision |
| `trivialaugment_wide` | TrivialAugmentWide | arxiv.org/abs/2103.10158, torchvision |
| `augmix-m3-w3-d2` | AugMix, without its consistency loss | arxiv.org/abs/1912.02781, its code |
| `3augment` or `3a` | 3-Augment of DeiT III, without its color jitter | arxiv.org/abs/2204.07118, its code |

Options, all of which can be left out: `m` magnitude (10; AugMix: severity, 3), `n` operations for an image (2), `p`
probability of each (0.5), `mstd` standard deviation of the magnitude (0; above 100, or `inf`: evenly from 0 to `m`),
`mmax` the largest magnitude (10), `inc1` operations that are stronger at higher magnitudes; `w` chains (3) and `d`
operations in each (1 to 3, at random) of AugMix. AutoAugment from timm's tables takes `mstd` and `mmax`.
"""

import math
import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from vision_jax.augment import tables
from vision_jax.augment.policies import Policy, apply_policy, augmix, three_augment
from vision_jax.errors import ConfigError, suggest

Transform = Callable[[jax.Array, jax.Array], jax.Array]


def list_policies() -> list[str]:
    """Returns the names with which a policy string can begin."""
    return [*POLICIES]


def create_policy(text: str, mean_color: Sequence[float] = (124, 116, 104)) -> Transform:
    """Returns the policy that a string describes, such as `rand-m9-mstd0.5-inc1`.

    Args:
        text: a name and its options, separated by hyphens.
        mean_color: what timm's policies show of the outside of an image; the others show black.

    Returns:
        (key, image) -> image, both (height, width, channels) uint8, to be vmapped.

    Raises:
        ConfigError: if there is no such policy, or it has no such option.
    """
    name, *options = text.split("-")
    if name not in POLICIES:
        raise ConfigError(
            f"augment.policy is {text!r}: no policy begins with {name!r}; {suggest(name, list_policies())}"
        )
    create, known = POLICIES[name]
    return create(name, _parse_options(text, options, known), tuple(mean_color))


def _parse_options(text: str, parts: list[str], known: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Returns {option: number} of parts such as `m9`.

    Args:
        text: the whole string, for messages.
        parts: between its hyphens, without the name.
        known: the options that there are, with the least and the largest value. Where these are integers, so is the
            value.
    """
    options: dict[str, float] = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+?)(inf|[0-9]+|[0-9]*\.[0-9]+)", part)
        if match is None or match[1] not in known:
            raise ConfigError(
                f"augment.policy is {text!r}: {part!r} is no option of this policy. Options are a name and a number; "
                f"it has {', '.join(known) or 'none'}."
            )
        option, value = match[1], float(match[2])
        least, most = known[option]
        if not least <= value <= most or (isinstance(least, int) and not value.is_integer()):
            kind = "an integer" if isinstance(least, int) else "a number"
            raise ConfigError(
                f"augment.policy is {text!r}: {option} takes {kind} from {least} to {most}, not {match[2]}."
            )
        if option in options:
            raise ConfigError(f"augment.policy is {text!r}: {option} is there twice.")
        options[option] = value
    return options


def _normal_levels(std: float, largest: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Levels with normal noise, cut off at 0 and `largest`; an infinite `std` draws them evenly from 0 to the level."""

    def sample_levels(key: jax.Array, levels: jax.Array) -> jax.Array:
        if math.isinf(std):
            levels = levels * jax.random.uniform(key, levels.shape)
        elif std:
            levels = levels + std * jax.random.normal(key, levels.shape)
        return jnp.clip(levels, 0, largest)

    return sample_levels


def _uniform_levels(key: jax.Array, levels: jax.Array) -> jax.Array:
    """AugMix: evenly from 0.1 to the level."""
    return jax.random.uniform(key, levels.shape, minval=0.1, maxval=levels)


def _uniform_bins(key: jax.Array, levels: jax.Array) -> jax.Array:
    """TrivialAugment: one of the bins 0 to `level`."""
    return jnp.floor(jax.random.uniform(key, levels.shape) * (levels + 1))


def _rand_augment(name: str, options: dict[str, float], mean_color: Sequence[float]) -> Transform:
    """timm's RandAugment: each of n operations is drawn anew, and applied with probability p."""
    level, probability = options.get("m", 10), options.get("p", 0.5)
    names = tables.RAND_AUGMENT_INCREASING if options.get("inc") else tables.RAND_AUGMENT
    policy = Policy(
        scales=tables.TIMM,
        sub_policies=tuple(((operation, probability, level),) for operation in names),
        repeats=int(options.get("n", 2)),
        sample_levels=_timm_levels(options),
        most_level=_most_level(options),
    )
    return lambda key, image: apply_policy(policy, key, image, fill=mean_color)


def _timm_levels(options: dict[str, float]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    std = options.get("mstd", 0)
    return _normal_levels(math.inf if std > 100 else std, _most_level(options))


def _most_level(options: dict[str, float]) -> float:
    return options.get("mmax", 10)


def _auto_augment(name: str, options: dict[str, float], mean_color: Sequence[float]) -> Transform:
    policy = Policy(
        tables.TIMM,
        tables.AUTO_AUGMENT[name],
        sample_levels=_timm_levels(options),
        most_level=_most_level(options),
    )
    return lambda key, image: apply_policy(policy, key, image, fill=mean_color)


def _auto_augment_cifar10(name: str, options: dict[str, float], mean_color: Sequence[float]) -> Transform:
    policy = Policy(tables.TORCHVISION, tables.AUTO_AUGMENT_CIFAR10)
    return lambda key, image: apply_policy(policy, key, image)


def _trivial_augment_wide(name: str, options: dict[str, float], mean_color: Sequence[float]) -> Transform:
    sub_policies = tuple(((operation, 1.0, 30.0),) for operation in tables.TRIVIAL_AUGMENT_WIDE)
    policy = Policy(tables.TRIVIAL_AUGMENT_WIDE, sub_policies, sample_levels=_uniform_bins, most_level=30)
    return lambda key, image: apply_policy(policy, key, image)


def _augmix(name: str, options: dict[str, float], mean_color: Sequence[float]) -> Transform:
    width, depth, severity = int(options.get("w", 3)), int(options.get("d", -1)), options.get("m", 3)
    sub_policies = tuple(((operation, 1.0, severity),) for operation in tables.AUGMIX)
    policy = Policy(tables.AUGMIX, sub_policies, repeats=depth if depth > 0 else 3, sample_levels=_uniform_levels)
    return lambda key, image: augmix(policy, key, image, width=width, depth=depth)


def _three_augment(name: str, options: dict[str, float], mean_color: Sequence[float]) -> Transform:
    return three_augment


_NOISE = {"mstd": (0.0, math.inf), "mmax": (1, 30)}
# By the name that a policy string begins with: what makes the policy of (name, options, mean_color), and its options
# with their ranges. A config file may add others; see docs/extending.md.
POLICIES: dict[str, tuple[Callable[..., Transform], dict[str, tuple[float, float]]]] = {
    "rand": (_rand_augment, {"m": (0.0, 30.0), "n": (1, 16), "p": (0.0, 1.0), "inc": (0, 1), **_NOISE}),
    **dict.fromkeys(tables.AUTO_AUGMENT, (_auto_augment, _NOISE)),
    "autoaugment_cifar10": (_auto_augment_cifar10, {}),
    "trivialaugment_wide": (_trivial_augment_wide, {}),
    "augmix": (_augmix, {"m": (0.1, 10.0), "w": (1, 10), "d": (1, 10)}),
    "3augment": (_three_augment, {}),
    "3a": (_three_augment, {}),
}
