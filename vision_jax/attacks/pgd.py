"""Steps along the gradient: FGSM, PGD and MI-FGSM, which are one program with other numbers."""

import jax
import jax.numpy as jnp

from vision_jax.attacks import base
from vision_jax.attacks.base import Apply, Attacked
from vision_jax.attacks.losses import LOSSES
from vision_jax.errors import ConfigError


def fgsm(
    apply: Apply, images: jax.Array, labels: jax.Array, key: jax.Array | None = None, *, eps: float | jax.Array
) -> Attacked:
    """The fast gradient sign method (Goodfellow et al. 2014, arXiv:1412.6572): one step of length eps, from the image.

    With a random start (Wong et al. 2020, arXiv:2001.03994) it is `pgd` of one step of 1.25 eps.

    Args:
        apply: images in [0, 1] -> logits (batch, classes); see `classifier`.
        images: (batch, height, width, channels) float32 in [0, 1].
        labels: (batch,) integers.
        key: not used: nothing is random.
        eps: the radius in linf, of images in [0, 1].
    """
    return pgd(apply, images, labels, key, eps=eps, steps=1, step_size=eps, random_start=False)


def mi_fgsm(
    apply: Apply,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array,
    steps: int | jax.Array = 10,
    step_size: float | jax.Array | None = None,
    decay: float | jax.Array = 1.0,
) -> Attacked:
    """FGSM with momentum (Dong et al. 2018, arXiv:1710.06081): g is divided by its mean size and added to decay g_old.

    Args:
        apply: images in [0, 1] -> logits (batch, classes); see `classifier`.
        images: (batch, height, width, channels) float32 in [0, 1].
        labels: (batch,) integers.
        key: not used: nothing is random.
        eps: the radius in linf.
        steps: how many.
        step_size: None: eps / steps, as published.
        decay: of the momentum.
    """
    step_size = eps / steps if step_size is None else step_size
    return pgd(apply, images, labels, key, eps=eps, steps=steps, step_size=step_size, decay=decay, random_start=False)


def pgd(
    apply: Apply,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    eps: float | jax.Array,
    norm: str = "linf",
    steps: int | jax.Array = 20,
    step_size: float | jax.Array | None = None,
    restarts: int | jax.Array = 1,
    random_start: bool = True,
    best_iterate: bool = False,
    loss: str = "ce",
    decay: float | jax.Array = 0.0,
    start: jax.Array | None = None,
) -> Attacked:
    """Projected gradient ascent (Madry et al. 2018, arXiv:1706.06083), with restarts.

    A step goes along the sign of the gradient (linf) or along the gradient (l2), and the result is brought back into
    the ball and into [0, 1]. Of the restarts, an image keeps the one that fooled the model, or else the one with the
    highest loss; they end when all images of the batch are fooled. The program depends on `norm` and `loss` alone:
    other radii, steps and restarts are not compiled again.

    Args:
        apply: images in [0, 1] -> logits (batch, classes); see `classifier`.
        images: (batch, height, width, channels) float32 in [0, 1].
        labels: (batch,) integers.
        key: a random key, or one for each image; needed for a random start.
        eps: the radius, of images in [0, 1].
        norm: linf or l2.
        steps: how many.
        step_size: None: 2.5 eps / steps, as in MadryLab/robustness.
        restarts: how many times all steps are taken.
        random_start: from a point of the ball, uniform in it for linf, and at distance eps in a random direction for
            l2, as MadryLab/robustness has it. Without it, restarts are the same.
        best_iterate: keep the iterate of the highest loss, the start included, as MadryLab/robustness does by default;
            else the last one.
        loss: ce or dlr; see `losses`.
        decay: of the momentum; see `mi_fgsm`.
        start: images to which the random start is added; None: `images`.

    Raises:
        ConfigError: if the norm or the loss is unknown, or a random start has no key.
    """
    base.check_norm(norm)
    base.check_loss(loss, base.count_classes(apply, images))
    if random_start and key is None:
        raise ConfigError("A random start needs a key: give one, or random_start=False.")
    images = jnp.asarray(images, jnp.float32)
    return _pgd(
        apply,
        images,
        labels,
        base.keys_of(jax.random.key(0) if key is None else key, len(images)),
        images if start is None else jnp.asarray(start, jnp.float32),
        jnp.float32(eps),
        jnp.float32(2.5 * eps / steps if step_size is None else step_size),
        jnp.int32(steps),
        jnp.int32(restarts),
        jnp.bool_(random_start),
        jnp.bool_(best_iterate),
        jnp.float32(decay),
        norm=norm,
        loss=loss,
    )


@base.compiled("norm", "loss")
def _pgd(
    apply: Apply,
    images: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
    start: jax.Array,
    eps: jax.Array,
    step_size: jax.Array,
    steps: jax.Array,
    restarts: jax.Array,
    random_start: jax.Array,
    best_iterate: jax.Array,
    decay: jax.Array,
    *,
    norm: str,
    loss: str,
) -> Attacked:
    def evaluate(perturbed: jax.Array) -> tuple[jax.Array, Attacked]:
        logits = apply(perturbed).astype(jnp.float32)
        losses = LOSSES[loss](logits, labels, labels)
        return losses.sum(), Attacked(perturbed, logits.argmax(1) != labels, losses)

    def step(_: jax.Array, carry: tuple[jax.Array, jax.Array, Attacked]) -> tuple[jax.Array, jax.Array, Attacked]:
        perturbed, momentum, best = carry
        gradient, here = jax.grad(evaluate, has_aux=True)(perturbed)
        best = base.prefer(here.loss > best.loss, here, best)
        # The mean of |g| does not change the direction of a step without momentum.
        mean = jnp.abs(gradient).mean(range(1, gradient.ndim), keepdims=True)
        momentum = jnp.where(mean > 0, gradient / jnp.where(mean > 0, mean, 1), 0) + decay * momentum
        moved = perturbed + step_size * base.ascent(momentum, norm)
        return base.project(images, moved, eps, norm), momentum, best

    def run(number: jax.Array) -> Attacked:
        noise = base.random_direction(base.fold_in(keys, number), images, norm)
        noise = eps * (noise if norm == "linf" else base.unit(noise, norm))
        first = jnp.where(random_start, jnp.clip(start + noise, 0, 1), start)
        carry = first, jnp.zeros_like(images), base.nothing_yet(images)
        last, _, best = jax.lax.fori_loop(0, steps, step, carry)
        _, end = evaluate(last)
        return base.prefer(~best_iterate | (end.loss > best.loss), end, best)

    def restart(carry: tuple[jax.Array, Attacked]) -> tuple[jax.Array, Attacked]:
        number, kept = carry
        new = run(number)
        better = (new.fooled & ~kept.fooled) | ((new.fooled == kept.fooled) & (new.loss > kept.loss))
        return number + 1, base.prefer(better, new, kept)

    def goes_on(carry: tuple[jax.Array, Attacked]) -> jax.Array:
        number, kept = carry
        return (number < restarts) & ~kept.fooled.all()

    _, kept = jax.lax.while_loop(goes_on, restart, (jnp.int32(0), base.nothing_yet(images)))
    return kept
