"""Augmentation and normalization of one image on a canvas, together with its boxes and its mask; to be vmapped.

An image lies in the upper left corner of its canvas, and the rest is padding: zeros, and no class. What changes the
image leaves it so. An example is a dict with the fields of `vision_jax.data.dense`, of which these functions need
`image` (height, width, channels) uint8 and `size` (2,) int32, and change, where they are there, `boxes` (n, 4) float32
in pixels, of which those with the label -1 are padding, and `segmentation` (height, width) uint8.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from vision_jax.augment import pipeline
from vision_jax.augment.transforms import normalize

Example = Mapping[str, jax.Array]


def valid_part(size: jax.Array, height: int, width: int) -> jax.Array:
    """Returns where the image is.

    Args:
        size: (2,) integers, its height and width.
        height, width: of the canvas.

    Returns:
        (height, width) bool.
    """
    return (jnp.arange(height) < size[0])[:, None] & (jnp.arange(width) < size[1])[None, :]


def flip(example: Example) -> dict[str, jax.Array]:
    """Mirrors an image within its part of the canvas, its boxes and its mask."""
    image, width = example["image"], example["size"][1]
    # The canvas is mirrored as a whole, which brings the image to the right edge, and moved back.
    shift = width - image.shape[1]
    changed = {"image": jnp.roll(image[:, ::-1], shift, axis=1)}
    if "segmentation" in example:
        changed["segmentation"] = jnp.roll(example["segmentation"][:, ::-1], shift, axis=1)
    if "boxes" in example:
        x1, y1, x2, y2 = jnp.moveaxis(example["boxes"], -1, 0)
        mirrored = jnp.stack([width - x2, y1, width - x1, y2], axis=-1)
        changed["boxes"] = jnp.where((example["box_labels"] >= 0)[:, None], mirrored, 0)
    return {**example, **changed}


def random_flip(key: jax.Array, example: Example, probability: float) -> dict[str, jax.Array]:
    """Mirrors an example with a probability."""
    if not probability:
        return dict(example)
    flips = jax.random.bernoulli(key, probability)
    return {name: jnp.where(flips, new, example[name]) for name, new in flip(example).items()}


def augment(key: jax.Array, example: Example, augmentation: pipeline.Augmentation) -> dict[str, jax.Array]:
    """Flips an example at random, and changes the colors of its image.

    Args:
        key: of this example.
        example: see above.
        augmentation: of which the flip, color jitter, grayscale, blur and solarization are used.

    Returns:
        the example with its fields changed; what else it has is as it was.
    """
    flipped = random_flip(pipeline.stage_key(key, "flip"), example, augmentation.config.flip)
    return change_colors(key, flipped, augmentation)


def change_colors(key: jax.Array, example: Example, augmentation: pipeline.Augmentation) -> dict[str, jax.Array]:
    """Changes the colors of an image as `Augmentation.augment_image` does, but for its flip.

    The contrast changes around the mean gray of the image. Its padding is filled with its mean color meanwhile, so that
    it does not count, within the rounding to 8 bits.
    """
    if not augmentation.recolors:
        return dict(example)
    image = example["image"]
    inside = valid_part(example["size"], *image.shape[:2])[..., None]
    total = jnp.sum(jnp.where(inside, image, 0).astype(jnp.float32), axis=(0, 1))
    count = jnp.maximum(1, example["size"][0] * example["size"][1]).astype(jnp.float32)
    mean = jnp.round(total / count).astype(image.dtype)
    changed = augmentation.recolor(key, jnp.where(inside, image, mean))
    return {**example, "image": jnp.where(inside, changed, 0)}


def normalize_valid(image: jax.Array, size: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns (image / 255 - mean) / std, with 0 as padding, as in torchvision's detectors.

    Args:
        image: (height, width, channels) uint8.
        size: (2,) integers, height and width of the part that is no padding.
        mean, std: one value per channel, in units where a pixel is between 0 and 1.

    Returns:
        (height, width, channels) float32.
    """
    inside = valid_part(size, *image.shape[:2])[..., None]
    return jnp.where(inside, normalize(image, mean, std), 0.0)
