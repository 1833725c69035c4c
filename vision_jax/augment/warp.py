"""Shifts, shears and rotations of an image, with the pixels of Pillow's affine transform and without fetching pixels.

A TPU fetches a whole tile for every pixel that is gathered at a position of its own; a warp of that kind costs more
than the model. Here, lines of pixels are moved as a whole, which every chip does at the speed of its memory:

1. A rotation is three shears, of rows, of columns and of rows again (Paeth, "A Fast Algorithm for General Raster
   Rotation", 1986). With each line's shift rounded to whole pixels, they permute the pixels: nothing is interpolated
   and nothing lost. A line is shifted by selecting between constant shifts, digit by digit of its own.
2. The roundings put a pixel at most two pixels from its place. So the four pixels that an output pixel is interpolated
   from are taken out of its neighborhood, at offsets that integer arithmetic knows exactly.

The values are then those of bilinear interpolation between the right four pixels: the shears leave no trace in them.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LARGEST = 4096  # pixels a side: beyond, positions in fixed point might not fit into 32 bits
_ROOM = 2  # pixels by which the three rounded shears miss, at most

Rolled = Callable[[jax.Array, int, int, int], list[jax.Array]]


class Motion(NamedTuple):
    """What moves an image: at most one field is not zero. All are () float32.

    Attributes:
        degrees: counter-clockwise, about the center.
        shear_x: output (x, y) shows input (x + shear_x * y, y), from the upper left corner.
        shear_y: output (x, y) shows input (x, y + shear_y * x).
        left, up: pixels.
    """

    degrees: jax.Array
    shear_x: jax.Array
    shear_y: jax.Array
    left: jax.Array
    up: jax.Array


def warp(
    words: jax.Array,
    channels: int,
    motion: Motion,
    *,
    fill: Sequence[float] = (0,),
    interpolation: str = "bilinear",
    most_degrees: float = 180,
) -> jax.Array:
    """Returns a moved image, as Pillow's `Image.transform(size, AFFINE, matrix)` and `Image.rotate` do.

    Args:
        words: (height, width) uint32 of `pack`, 4096 pixels a side at most.
        channels: in each word, 4 at most.
        motion: see there; shears are between -1 and 1.
        fill: what is shown of the outside, one value per channel or one for all.
        interpolation: bilinear or nearest.
        most_degrees: that the motion turns in either direction. Up to 45, it costs less.

    Returns:
        (height, width) uint32. Bilinear values are cut to integers, not rounded, as Pillow's are.

    Raises:
        ValueError: for another interpolation, another number of values to fill with, or an image that is too large.
    """
    height, width = words.shape
    if len(fill) not in (1, channels):
        raise ValueError(f"fill is {tuple(fill)!r}; give one value, or one for each of the {channels} channels.")
    if interpolation not in ("bilinear", "nearest"):
        raise ValueError(f"interpolation is {interpolation!r}; give bilinear or nearest.")
    if max(height, width) > LARGEST:
        raise ValueError(f"the image is {height}x{width}; it can be moved up to {LARGEST} pixels a side.")
    # Quarter turns are copies. What is left are 45 degrees at most, where shears are short.
    quarters = jnp.round(motion.degrees / 90) if most_degrees > 45 else jnp.zeros(())
    turns = quarters.astype(jnp.int32) % 4
    source_x, source_y, inside = _sources(motion, turns, height, width)
    shears = _shears(motion, motion.degrees - 90 * quarters, turns, height, width)
    if most_degrees > 45:
        words = _turned(words, turns)
    nearby = _apply(shears, words)
    if interpolation == "nearest":
        reach = (-_ROOM, _ROOM)
        found = _pixels(nearby, shears, jnp.floor(source_x), jnp.floor(source_y), reach, reach)
    else:
        found = _interpolated(nearby, shears, source_x, source_y, channels)
    outside = pack([jnp.uint32(fill[i % len(fill)]) for i in range(channels)])
    return jnp.where(inside, found, outside)


def pack(planes: Sequence[jax.Array]) -> jax.Array:
    """Returns the channels of each pixel in one word, uint32, so that they move together; values are up to 255."""
    return functools.reduce(jnp.bitwise_or, [plane.astype(jnp.uint32) << 8 * i for i, plane in enumerate(planes)])


def unpack(words: jax.Array, channels: int) -> list[jax.Array]:
    """Returns the channels that `pack` has packed, each of the words' shape, int32."""
    return [((words >> 8 * i) & 255).astype(jnp.int32) for i in range(channels)]


