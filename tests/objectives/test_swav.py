import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from objectives.test_local_crops import BATCH, EXAMPLES, ROWS, objective

from vision_jax import augment, build, optim
from vision_jax.objectives.swav import sinkhorn, swav_loss, unit_prototypes
from vision_jax.steps import make_train_step


def test_the_loss_by_hand():
    """Two images, three prototypes and two crops, computed with NumPy in float64 from the formula."""
    scores = np.array([[[0.3, 0.1, 0], [0.2, 0.25, 0.1]], [[0.25, 0.2, 0.05], [0.1, 0.3, 0.2]]])
    q = np.stack([sinkhorn(s, 0.05, 3) for s in scores], 1)
    np.testing.assert_allclose(q[:, 0], [[0.710140, 0.089041, 0.200819], [0.028532, 0.530943, 0.440525]], atol=1e-5)
    assert float(swav_loss(scores.swapaxes(0, 1), q, 0.1).mean()) == pytest.approx(1.024797, abs=1e-5)


def test_assignments_use_all_prototypes_alike():
    scores = np.random.RandomState(0).uniform(-1, 1, (12, 4))
    q = np.asarray(sinkhorn(scores, 0.5, 50))
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(q.sum(0), 3, rtol=1e-5)
    mask = np.arange(12) % 3 > 0
    masked = np.asarray(sinkhorn(scores, 0.05, 3, mask.astype(np.float32)))
    np.testing.assert_allclose(masked[mask], sinkhorn(scores[mask], 0.05, 3), rtol=1e-5)
    assert not masked[~mask].any()
    assert not jax.grad(lambda s: (sinkhorn(s, 0.05, 3) ** 2).sum())(jnp.asarray(scores, jnp.float32)).any()


def test_the_queue_is_assigned_too_once_it_is_full():
    """It is filled from an epoch on, with the newest in front, and the oldest drop out."""
    mine = objective("swav", **{"objective.queue": 40, "objective.queue_epochs": 2})
    variables = jax.jit(lambda: build.initialize(mine, jax.random.key(0)))()
    extra, per_epoch = mine.init_extra(variables), EXAMPLES // ROWS
    rows = [np.random.RandomState(i).standard_normal((ROWS, 2, 8)).astype(np.float32) for i in range(3)]
    extra = mine.after({}, extra, (), rows[0], mine.progress(jnp.int32(2 * per_epoch)))  # the last step before
    assert not np.any(extra["queue"])
    for number, step in enumerate(range(2 * per_epoch, 2 * per_epoch + 3)):
        assert int(extra["filled"]) == min(number * ROWS, 40)
        extra = mine.after({}, extra, (), rows[number], mine.progress(jnp.int32(step + 1)))
    expected = np.concatenate([rows[2], rows[1], rows[0]])[:40].swapaxes(0, 1)
    np.testing.assert_array_equal(extra["queue"], expected)

    random = np.random.RandomState(3)
    scores, queued = random.uniform(-1, 1, (ROWS, 12)), random.uniform(-1, 1, (40, 12))
    alone, together = sinkhorn(scores, 0.05, 3), sinkhorn(np.concatenate([queued, scores]), 0.05, 3)[40:]
    np.testing.assert_allclose(mine.assign(scores, None, (queued, jnp.int32(39))), alone, atol=1e-6)
    np.testing.assert_allclose(mine.assign(scores, None, (queued, jnp.int32(40))), together, atol=1e-6)
    assert not np.allclose(alone, together, atol=0.01)


@pytest.mark.exhaustive
def test_prototypes_have_length_one_again_after_each_update():
    """A step is W / |W| - lr * g, with the gradient at W / |W|; one that is skipped changes no bit."""
    mine = objective("swav")
    optimizer = optim.guard(optax.sgd(0.5))
    state = build.create_state(mine, optimizer, seed=0)
    before = state.params["prototypes"]["kernel"]
    np.testing.assert_allclose(np.linalg.norm(before, axis=0), 1, rtol=1e-6)
    step = jax.jit(make_train_step(mine, optimizer, lambda step: 0.5, seed=0))

    @jax.jit
    def gradient(kernel: jax.Array) -> jax.Array:
        views = mine.views(augment.example_keys(0, jnp.int32(0), ROWS), BATCH)
        key = jax.random.fold_in(augment.batch_key(0, jnp.int32(0), ROWS), 2**32 - 2)

        def loss(kernel: jax.Array) -> jax.Array:
            params = {**state.params, "prototypes": {"kernel": kernel}}
            variables = {"params": params, "batch_stats": state.batch_stats}
            out = mine.loss(variables, views, state.extra, key, mine.progress(jnp.int32(0)), train=True)
            return out.loss / out.weight

        return jax.grad(loss)(kernel)

    after, _ = step(state, BATCH)
    expected = unit_prototypes(before - 0.5 * gradient(before))
    np.testing.assert_allclose(after.params["prototypes"]["kernel"], expected, atol=1e-5)
    assert not np.allclose(expected, before, atol=1e-3)
    # The length of what comes from elsewhere makes no difference, nor has its gradient less along itself.
    np.testing.assert_allclose(gradient(3 * before), gradient(before), atol=1e-5)
    assert np.abs((gradient(before) * before).sum(0)).max() > 1e-4

    broken = after.replace(params={**after.params, "norm": jax.tree.map(lambda x: x * jnp.nan, after.params["norm"])})
    skipped, metrics = step(broken, BATCH)
    assert float(metrics["skipped_steps"]) == 1
    np.testing.assert_array_equal(skipped.params["prototypes"]["kernel"], after.params["prototypes"]["kernel"])
    np.testing.assert_array_equal(skipped.extra["queue"], after.extra["queue"])
