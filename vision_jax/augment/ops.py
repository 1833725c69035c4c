"""The operations that augmentation policies are made of, on 8-bit images, with Pillow's results.

`vmap` of a `lax.switch` runs every branch for every image, so a policy of fifteen operations would cost fifteen. Here
every operation is a setting of one of four steps, and each step runs once, whatever the number of operations:

    an affine warp | a table of 256 entries per channel | color | sharpness

Operations differ only in the matrix of the warp and in the table, which are small. The steps read the same image side
by side, and one result is taken. One after the other, with all but one at its identity, would give the same, but
compilers fuse the steps, and would then compute a pixel anew for each of its neighbors that a later step reads.

Images are (height, width, channels) uint8, with 3 channels (RGB) or 1 (gray), before and after every operation, as in
Pillow; so its rounding is followed too. For one channel, `color` is the identity.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

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
_GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


def apply_operation(
    image: jax.typing.ArrayLike,
    operation: jax.typing.ArrayLike,
    argument: jax.typing.ArrayLike,
    *,
    fill: Sequence[float] = (0,),
    interpolation: str = "bilinear",
) -> jax.Array:
    """Applies one operation to one image.

    Args:
        image: (height, width, channels) uint8.
        operation: () int32, a position in OPERATIONS.
        argument: () float32, see OPERATIONS.
        fill, interpolation: see `warp`.

    Returns:
        (height, width, channels) uint8.

    Raises:
        ValueError: for images of another type.
    """
    image = jnp.asarray(image)
    if image.ndim != 3 or image.shape[-1] not in (1, 3) or image.dtype != jnp.uint8:
        raise ValueError(f"the image is {image.shape} {image.dtype}; give (height, width, 1 or 3) uint8.")
    operation, argument = jnp.asarray(operation), jnp.asarray(argument, jnp.float32)
    height, width, channels = image.shape
    matrix = affine_matrix(operation, argument, height, width)
    table = lookup_table(image, operation, argument)
    result = table.reshape(-1)[image.astype(jnp.int32) + 256 * jnp.arange(channels)]
    warped = warp(image, matrix, fill=fill, interpolation=interpolation)
    result = jnp.where(_is(operation, *_GEOMETRIC), warped, result)
    if channels == 3:
        colored = blend(luminance(image)[..., None], image, argument)
        result = jnp.where(_is(operation, "color"), colored, result)
    return jnp.where(_is(operation, "sharpness"), blend(smooth(image), image, argument), result)


def affine_matrix(operation: jax.Array, argument: jax.Array, height: int, width: int) -> jax.Array:
    """Returns the matrix of an operation for `warp`: the identity, exactly, if it is not geometric.

    Rotation is about the center of the image, shears are from its upper left corner. In this, Pillow, timm and
    torchvision's policies agree.
    """

    def value(name: str) -> jax.Array:
        return jnp.where(_is(operation, name), argument, 0)

    angle = value("rotate") * (math.pi / 180)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = width / 2, height / 2
    return jnp.array(
        [
            [cos, -sin + value("shear_x"), x - cos * x + sin * y + value("translate_x")],
            [sin + value("shear_y"), cos, y - sin * x - cos * y + value("translate_y")],
        ]
    )


def warp(
    image: jax.Array, matrix: jax.Array, *, fill: Sequence[float] = (0,), interpolation: str = "bilinear"
) -> jax.Array:
    """Returns an image under an affine map, as Pillow's `Image.transform(size, AFFINE, matrix)` does.

    A channel is too little for a gather, which costs as much for one byte as for four: the channels of a pixel are
    packed into one word first.

    Args:
        image: (height, width, channels) uint8.
        matrix: (2, 3) float32, from output (x, y, 1) to input (x, y); the centers of pixels are at halves.
        fill: what is shown of the outside, one value per channel or one for all.
        interpolation: bilinear or nearest.

    Returns:
        (height, width, channels) uint8. Bilinear values are cut to integers, not rounded, as Pillow's are.
    """
    height, width, channels = image.shape
    if len(fill) not in (1, channels):
        raise ValueError(f"fill is {tuple(fill)!r}; give one value, or one for each of the {channels} channels.")
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    source_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
    source_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)

    shifts = 8 * jnp.arange(channels, dtype=jnp.uint32)
    packed = (image.astype(jnp.uint32) << shifts).sum(-1, dtype=jnp.uint32).reshape(-1)

    def pixels(row: jax.Array, column: jax.Array) -> jax.Array:
        position = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        words = packed.at[position].get(mode="promise_in_bounds")
        return ((words[..., None] >> shifts) & 255).astype(jnp.float32)

    if interpolation == "nearest":
        values = pixels(jnp.floor(source_y).astype(jnp.int32), jnp.floor(source_x).astype(jnp.int32))
    elif interpolation == "bilinear":
        left, top = jnp.floor(source_x - 0.5), jnp.floor(source_y - 0.5)
        share_x, share_y = (source_x - 0.5 - left)[..., None], (source_y - 0.5 - top)[..., None]
        row, column = top.astype(jnp.int32), left.astype(jnp.int32)
        upper, upper_right = pixels(row, column), pixels(row, column + 1)
        lower, lower_right = pixels(row + 1, column), pixels(row + 1, column + 1)
        upper = upper + (upper_right - upper) * share_x
        lower = lower + (lower_right - lower) * share_x
        values = upper + (lower - upper) * share_y
    else:
        raise ValueError(f"interpolation is {interpolation!r}; give bilinear or nearest.")
    return jnp.where(inside[..., None], values.astype(jnp.uint8), jnp.asarray(fill, jnp.uint8))


def _is(operation: jax.Array, *names: str) -> jax.Array:
    """Returns whether an operation is one of those named, () bool."""
    return jnp.isin(operation, jnp.array([OPERATIONS.index(name) for name in names]))


def luminance(image: jax.Array) -> jax.Array:
    """Returns the brightness of each pixel, (height, width) int32, by the weights of ITU-R 601 in Pillow's integers."""
    if image.shape[-1] == 1:
        return image[..., 0].astype(jnp.int32)
    red, green, blue = (image[..., c].astype(jnp.int32) for c in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def mean_luminance(image: jax.Array) -> jax.Array:
    """Returns the mean of `luminance`, () int32, rounded half up."""
    total = luminance(image).sum()  # int32 is enough for 4 million pixels
    count = image.shape[0] * image.shape[1]
    return (2 * total + count) // (2 * count)


def blend(degenerate: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns degenerate + factor * (image - degenerate) as uint8: clipped and cut to integers.

    Args:
        degenerate: what factor 0 gives, in 0..255; broadcast to the image.
        image: in 0..255, exactly what factor 1 gives.
        factor: ().
    """
    degenerate, image = degenerate.astype(jnp.float32), image.astype(jnp.float32)
    return jnp.clip(degenerate + factor * (image - degenerate), 0, 255).astype(jnp.uint8)


def smooth(image: jax.Array) -> jax.Array:
    """Returns Pillow's `ImageFilter.SMOOTH`: a mean over 3x3 pixels where the center counts five times.

    The outermost pixels stay as they are.
    """
    values = image.astype(jnp.uint16)
    rows = values[:-2] + values[1:-1] + values[2:]
    sums = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * values[1:-1, 1:-1]
    return image.at[1:-1, 1:-1].set(((sums + 6) // 13).astype(jnp.uint8))  # of thirteenths, none is a half


def lookup_table(image: jax.Array, operation: jax.Array, argument: jax.Array) -> jax.Array:
    """Returns the new value of each value, (channels, 256) uint8: the table of each operation is made, one is taken."""
    levels = jnp.arange(256)
    counts = histograms(image)
    dropped_bits = 8 - argument.astype(jnp.int32)
    tables = {
        "autocontrast": _autocontrast(counts),
        "equalize": _equalize(counts),
        "invert": 255 - levels,
        "posterize": levels >> dropped_bits << dropped_bits,
        "solarize": jnp.where(levels < argument, levels, 255 - levels),
        "solarize_add": jnp.where(levels < 128, jnp.minimum(levels + argument.astype(jnp.int32), 255), levels),
        "contrast": blend(mean_luminance(image), levels, argument),
        "brightness": blend(jnp.zeros(()), levels, argument),
    }
    chosen = jnp.broadcast_to(levels, counts.shape)
    for name, table in tables.items():
        chosen = jnp.where(_is(operation, name), table, chosen)
    return chosen.astype(jnp.uint8)


def histograms(image: jax.Array) -> jax.Array:
    """Returns how often each value is in each channel, (channels, 256) int32.

    TPUs add at scattered positions one after the other; there, it is a product of two one-hot matrices instead.
    """
    return lax.platform_dependent(image, tpu=_histograms_by_matmul, default=_histograms_by_scatter)


def _histograms_by_scatter(image: jax.Array) -> jax.Array:
    channels = image.shape[-1]
    bins = image.astype(jnp.int32) + 256 * jnp.arange(channels)
    counts = jnp.zeros(channels * 256, jnp.int32).at[bins.reshape(-1)].add(1, mode="promise_in_bounds")
    return counts.reshape(channels, 256)


def _histograms_by_matmul(image: jax.Array) -> jax.Array:
    """Counts the pairs of (upper four bits, lower four bits). Exact: zeros and ones, added up in float32."""
    values = image.reshape(-1, image.shape[-1])
    digits = jnp.arange(16, dtype=jnp.uint8)
    upper = (values[..., None] >> 4 == digits).astype(jnp.bfloat16)
    lower = (values[..., None] & 15 == digits).astype(jnp.bfloat16)
    counts = jnp.einsum("pcu,pcl->cul", upper, lower, preferred_element_type=jnp.float32)
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
    step = (total - jnp.take_along_axis(counts, brightest, axis=1)) // 255
    below = jnp.cumsum(counts, axis=1) - counts
    equalized = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, equalized, levels)
