"""APGD: projected ascent with momentum, whose steps are halved by rules instead of a schedule that is to be tuned."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vision_jax.attacks import base
from vision_jax.attacks.base import Apply, Attacked
from vision_jax.attacks.losses import LEAST_CLASSES, LOSSES, classes_of
from vision_jax.errors import ConfigError

_RISES = 0.75  # the least share of steps with a rising loss
_MOMENTUM = 0.25  # the share of the step before


class _State(NamedTuple):
    """The state of a run; one entry an image, but for the last three."""

    here: Attacked
    before: jax.Array  # the iterate before
    gradient: jax.Array
    best: Attacked
    best_gradient: jax.Array
    adversarial: Attacked  # the last iterate that fooled the model
    step_size: jax.Array
    compared: jax.Array  # the loss that the next one is compared with
    rises: jax.Array  # since the last checkpoint
    best_at_checkpoint: jax.Array
    halved: jax.Array  # at the last checkpoint
    period: jax.Array  # steps between checkpoints
    since: jax.Array  # steps since the last one
    number: jax.Array


def apgd(
    apply: Apply,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array,
    norm: str = "linf",
    steps: int = 100,
    loss: str = "ce",
    target: jax.Array | None = None,
    start: jax.Array | None = None,
    eot: int | None = None,
    best_loss: bool = False,
    until_fooled: bool = False,
) -> Attacked:
    """Auto-PGD (Croce and Hein 2020, arXiv:2003.01690, algorithm 1), as fra31/auto-attack computes it.

    Steps begin with 2 eps. At checkpoints, whose periods shrink from 22 % of the steps by 3 % to 6 %, an image's step
    is halved and it returns to its best iterate, if the loss rose in at most 75 % of the steps since the last
    checkpoint, or if the step was not halved there and the best loss has not improved since. As in that code, and
    other than in the paper, the first step's loss counts as risen if it is above 0.

    The three losses share a program.

    Args:
        apply: images in [0, 1] -> logits (batch, classes); see `classifier`. With `eot`, (images, key) -> logits.
        images: (batch, height, width, channels) float32 in [0, 1].
        labels: (batch,) integers; or (batch, classes) float32, soft ones, for the cross-entropy.
        key: a random key, or one for each image; needed without `start`, and with `eot`.
        eps: the radius, of images in [0, 1].
        norm: linf or l2.
        steps: how many.
        loss: ce, dlr or dlr-targeted; see `losses`.
        target: (batch,) integers, for dlr-targeted: the classes that images are to be taken for.
        start: the first iterates; None: at distance eps in a random direction, then clipped to [0, 1].
        eot: for a model that is itself random, gradients are averaged over so many samples in each step.
        best_loss: return the iterate of the highest loss; else the last one that fooled the model, where there is one.
        until_fooled: end when all images of the batch are fooled.

    Raises:
        ConfigError: if the norm or the loss is unknown, the model has too few classes for it, or an argument that is
            needed is missing.
    """
    base.check_norm(norm)
    images = jnp.asarray(images, jnp.float32)
    if key is None and (start is None or eot is not None):
        raise ConfigError("APGD needs a key for its random start and for random models: give one.")
    keys = base.keys_of(jax.random.key(0) if key is None else key, len(images))
    classes = base.count_classes(apply, images, *([] if eot is None else [keys[0]]))
    base.check_loss(loss, classes)
    if (loss == "dlr-targeted") != (target is not None):
        raise ConfigError(f"The loss is {loss}: dlr-targeted needs a target, and no other loss has one.")
    if start is None:
        start = _random_start(images, keys, jnp.float32(eps), norm=norm)
    return _apgd(
        apply,
        images,
        labels,
        base.fold_in(keys, 1),
        jnp.asarray(start, jnp.float32),
        jnp.float32(eps),
        jnp.asarray(labels if target is None else target),
        jnp.int32(list(LOSSES).index(loss)),
        jnp.bool_(best_loss),
        jnp.bool_(until_fooled),
        norm=norm,
        steps=steps,
        eot=eot,
    )


@base.compiled("norm", "steps", "targets")
def apgd_t(
    apply: Apply,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    eps: float | jax.Array,
    norm: str = "linf",
    steps: int = 100,
    targets: int = 9,
) -> Attacked:
    """APGD with the targeted DLR loss, for each of the classes with the largest logits of the clean image in turn.

    Args:
        apply: images in [0, 1] -> logits (batch, classes); see `classifier`.
        images: (batch, height, width, channels) float32 in [0, 1].
        labels: (batch,) integers.
        key: a random key, or one for each image.
        eps: the radius, of images in [0, 1].
        norm: linf or l2.
        steps: for each target.
        targets: how many classes; all others, if there are fewer.
    """

    def one(target: jax.Array, keys: jax.Array) -> Attacked:
        options: dict[str, Any] = {"norm": norm, "steps": steps, "loss": "dlr-targeted", "until_fooled": True}
        return apgd(apply, images, labels, keys, eps=eps, target=target, **options)

    return over_targets(apply, images, labels, key, one, targets)


def over_targets(
    apply: Apply,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    attack: Callable[[jax.Array, jax.Array], Attacked],
    targets: int,
) -> Attacked:
    """Runs (target, keys) -> Attacked for each target, by the clean image's logits, until all images are fooled.

    What fooled the model first is kept, or else what has the highest loss. Images that are fooled already are kept.
    """
    images = jnp.asarray(images, jnp.float32)
    count = min(targets, base.count_classes(apply, images) - 1)
    logits = apply(images).astype(jnp.float32)
    order, wrong = base.others_by_logit(logits, labels, count), logits.argmax(1) != labels
    first = base.nothing_yet(images)._replace(fooled=wrong)
    keys = base.keys_of(key, len(images))

    def body(carry: tuple[jax.Array, Attacked]) -> tuple[jax.Array, Attacked]:
        rank, kept = carry
        new = attack(jnp.take(order, rank, axis=1), base.fold_in(keys, rank))
        return rank + 1, base.keep_first(new, kept)

    def goes_on(carry: tuple[jax.Array, Attacked]) -> jax.Array:
        return (carry[0] < count) & ~carry[1].fooled.all()

    return jax.lax.while_loop(goes_on, body, (jnp.int32(0), first))[1]


def periods(steps: int) -> tuple[int, int, int]:
    """Returns the first period between checkpoints, by how much each is shorter than the one before, and the last."""
    return max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)


@functools.partial(jax.jit, static_argnames="norm")
def _random_start(images: jax.Array, keys: jax.Array, eps: jax.Array, *, norm: str) -> jax.Array:
    noise = base.unit(base.random_direction(base.fold_in(keys, 0), images, norm), norm)
    return jnp.clip(images + eps * noise, 0, 1)


@base.compiled("norm", "steps", "eot")
def _apgd(
    apply: Apply,
    images: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
    start: jax.Array,
    eps: jax.Array,
    target: jax.Array,
    loss: jax.Array,
    best_loss: jax.Array,
    until_fooled: jax.Array,
    *,
    norm: str,
    steps: int,
    eot: int | None,
) -> Attacked:
    def evaluate(perturbed: jax.Array, *key: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        logits = apply(perturbed, *key).astype(jnp.float32)
        defined = [each for name, each in LOSSES.items() if LEAST_CLASSES[name] <= logits.shape[1]]
        losses = jax.lax.switch(loss, defined, logits, labels, target)
        return losses.sum(), (logits.argmax(1) != classes_of(labels), losses)

    def gradient_at(perturbed: jax.Array, number: jax.Array | int) -> tuple[jax.Array, Attacked]:
        gradient = jax.grad(evaluate, has_aux=True)
        if eot is None:
            total, results = gradient(perturbed)
            return total, Attacked(perturbed, *results)
        key = jax.random.fold_in(keys[0], number)

        def sample(total: jax.Array, index: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            one, results = gradient(perturbed, jax.random.fold_in(key, index))
            return total + one, results

        total, (fooled, losses) = jax.lax.scan(sample, jnp.zeros_like(perturbed), jnp.arange(eot))
        return total / eot, Attacked(perturbed, fooled[-1], losses[-1])  # the last sample decides, as in the source

    first, shorter, least = periods(steps)
    gradient, here = gradient_at(start, 0)
    per_image = jnp.zeros(len(images))
    initial = _State(
        here=here,
        before=start,
        gradient=gradient,
        best=here,
        best_gradient=gradient,
        adversarial=here,
        step_size=per_image + 2 * eps,
        compared=per_image,
        rises=per_image,
        best_at_checkpoint=here.loss,
        halved=jnp.ones(len(images), bool),
        period=jnp.int32(first),
        since=jnp.int32(0),
        number=jnp.int32(0),
    )

    def move(state: _State) -> jax.Array:
        now = state.here.images
        moved = now + base.expand(state.step_size, now) * base.ascent(state.gradient, norm)
        moved = base.project(images, moved, eps, norm)
        momentum = jnp.where(state.number > 0, _MOMENTUM, 0.0)
        moved = now + (1 - momentum) * (moved - now) + momentum * (now - state.before)
        return base.project(images, moved, eps, norm)

    def step(state: _State) -> _State:
        gradient, new = gradient_at(move(state), state.number + 1)
        better = new.loss > state.best.loss
        state = state._replace(
            here=new,
            before=state.here.images,
            gradient=gradient,
            best=base.prefer(better, new, state.best),
            best_gradient=jnp.where(base.expand(better, images), gradient, state.best_gradient),
            adversarial=base.prefer(new.fooled, new, state.adversarial),
            rises=state.rises + (new.loss > state.compared),
            compared=new.loss,
            since=state.since + 1,
            number=state.number + 1,
        )
        return jax.lax.cond(state.since == state.period, at_checkpoint, lambda state: state, state)

    def at_checkpoint(state: _State) -> _State:
        oscillates = state.rises <= _RISES * state.period
        stands = ~state.halved & (state.best_at_checkpoint >= state.best.loss)
        halve = oscillates | stands
        return state._replace(
            # The next loss is compared with the one before the return, as in the source.
            here=base.prefer(halve, state.best, state.here),
            gradient=jnp.where(base.expand(halve, images), state.best_gradient, state.gradient),
            step_size=jnp.where(halve, state.step_size / 2, state.step_size),
            rises=jnp.zeros_like(state.rises),
            best_at_checkpoint=state.best.loss,
            halved=halve,
            period=jnp.maximum(state.period - shorter, least),
            since=jnp.int32(0),
        )

    def goes_on(state: _State) -> jax.Array:
        return (state.number < steps) & ~(until_fooled & state.adversarial.fooled.all())

    end = jax.lax.while_loop(goes_on, step, initial)
    return base.prefer(end.adversarial.fooled & ~best_loss, end.adversarial, end.best)
