"""Mixup and CutMix of a batch, with soft targets, as in timm.

Mixup: https://arxiv.org/abs/1710.09412. CutMix: https://arxiv.org/abs/1905.04899. The partner of an example is its
mirror image in the batch: the first is mixed with the last.
"""

import jax
import jax.numpy as jnp

from vision_jax.augment.erasing import inside_boxes

MODES = ("batch", "pair", "elem")


def mix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    *,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    probability: float = 1.0,
    switch_probability: float = 0.5,
    mode: str = "batch",
) -> tuple[jax.Array, jax.Array]:
    """Mixes each example of a batch with its partner, by mixup or CutMix.

    With lam from Beta(alpha, alpha), mixup shows lam * image + (1 - lam) * partner; CutMix shows the partner in a
    rectangle that covers 1 - lam of the image, or what of it is inside of the image. The targets are mixed likewise.

    Args:
        key: of the step. The result depends on it alone, not on how the batch is divided over devices.
        images: (batch, height, width, channels) float.
        targets: (batch, classes) float, one-hot or smoothed.
        mixup_alpha: 0: no mixup.
        cutmix_alpha: 0: no CutMix.
        probability: of mixing at all.
        switch_probability: of CutMix rather than mixup, where both are on.
        mode: what shares one choice and one lam: the whole batch, both partners (pair), nothing (elem).

    Returns:
        images and targets, of the same shapes.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"the images are {images.dtype}; give floats, since mixed values are no integers.")
    batch, height, width, _ = images.shape
    choices = {"batch": 1, "pair": (batch + 1) // 2, "elem": batch}[mode]
    lam, boxes, use_cutmix = _draw(
        key, choices, height, width, mixup_alpha, cutmix_alpha, probability, switch_probability
    )
    position = jnp.arange(batch)
    choice = {"batch": jnp.zeros_like(position), "pair": jnp.minimum(position, batch - 1 - position)}.get(
        mode, position
    )
    return apply_mix(images, targets, lam[choice], boxes[choice], use_cutmix[choice])


def _draw(
    key: jax.Array,
    choices: int,
    height: int,
    width: int,
    mixup_alpha: float,
    cutmix_alpha: float,
    probability: float,
    switch_probability: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws what `apply_mix` does, `choices` times; for the arguments see `mix`."""
    numbers_key, lam_key = jax.random.split(key)
    applied, switched, row, column = jax.random.uniform(numbers_key, (4, choices))
    use_cutmix = switched < (switch_probability if mixup_alpha and cutmix_alpha else float(cutmix_alpha > 0))
    alpha = jnp.where(use_cutmix, cutmix_alpha or 1.0, mixup_alpha or 1.0)
    lam = jnp.where(applied < probability, jax.random.beta(lam_key, alpha, alpha), 1)

    row, column = (row * height).astype(jnp.int32), (column * width).astype(jnp.int32)
    boxes = boxes_around(row, column, lam, height, width)
    top, bottom, left, right = jnp.moveaxis(boxes, -1, 0)
    shown = 1 - (bottom - top) * (right - left) / (height * width)
    return jnp.where(use_cutmix, shown, lam), boxes, use_cutmix


def boxes_around(row: jax.Array, column: jax.Array, lam: jax.Array, height: int, width: int) -> jax.Array:
    """Returns CutMix's rectangles: of 1 - lam of the image's area, but for what would be outside of it.

    Args:
        row, column: (n,) int32, the centers.
        lam: (n,) float32.
        height, width: of the images.

    Returns:
        (n, 4) int32; see `apply_mix`.
    """
    side = jnp.sqrt(1 - lam)
    box_height, box_width = (height * side).astype(jnp.int32), (width * side).astype(jnp.int32)
    top, bottom = jnp.maximum(row - box_height // 2, 0), jnp.minimum(row + box_height // 2, height)
    left, right = jnp.maximum(column - box_width // 2, 0), jnp.minimum(column + box_width // 2, width)
    return jnp.stack([top, bottom, left, right], axis=-1)


def apply_mix(
    images: jax.Array, targets: jax.Array, lam: jax.Array, boxes: jax.Array, use_cutmix: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mixes with given shares and rectangles.

    Args:
        images: (batch, height, width, channels) float.
        targets: (batch, classes) float.
        lam: (batch,) float32, the share of the example itself.
        boxes: (batch, 4) int32: top, bottom, left and right of CutMix's rectangle; bottom and right are just outside.
        use_cutmix: (batch,) bool, CutMix rather than mixup.

    Returns:
        images and targets, of the same shapes and dtypes.
    """
    share = lam[:, None, None, None]
    partners = images[::-1]
    blended = share * images + (1 - share) * partners
    pasted = jnp.where(inside_boxes(boxes, *images.shape[1:3])[..., None], partners, images)
    mixed = jnp.where(use_cutmix[:, None, None, None], pasted, blended)
    mixed_targets = lam[:, None] * targets + (1 - lam[:, None]) * targets[::-1]
    return mixed.astype(images.dtype), mixed_targets.astype(targets.dtype)
