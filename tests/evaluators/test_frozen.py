"""Evaluations of frozen features, against scikit-learn on the same features."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.linear_model
import sklearn.neighbors
from conftest import Pictures

from vision_jax import build, evaluate
from vision_jax import config as config_lib
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError, DataError
from vision_jax.evaluators import EVALUATORS, Bank, probe
from vision_jax.evaluators.base import collect
from vision_jax.optim import create_optimizer

CLASSES = 4
KINDS: dict[str, dict[str, Any]] = {
    "knn": {"kind": "knn", "k": 7},
    "logistic": {"kind": "logistic", "l2": (0.1, 10.0), "held_out": 0.25},
    "probe": {"kind": "linear_probe", "epochs": 5, "batch_size": 16, "learning_rates": (0.1, 1.0)},
    "ridge": {"kind": "ridge", "shots": 6, "l2": 5.0},
}


def pictures(seed: int, count: int) -> Pictures:
    return Pictures(np.random.RandomState(seed).randint(0, CLASSES, count).tolist(), size=20, num_classes=CLASSES)


@functools.cache
def made(devices: int = 1, **damaged: Any) -> tuple[Any, ...]:
    """Evaluators of a random network, and its weights."""
    config = config_lib.default_config()
    config.model.name, config.data.source = "lenet5", "synthetic"
    config.data.image_size = config.data.eval_resize = 16
    config.eval.batch_size = 8
    with config.unlocked():
        config.evals = KINDS
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    objective = build.make_objective(config, CLASSES)
    variables = {
        prefix: sharding.place(
            jax.device_get(build.initialize(objective, jax.random.key(seed))), sharding.replicated(mesh)
        )
        for seed, prefix in enumerate(("", "ema_"))
    }
    evaluators = build.make_evaluators(config, objective, mesh, pictures(1, 45), train_source=pictures(2, 61))
    return evaluators, objective, variables


@functools.cache
def results() -> tuple[dict[str, float], dict[str, Any]]:
    evaluators, objective, variables = made()
    tables: dict[str, Any] = {}
    return evaluate.measure(evaluators, objective, variables, keep_tables=tables.update), tables


@functools.cache
def features() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features and labels of both splits, by applying the model."""
    evaluators, objective, variables = made()
    knn = evaluators["knn"]
    found = {}
    for name, source in (("train", knn.context.train.source), ("validation", knn.context.source)):
        context = dataclasses.replace(knn.context, source=source)
        rows = collect(context, context.compile(knn.make_step(objective), variables), variables)
        assert rows["label"].tolist() == [source[i]["label"] for i in range(len(source))]
        found[name] = rows["features"], rows["label"]
    return found


def test_neighbors_against_scikit_learn():
    (x, y), (queries, labels) = features()["train"], features()["validation"]
    x, queries = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (x, queries))

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances**2 / 2) / 0.07)  # of cosines

    reference = sklearn.neighbors.KNeighborsClassifier(7, weights=weights, algorithm="brute").fit(x, y)
    assert results()[0]["knn/top1"] == pytest.approx(reference.score(queries, labels))
    assert results()[0]["knn/count"] == 45


def test_few_shots_against_scikit_learn():
    evaluators = made()[0]
    chosen = evaluators["ridge"].chosen()
    (x, y), (queries, labels) = features()["train"], features()["validation"]
    assert np.bincount(y[chosen]).tolist() == [6] * CLASSES
    x, y, mean, std = x[chosen], y[chosen], x[chosen].mean(0), x[chosen].std(0) + 1e-5

    def standardize(part: np.ndarray) -> np.ndarray:
        return np.concatenate([(part - mean) / std, np.full((len(part), 1), 100.0)], 1)

    reference = sklearn.linear_model.Ridge(5.0, fit_intercept=False).fit(standardize(x), 2.0 * np.eye(CLASSES)[y] - 1)
    predictions = reference.predict(standardize(queries)).argmax(1)
    assert results()[0]["ridge/top1"] == pytest.approx((predictions == labels).mean())


def test_logistic_regression_against_scikit_learn():
    found, tables = results()
    (x, y), (queries, labels) = features()["train"], features()["validation"]
    reference = sklearn.linear_model.LogisticRegression(C=1 / found["logistic/l2"], max_iter=5000, tol=1e-8).fit(x, y)
    assert found["logistic/top1"] == pytest.approx(reference.score(queries, labels))
    table = tables["logistic/penalties"]
    assert found["logistic/l2"] == table["l2"][int(np.argmax(table["held_out_top1"]))]


def test_the_average_is_measured_too_and_the_best_rate_is_told():
    found, tables = results()
    for name, evaluator in made()[0].items():
        for prefix in ("", "ema_"):
            assert {f"{name}/{prefix}{metric}" for metric in evaluator.metrics} <= found.keys()
    table = tables["probe/rates"]
    assert table["learning_rates"] == [0.1, 1.0]
    assert found["probe/top1"] == max(table["top1"])
    assert found["probe/learning_rate"] == [0.1, 1.0][int(np.argmax(table["top1"]))]


