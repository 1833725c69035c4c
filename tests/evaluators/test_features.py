"""Protocols on features, retrieval and detection against plain loops in float64, and scikit-learn."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.linear_model
import sklearn.metrics

from vision_jax.errors import DataError
from vision_jax.evaluators import features, ood, retrieval


def clusters(examples: int, dim: int, classes: int, seed: int = 0):
    random = np.random.RandomState(seed)
    labels = random.randint(0, classes, examples)
    centers = np.random.RandomState(99).randn(classes, dim)
    return (centers[labels] + 1.5 * random.randn(examples, dim)).astype(np.float32), labels


def test_neighbors_by_blocks():
    """Blocks of any size give the same neighbors as sorting all similarities; the first of ties is the nearer one."""
    queries, items = clusters(11, 4, 3)[0], clusters(30, 4, 3, seed=1)[0]
    items[20] = items[3]
    similarities = queries @ items.T
    expected = np.argsort(-similarities, 1, kind="stable")
    for query_block, item_block in ((4, 7), (11, 30), (100, 1)):
        blocks = {"query_block": query_block, "item_block": item_block}
        found, numbers = features.nearest(queries, items, 8, **blocks)
        assert (numbers == expected[:, :8]).all()
        np.testing.assert_allclose(found, np.take_along_axis(similarities, expected, 1)[:, :8], rtol=1e-5)
    assert features.nearest(queries, items[:3], 8)[1].shape == (11, 3)
    with pytest.raises(DataError, match="0 neighbors among 30 items"):
        features.nearest(queries, items, 0)


def test_votes_of_neighbors():
    """Against a loop; and with a temperature at which exp(similarity / temperature) would overflow."""
    similarities = np.sort(np.random.RandomState(0).uniform(-1, 1, (9, 6)), 1)[:, ::-1].astype(np.float32)
    labels = np.random.RandomState(1).randint(0, 4, (9, 6))
    expected = np.zeros((9, 4))
    for row in range(9):
        for similarity, label in zip(similarities[row], labels[row], strict=True):
            expected[row, label] += math.exp(similarity / 0.2) / math.exp(similarities[row, 0] / 0.2)
    np.testing.assert_allclose(features.neighbor_votes(similarities, labels, 4, 0.2), expected, rtol=1e-5)
    sharp = features.neighbor_votes(similarities, labels, 4, 1e-4)
    assert (np.argmax(sharp, 1) == labels[:, 0]).all()
    assert np.sum(features.neighbor_votes(similarities, labels, 4, math.inf)) == 9 * 6


@pytest.mark.parametrize(("examples", "dim", "l2"), [(12, 30, 0.01), (90, 8, 0.01), (20, 20, 1024.0), (6, 9, 1e-3)])
def test_ridge_against_one_system_in_float64(examples: int, dim: int, l2: float):
    x, labels = clusters(examples, dim, 3)
    ridge = features.fit_ridge(x, labels, 3, l2)
    x = x.astype(np.float64)
    x = np.pad((x - x.mean(0)) / (x.std(0) + 1e-5), ((0, 0), (0, 1)), constant_values=100.0)
    targets = 2 * np.eye(3)[labels] - 1
    expected = np.linalg.solve(x.T @ x + l2 * np.eye(dim + 1), x.T @ targets)
    assert np.abs(ridge.weights - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (50.0, 300.0)])
def test_logistic_regression_against_scikit_learn(scale: float, shift: float):
    """Also of features that are far from the origin, and large."""
    x, labels = clusters(120, 5, 4)
    x = (scale * x + shift).astype(np.float32)
    for l2 in (1e-3, 10.0):
        found = features.fit_logistic(x, labels, 4, l2 * scale**2)
        theirs = sklearn.linear_model.LogisticRegression(C=1 / (l2 * scale**2), tol=1e-10, max_iter=10_000)
        theirs.fit((x - shift).astype(np.float64), labels)
        assert np.abs(found.weights.T - theirs.coef_).max() < 2e-4 * np.abs(theirs.coef_).max()
        bias = found.bias + shift * found.weights.sum(0)
        assert np.abs(bias - bias.mean() - theirs.intercept_).max() < 2e-3
    assert float(jnp.abs(found.bias.mean())) < 1e-4 * float(jnp.abs(found.bias).max())


def test_a_sweep_takes_the_first_of_the_best_penalties():
    train, validation = clusters(60, 5, 3), clusters(50, 5, 3, seed=1)
    sweep = features.sweep_logistic(train, validation, 3, (1.0, 1.0, 1e7))
    assert sweep.accuracies[0] == sweep.accuracies[1] > sweep.accuracies[2]
    assert sweep.chosen == 0
    both = [np.concatenate(pair) for pair in zip(train, validation, strict=True)]
    expected = features.fit_logistic(*both, 3, 1.0)
    np.testing.assert_allclose(sweep.linear.weights, expected.weights, rtol=1e-5)


def test_retrieval_against_loops():
    """With items that are ignored, and queries that have nothing to find, which count in no mean."""
    random = np.random.RandomState(0)
    queries, items = random.randn(7, 5).astype(np.float32), random.randn(20, 5).astype(np.float32)
    kind = random.choice(3, (7, 20), p=[0.6, 0.2, 0.2])  # nothing, a positive, ignored
    kind[2][kind[2] == 1] = 0
    relations = lambda start, stop: (kind[start:stop] == 1, kind[start:stop] == 2)  # noqa: E731
    found = retrieval.rank(queries, items, relations, ks=(1, 3), block=3)
    expected: dict[str, list[float]] = {}
    for row in range(7):
        order = [i for i in np.argsort(-(queries[row] @ items.T)) if kind[row, i] != 2]
        hits = [kind[row, i] == 1 for i in order]
        n = sum(hits)
        assert found.positives[row] == n
        if not n:
            continue
        share = [1.0, *(sum(hits[:r]) / r for r in range(1, len(hits) + 1))]  # among the first r
        ranks = [r for r, hit in enumerate(hits, 1) if hit]
        for name, value in {
            "map": sum(share[r] for r in ranks) / n,
            "map_trapezoid": sum((share[r - 1] + share[r]) / 2 for r in ranks) / n,
            "map_at_r": sum(share[r] for r in ranks if r <= n) / n,
            "r_precision": share[n],
            "recall@1": hits[0],
            "recall@3": any(hits[:3]),
            "share@1": hits[0] / n,
            "share@3": sum(hits[:3]) / n,
        }.items():
            expected.setdefault(name, []).append(float(value))
    means = {name: np.mean(values) for name, values in expected.items()}
    assert found.means() == pytest.approx({**means, "queries": 6}, rel=1e-6)
    nothing = retrieval.rank(queries, items, lambda i, j: (kind[i:j] > 5, kind[i:j] > 5))
    with pytest.raises(DataError, match="None of 7 queries"):
        nothing.means()
    with pytest.raises(DataError, match="no setting 'harder': there are easy, medium, hard"):
        retrieval.rank_revisited(queries, items, [], "harder")


def test_detection_with_ties():
    """Against scikit-learn, with scores of which many are equal."""
    random = np.random.RandomState(0)
    inside, outside = random.randint(3, 12, 60) / 10.0, random.randint(0, 9, 45) / 10.0
    found = ood.separation(inside, outside)
    positive, scores = np.repeat([1, 0], [60, 45]), np.concatenate([inside, outside])
    fpr, tpr, _ = sklearn.metrics.roc_curve(positive, scores, drop_intermediate=False)
    expected = {
        "auroc": sklearn.metrics.roc_auc_score(positive, scores),
        "fpr95": fpr[np.argmax(tpr >= 0.95)],
        "aupr_in": sklearn.metrics.average_precision_score(positive, scores),
        "aupr_out": sklearn.metrics.average_precision_score(1 - positive, -scores),
    }
    assert found == pytest.approx(expected, rel=1e-9)
    logits = np.array([[1000.0, 0.0], [-3.0, -3.0]])
    assert ood.energy(logits) == pytest.approx([1000, math.log(2) - 3])
    assert ood.max_softmax(logits) == pytest.approx([1, 0.5])


def test_normalized_features_have_norm_one():
    found = features.normalize(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert found.dtype == jnp.float32


def test_a_probe_learns():
    x, labels = clusters(200, 8, 3)
    optimizer = optax.sgd(0.5)
    probe = features.LinearProbe(3)
    variables = probe.init(jax.random.key(0), x, train=False)
    step = features.make_probe_step(probe, optimizer)
    state = features.ProbeState(variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    losses = []
    for _ in range(60):
        state, loss = step(state, x, labels)
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    scores = probe.apply({"params": state.params, "batch_stats": state.batch_stats}, x, train=False)
    assert features.top1(scores, labels) > 0.75


def test_the_effective_rank():
    """Against the singular values of NumPy; of equal ones it is their number; and what is collapsed has rank 1."""
    x = np.random.RandomState(0).standard_normal((50, 12)) @ np.random.RandomState(1).standard_normal((12, 12))
    for rows in (x, x[:7], x.astype(np.float32)):
        values = np.linalg.svd(rows, compute_uv=False)
        shares = values / values.sum()
        assert features.effective_rank(rows) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    q, _ = np.linalg.qr(np.random.RandomState(2).standard_normal((300, 200)))
    assert features.effective_rank(q) == pytest.approx(200, rel=1e-6)
    assert features.effective_rank(q[:, :5] @ q[:200, :5].T) < 5 + 1e-6
    assert features.effective_rank(np.outer(np.arange(1, 400), q[0])) == pytest.approx(1, abs=1e-6)
    assert features.effective_rank(np.zeros((4, 3))) == 0


def test_the_spread_of_features():
    """Of directions that are even, of a line on which all lie, and by the formula."""
    x = np.random.RandomState(0).standard_normal((20_000, 16)).astype(np.float32)
    assert features.spread(x) == pytest.approx(1 / 4, rel=0.01)
    assert features.spread(np.outer(np.arange(1, 9), np.ones(4))) == pytest.approx(0, abs=1e-12)
    three = np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])  # (0.6, 0.8), (0, 1) and (0, 0)
    assert features.spread(three) == pytest.approx((math.sqrt(0.12 - 0.04) + math.sqrt(1.64 / 3 - 0.36)) / 2)
