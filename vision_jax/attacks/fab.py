"""FAB: the nearest image beyond the boundary between two classes, by steps to its linear approximation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vision_jax.attacks import base
from vision_jax.attacks.apgd import over_targets
from vision_jax.attacks.base import Apply, Attacked
from vision_jax.attacks.losses import of_class
from vision_jax.attacks.projections import NORMS, to_hyperplane

# As published: the largest weight of the way back to the image, the overshoot, and the pull back of what is found.
_ALPHA, _OVERSHOOT, _BETA = 0.1, 1.05, 0.9


class _State(NamedTuple):
    here: jax.Array
    best: jax.Array
    distance: jax.Array  # of `best`, (batch,); infinite: none was found


@base.compiled("norm")
def fab(
    apply: Apply,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    eps: float | jax.Array,
    target: jax.Array,
    norm: str = "linf",
    steps: int | jax.Array = 100,
    random_start: bool | jax.Array = False,
) -> Attacked:
    """The fast adaptive boundary attack (Croce and Hein 2020, arXiv:1907.02044), towards one class.

    It looks for the smallest perturbation that fools the model, and an image counts as fooled if that is not larger
    than `eps`; its size does not depend on `eps`. It is meant for images that are not fooled already.

    Args:
        apply: images in [0, 1] -> logits (batch, classes); see `classifier`.
        images: (batch, height, width, channels) float32 in [0, 1].
        labels: (batch,) integers.
        key: a random key, or one for each image, for the random start.
        eps: the radius, of images in [0, 1].
        target: (batch,) integers: the class whose boundary is looked for. Any other class counts as well.
        norm: linf, l2 or l1.
        steps: how many.
        random_start: from a random point at distance eps / 2, as second and later restarts do; else from the image.

    Returns:
        the nearest images that fool the model, also those that are too far away; `loss` is minus their distance, and
        minus infinity where none was found, which are returned as they were.
    """
    base.check_norm(norm, NORMS)
    images = jnp.asarray(images, jnp.float32)
    batch = len(images)
    noise = base.unit(base.random_direction(base.keys_of(key, batch), images, norm), norm)
    first = jnp.where(random_start, jnp.clip(images + eps / 2 * noise, 0, 1), images)

    def difference(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits = apply(x).astype(jnp.float32)
        d = of_class(logits, target) - of_class(logits, labels)
        return d.sum(), (d, logits.argmax(1) != labels)

    def step(_: jax.Array, state: _State) -> _State:
        w, (d, _) = jax.grad(difference, has_aux=True)(state.here)
        # The boundary is where d + w (x - here) = 0; both ways to it, from here and from the image, are shortest ones.
        back = -d + (w * (state.here - images)).reshape(batch, -1).sum(1)
        ways = to_hyperplane(
            jnp.concatenate([state.here, images]).reshape(2 * batch, -1),
            jnp.concatenate([w, w]).reshape(2 * batch, -1),
            jnp.concatenate([-d, back]),
            norm,
        )
        lengths = jnp.maximum(base.size(ways, norm), 1e-8)
        alpha = base.expand(jnp.minimum(lengths[:batch] / (lengths[:batch] + lengths[batch:]), _ALPHA), images)
        ways = _OVERSHOOT * ways.reshape(2, *images.shape)
        moved = jnp.clip((1 - alpha) * (state.here + ways[0]) + alpha * (images + ways[1]), 0, 1)
        _, (_, fooled) = difference(moved)
        distance = base.size(moved - images, norm)
        closer = fooled & (distance < state.distance)
        return _State(
            here=jnp.where(base.expand(fooled, images), images + _BETA * (moved - images), moved),
            best=jnp.where(base.expand(closer, images), moved, state.best),
            distance=jnp.where(closer, distance, state.distance),
        )

    state = jax.lax.fori_loop(0, steps, step, _State(first, images, jnp.full(batch, jnp.inf)))
    return Attacked(state.best, state.distance <= eps, -state.distance)


@base.compiled("norm", "targets", "restarts")
def fab_t(
    apply: Apply,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    eps: float | jax.Array,
    norm: str = "linf",
    steps: int | jax.Array = 100,
    targets: int = 9,
    restarts: int = 1,
) -> Attacked:
    """FAB towards each of the classes with the largest logits of the clean image in turn; see `fab`.

    Args:
        apply: images in [0, 1] -> logits (batch, classes); see `classifier`.
        images: (batch, height, width, channels) float32 in [0, 1].
        labels: (batch,) integers.
        key: a random key, or one for each image.
        eps: the radius, of images in [0, 1].
        norm: linf, l2 or l1.
        steps: for each target.
        targets: how many classes; all others, if there are fewer.
        restarts: for each target; the first begins at the image, others at random.
    """

    def one(target: jax.Array, keys: jax.Array) -> Attacked:
        def restart(number: jax.Array, kept: Attacked) -> Attacked:
            given: dict[str, Any] = {"eps": eps, "target": target, "norm": norm, "steps": steps}
            new = fab(apply, images, labels, base.fold_in(keys, number), random_start=number > 0, **given)
            return base.keep_first(new, kept)

        return jax.lax.fori_loop(0, restarts, restart, base.nothing_yet(images))

    images = jnp.asarray(images, jnp.float32)
    return over_targets(apply, images, labels, key, one, targets)