def test_the_same_on_eight_devices():
    evaluators, objective, variables = made(devices=8)
    found = evaluate.measure(evaluators, objective, variables)
    assert found.keys() == results()[0].keys()
    for name, value in found.items():
        assert value == pytest.approx(results()[0][name], abs=1e-6), name


def test_features_are_collected_once_for_all_and_then_freed():
    evaluators, objective, variables = made()
    bank = evaluators["knn"].context.train
    assert all(evaluator.context.train is bank for evaluator in evaluators.values())
    made_ = []
    make = lambda: made_.append(1) or len(made_)  # noqa: E731
    assert [bank.keep("a", variables, make) for _ in range(3)] == [1, 1, 1]
    assert bank.keep("b", variables, make) == 2
    assert bank.keep("a", jax.tree.map(jnp.copy, variables), make) == 3  # other arrays
    evaluate.measure({}, objective, variables)
    evaluate.measure({"knn": evaluators["knn"]}, objective, variables)
    assert not bank._kept


@pytest.mark.parametrize(("optimizer", "normalize"), [("sgd", False), ("lars", True)])
def test_probes_side_by_side_equal_one_after_another(optimizer: str, normalize: bool):
    """The plain loop over steps, with the learning rate of a half cosine, for each rate."""
    random = np.random.RandomState(0)
    x, y = random.randn(50, 6).astype(np.float32), random.randint(0, 3, 50)
    rates, epochs, batch = [0.5, 4.0], 3, 16  # 9 steps
    options = {"optimizer": optimizer, "normalize": normalize, "seed": 5}
    probes = probe.train_probes(jnp.asarray(x), jnp.asarray(y), 3, rates, epochs=epochs, batch_size=batch, **options)
    module = probe.LinearProbe(3, normalize=normalize)
    for number, rate in enumerate(rates):
        schedule = lambda step, rate=rate: rate * (1 + jnp.cos(jnp.pi * step / 9)) / 2  # noqa: E731
        more = {"by_rank": True} if optimizer == "lars" else {}
        chain = create_optimizer(optimizer, schedule, weight_decay=0.0, momentum=0.9, **more)
        variables = module.init(jax.random.key(5), jnp.zeros((1, 6)), train=False)
        params = variables["params"]
        state = probe.ProbeState(params, variables.get("batch_stats", {}), chain.init(params))
        step = probe.make_probe_step(module, chain)
        for epoch in range(epochs):
            order = np.random.default_rng((5, epoch)).permutation(50)
            for rows in order[: 50 // batch * batch].reshape(-1, batch):
                state, _ = step(state, jnp.asarray(x[rows]), jnp.asarray(y[rows]))
        mine = jax.tree.map(lambda a, n=number: a[n], probes.variables)
        alone = {"params": state.params, "batch_stats": state.batch_stats}
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
        logits = np.asarray(module.apply(alone, x, train=False))
        assert probes.hits(jnp.asarray(x), jnp.asarray(y), block=7)[0][number] == (logits.argmax(1) == y).sum()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("knn", {"k": 0}, "k is 0"),
        ("knn", {"temperature": 0.0}, "temperature is 0.0"),
        ("knn", {"train_examples": 0}, "train_examples is 0"),
        ("ridge", {"shots": 0}, "shots is 0"),
        ("logistic", {"held_out": 1.0}, "held_out is 1.0"),
        ("logistic", {"l2": ()}, r"l2 is \(\)"),
        ("linear_probe", {"optimizer": "adam"}, "optimizer is 'adam'"),
        ("linear_probe", {"learning_rates": (0.1, -1.0)}, "learning_rates is"),
    ],
)
def test_options_out_of_range(kind: str, options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        EVALUATORS[kind](context=None, **options)


def test_more_examples_than_there_are():
    evaluators, objective, variables = made()
    greedy = dataclasses.replace(evaluators["knn"], train_examples=100)
    with pytest.raises(DataError, match="asks for 100 training examples, and there are 61"):
        greedy(objective, variables)


def test_features_that_are_not_finite():
    evaluators, objective, variables = made()
    broken = {**variables, "": jax.tree.map(lambda x: x * math.nan, variables[""])}
    found = evaluate.measure({"knn": evaluators["knn"]}, objective, broken)
    assert math.isnan(found["knn/top1"])
    assert found["knn/ema_top1"] == results()[0]["knn/ema_top1"]


def test_training_opens_the_split_that_evaluations_learn_from():
    config = config_lib.default_config()
    assert not build.learns_from_training(config)
    with config.unlocked():
        config.evals.knn = {"kind": "knn"}
    assert build.learns_from_training(config)
    assert isinstance(made()[0]["knn"].context.train, Bank)
