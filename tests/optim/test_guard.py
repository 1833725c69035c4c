"""Which steps the guard skips, given their losses and norms."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vision_jax import optim

WINDOW = 32


def guarded(losses: Sequence[float], deviations: float | None = 6.0) -> tuple[list[bool], optim.GuardState]:
    """Returns which steps of these losses are skipped, and the state after them. All gradients have a norm of 1."""
    optimizer = optim.guard(optax.trace(decay=0.9), spike_deviations=deviations, window=WINDOW)
    grads = {"w": jnp.array([0.6, 0.8])}

    def step(state: optim.GuardState, loss: jax.Array) -> tuple[optim.GuardState, jax.Array]:
        updates, state = optimizer.update(grads, state, loss=loss)
        return state, (updates["w"] == 0).all()

    state, skipped = jax.jit(lambda losses: jax.lax.scan(step, optimizer.init(grads), losses))(
        jnp.asarray(losses, jnp.float32)
    )
    return skipped.tolist(), state


def noisy(mean: float, steps: int, seed: int = 0) -> list[float]:
    """Returns losses with a standard deviation of 0.05."""
    return np.random.RandomState(seed).normal(mean, 0.05, steps).tolist()


def test_limit_is_so_many_deviations_above_the_mean_of_the_window():
    before = noisy(2.0, 50)
    last = np.array(before[-WINDOW:])
    limit = last.mean() + 6 * last.std()
    assert guarded([*before, limit - 1e-3])[0] == [False] * 51
    assert guarded([*before, limit + 1e-3])[0] == [False] * 50 + [True]
    # Before 16 steps are known, none is a spike.
    assert guarded([*before[:15], 100.0])[0][-1] is False
    assert guarded([*before[:16], 100.0])[0][-1] is True


def test_a_flat_stretch_makes_no_spikes():
    """The deviation counts as at least 1 % of the mean: here, 6 of them are 0.12."""
    assert guarded([2.0] * 40 + [2.119])[0] == [False] * 41
    assert guarded([2.0] * 40 + [2.121])[0] == [False] * 40 + [True]


@pytest.mark.parametrize("after", [2.6, 20.0])
def test_a_loss_that_has_risen_for_good_is_learned(after: float):
    skipped, state = guarded([*noisy(2.0, 60), *noisy(after, 100, seed=1), 10 * after])
    assert not any(skipped[:60])
    assert skipped[60:160] == [True] * 8 + [False] * 92
    assert skipped[160]  # spikes are found as before
    assert (state.skipped, state.in_a_row, state.known) == (9, 1, 92)


def test_a_few_spikes_in_a_row_are_skipped_and_forgotten():
    skipped, state = guarded([*noisy(2.0, 60), *[20.0] * 7, *noisy(2.0, 5, seed=1), *[20.0] * 7])
    assert skipped == [False] * 60 + [True] * 7 + [False] * 5 + [True] * 7
    assert state.known == 65


@pytest.mark.parametrize("deviations", [None, 6.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_never_accepted(bad: float, deviations: float | None):
    skipped, state = guarded([*noisy(2.0, 60), *[bad] * 40, *noisy(2.0, 5, seed=1)], deviations)
    assert skipped == [False] * 60 + [True] * 40 + [False] * 5
    assert np.isfinite(state.inner.trace["w"]).all()
    assert state.known == 65
    if deviations is not None:
        assert np.isfinite(state.losses).all()


def test_arrays_are_those_of_checkpoints_that_exist():
    """Of the same names and shapes as ever, or the training of before could not go on."""
    _, state = guarded([1.0])
    found = {jax.tree_util.keystr(path): (x.shape, x.dtype.name) for path, x in jax.tree.leaves_with_path(state)}
    assert found == {
        ".inner.trace['w']": ((2,), "float32"),
        ".skipped": ((), "int32"),
        ".in_a_row": ((), "int32"),
        ".losses": ((WINDOW,), "float32"),
        ".norms": ((WINDOW,), "float32"),
        ".known": ((), "int32"),
    }
