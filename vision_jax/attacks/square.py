"""Square: random search without gradients, which shows whether an attack's gradients are any good."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.attacks import base
from vision_jax.attacks.base import Apply, Attacked
from vision_jax.attacks.losses import margin
from vision_jax.errors import ConfigError

# After so many of 10,000 queries, the share of the image that changes is halved.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_TILES = 5  # of the start in l2, in each direction


class _State(NamedTuple):
    number: jax.Array
    best: jax.Array
    margin: jax.Array


def share(number: int, queries: int, rescale: bool = False, initial: float = 0.8) -> float:
    """Returns the share of the image that a query changes.

    Args:
        number: of the query, from 0.
        queries: how many there are.
        rescale: whether the schedule, which is made for 10,000 queries, is compressed to fewer.
        initial: the share of the first ones.
    """
    number = int(number / queries * 10_000) if rescale else number
    return initial / 2 ** sum(number > after for after in _HALVED_AFTER)


def side(share: float, height: int, width: int) -> int:
    """Returns the side of the square that is this share of an image, in pixels: at least 1, and not above its sides."""
    return min(max(round((share * height * width) ** 0.5), 1), height, width)


def square(
    apply: Apply,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    eps: float | jax.Array,
    norm: str = "linf",
    queries: int = 5000,
    rescale: bool = False,
    initial: float = 0.8,
) -> Attacked:
    """The Square attack (Andriushchenko et al. 2020, arXiv:1912.00049): random squares, kept where the margin falls.

    In linf, the image starts with vertical stripes at distance eps, and a query moves a square by 2 eps or -2 eps in
    each channel. In l2, a query moves the perturbation's mass from one window to another, in a pattern that is large
    in the middle. Unlike in fra31/auto-attack, each image has its own squares. It ends when all images are fooled.

    Args:
        apply: images in [0, 1] -> logits (batch, classes); see `classifier`. No gradient is computed.
        images: (batch, height, width, channels) float32 in [0, 1].
        labels: (batch,) integers.
        key: a random key, or one for each image.
        eps: the radius, of images in [0, 1].
        norm: linf or l2.
        queries: how many forward passes after the first one.
        rescale, initial: of the schedule; see `share`. AutoAttack does not rescale it.

    Returns:
        the images; `loss` is minus the margin between the label's logit and the largest of the others.

    Raises:
        ConfigError: if the norm is unknown, or images are too small for l2.
    """
    base.check_norm(norm)
    images = jnp.asarray(images, jnp.float32)
    if norm == "l2" and min(images.shape[1:3]) < _TILES:
        raise ConfigError(
            f"Images have {images.shape[1]} x {images.shape[2]} pixels: Square in l2 needs 5 x 5 or more."
        )
    keys = base.keys_of(key, len(images))
    schedule = queries, rescale, initial
    return _square(apply, images, labels, keys, jnp.float32(eps), norm=norm, schedule=schedule)


@base.compiled("norm", "schedule")
def _square(
    apply: Apply,
    images: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
    eps: jax.Array,
    *,
    norm: str,
    schedule: tuple[int, bool, float],
) -> Attacked:
    queries, rescale, initial = schedule
    _, height, width, _ = images.shape
    sides = np.array([side(share(n, queries, rescale, initial), height, width) for n in range(queries)], np.int32)
    if norm == "linf":
        start, propose = _stripes, functools.partial(_add_square, sides=jnp.asarray(sides))
    else:
        odd = _odd(sides, min(height, width))
        start, propose = _tiles, functools.partial(_move_window, sides=odd)

    def margins(x: jax.Array) -> jax.Array:
        return margin(apply(x).astype(jnp.float32), labels)

    def query(state: _State) -> _State:
        each = base.fold_in(keys, state.number + 1)
        proposed = jax.vmap(propose, (0, 0, 0, None, None))(each, images, state.best, eps, state.number)
        new = margins(proposed)
        better = (state.margin > 0) & (new < state.margin)
        return _State(
            state.number + 1,
            jnp.where(base.expand(better, images), proposed, state.best),
            jnp.where(better, new, state.margin),
        )

    def goes_on(state: _State) -> jax.Array:
        return (state.number < queries) & (state.margin > 0).any()

    first = jax.vmap(start, (0, 0, None))(base.fold_in(keys, 0), images, eps)
    end = jax.lax.while_loop(goes_on, query, _State(jnp.int32(0), first, margins(first)))
    return Attacked(end.best, end.margin <= 0, -end.margin)


# ---- What follows is of one image, (height, width, channels).


def _signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.rademacher(key, shape, jnp.float32)


def _window(key: jax.Array, image: jax.Array, side: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the corner of a random square, and which pixels are in it, (height, width, 1) bool."""
    height, width, _ = image.shape
    draws = jax.random.uniform(key, (2,))
    # As in the source, the last position is not drawn, but where it is the only one.
    row, column = (
        jnp.floor(draw * (n - side)).astype(jnp.int32) for draw, n in zip(draws, (height, width), strict=True)
    )
    rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
    return row, column, (rows >= row) & (rows < row + side) & (columns >= column) & (columns < column + side)


