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

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from vision_jax.augment.warp import Motion, pack, unpack, warp

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
    most_degrees: float = 180,
) -> jax.Array:
    """Applies operations one after the other to one image.

    Args:
        image: (height, width, channels) uint8.
        operations: (n,) int32, positions in OPERATIONS.
        arguments: (n,) float32, see OPERATIONS.
        fill, interpolation, most_degrees: see `warp.warp`.

    Returns:
        (height, width, channels) uint8.

    Raises:
        ValueError: for images of another type.
    """
    image = jnp.asarray(image)
    if image.ndim != 3 or image.shape[-1] not in (1, 3) or image.dtype != jnp.uint8:
        raise ValueError(f"the image is {image.shape} {image.dtype}; give (height, width, 1 or 3) uint8.")
    channels = image.shape[-1]

    def apply(words: jax.Array, operation: jax.Array, argument: jax.Array) -> jax.Array:
        motion = Motion(*(jnp.where(_is(operation, name), argument, 0) for name in _GEOMETRIC))
        moved = warp(words, channels, motion, fill=fill, interpolation=interpolation, most_degrees=most_degrees)
        changed = _recolored(words, channels, operation, argument)
        return jnp.where(_is(operation, *_GEOMETRIC), lax.optimization_barrier(moved), changed)

    run = _over_batches(apply)
    words = run(pack(channels_of(image))[None], operations[None], arguments[None])[0]
    return jnp.stack(unpack(words, channels), axis=-1).astype(jnp.uint8)


def _over_batches(apply: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """Returns a function that applies operations to a batch of images, one layer of them after the other.

    It is a loop, so that one layer is compiled however many there are, and none is fused into the next: that would
    compute pixels anew for each of their neighbors.

    Where it is itself mapped over a batch, the two become one batch: a policy that applies several chains of operations
    to an image runs the same program as one that applies one.

    Args:
        apply: (image, operation, argument) -> image, an image being (height, width) uint32.

    Returns:
        (images (n, height, width), operations (n, layers), arguments (n, layers)) -> images.
    """

    @custom_vmap
    def run(words: jax.Array, operations: jax.Array, arguments: jax.Array) -> jax.Array:
        def loop(words: jax.Array, rounds: jax.typing.ArrayLike) -> jax.Array:
            def layer(i: jax.Array, words: jax.Array) -> jax.Array:
                return jax.vmap(apply)(words, operations[:, i], arguments[:, i])

            return lax.fori_loop(0, rounds, layer, words)

        # XLA for CPUs would take a loop of one round apart and fuse it with what is around it, so that all its reads
        # are of bytes in threes: it is not told how many rounds there are. Elsewhere, known numbers are of use.
        rounds = operations.shape[1]
        return lax.platform_dependent(
            words,
            cpu=lambda words: loop(words, lax.optimization_barrier(jnp.int32(rounds))),
            default=lambda words: loop(words, rounds),
        )

    @run.def_vmap
    def merged(size: int, batched: Sequence[bool], *arrays: jax.Array) -> tuple[jax.Array, bool]:
        full = [
            x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            for x, is_batched in zip(arrays, batched, strict=True)
        ]
        words = run(*(x.reshape(-1, *x.shape[2:]) for x in full))
        return words.reshape(size, -1, *words.shape[1:]), True

    return run


def _recolored(words: jax.Array, channels: int, operation: jax.Array, argument: jax.Array) -> jax.Array:
    """Applies an operation that is not geometric to (height, width) uint32 of `warp.pack`."""
    # What follows waits for these, here and below: compilers would keep twelve bytes of channels, to share them between
    # the steps, in place of four of words.
    words, smoothed, tables = lax.optimization_barrier(
        (words, smooth(words), lookup_table(words, channels, operation, argument))
    )
    planes = unpack(words, channels)
    grey = luminance(planes)
    changed = []
    for plane, smooth_plane, table in zip(planes, unpack(smoothed, channels), tables, strict=True):
        value = look_up(plane, table)
        if channels == 3:
            value = jnp.where(_is(operation, "color"), blend(grey, plane, argument), value)
        changed.append(jnp.where(_is(operation, "sharpness"), blend(smooth_plane, plane, argument), value))
    return pack(changed)


def look_up(plane: jax.Array, table: jax.Array) -> jax.Array:
    """Returns the table's entry for each value, without fetching one by one, which TPUs are slow at.

    Four entries are packed into a word; the upper six bits of a value choose among 64 words by a tree of selects.

    Args:
        plane: (height, width) int32, from 0 to 255.
        table: (256,) uint8.

    Returns:
        (height, width) uint8.
    """
    chosen = list(pack(list(table.reshape(64, 4).T)))
    for bit in range(2, 8):
        is_set = (plane >> bit) & 1 == 1
        chosen = [jnp.where(is_set, *pair) for pair in zip(chosen[1::2], chosen[::2], strict=True)]
    return ((chosen[0] >> (8 * (plane & 3)).astype(jnp.uint32)) & 255).astype(jnp.uint8)


def _is(operation: jax.Array, *names: str) -> jax.Array:
    """Returns whether an operation is one of those named, () bool."""
    return jnp.isin(operation, jnp.array([OPERATIONS.index(name) for name in names]))


def channels_of(image: jax.Array) -> list[jax.Array]:
    """Returns the channels of (..., channels), each of shape (...)."""
    return [image[..., i] for i in range(image.shape[-1])]


def luminance(channels: Sequence[jax.Array]) -> jax.Array:
    """Returns the brightness of each pixel, int32, by the weights of ITU-R 601 in Pillow's integers.

    Args:
        channels: 3 or 1, integers from 0 to 255, all of the same shape, which the result has too.
    """
    if len(channels) == 1:
        return channels[0].astype(jnp.int32)
    red, green, blue = (channel.astype(jnp.int32) for channel in channels)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def mean_luminance(channels: Sequence[jax.Array]) -> jax.Array:
    """Returns the mean of `luminance`, () int32, rounded half up."""
    values = luminance(channels)
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


def smooth(words: jax.Array) -> jax.Array:
    """Returns Pillow's `ImageFilter.SMOOTH`: a mean over 3x3 pixels where the center counts five times.

    Args:
        words: (height, width) uint32 of `warp.pack`. The outermost pixels stay as they are.
    """
    height, width = words.shape
    padded = jnp.pad(words, 1)
    taps = [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)] + 4 * [words]

    def means(shift: int) -> jax.Array:
        """Of every other channel, so that there are 16 bits for each sum."""
        sums = functools.reduce(jnp.add, [(tap >> shift) & 0x00FF00FF for tap in taps])
        first, second = (sums & 0xFFFF) + 6, (sums >> 16) + 6
        # Exactly a thirteenth of such numbers, rounded: none is a half.
        return first * 5042 >> 16 | (second * 5042 >> 16) << 16

    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    inside = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    return jnp.where(inside, means(0) | means(8) << 8, words)


