"""Protocols on features against protocols.npz: one test for each case; see README.md."""

import re
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from references import common
from references.common import Case, near, near_largest, read_cases

from vision_jax.evaluators import features, per_class
from vision_jax.metrics import in_top_k
from vision_jax.optim import GroupRules, create_optimizer

SCORES, STEPS = 1e-4, 1e-5  # of the largest number


CASES = read_cases("ssl", "protocols*.npz")


def agree(found: Any, case: Case, prefix: str = "") -> None:
    """Asserts that predictions agree where they do not depend on rounding."""
    clear = case[f"{prefix}clear"]
    assert (np.asarray(found) == case[f"{prefix}predictions"])[clear].all()


def check_knn(case: Case) -> None:
    about, labels = case.about, case["test_labels"]
    train, test = features.normalize(case["train"]), features.normalize(case["test"])
    similarities, numbers = features.nearest(test, train, about["k"], query_block=33, item_block=50)
    votes = np.asarray(
        features.neighbor_votes(similarities, case["train_labels"][numbers], about["classes"], about["temperature"])
    )
    largest = np.exp(similarities[:, :1].astype(np.float64) / about["temperature"])
    near_largest(votes * largest, case["votes"], SCORES)
    agree(votes.argmax(1), case)
    unclear = 100 * (~case["clear"]).mean()
    assert abs(100 * features.top1(votes, labels) - about["top1"]) <= unclear + 1e-3
    # Where fewer than five classes have votes, any of the others may be the fifth: the sources' sorting decides.
    expected = case["votes"]
    of_label = expected[np.arange(len(labels)), labels]
    open_ones = 100 * ((of_label == 0) & ((expected > 0).sum(1) < 5)).mean()
    top5 = 100 * float(np.mean(in_top_k(jnp.asarray(votes), jnp.asarray(labels), 5)))
    assert abs(top5 - about["top5"]) <= open_ones + unclear + 1e-3


def check_few_shot_ridge(case: Case) -> None:
    about = case.about
    ridge = features.fit_ridge(case["train"], case["train_labels"], about["classes"], about["l2"])
    near_largest(ridge.weights, case["weights"], SCORES)
    scores = features.ridge_scores(ridge, case["test"])
    near_largest(scores, case["scores"], SCORES)
    agree(np.argmax(scores, 1), case)
    near(features.top1(scores, case["test_labels"]), about["accuracy"], (~case["clear"]).mean() + SCORES)


def mean_per_class(predictions: np.ndarray, labels: np.ndarray, classes: int) -> float:
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels, predictions), 1)
    return per_class.balanced_accuracy(confusion, confusion.sum(1))


def check_logistic_regression(case: Case) -> None:
    about, labels, classes = case.about, case["test_labels"], case.about["classes"]
    for number, fit in enumerate(about["fits"]):
        linear = features.fit_logistic(case["train"], case["train_labels"], classes, fit["l2"])
        near_largest(linear.weights.T, case[f"{number}/weights"], SCORES)
        bias = case[f"{number}/bias"]
        assert np.abs(linear.bias - (bias - bias.mean())).max() <= SCORES * max(1, np.abs(bias).max())
        objective = features.logistic_objective(linear, case["train"], case["train_labels"], fit["l2"])
        assert float(objective) == pytest.approx(fit["objective"], rel=2e-6)
        predictions = np.argmax(features.linear_scores(linear, case["test"]), 1)
        agree(predictions, case, f"{number}/")
        unclear = (~case[f"{number}/clear"]).mean()
        near((predictions == labels).mean(), fit["accuracy"], unclear + SCORES)
        near(mean_per_class(predictions, labels, classes), fit["mean_per_class"], classes * unclear + SCORES)


def check_logistic_regression_sweep(case: Case) -> None:
    about, labels = case.about, case["test_labels"]
    train, validation = ((case[name], case[f"{name}_labels"]) for name in ("train", "val"))
    sweep = features.sweep_logistic(train, validation, about["classes"], about["l2"])
    near(sweep.accuracies, about["validation_accuracies"], SCORES)
    assert sweep.chosen == about["chosen"]
    predictions = np.argmax(features.linear_scores(sweep.linear, case["test"]), 1)
    assert predictions.tolist() == case["predictions"].tolist()
    near((predictions == labels).mean(), about["accuracy"], SCORES)
    near(mean_per_class(predictions, labels, about["classes"]), about["mean_per_class"], SCORES)


