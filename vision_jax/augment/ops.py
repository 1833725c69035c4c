"""The operations that augmentation policies are made of, on 8-bit images, with Pillow's results.

`vmap` of a `lax.switch` runs every branch for every image, so a policy of fifteen operations would cost fifteen. Here
every operation is a setting of one of four steps, and each step runs once, whatever the number of operations:

    a motion (`warp.py`) | a table of 256 entries per channel | color | sharpness

Operations differ only in the motion and in the table, which are small. The steps read the same image side by side, and
one result is taken. One after the other, with all but one at its identity, would give the same, but compilers fuse the
steps, and would then compute a pixel anew for each of its neighbors that a later step reads.

No step gathers pixels, or looks their values up one by one: on TPUs that would cost several times the model.

Images are (height, width, channels) uint8, with 3 channels (RGB) or 1 (gray), before and after every operation, as in
Pillow; so its rounding is followed too. For one channel, `color` is the identity.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from vision_jax.augment.warp import Motion, warp

# What is an operation's argument is in the comment; the rest have none.
OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "invert",
    "posterize",  # bits to keep, 0 to 8
    "solarize",  # values from this threshold on are inverted
    "solarize_add",  # added to values below 128
    "contrast",  # 1: unchanged, 0: gray
    "brightness",  # 1: unchanged, 0: black
    "color",  # 1: unchanged, 0: grayscale
    "sharpness",  # 1: unchanged, 0: smooth
    "shear_x",  # output (x, y) shows input (x + argument * y, y), from the upper left corner
    "shear_y",  # output (x, y) shows input (x, y + argument * x)
    "translate_x",  # pixels by which the picture moves to the left
    "translate_y",  # pixels by which it moves up
    "rotate",  # degrees counter-clockwise about the center
)
_GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")  # as the fields of `Motion`


def apply_operation(
    image: jax.typing.ArrayLike,
    operation: jax.typing.ArrayLike,
    argument: jax.typing.ArrayLike,
    *,
    fill: Sequence[float] = (0,),
    interpolation: str = "bilinear",
) -> jax.Array:
    """Applies one operation to one image; see `apply_operations`.

    Args:
        image: (height, width, channels) uint8.
        operation: () int32, a position in OPERATIONS.
        argument: () float32, see OPERATIONS.
        fill, interpolation: see `warp.warp`.

    Returns:
        (height, width, channels) uint8.

    Raises:
        ValueError: for images of another type.
    """
    operations, arguments = jnp.asarray(operation)[None], jnp.asarray(argument, jnp.float32)[None]
    return apply_operations(image, operations, arguments, fill=fill, interpolation=interpolation)


def apply_operations(
    image: jax.typing.ArrayLike,
    operations: jax.Array,
    arguments: jax.Array,
    *,
    fill: Sequence[float] = (0,),
    interpolation: str = "bilinear",
) -> jax.Array:
    """Applies operations one after the other to one image.

    A scan, so that one is compiled however many there are, and none is fused into the next: that would compute pixels
    anew for each of their neighbors.

    Args:
        image: (height, width, channels) uint8.
        operations: (n,) int32, positions in OPERATIONS.
        arguments: (n,) float32, see OPERATIONS.
        fill, interpolation: see `warp.warp`.

    Returns:
        (height, width, channels) uint8.

    Raises:
        ValueError: for images of another type.
    """
    image = jnp.asarray(image)
    if image.ndim != 3 or image.shape[-1] not in (1, 3) or image.dtype != jnp.uint8:
        raise ValueError(f"the image is {image.shape} {image.dtype}; give (height, width, 1 or 3) uint8.")

    def step(planes: jax.Array, layer: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return _apply(planes, *layer, fill, interpolation), None

    # A channel at a time: a vector unit has no use for pixels of three.
    planes, _ = lax.scan(step, jnp.moveaxis(image, -1, 0), (operations, arguments))
    return jnp.moveaxis(planes, 0, -1)


def _apply(
    planes: jax.Array, operation: jax.Array, argument: jax.Array, fill: Sequence[float], interpolation: str
) -> jax.Array:
    """Applies one operation to one image, (channels, height, width) uint8."""
    motion = Motion(*(jnp.where(_is(operation, name), argument, 0) for name in _GEOMETRIC))
    warped = warp(planes, motion, fill=fill, interpolation=interpolation)
    result = look_up(planes, lookup_table(planes, operation, argument))
    result = jnp.where(_is(operation, *_GEOMETRIC), warped, result)
    if len(planes) == 3:
        result = jnp.where(_is(operation, "color"), blend(luminance(planes, axis=0), planes, argument), result)
    return jnp.where(_is(operation, "sharpness"), blend(smooth(planes), planes, argument), result)


def look_up(planes: jax.Array, tables: jax.Array) -> jax.Array:
    """Returns the table's entry for each value, without fetching one by one, which TPUs are slow at.

    Four entries are packed into a word; the upper six bits of a value choose among 64 words by a tree of selects.

    Args:
        planes: (channels, height, width) uint8.
        tables: (channels, 256) uint8.

    Returns:
        (channels, height, width) uint8.
    """
    values = planes.astype(jnp.uint32)
    bits = 8 * jnp.arange(4, dtype=jnp.uint32)
    words = (tables.reshape(-1, 64, 4).astype(jnp.uint32) << bits).sum(-1, dtype=jnp.uint32)
    chosen = list(jnp.moveaxis(words, 1, 0)[..., None, None])
    for bit in range(2, 8):
        is_set = (values >> bit) & 1 == 1
        chosen = [jnp.where(is_set, *pair) for pair in zip(chosen[1::2], chosen[::2], strict=True)]
    return ((chosen[0] >> (8 * (values & 3))) & 255).astype(jnp.uint8)


def _is(operation: jax.Array, *names: str) -> jax.Array:
    """Returns whether an operation is one of those named, () bool."""
    return jnp.isin(operation, jnp.array([OPERATIONS.index(name) for name in names]))


def luminance(image: jax.Array, axis: int = -1) -> jax.Array:
    """Returns the brightness of each pixel, int32, by the weights of ITU-R 601 in Pillow's integers.

    Args:
        image: uint8; `axis` is that of its channels, 3 or 1, which the result does not have.
    """
    channels = jnp.moveaxis(image, axis, 0).astype(jnp.int32)
    if len(channels) == 1:
        return channels[0]
    red, green, blue = channels
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def mean_luminance(image: jax.Array, axis: int = -1) -> jax.Array:
    """Returns the mean of `luminance`, () int32, rounded half up."""
    values = luminance(image, axis)
    return (2 * values.sum() + values.size) // (2 * values.size)  # int32 is enough for 4 million pixels


def blend(degenerate: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns degenerate + factor * (image - degenerate) as uint8: clipped and cut to integers.

    Args:
        degenerate: what factor 0 gives, in 0..255; broadcast to the image.
        image: in 0..255, exactly what factor 1 gives.
        factor: ().
    """
    degenerate, image = degenerate.astype(jnp.float32), image.astype(jnp.float32)
    return jnp.clip(degenerate + factor * (image - degenerate), 0, 255).astype(jnp.uint8)