def _stripes(key: jax.Array, image: jax.Array, eps: jax.Array) -> jax.Array:
    return jnp.clip(image + eps * _signs(key, (1, *image.shape[1:])), 0, 1)


def _add_square(
    key: jax.Array, image: jax.Array, best: jax.Array, eps: jax.Array, number: jax.Array, *, sides: jax.Array
) -> jax.Array:
    place, values = jax.random.split(key)
    _, _, inside = _window(place, image, sides[number])
    moved = best + inside * 2 * eps * _signs(values, (1, 1, image.shape[2]))
    return jnp.clip(jnp.clip(moved, image - eps, image + eps), 0, 1)


def _odd(sides: np.ndarray, most: int) -> np.ndarray:
    """Returns the sides of windows in l2: odd, at least 3, and within the image."""
    odd = np.maximum(sides, 3)
    odd = odd + (odd % 2 == 0)
    return np.where(odd > most, most - (most % 2 == 0), odd)


def _bump(height: int, width: int) -> np.ndarray:
    """Returns a pattern (height, width) of norm 1 that grows towards the middle, as squares around it add up."""
    distance = np.maximum(
        np.abs(np.arange(height) - height // 2)[:, None], np.abs(np.arange(width) - width // 2)[None, :]
    )
    most = max(height, width) // 2 + 1
    sums = np.cumsum(1 / np.arange(most, 0, -1.0) ** 2)[::-1]  # of 1 / k^2, for k from the distance + 1 to the largest
    pattern = sums[distance]
    return pattern / np.linalg.norm(pattern)


def _pattern(side: int) -> np.ndarray:
    """Returns the pattern of a window, (side, side) of norm 1: a bump above, and a negative one below."""
    pattern = np.concatenate([_bump(side // 2, side), -_bump(side - side // 2, side)])
    return pattern / np.linalg.norm(pattern)


def _tiles(key: jax.Array, image: jax.Array, eps: jax.Array) -> jax.Array:
    height, width, channels = image.shape
    side = min(height, width) // _TILES
    if side == 1:
        pattern = np.ones((1, 1), np.float32)  # which has no upper and lower half
    else:
        pattern = _pattern(side).astype(np.float32)
    count = height // side, width // side
    turns, values = jax.random.split(key)
    turned = jax.random.bernoulli(turns, shape=count)[:, :, None, None]
    tiles = jnp.where(turned, pattern.T, pattern)[..., None] * _signs(values, (*count, 1, 1, channels))
    tiled = tiles.transpose(0, 2, 1, 3, 4).reshape(count[0] * side, count[1] * side, channels)
    before = [(n - k * side) // 2 for n, k in zip((height, width), count, strict=True)]
    after = [n - k * side - b for n, k, b in zip((height, width), count, before, strict=True)]
    delta = jnp.pad(tiled, ((before[0], after[0]), (before[1], after[1]), (0, 0)))
    return jnp.clip(image + eps * delta / jnp.linalg.norm(delta), 0, 1)


def _move_window(
    key: jax.Array, image: jax.Array, best: jax.Array, eps: jax.Array, number: jax.Array, *, sides: np.ndarray
) -> jax.Array:
    height, width, channels = image.shape
    levels, which = np.unique(sides, return_inverse=True)
    table = np.zeros((len(levels), 2, height, width), np.float32)
    for level, side in enumerate(levels):
        table[level, :, :side, :side] = _pattern(side), _pattern(side).T
    to, away, turn, values = jax.random.split(key, 4)
    now = jnp.asarray(sides)[number]
    row, column, new = _window(to, image, now)
    _, _, old = _window(away, image, now)
    pattern = jnp.asarray(table)[jnp.asarray(which)[number], jax.random.bernoulli(turn).astype(jnp.int32)]
    pattern = jnp.roll(pattern, jnp.stack([row, column]), (0, 1))[:, :, None] * _signs(values, (1, 1, channels))

    delta = best - image
    of_channels = functools.partial(jnp.sum, axis=(0, 1), keepdims=True)
    there = delta * new
    direction = pattern + there / (1e-12 + jnp.sqrt(of_channels(there**2)))
    direction = direction / (1e-12 + jnp.sqrt(of_channels(direction**2)))
    unused = jnp.maximum(eps**2 - (delta**2).sum(), 0) / channels
    budget = jnp.sqrt(unused + (delta**2 * (new | old)).sum())
    delta = jnp.where(new, direction * budget, jnp.where(old, 0, delta))
    return jnp.clip(image + eps * delta / (jnp.linalg.norm(delta) + 1e-12), 0, 1)