def check_linear_probe_lars(case: Case) -> None:
    about = case.about
    weight, bias = (next(name for name in about["state"] if name.endswith(f".{last}")) for last in ("weight", "bias"))
    kernel, offset = (common.fill(name, about["state"][name]) for name in (weight, bias))
    probe = features.LinearProbe(len(offset), momentum=1 - about["bn_momentum"], epsilon=about["bn_eps"])
    variables = probe.init(jax.random.key(0), case["x"], train=False)
    params = {"fc": {"kernel": jnp.asarray(kernel.T), "bias": jnp.asarray(offset)}}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, variables["params"])
    optimizer = create_optimizer(
        "lars",
        about["lr"],
        weight_decay=about["weight_decay"],
        decay_mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        momentum=about["momentum"],
        trust_coefficient=about["trust_coefficient"],
        by_rank=True,
    )
    variables = {**variables, "params": params}
    logits, _ = probe.apply(variables, case["x"], train=True, mutable=["batch_stats"])
    near_largest(logits, case["logits"], STEPS)

    def loss(params: Any) -> jax.Array:
        logits, _ = probe.apply({**variables, "params": params}, case["x"], train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, case["labels"]).mean()

    grads = jax.grad(loss)(params)["fc"]
    near_largest(grads["kernel"].T, case[f"grad/{weight}"], STEPS)
    near_largest(grads["bias"], case[f"grad/{bias}"], STEPS)
    step = features.make_probe_step(probe, optimizer)
    state = features.ProbeState(params, variables["batch_stats"], optimizer.init(params))
    for number in range(1, about["steps"] + 1):
        state, value = step(state, case["x"], case["labels"])
        near(value, about["losses"][number - 1], STEPS)
        found = {
            "weight": state.params["fc"]["kernel"].T,
            "bias": state.params["fc"]["bias"],
            "running_mean": state.batch_stats["mean"],
            "running_var": state.batch_stats["var"],
        }
        for key in [name for name in case.names() if name.startswith(f"{number}/")]:
            near_largest(found[key.rpartition(".")[2]], case[key], STEPS)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    near_largest(probe.apply(variables, case["x"], train=False), case["logits_eval"], STEPS)


def check_lars(case: Case) -> None:
    about = case.about

    def value(name: str, step: int) -> jax.Array:
        seed = zlib.crc32(f"{name}.{step}".encode())
        shape = tuple(about["shapes"][name])
        return jnp.asarray(np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32))

    params = {name: value(name, 0) for name in about["shapes"]}
    vectors = [name for name, p in params.items() if p.ndim < 2]
    optimizer = create_optimizer(
        "lars",
        about["lr"],
        weight_decay=about["weight_decay"],
        decay_mask={name: name not in vectors for name in params},
        momentum=about["momentum"],
        trust_coefficient=about["trust_coefficient"],
        by_rank=True,
    )
    rules = GroupRules(multipliers=tuple((f"^{name}$", about["lr_1d"] / about["lr"]) for name in vectors))
    optimizer = rules.wrap(optimizer, params)
    state = optimizer.init(params)
    kept: dict[int, list[str]] = {}
    for name in case.names():
        kept.setdefault(int(re.fullmatch(r".+/(\d+)", name)[1]), []).append(name)

    @jax.jit
    def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(1, max(kept) + 1):
        params, state = update(params, state, {name: value(name, step) for name in params})
        for key in kept.get(step, ()):
            near_largest(params[key.rpartition("/")[0]], case[key], STEPS)


READERS: dict[str, Callable[[Case], None]] = {
    "knn": check_knn,
    "few_shot_ridge": check_few_shot_ridge,
    "logistic_regression": check_logistic_regression,
    "logistic_regression_sweep": check_logistic_regression_sweep,
    "linear_probe_lars": check_linear_probe_lars,
    "lars": check_lars,
}


@pytest.mark.parametrize("name", CASES)
def test_protocols_agree_with_the_references(name: str):
    case = CASES[name]
    protocol = case.about["protocol"]
    assert protocol in READERS, f"there is no reader for the protocol {protocol}"
    READERS[protocol](case)
