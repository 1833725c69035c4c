import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax.errors import ConfigError
from vision_jax.losses import create_loss, smooth_targets, softmax_cross_entropy
from vision_jax.metrics import classification_sums, in_top_k


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_its_definition(smoothing: float):
    random = np.random.RandomState(0)
    logits, labels = random.standard_normal((6, 5)), random.randint(0, 5, 6)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(1 - smoothing) * log_p[np.arange(6), labels] - smoothing * log_p.mean(1)
    targets = smooth_targets(jnp.asarray(labels), logits.shape[-1], smoothing)
    np.testing.assert_allclose(softmax_cross_entropy(jnp.asarray(logits), targets), expected, rtol=1e-5)


def test_cross_entropy_of_bfloat16_is_computed_in_float32():
    logits = jnp.asarray([[300.0, 1.0, -2.0]], jnp.bfloat16)
    loss = softmax_cross_entropy(logits, jnp.asarray([1]))
    assert loss.dtype == jnp.float32
    assert float(loss[0]) == pytest.approx(299.0)


def test_in_top_k_equals_sorting():
    random = np.random.RandomState(0)
    logits, labels = random.standard_normal((200, 10)), random.randint(0, 10, 200)
    for k in (1, 5):
        expected = [labels[i] in np.argsort(-logits[i])[:k] for i in range(200)]
        assert in_top_k(jnp.asarray(logits), jnp.asarray(labels), k).tolist() == expected


def test_equal_scores_count_as_for_argmax():
    random = np.random.RandomState(0)
    logits, labels = random.randint(0, 4, (500, 10)).astype(np.float32), random.randint(0, 10, 500)
    for k in (1, 5):
        expected = [labels[i] in np.argsort(-logits[i], kind="stable")[:k] for i in range(500)]
        assert in_top_k(jnp.asarray(logits), jnp.asarray(labels), k).tolist() == expected


def test_nan_is_never_a_hit():
    logits = jnp.asarray([[jnp.nan] * 3, [jnp.nan, 1.0, 0.0], [0.0, 1.0, jnp.nan]])
    assert in_top_k(logits, jnp.asarray([0, 0, 1]), 1).tolist() == [False, False, False]
    assert not in_top_k(logits, jnp.asarray([0, 0, 1]), 5)[0]


def test_masked_rows_do_not_count():
    logits = jnp.asarray([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [jnp.nan] * 3])
    sums = classification_sums(logits, jnp.asarray([0, 0, 0]), jnp.asarray([1.0, 1.0, 0.0]))
    assert (float(sums["count"]), float(sums["top1"]), float(sums["top5"])) == (2, 1, 2)
    normalizer = np.log(np.exp([0.0, 1.0, 2.0]).sum())
    assert float(sums["loss"]) == pytest.approx(2 * normalizer - 2, rel=1e-6)


def test_binary_cross_entropy_equals_its_definition():
    random = np.random.RandomState(0)
    logits, targets = random.standard_normal((6, 5)) * 3, random.uniform(0, 1, (6, 5))
    weights = (0.5, 1.0, 2.0, 0.0, 3.0)
    p = 1 / (1 + np.exp(-logits))
    for threshold, wanted in ((None, targets), (0.2, (targets > 0.2).astype(float)), (0.0, np.ones_like(targets))):
        terms = -wanted * np.log(p) - (1 - wanted) * np.log(1 - p)
        for sum_classes, class_weights in ((False, ()), (True, ()), (True, weights)):
            loss = create_loss("sigmoid", threshold=threshold, sum_classes=sum_classes, class_weights=class_weights)
            weighted = terms * (np.array(class_weights) if class_weights else 1)
            expected = weighted.sum(1) if sum_classes else weighted.mean(1)
            np.testing.assert_allclose(loss(jnp.asarray(logits), jnp.asarray(targets)), expected, rtol=1e-5)


def test_weights_of_classes_multiply_their_terms():
    random = np.random.RandomState(0)
    logits, targets = random.standard_normal((6, 3)), random.dirichlet(np.ones(3), 6)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss = create_loss("softmax", class_weights=(1.0, 0.0, 4.0))
    expected = -(targets * log_p * np.array([1.0, 0.0, 4.0])).sum(1)
    np.testing.assert_allclose(loss(jnp.asarray(logits), jnp.asarray(targets)), expected, rtol=1e-5)


def test_unknown_loss():
    with pytest.raises(ConfigError, match="There is no loss 'softmx': did you mean softmax"):
        create_loss("softmx")
