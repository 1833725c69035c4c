"""Skipping steps whose loss or gradients are NaN, infinite, or far above those of the steps before."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# Accepted steps needed before a deviation from them means anything.
_LEAST = 16
# After this many skipped steps in a row, the change is not a spike any more.
_LASTING = 8


class GuardState(NamedTuple):
    """The optimizer's state, and the history of losses and gradient norms.

    Attributes:
        inner: the optimizer's state.
        skipped: () int32: steps skipped so far in the run.
        in_a_row: () int32: steps skipped since the last accepted one.
        losses, norms: (window,) float32: losses and gradient norms of the last accepted steps; None if not needed.
        known: () int32: accepted steps since the history last restarted.
    """

    inner: Any
    skipped: jax.Array
    in_a_row: jax.Array
    losses: jax.Array | None
    norms: jax.Array | None
    known: jax.Array

    @property
    def accepted(self) -> jax.Array:
        """() bool: whether the last step was applied."""
        return self.in_a_row == 0


def guard(
    optimizer: optax.GradientTransformation, *, spike_deviations: float | None = None, window: int = 128
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer wrapped so that bad steps change neither its state nor the parameters.

    A step is skipped if its loss or gradient norm is not finite; and, with `spike_deviations`, if either is more than
    that many standard deviations above its mean over the last `window` accepted steps, once there are 16 of these. The
    standard deviation is taken to be at least 1 % of the mean, so that no spikes are seen where the loss is flat.

    A lasting change, such as larger images or the start of mixing, would be a spike for ever, since the history holds
    only accepted steps. So after 8 skipped steps in a row, the next spike is accepted, and the history restarts with
    it. A step that is not finite is never accepted.

    Other effects of a skipped step, on batch statistics and moving averages, are the caller's to undo, by
    `state.accepted`.

    Its `update` takes the loss as the keyword argument `loss`.

    Args:
        optimizer: the optimizer to wrap.
        spike_deviations: see above; None: only steps that are not finite are skipped.
        window: number of accepted steps in the history.
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
    """Returns whether a value is that many deviations above the mean of the first `count` values of `history`."""
    known = jnp.arange(len(history)) < count
    total = jnp.maximum(1, known.sum())
    mean = jnp.where(known, history, 0).sum() / total
    variance = jnp.where(known, jnp.square(history - mean), 0).sum() / total
    limit = mean + deviations * jnp.maximum(jnp.sqrt(variance), 0.01 * jnp.abs(mean))
    return (value > limit) & (count >= min(_LEAST, len(history)))
