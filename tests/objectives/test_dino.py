import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives.test_local_crops import BATCH, ROWS, objective

from vision_jax import augment, build
from vision_jax.objectives.dino import center_and_sharpen, dino_loss, koleo_loss, move_center


def test_the_loss_by_hand():
    """Two large crops and a small one of an image, computed with NumPy in float64 from the formula."""
    center, teacher = np.array([0.1, 0.0, -0.1]), np.array([[1, 0.5, 0], [0.2, 0.4, 0.9]])
    student = np.array([[0.6, 0.2, 0.1], [0.1, 0.5, 0.3], [0.4, 0.4, 0.2]])
    p = center_and_sharpen(teacher[None], center, 0.04)
    assert float(dino_loss(student[None], p, 0.1)[0]) == pytest.approx(3.171185, abs=1e-5)
    # Of the second large crop and the first one, alone.
    assert float(dino_loss(student[None, :2], p, 0.1)[0]) == pytest.approx((4.142750 + 5.024745) / 2, abs=1e-5)
    np.testing.assert_allclose(move_center(center, teacher.mean(0), 0.9), [0.15, 0.045, -0.045], rtol=1e-6)


def test_koleo_by_hand():
    """Neighbors at 45 degrees, all at the distance 0.765367; of masked rows there are none."""
    x = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.01]])
    np.testing.assert_allclose(koleo_loss(x[:3]), [0.267400] * 3, atol=1e-5)
    found = koleo_loss(x, np.array([1, 1, 1, 0.0]))
    np.testing.assert_allclose(found[:3], [0.267400] * 3, atol=1e-5)
    assert np.isfinite(jax.grad(lambda x: koleo_loss(x).sum())(jnp.ones((3, 2)))).all()  # where all rows are equal


def test_the_teacher_drops_nothing_and_has_its_own_statistics():
    """And the loss has the distances of features in it, as far as `koleo` says."""
    mine = objective("dino", **{"model.drop_path_rate": 0.5, "objective.head_norm": True})
    variables = jax.jit(lambda: build.initialize(mine, jax.random.key(0)))()
    average = jax.tree.map(lambda x: x + 0.01, variables)
    views = mine.views(augment.example_keys(0, jnp.int32(0), ROWS), BATCH)
    progress, extra = mine.progress(jnp.int32(0)), mine.init_extra(variables)

    @jax.jit
    def compute(key: jax.Array):
        targets = mine.targets(variables, average, extra, {}, views, key, progress)
        out = mine.loss(variables, views, targets, jax.random.key(5), progress, train=True)
        plain = dataclasses.replace(mine, koleo=0.0)
        other = plain.loss(variables, views, targets, jax.random.key(5), progress, train=True)
        features, _ = mine.encode_views(variables, views, train=True, key=jax.random.key(5))
        return targets, out, other, features

    (first, out, plain, features), (second, *_) = compute(jax.random.key(1)), compute(jax.random.key(2))
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    assert features.shape[:2] == (ROWS, 5)
    distances = koleo_loss(features[:, 0]) + koleo_loss(features[:, 1])
    assert float(out.loss - plain.loss) == pytest.approx(0.1 * float(distances.sum()), rel=1e-4)
    assert float(out.metrics["cross_entropy"][0]) == pytest.approx(float(plain.loss), rel=1e-6)
    # The student's statistics have moved with its own features, the teacher's with those of the teacher.
    mean = out.variables["batch_stats"]["projector"]["mlp"]["1"]["mean"]
    taught = out.average_stats["projector"]["mlp"]["1"]["mean"]
    assert not np.allclose(mean, taught, atol=1e-4)
    assert not np.allclose(taught, average["batch_stats"]["projector"]["mlp"]["1"]["mean"])
