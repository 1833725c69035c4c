"""Policies: of published tables of operations, some are drawn for each image and applied.

The tables are in `tables.py`; `notation.py` makes policies of strings. Warps are bilinear: timm's are bilinear or
bicubic at random unless it is told, and torchvision's are by default nearest, but bilinear in its recipes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.augment.blur import pillow_blur
from vision_jax.augment.color import greyscale
from vision_jax.augment.ops import OPERATIONS, apply_operations
from vision_jax.augment.tables import Scale, SubPolicy
from vision_jax.augment.transforms import solarize


def levels_of_table(key: jax.Array, levels: jax.Array) -> jax.Array:
    """The levels as they are."""
    return levels


@dataclass(frozen=True)
class Policy:
    """How the operations for one image are drawn: `repeats` times, one of `sub_policies`, all as likely.

    Attributes:
        scales: by name, what operation it is and what its argument is at a level.
        sub_policies: each a sequence of (name, probability of applying it, level).
        repeats: how many sub-policies are drawn for an image, one after the other.
        sample_levels: (key, levels of the table) -> the levels that are used, both (n,) float32.
        most_level: that can be drawn.
    """

    scales: dict[str, Scale]
    sub_policies: tuple[SubPolicy, ...]
    repeats: int = 1
    sample_levels: Callable[[jax.Array, jax.Array], jax.Array] = levels_of_table
    most_level: float = 10

    @property
    def most_degrees(self) -> float:
        """By which an image is rotated."""
        rotations = [scale for scale in self.scales.values() if scale.operation == "rotate"]
        return max((abs(scale.base) + abs(scale.slope) * self.most_level for scale in rotations), default=0)


def sample(policy: Policy, key: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Draws the operations for one image.

    Args:
        policy: the table.
        key: of this example.
        height, width: of the image, in pixels.

    Returns:
        (n,) int32 positions in `ops.OPERATIONS` and (n,) float32 arguments, with n = repeats * length of a sub-policy.
    """
    names = list(policy.scales)
    entries = np.array([[(names.index(name), *rest) for name, *rest in s] for s in policy.sub_policies], np.float32)
    numbers_key, level_key = jax.random.split(key)
    # One draw for all these: each costs half a second of compilation.
    choices, signs, applied = jax.random.uniform(numbers_key, (3, policy.repeats * entries.shape[1]))
    choices = (choices[: policy.repeats] * len(entries)).astype(jnp.int32)
    positions, probabilities, levels = jnp.moveaxis(jnp.asarray(entries)[choices].reshape(-1, 3), -1, 0)
    positions = positions.astype(jnp.int32)

    levels = policy.sample_levels(level_key, levels)
    signs = jnp.where(signs < 0.5, -1, 1)
    arguments = scaled_arguments(list(policy.scales.values()), positions, levels, signs, height, width)
    operations = jnp.array([OPERATIONS.index(scale.operation) for scale in policy.scales.values()])[positions]
    return jnp.where(applied < probabilities, operations, OPERATIONS.index("identity")), arguments


def scaled_arguments(
    scales: Sequence[Scale], positions: jax.Array, levels: jax.Array, signs: jax.Array, height: int, width: int
) -> jax.Array:
    """Returns the arguments of operations, (n,) float32; see `Scale`.

    Args:
        scales: of the policy.
        positions: (n,) int32, in `scales`.
        levels: (n,) float32.
        signs: (n,) float32, -1 or 1; used where the scale is signed.
        height, width: of the image, in pixels.
    """
    extents = {"width": width, "height": height, "": 1}

    def field(values: Sequence[float]) -> jax.Array:
        return jnp.asarray(np.array(values, np.float32))[positions]

    # A hair is added because 25 / 30 * 3.6 is 2.9999998 in float32, and would be cut to 2.
    change = field([scale.slope * extents[scale.of] for scale in scales]) * levels
    whole = jnp.sign(change) * jnp.floor(jnp.abs(change) + 1e-4)
    rounding = field([("", "cut", "nearest").index(scale.rounding) for scale in scales])
    change = jnp.select([rounding == 0, rounding == 1], [change, whole], jnp.round(change))
    change = jnp.where(field([scale.signed for scale in scales]) > 0, signs * change, change)
    arguments = field([scale.base for scale in scales]) + change
    return jnp.clip(arguments, field([scale.least for scale in scales]), field([scale.most for scale in scales]))


def apply_policy(policy: Policy, key: jax.Array, image: jax.Array, *, fill: Sequence[float] = (0,)) -> jax.Array:
    """Draws the operations for one image and applies them.

    Args:
        policy: the table.
        key: of this example.
        image: (height, width, channels) uint8.
        fill: what geometric operations show of the outside; see `warp.warp`.

    Returns:
        (height, width, channels) uint8.
    """
    drawn = sample(policy, key, *image.shape[:2])
    return apply_operations(image, *drawn, fill=fill, most_degrees=policy.most_degrees)


def augmix(
    policy: Policy, key: jax.Array, image: jax.Array, *, width: int = 3, depth: int = -1, fill: Sequence[float] = (0,)
) -> jax.Array:
    """Mixes an image with a mixture of itself after several chains of operations.

    The paper's code mixes after the normalization: so there is one rounding here, at the end.

    Args:
        policy: what a chain draws from, as often as `policy.repeats` at most.
        key: of this example.
        image: (height, width, channels) uint8.
        width: chains.
        depth: operations in each chain; -1: 1 to `policy.repeats` in each, at random.
        fill: see `warp.warp`.

    Returns:
        (height, width, channels) uint8.
    """
    weights_key, chains_key = jax.random.split(key)
    shares, weight = augmix_weights(weights_key, width)

    def chain(key: jax.Array) -> jax.Array:
        depth_key, key = jax.random.split(key)
        operations, arguments = sample(policy, key, *image.shape[:2])
        drawn = jax.random.randint(depth_key, (), 1, policy.repeats + 1) if depth == -1 else depth
        operations = jnp.where(jnp.arange(policy.repeats) < drawn, operations, OPERATIONS.index("identity"))
        return apply_operations(image, operations, arguments, fill=fill, most_degrees=policy.most_degrees)

    chains = jax.vmap(chain)(jax.random.split(chains_key, width)).astype(jnp.float32)
    mixture = (shares[:, None, None, None] * chains).sum(0)
    return jnp.round((1 - weight) * image + weight * mixture).astype(jnp.uint8)


def augmix_weights(key: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Draws the shares of the chains in the mixture, (width,), Dirichlet(1, ..., 1), and its weight, (), Beta(1, 1)."""
    shares_key, weight_key = jax.random.split(key)
    shares = jax.random.exponential(shares_key, (width,))
    return shares / shares.sum(), jax.random.uniform(weight_key)


def three_augment(key: jax.Array, image: jax.Array) -> jax.Array:
    """Makes an image grayscale, or solarizes it from 128 on, or blurs it with a sigma of 0.1 to 2: one of the three.

    Args:
        key: of this example.
        image: (height, width, channels) uint8.

    Returns:
        (height, width, channels) uint8.
    """
    choice_key, sigma_key = jax.random.split(key)
    choice = jax.random.randint(choice_key, (), 0, 3)
    blurred = pillow_blur(image, jax.random.uniform(sigma_key, minval=0.1, maxval=2.0))
    return jnp.select([choice == 0, choice == 1], [greyscale(image), solarize(image)], blurred)