def _sources(motion: Motion, turns: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns where each output pixel's center comes from, x and y in the turned image, and whether it is inside.

    All are (height, width). Positions are float32, from 0 to the width or height; centers of pixels are at halves.
    """
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    angle = motion.degrees * (math.pi / 180)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    center_x, center_y = width / 2, height / 2
    offset_x = center_x - cos * center_x + sin * center_y + motion.left
    offset_y = center_y - sin * center_x - cos * center_y + motion.up
    source_x = cos * x + (motion.shear_x - sin) * y + offset_x
    source_y = (motion.shear_y + sin) * x + cos * y + offset_y
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    turned_x = _by_turns(turns, source_x, source_y, width - source_x, height - source_y)
    turned_y = _by_turns(turns, source_y, width - source_x, height - source_y, source_x)
    return turned_x, turned_y, inside


def _by_turns(turns: jax.Array, *choices: jax.Array) -> jax.Array:
    return jnp.select([turns == 0, turns == 1, turns == 2], choices[:3], choices[3])


def _turned(words: jax.Array, turns: jax.Array) -> jax.Array:
    """Returns an image after quarter turns, in the upper left corner of a square that has room for both directions."""
    side = max(words.shape)

    def turned(image: jax.Array) -> jax.Array:
        image = jnp.where((turns == 1) | (turns == 2), image[::-1], image)
        image = jnp.where((turns == 2) | (turns == 3), image[:, ::-1], image)
        return jnp.pad(image, [(0, side - length) for length in image.shape])

    return lax.optimization_barrier(jnp.where(turns % 2 == 1, turned(words.T), turned(words)))


class _Shears(NamedTuple):
    """Three shears by whole pixels that lead from an output pixel (x, y) to one of the turned image.

        x1 = x + rows_out(y);  y1 = y + columns(x1);  x2 = x1 + rows_in(y1)

    Slopes and offsets are in fixed point, and integers alone decide how a shift is rounded: it is the same where a line
    is moved and where a pixel is looked for, however a compiler contracts products and sums.

    Attributes:
        out_slope, column_slope, in_slope: shift in pixels per pixel from the center.
        column_offset, in_offset: twice the shift of the central line.
        height, width: of the output, static.
        turned_height, turned_width: of the turned image.
    """

    out_slope: jax.Array
    column_slope: jax.Array
    in_slope: jax.Array
    column_offset: jax.Array
    in_offset: jax.Array
    height: int
    width: int
    turned_height: jax.Array
    turned_width: jax.Array

    def rows_out(self, y: jax.Array) -> jax.Array:
        return _rounded_half(self.out_slope * (2 * y - (self.height - 1)))

    def columns(self, x: jax.Array) -> jax.Array:
        return _rounded_half(self.column_slope * (2 * x - (self.width - 1)) + self.column_offset)

    def rows_in(self, y: jax.Array) -> jax.Array:
        return _rounded_half(self.in_slope * (2 * y - (self.turned_height - 1)) + self.in_offset)


_FRACTION = 16  # bits


def _fixed(value: jax.Array) -> jax.Array:
    return jnp.round(value * 2**_FRACTION).astype(jnp.int32)


def _rounded_half(doubled: jax.Array) -> jax.Array:
    """Returns half of a number in fixed point, rounded to an integer."""
    return (doubled + 2**_FRACTION) >> (_FRACTION + 1)


def _shears(motion: Motion, degrees: jax.Array, turns: jax.Array, height: int, width: int) -> _Shears:
    """Returns the shears of a motion whose rotation is `degrees`, up to 45, after quarter turns."""
    angle = degrees * (math.pi / 180)
    rotation = _fixed(-jnp.tan(angle / 2))
    shear_x, shear_y = _fixed(motion.shear_x), _fixed(motion.shear_y)
    turned_height = jnp.where(turns % 2 == 1, width, height)
    turned_width = jnp.where(turns % 2 == 1, height, width)
    return _Shears(
        out_slope=rotation,
        column_slope=_fixed(jnp.sin(angle)) + shear_y,
        in_slope=rotation + shear_x,
        # The centers are put on each other; shears, which start at the corner, have moved the central line already.
        column_offset=_fixed(2 * motion.up) + shear_y * width + ((turned_height - height) << _FRACTION),
        in_offset=_fixed(2 * motion.left) + shear_x * height + ((turned_width - width) << _FRACTION),
        height=height,
        width=width,
        turned_height=turned_height,
        turned_width=turned_width,
    )


def _apply(shears: _Shears, words: jax.Array) -> jax.Array:
    """Returns the image after the shears, with `_ROOM` more pixels on each side.

    Lines are shifted cyclically. Where x1 is further from the center than half of the mean of both widths / cos(22.5
    degrees)**2, either its source or its target is outside of the image: with room for what is nearer, and for the
    roundings, no pixel that counts meets another one.
    """
    height, width = shears.height, shears.width
    half = math.ceil((width + words.shape[1]) / 4 / math.cos(math.pi / 8) ** 2) + _ROOM + 1
    margin = max(0, half - width // 2)
    columns = max(words.shape[1], width + margin)
    words = jnp.pad(words, ((_ROOM, _ROOM), (margin, columns - words.shape[1])))
    y, x = jnp.arange(len(words)) - _ROOM, jnp.arange(margin + columns) - margin
    words = _shift_lines(words, shears.rows_in(y[:, None]), axis=1)
    words = _shift_lines(words, shears.columns(x), axis=0)[: height + 2 * _ROOM]
    words = _shift_lines(words, shears.rows_out(y[: len(words), None]), axis=1)
    return words[:, margin - _ROOM : margin + width + _ROOM]


def _shift_lines(words: jax.Array, shifts: jax.Array, axis: int) -> jax.Array:
    """Shifts each line along an axis, cyclically: the pixel at position i is then the one that was at i + shift.

    Args:
        words: (height, width) uint32.
        shifts: int32, one for each line: (height, 1) or (1, width).
        axis: along which pixels move.
    """
    # Compilers for TPUs move what is padded and selected in one pass over memory; others want plain slices. Few taps
    # in each pass, and so more passes, suit a TPU's registers; elsewhere, memory is what counts.
    return lax.platform_dependent(
        words,
        shifts % words.shape[axis],
        tpu=lambda words, shifts: _shift_by_digits(words, shifts, axis, 8, _rolled_by_pads),
        default=lambda words, shifts: _shift_by_digits(words, shifts, axis, 16, _rolled_by_slices),
    )


def _shift_by_digits(words: jax.Array, shifts: jax.Array, axis: int, base: int, rolled: Rolled) -> jax.Array:
    """Shifts lines by numbers from 0 to the length, one digit of them after the other.

    `rolled(words, step, count, axis)` returns the image shifted by 0, step, 2 * step and so on.
    """
    length = words.shape[axis]
    steps = [1]
    while steps[0] * base < length:
        steps.insert(0, steps[0] * base)
    for step in steps:
        digits = shifts // step % base
        first, *others = rolled(words, step, min(base, -(-length // step)), axis)
        words = first
        for digit, tap in enumerate(others, start=1):
            words = jnp.where(digits == digit, tap, words)
        words = lax.optimization_barrier(words)  # fused, each pass would do those before it for each of its taps
    return words


def _rolled_by_slices(words: jax.Array, step: int, count: int, axis: int) -> list[jax.Array]:
    length = words.shape[axis]
    twice = jnp.concatenate([words, lax.slice_in_dim(words, 0, step * (count - 1), axis=axis)], axis)
    return [lax.slice_in_dim(twice, step * i, step * i + length, axis=axis) for i in range(count)]


def _rolled_by_pads(words: jax.Array, step: int, count: int, axis: int) -> list[jax.Array]:
    length = words.shape[axis]

    def moved(by: int) -> jax.Array:
        return lax.pad(words, jnp.zeros((), words.dtype), [(by, -by, 0) if i == axis else (0, 0, 0) for i in range(2)])

    return [words, *(moved(-step * i) | moved(length - step * i) for i in range(1, count))]


def _interpolated(
    nearby: jax.Array, shears: _Shears, source_x: jax.Array, source_y: jax.Array, channels: int
) -> jax.Array:
    """Returns the words of the pixels at positions, between four each."""
    left, top = jnp.floor(source_x - 0.5), jnp.floor(source_y - 0.5)
    share_x, share_y = source_x - 0.5 - left, source_y - 0.5 - top
    # The shears lead to within two pixels of a source: the neighbor before it is not two behind, nor the other before.
    before, behind = (-_ROOM, _ROOM - 1), (1 - _ROOM, _ROOM)

    def neighbor(right: bool, down: bool) -> list[jax.Array]:
        reaches = behind if right else before, behind if down else before
        return unpack(_pixels(nearby, shears, left + right, top + down, *reaches), channels)

    corners = neighbor(False, False), neighbor(True, False), neighbor(False, True), neighbor(True, True)
    values = []
    for upper_left, upper_right, lower_left, lower_right in zip(*corners, strict=True):
        upper = upper_left + (upper_right - upper_left) * share_x
        lower = lower_left + (lower_right - lower_left) * share_x
        values.append(upper + (lower - upper) * share_y)
    return pack(values)


def _pixels(
    nearby: jax.Array,
    shears: _Shears,
    source_x: jax.Array,
    source_y: jax.Array,
    reach_x: tuple[int, int],
    reach_y: tuple[int, int],
) -> jax.Array:
    """Returns pixels of the turned image, out of its sheared copy; those outside are the nearest ones inside.

    Args:
        nearby: (height + 2 * _ROOM, width + 2 * _ROOM) uint32, of `_apply`.
        shears: that made it.
        source_x, source_y: (height, width), whole numbers: which pixel of the turned image each output pixel asks for.
        reach_x, reach_y: the least and the largest offset at which it can be found.

    Returns:
        (height, width) uint32.
    """
    height, width = source_x.shape
    x2 = jnp.clip(source_x.astype(jnp.int32), 0, shears.turned_width - 1)
    y1 = jnp.clip(source_y.astype(jnp.int32), 0, shears.turned_height - 1)
    x1 = x2 - shears.rows_in(y1)
    y = y1 - shears.columns(x1)
    x = x1 - shears.rows_out(y)
    offset_x, offset_y = x - jnp.arange(width), y - jnp.arange(height)[:, None]

    def pick(offset: jax.Array, reach: tuple[int, int], at: Callable[[int], jax.Array]) -> jax.Array:
        picked = at(reach[0])
        for i in range(reach[0] + 1, reach[1] + 1):
            picked = jnp.where(offset >= i, at(i), picked)
        return picked

    def row(i: int) -> jax.Array:
        top = _ROOM + i
        return pick(offset_x, reach_x, lambda j: nearby[top : top + height, _ROOM + j : _ROOM + j + width])

    return pick(offset_y, reach_y, row)