def smooth(planes: jax.Array) -> jax.Array:
    """Returns Pillow's `ImageFilter.SMOOTH`: a mean over 3x3 pixels where the center counts five times.

    Args:
        planes: (channels, height, width) uint8. The outermost pixels stay as they are.
    """
    _, height, width = planes.shape
    if height < 3 or width < 3:
        return planes
    values = planes.astype(jnp.uint16)
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * values[:, 1:-1, 1:-1]
    means = ((sums + 6) // 13).astype(jnp.uint8)  # of thirteenths, none is a half
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    inside = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    return jnp.where(inside, jnp.pad(means, ((0, 0), (1, 1), (1, 1))), planes)


def lookup_table(planes: jax.Array, operation: jax.Array, argument: jax.Array) -> jax.Array:
    """Returns the new value of each value, (channels, 256) uint8: the table of each operation is made, one is taken."""
    levels = jnp.arange(256)
    counts = histograms(planes)
    dropped_bits = 8 - argument.astype(jnp.int32)
    tables = {
        "autocontrast": _autocontrast(counts),
        "equalize": _equalize(counts),
        "invert": 255 - levels,
        "posterize": levels >> dropped_bits << dropped_bits,
        "solarize": jnp.where(levels < argument, levels, 255 - levels),
        "solarize_add": jnp.where(levels < 128, jnp.minimum(levels + argument.astype(jnp.int32), 255), levels),
        "contrast": blend(mean_luminance(planes, axis=0), levels, argument),
        "brightness": blend(jnp.zeros(()), levels, argument),
    }
    chosen = jnp.broadcast_to(levels, counts.shape)
    for name, table in tables.items():
        chosen = jnp.where(_is(operation, name), table, chosen)
    return chosen.astype(jnp.uint8)


def histograms(planes: jax.Array) -> jax.Array:
    """Returns how often each value is in each channel, (channels, 256) int32.

    TPUs add at scattered positions one after the other; there, it is a product of two one-hot matrices instead.
    """
    return lax.platform_dependent(planes, tpu=_histograms_by_matmul, default=_histograms_by_scatter)


def _histograms_by_scatter(planes: jax.Array) -> jax.Array:
    channels = len(planes)
    bins = planes.astype(jnp.int32) + 256 * jnp.arange(channels)[:, None, None]
    counts = jnp.zeros(channels * 256, jnp.int32).at[bins.reshape(-1)].add(1, mode="promise_in_bounds")
    return counts.reshape(channels, 256)


def _histograms_by_matmul(planes: jax.Array) -> jax.Array:
    """Counts the pairs of (upper four bits, lower four bits). Exact: zeros and ones, added up in float32."""
    digits = jnp.arange(16, dtype=jnp.uint8)
    upper = (planes[..., None] >> 4 == digits).astype(jnp.bfloat16)
    lower = (planes[..., None] & 15 == digits).astype(jnp.bfloat16)
    counts = jnp.einsum("chwu,chwl->cul", upper, lower, preferred_element_type=jnp.float32)
    return counts.reshape(-1, 256).astype(jnp.int32)


def _autocontrast(counts: jax.Array) -> jax.Array:
    """Returns the table that stretches the values that there are to 0..255, (channels, 256) int32."""
    levels = jnp.arange(256)
    darkest = jnp.argmax(counts > 0, axis=1, keepdims=True)
    brightest = 255 - jnp.argmax(counts[:, ::-1] > 0, axis=1, keepdims=True)
    spread = brightest - darkest
    stretched = jnp.clip((levels - darkest) * 255 // jnp.maximum(spread, 1), 0, 255)
    return jnp.where(spread > 0, stretched, levels)


def _equalize(counts: jax.Array) -> jax.Array:
    """Returns the table that makes all values about equally frequent, (channels, 256) int32, in Pillow's integers."""
    levels = jnp.arange(256)
    brightest = 255 - jnp.argmax(counts[:, ::-1] > 0, axis=1, keepdims=True)
    total = counts.sum(axis=1, keepdims=True)
    most = jnp.where(levels == brightest, counts, 0).sum(axis=1, keepdims=True)
    step = (total - most) // 255
    below = jnp.cumsum(counts, axis=1) - counts
    equalized = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, equalized, levels)
