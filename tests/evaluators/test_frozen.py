"""Evaluations of frozen features, against scikit-learn on the same features."""

import dataclasses
import functools
import logging
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.linear_model
import sklearn.neighbors
from conftest import REPOSITORY, Pictures, records

from vision_jax import build, evaluate, train
from vision_jax import config as config_lib
from vision_jax.config import loading
from vision_jax.data import order
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError, Interrupted
from vision_jax.evaluators import EVALUATORS, Bank, frozen, neighbors, probe, protocols
from vision_jax.evaluators import features as measures
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
    initialize = jax.jit(functools.partial(build.initialize, objective))
    variables = {
        prefix: sharding.place(
            jax.device_get(initialize(jax.random.key(seed))),
            sharding.replicated(mesh),
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


def test_neighbors_tell_whether_features_have_collapsed(monkeypatch: pytest.MonkeyPatch):
    """Of those that vote; of many, of a part that is spread evenly over the split."""
    x, _ = features()["train"]
    values = np.linalg.svd(x, compute_uv=False)
    shares = values / values.sum()
    rank = np.exp(-(shares * np.log(shares)).sum())
    assert results()[0]["knn/effective_rank"] == pytest.approx(rank, rel=1e-4)
    deviations = (x / np.linalg.norm(x, axis=1, keepdims=True)).std(0)
    assert results()[0]["knn/spread"] == pytest.approx(deviations.mean(), rel=1e-5)
    assert {"knn/ema_effective_rank", "knn/ema_spread"} <= results()[0].keys()
    monkeypatch.setattr(protocols, "_RANKED", 20)
    split = frozen.Split(x, features()["train"][1])
    found = made()[0]["knn"].learn(split, split, CLASSES)
    assert found["spread"] == pytest.approx(measures.spread(x[[i * 61 // 20 for i in range(20)]]))


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


@pytest.mark.parametrize(("optimizer", "normalize", "warmup"), [("sgd", False, 0.0), ("lars", True, 1.0)])
def test_probes_side_by_side_equal_one_after_another(optimizer: str, normalize: bool, warmup: float):
    """The plain loop over steps, for each rate: linear warm-up, then a half cosine; of an order for each epoch."""
    random = np.random.RandomState(0)
    x, y = random.randn(50, 6).astype(np.float32), random.randint(0, 3, 50)
    rates, epochs, batch = [8.0, 64.0], 3, 16  # 9 steps
    recipe = probe.Recipe(optimizer, epochs, warmup, batch, normalize=normalize)
    begun: list[int] = []
    probes = probe.train_probes(x, y, 3, rates, recipe, seed=5, before_epoch=lambda: begun.append(1))
    assert len(begun) == epochs
    module, first = probe.LinearProbe(3, normalize=normalize), round(3 * warmup)
    for number, rate in enumerate(rates):

        def schedule(step: jax.Array, peak: float = rate * batch / 256) -> jax.Array:
            falling = (1 + jnp.cos(jnp.pi * (step - first) / (9 - first))) / 2
            return peak * jnp.where(step < first, step / max(1, first), falling)

        more = {"by_rank": True} if optimizer == "lars" else {}
        chain = create_optimizer(optimizer, schedule, weight_decay=0.0, momentum=0.9, **more)
        variables = module.init(jax.random.key(5), jnp.zeros((1, 6)), train=False)
        params = variables["params"]
        state = probe.ProbeState(params, variables.get("batch_stats", {}), chain.init(params))
        step = probe.make_probe_step(module, chain)
        for epoch in range(epochs):
            for rows in order.permutation(5, epoch, 50)[: 50 // batch * batch].reshape(-1, batch):
                state, _ = step(state, jnp.asarray(x[rows]), jnp.asarray(y[rows]))
        mine = jax.tree.map(lambda a, n=number: a[n], probes.variables)
        alone = {"params": state.params, "batch_stats": state.batch_stats}
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(
            probes.scores(jnp.asarray(x))[number], module.apply(alone, x, train=False), rtol=1e-4, atol=1e-5
        )


def test_a_probe_by_numpy():
    """SGD with momentum on the whole split, whose gradient is x^T (p - t) / n, in float64."""
    random = np.random.RandomState(0)
    x, y = random.randn(30, 4), random.randint(0, 3, 30)
    recipe = probe.Recipe(epochs=7, batch_size=1000)
    found = probe.train_probes(x.astype(np.float32), y, 3, [256 / 30], recipe, seed=2).variables["params"]["fc"]
    start = probe.LinearProbe(3, normalize=False).init(jax.random.key(2), jnp.zeros((1, 4)), train=False)
    weights = {"kernel": np.asarray(start["params"]["fc"]["kernel"], np.float64), "bias": np.zeros(3)}
    momenta = {name: np.zeros_like(value) for name, value in weights.items()}
    for step in range(7):
        logits = x @ weights["kernel"] + weights["bias"]
        errors = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(3)[y]
        gradients = {"kernel": x.T @ errors / 30, "bias": errors.mean(0)}
        for name, gradient in gradients.items():
            momenta[name] = 0.9 * momenta[name] + gradient
            weights[name] = weights[name] - (1 + np.cos(np.pi * step / 7)) / 2 * momenta[name]
    for name, value in weights.items():
        np.testing.assert_allclose(found[name][0], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("knn", {"k": 0}, "k is 0"),
        ("knn", {"temperature": 0.0}, "temperature is 0.0"),
        ("knn", {"train_examples": 0}, "train_examples is 0"),
        ("ridge", {"shots": 0}, "shots is 0"),
        ("logistic", {"held_out": 1.0}, "held_out is 1.0"),
        ("ridge", {"shots": 2.5}, "shots is 2.5: give a positive integer"),
        ("logistic", {"l2": ()}, r"l2 is \(\)"),
        ("logistic", {"l2": ("a",)}, "l2 is"),
        ("linear_probe", {"optimizer": "adam"}, "optimizer is 'adam': there are: sgd, lars"),
        ("linear_probe", {"epochs": 0}, "epochs is 0"),
        ("linear_probe", {"epochs": 5, "warmup_epochs": 5.0}, "warmup_epochs is 5.0: give 0 or more, and less than 5"),
        ("linear_probe", {"momentum": 1.0}, "momentum is 1.0"),
        ("linear_probe", {"learning_rates": (0.1, -1.0)}, "learning_rates is"),
    ],
)
def test_options_out_of_range(kind: str, options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        EVALUATORS[kind](context=None, **options)


def test_the_examples_to_learn_from_are_decided_by_the_seed():
    """Some of the smaller number are all among the larger, and there are as many shots of each class as asked for."""
    knn, ridge = (made()[0][name] for name in ("knn", "ridge"))
    labels = np.array([label for _, label in knn.context.train.source.records])
    few, more = (dataclasses.replace(knn, train_examples=n).chosen() for n in (10, 30))
    assert len(few) == 10
    assert list(dataclasses.replace(knn, train_examples=1000).chosen()) == list(range(len(labels)))  # all there are
    assert sorted(few) == list(few)
    assert set(few) < set(more)
    other = dataclasses.replace(knn, train_examples=30, context=dataclasses.replace(knn.context, seed=1))
    assert set(other.chosen()) != set(more)
    for wanted in (1, 6, 1000):
        shots = dataclasses.replace(ridge, shots=wanted).chosen()
        assert np.bincount(labels[shots], minlength=CLASSES).tolist() == [
            min(wanted, n) for n in np.bincount(labels, minlength=CLASSES)
        ]
    assert set(dataclasses.replace(ridge, shots=2, train_examples=30).chosen()) < set(more)


def test_damaged_images_of_both_splits_are_left_out(caplog: pytest.LogCaptureFixture):
    """As many as there may be; the result is that without them."""
    config, (evaluators, objective, variables) = config_lib.default_config(), made()
    config.model.name, config.data.source = "lenet5", "synthetic"
    config.data.image_size = config.data.eval_resize = 16
    config.eval.batch_size, config.data.max_bad_eval_records = 8, 1
    with config.unlocked():
        config.evals = {"knn": KINDS["knn"]}
    found = {}
    for whole in (False, True):
        splits = pictures(1, 45), pictures(2, 61)
        for number, split in zip((44, 3), splits, strict=True):
            if whole:
                del split.records[number]
            else:
                split.records[number] = (b"\xff\xd8 no image", 0)
        mesh = evaluators["knn"].context.mesh
        made_ = build.make_evaluators(config, objective, mesh, splits[0], train_source=splits[1])
        with caplog.at_level(logging.WARNING):
            found[whole] = evaluate.measure(made_, objective, variables)
    assert found[False] == found[True]
    assert found[True]["knn/count"] == 44
    for there in (45, 61):
        assert f"1 of {there} examples are damaged and left out" in caplog.text


def test_a_class_without_votes_is_not_among_the_best_five():
    """Of six classes, the three neighbors have two; and of equal votes the lower class is better."""
    scores = jnp.array([[[-math.inf, 2.0, -math.inf, -math.inf, 2.0, -math.inf]] * 3])
    found = frozen.accuracies(lambda rows: scores[:, rows], np.array([0, 1, 4]))
    assert found[:, 0].tolist() == [1 / 3, 2 / 3]


@pytest.mark.parametrize("cosine", [False, True])
def test_neighbors_by_all_devices(cosine: bool):
    """Blocks of queries on each of eight devices, with some left over, of items with ties."""
    random = np.random.RandomState(0)
    queries, items = random.randn(45, 5).astype(np.float32), random.randn(33, 5).astype(np.float32)
    items[20] = items[4]
    similarities = queries @ items.T
    if cosine:
        similarities /= np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(items, axis=1)
    expected = np.argsort(-similarities, 1, kind="stable")[:, :6]
    for query_block in (2, 45):
        found, numbers = neighbors.nearest(queries, items, 6, cosine=cosine, query_block=query_block, item_block=10)
        assert (numbers == expected).all()
        np.testing.assert_allclose(found, np.take_along_axis(similarities, expected, 1), rtol=1e-5)


def test_features_that_are_not_finite():
    evaluators, objective, variables = made()
    broken = {**variables, "": jax.tree.map(lambda x: x * math.nan, variables[""])}
    found = evaluate.measure({"knn": evaluators["knn"]}, objective, broken)
    assert math.isnan(found["knn/top1"])
    probes = evaluate.measure({"probe": evaluators["probe"]}, objective, {**variables, "ema_": broken[""]})
    assert "ema_learning_rate" not in probes
    assert evaluate.format_results(probes).splitlines()[2].split() == ["EMA", "nan%", "nan%", "nan", "45"]
    assert found["knn/ema_top1"] == results()[0]["knn/ema_top1"]


def test_memory_is_freed_when_an_evaluation_is_stopped():
    class Stop:
        def should_stop(self) -> bool:
            return False

        def noticed(self) -> bool:
            return True

    evaluators, objective, variables = made()
    knn = evaluators["knn"]
    stopped = dataclasses.replace(knn, context=dataclasses.replace(knn.context, preemption=Stop()))
    with pytest.raises(Interrupted):
        evaluate.measure({"knn": stopped}, objective, variables)
    assert not knn.context.train._kept


def test_heads_beside_the_backbone_do_not_matter():
    """Of an objective without classes, whose head is at the root of the parameters."""
    config = config_lib.default_config()
    config.model.name, config.objective.name, config.data.source = "lenet5", "rotation", "synthetic"
    config.data.image_size = config.data.eval_resize = 16
    config.eval.batch_size = 8
    with config.unlocked():
        config.evals = {"val": {"kind": "knn", "k": 7}}
    mesh = made()[0]["knn"].context.mesh
    objective = build.make_objective(config, CLASSES)
    variables = sharding.place(
        jax.device_get(jax.jit(lambda: build.initialize(objective, jax.random.key(0)))()), sharding.replicated(mesh)
    )
    body = build.without_heads(objective, variables)
    assert variables["params"].keys() > body["params"].keys()
    found = []
    for prefixed in ({"": variables}, {"": body}):
        evaluators = build.make_evaluators(config, objective, mesh, pictures(1, 45), train_source=pictures(2, 61))
        found.append(evaluate.measure(evaluators, objective, prefixed))
    assert found[0] == found[1]
    assert found[0].keys() == {"val/count", "val/top1", "val/top5", "val/spread", "val/effective_rank"}


@pytest.mark.slow
@pytest.mark.exhaustive
def test_digits_by_their_neighbors(cache: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """After six epochs; while training, and of its checkpoint."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    config = loading.load(str(REPOSITORY / "configs" / "quickstart.py"))
    config.total_steps, config.schedule.warmup_epochs, config.log.tensorboard = 132, 0.0, False
    config.eval.every_steps = 132
    with config.unlocked():
        config.evals = {"val": {"kind": "knn"}}
    train.train_and_evaluate(config, tmp_path)
    written = records(tmp_path)[-1]
    assert written["val/count"] == 360
    assert written["val/top1"] > 0.9
    assert written["val/top5"] > written["val/top1"]
    _, again = evaluate.evaluate_checkpoint(tmp_path)
    assert again == pytest.approx({name: value for name, value in written.items() if name in again})


def test_training_opens_the_split_that_evaluations_learn_from():
    config = config_lib.default_config()
    assert not build.learns_from_training(config)
    with config.unlocked():
        config.evals.knn = {"kind": "knn"}
    assert build.learns_from_training(config)
    assert isinstance(made()[0]["knn"].context.train, Bank)
