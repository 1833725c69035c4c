"""Steps that are skipped, because their loss or gradients are not finite or far above those before."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# So many steps must be known before a deviation from them means anything.
_LEAST = 16
# After so many skipped steps in a row, what is seen is no spike any more.
_LASTING = 8


class GuardState(NamedTuple):
    """The optimizer's state, and what is known of the steps before.

    Attributes:
        inner: of the optimizer.
        skipped: () int32: steps that were skipped in the whole training.
        in_a_row: () int32: steps that were skipped since the last one that was not.
        losses, norms: (window,) float32: loss and norm of the gradients of the last steps that were not skipped; None
            where they are not needed.
        known: () int32: steps that were not skipped, since the history last began anew.
    """

    inner: Any
    skipped: jax.Array
    in_a_row: jax.Array
    losses: jax.Array | None
    norms: jax.Array | None
    known: jax.Array

    @property
    def accepted(self) -> jax.Array:
        """() bool: whether the last step was not skipped."""
        return self.in_a_row == 0


def guard(
    optimizer: optax.GradientTransformation, *, spike_deviations: float | None = None, window: int = 128
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer, but some steps leave its state and the parameters alone.

    A step is skipped if its loss or the norm of its gradients is not finite; and, with `spike_deviations`, if one of
    them is more than so many standard deviations above its mean in the last `window` steps that were not skipped, once
    there are 16 of these. The deviation counts as at least 1 % of the mean, so that a flat stretch makes no spikes.

    A lasting change, as when images become larger or mixing begins, would be a spike for ever, since the history holds
    accepted steps alone. So once 8 steps in a row were skipped, the next spike is accepted and the history begins anew
    with it. A step that is not finite never is.

    What a skipped step would have done besides, to batch statistics and moving averages, is the caller's to undo:
    `state.accepted` says so.

    Its `update` takes the loss as the keyword `loss`.

    Args:
        optimizer: what steps are made with.
        spike_deviations: see above; None: only what is not finite is skipped.
        window: how many steps are looked back.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> GuardState:
        number = jnp.zeros((), jnp.int32)
        history = jnp.zeros((window,), jnp.float32) if spike_deviations is not None else None
        return GuardState(inner.init(params), number, number, history, history, number)

    def update(
        grads: Any, state: GuardState, params: Any = None, *, loss: jax.Array, **extra: Any
    ) -> tuple[Any, GuardState]:
        norm = optax.tree.norm(grads)
        accepted = jnp.isfinite(loss) & jnp.isfinite(norm)
        losses, norms, known = state.losses, state.norms, state.known
        if spike_deviations is not None and losses is not None and norms is not None:
            spike = _is_spike(loss, losses, known, spike_deviations) | _is_spike(norm, norms, known, spike_deviations)
            lasting = state.in_a_row >= _LASTING
            known = jnp.where(accepted & spike & lasting, 0, known)
            accepted &= ~spike | lasting
            place = known % window
            losses = jnp.where(accepted, losses.at[place].set(loss), losses)
            norms = jnp.where(accepted, norms.at[place].set(norm), norms)
        updates, new = inner.update(grads, state.inner, params, **extra)
        updates = jax.tree.map(lambda u: jnp.where(accepted, u, jnp.zeros_like(u)), updates)
        new = jax.tree.map(lambda after, before: jnp.where(accepted, after, before), new, state.inner)
        taken = accepted.astype(jnp.int32)
        return updates, GuardState(
            inner=new,
            skipped=state.skipped + (1 - taken),
            in_a_row=(state.in_a_row + 1) * (1 - taken),
            losses=losses,
            norms=norms,
            known=known + taken,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _is_spike(value: jax.Array, history: jax.Array, count: jax.Array, deviations: float) -> jax.Array:
    """Returns whether a value is so many deviations above those in `history`, of which the first `count` are known."""
    known = jnp.arange(len(history)) < count
    total = jnp.maximum(1, known.sum())
    mean = jnp.where(known, history, 0).sum() / total
    variance = jnp.where(known, jnp.square(history - mean), 0).sum() / total
    limit = mean + deviations * jnp.maximum(jnp.sqrt(variance), 0.01 * jnp.abs(mean))
    return (value > limit) & (count >= min(_LEAST, len(history)))
