"""The shortest way to a hyperplane within the box [0, 1], for FAB."""

import jax
import jax.numpy as jnp

from vision_jax.attacks import base

NORMS = (*base.NORMS, "l1")


def to_hyperplane(x: jax.Array, w: jax.Array, distance: jax.Array, norm: str) -> jax.Array:
    """Returns the smallest d with w d = distance and 0 <= x + d <= 1, for each row.

    Where the hyperplane does not meet the box, it is the corner of the box that is next to it. Of several smallest
    ones in linf, this is one that moves as many elements as it can.

    Each element moves towards the hyperplane, by t (linf) or t |w| (l2) but no further than its room to the border.
    What that gains is a concave, piecewise linear function of t, on which Newton's method goes from 0 to the solution
    without passing it, exactly, in a few passes and without sorting. In l1 the elements of the largest |w| move first.

    Args:
        x: (batch, elements) float32 in [0, 1].
        w: (batch, elements) float32.
        distance: (batch,) float32.
        norm: linf, l2 or l1.
    """
    base.check_norm(norm, NORMS)
    sign = jnp.where(distance < 0, -1.0, 1.0)[:, None] * jnp.sign(w)
    slope, aim = jnp.abs(w), jnp.abs(distance)[:, None]
    room = jnp.where(sign > 0, 1 - x, jnp.where(sign < 0, x, 0))
    return sign * (_greedy(slope, room, aim) if norm == "l1" else _newton(slope, room, aim, norm))


def _newton(slope: jax.Array, room: jax.Array, aim: jax.Array, norm: str) -> jax.Array:
    speed = jnp.where(slope > 0, 1.0, 0.0) if norm == "linf" else slope
    most = 60  # far more passes than are needed: each takes in all elements whose room is used up

    def improve(t: jax.Array) -> jax.Array:
        free = speed * t < room
        gained = jnp.where(free, 0, slope * room).sum(1, keepdims=True)
        rate = jnp.where(free, slope * speed, 0).sum(1, keepdims=True)
        # Without a free element there is nothing to gain: the corner is reached.
        return jnp.where(rate > 0, jnp.maximum(t, (aim - gained) / jnp.where(rate > 0, rate, 1)), t)

    def body(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        number, t, _ = carry
        new = improve(t)
        return number + 1, new, (new > t).any()

    def goes_on(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        return carry[2] & (carry[0] < most)

    _, t, _ = jax.lax.while_loop(goes_on, body, (jnp.int32(0), jnp.zeros_like(aim), jnp.bool_(True)))
    return jnp.minimum(speed * t, room)


def _greedy(slope: jax.Array, room: jax.Array, aim: jax.Array) -> jax.Array:
    order = jnp.argsort(-slope, axis=1)
    sorted_slope, sorted_room = (jnp.take_along_axis(values, order, 1) for values in (slope, room))
    gains = sorted_slope * sorted_room
    missing = aim - (jnp.cumsum(gains, 1) - gains)
    moves = jnp.clip(missing / jnp.where(sorted_slope > 0, sorted_slope, 1), 0, sorted_room)
    return jnp.take_along_axis(moves, jnp.argsort(order, axis=1), 1)