def lookup_table(words: jax.Array, channels: int, operation: jax.Array, argument: jax.Array) -> jax.Array:
    """Returns the new value of each value, (channels, 256) uint8: the table of each operation is made, one is taken."""
    levels = jnp.arange(256)
    counts, words = lax.optimization_barrier((histograms(words, channels), words))
    dropped_bits = 8 - argument.astype(jnp.int32)
    tables = {
        "autocontrast": _autocontrast(counts),
        "equalize": _equalize(counts),
        "invert": 255 - levels,
        "posterize": levels >> dropped_bits << dropped_bits,
        "solarize": jnp.where(levels < argument, levels, 255 - levels),
        "solarize_add": jnp.where(levels < 128, jnp.minimum(levels + argument.astype(jnp.int32), 255), levels),
        "contrast": blend(mean_luminance(unpack(words, channels)), levels, argument),
        "brightness": blend(jnp.zeros(()), levels, argument),
    }
    chosen = jnp.broadcast_to(levels, counts.shape)
    for name, table in tables.items():
        chosen = jnp.where(_is(operation, name), table, chosen)
    return chosen.astype(jnp.uint8)


def histograms(words: jax.Array, channels: int) -> jax.Array:
    """Returns how often each value from 0 to 255 is in each channel of `warp.pack`, (channels, 256) int32.

    TPUs add at scattered positions one after the other; there, it is a product of two one-hot matrices instead.
    """
    by_matmul, by_scatter = (
        functools.partial(count, channels=channels) for count in (_histograms_by_matmul, _histograms_by_scatter)
    )
    return lax.platform_dependent(words, tpu=by_matmul, default=by_scatter)


def _histograms_by_scatter(words: jax.Array, channels: int) -> jax.Array:
    bins = jnp.stack([plane + 256 * i for i, plane in enumerate(unpack(words, channels))])
    counts = jnp.zeros(channels * 256, jnp.int32).at[bins.reshape(-1)].add(1, mode="promise_in_bounds")
    return counts.reshape(channels, 256)


def _histograms_by_matmul(words: jax.Array, channels: int) -> jax.Array:
    """Counts the pairs of (upper four bits, lower four bits). Exact: zeros and ones, added up in float32."""
    digits = jnp.arange(16, dtype=jnp.uint32)

    def one_hot(shift: int) -> jax.Array:
        return ((words[..., None] >> shift) & 15 == digits).astype(jnp.bfloat16)

    counts = []
    for shift in range(0, 8 * channels, 8):
        upper, lower = one_hot(shift + 4), one_hot(shift)
        counts.append(jnp.einsum("hwu,hwl->ul", upper, lower, preferred_element_type=jnp.float32).reshape(-1))
    return jnp.stack(counts).astype(jnp.int32)


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
