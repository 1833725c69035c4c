"""Evaluators of logits against plain loops and scikit-learn, and what becomes of their tables."""

import functools
import json
import logging
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from conftest import Pictures, records

from vision_jax import build, evaluate, train
from vision_jax import config as config_lib
from vision_jax.config.plan import metric_directions
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError, DataError
from vision_jax.evaluators import EVALUATORS, calibration, collect, per_class, suites


def random_sums(examples: int, classes: int, seed: int = 0):
    """Labels and predictions that miss some of the classes, and their confusion matrix."""
    random = np.random.RandomState(seed)
    labels, predictions = random.randint(0, classes - 2, examples), random.randint(1, classes - 1, examples)
    logits = jax.nn.one_hot(predictions, classes)
    sums = per_class.confusion_sums(logits, jnp.asarray(labels), jnp.ones(examples))
    return labels, predictions, np.asarray(sums["confusion"]), np.asarray(sums["support"])


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_classes_are_those_of_scikit_learn(seed: int):
    """With a class that is no label and one that is never predicted, in which classes count, and how."""
    labels, predictions, confusion, support = random_sums(40, 9, seed)
    everything = np.arange(9)
    assert (confusion == sklearn.metrics.confusion_matrix(labels, predictions, labels=everything)).all()
    options = {"labels": everything, "average": None, "zero_division": 0}
    expected = sklearn.metrics.precision_recall_fscore_support(labels, predictions, **options)
    scores = per_class.class_scores(confusion, support)
    np.testing.assert_allclose([*scores.values(), support], expected, atol=1e-12)
    for all_classes in (False, True):
        means = per_class.averages(confusion, support, all_classes=all_classes)
        for mean, found in means.items():
            options = {"labels": everything if all_classes else None, "average": mean, "zero_division": 0}
            expected = sklearn.metrics.precision_recall_fscore_support(labels, predictions, **options)[:3]
            np.testing.assert_allclose(list(found.values()), expected, atol=1e-12)
    found = per_class.balanced_accuracy(confusion, support)
    assert found == pytest.approx(np.mean([(predictions == label)[labels == label].mean() for label in set(labels)]))


def test_padding_and_nan_in_a_confusion_matrix():
    """Padding counts nowhere, an example with a NaN as one that is predicted as nothing, and the first of ties wins."""
    logits = jnp.array([[1.0, 1, 0], [0, math.nan, 2], [0, 0, 5], [9, 0, 0]])
    sums = per_class.confusion_sums(logits, jnp.array([1, 2, 2, 0]), jnp.array([1.0, 1, 1, 0]))
    assert sums["confusion"].tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert sums["support"].tolist() == [0, 1, 2]
    micro = per_class.averages(*(np.asarray(sums[name]) for name in ("confusion", "support")))["micro"]
    assert micro["recall"] == pytest.approx(1 / 3)


def test_most_frequent_confusions():
    confusion = np.array([[9, 2, 0], [5, 0, 2], [2, 0, 3]])
    assert per_class.most_frequent_confusions(confusion, 3) == [(1, 0, 5), (0, 1, 2), (1, 2, 2)]
    assert len(per_class.most_frequent_confusions(confusion, 10)) == 4
    assert per_class.most_frequent_confusions(np.diag([3, 4]), 10) == []


def test_calibration_against_loops(monkeypatch: pytest.MonkeyPatch):
    """In blocks of a few examples."""
    monkeypatch.setattr(calibration, "_BLOCK_ELEMENTS", 64)
    random = np.random.RandomState(0)
    logits, labels = 3 * random.randn(50, 6).astype(np.float32), random.randint(0, 6, 50)
    found = calibration.probability_scores(logits, labels, temperature=1.7, bins=4)
    p = np.exp(logits.astype(np.float64) / 1.7)
    p /= p.sum(1, keepdims=True)
    gaps = []
    for low in (0, 0.25, 0.5, 0.75):
        inside = [i for i in range(50) if low <= p[i].max() < low + 0.25 or (low == 0.75 and p[i].max() == 1)]
        if inside:
            accuracy = np.mean([p[i].argmax() == labels[i] for i in inside])
            gaps.append((len(inside) / 50, abs(accuracy - np.mean([p[i].max() for i in inside]))))
    expected = {
        "nll": np.mean([-np.log(p[i, labels[i]]) for i in range(50)]),
        "brier": np.mean([sum((p[i, c] - (c == labels[i])) ** 2 for c in range(6)) for i in range(50)]),
        "ece": sum(share * gap for share, gap in gaps),
        "mce": max(gap for _, gap in gaps),
        "rms": math.sqrt(sum(share * gap**2 for share, gap in gaps)),
        "confidence": p.max(1).mean(),
    }
    assert found == pytest.approx(expected, rel=1e-9)


def test_temperatures():
    """The best of a fine grid; the limits, where there is no best one; and NaN of what is not finite."""
    random = np.random.RandomState(0)
    logits, labels = 4 * random.randn(60, 5), random.randint(0, 5, 60)
    logits[np.arange(60), labels] += 3
    temperature = calibration.fit_temperature(logits, labels)

    def nll(t: float) -> float:
        return calibration.probability_scores(logits, labels, temperature=t)["nll"]

    assert temperature == pytest.approx(min(np.geomspace(0.1, 50, 1000), key=nll), rel=1e-2)
    assert calibration.fit_temperature(0.1 * np.eye(4), np.arange(4)) == pytest.approx(0.01)
    assert 0.1 < calibration.fit_temperature(5.0 * np.eye(4), np.arange(4)) < 0.2  # exp(-5 / 0.13) is lost beside 1
    assert calibration.fit_temperature(5.0 * np.eye(4), np.arange(4)[::-1]) == pytest.approx(100)
    logits[7, 1] = math.nan
    assert math.isnan(calibration.fit_temperature(logits, labels))
    assert math.isnan(calibration.probability_scores(logits, labels)["nll"])


def config_of(**evals: dict):
    config = config_lib.default_config()
    config.model.name, config.data.source = "lenet5", "synthetic"
    config.data.image_size = config.data.eval_resize = 16
    config.eval.batch_size = 8
    with config.unlocked():
        config.evals = evals
    return config


def test_evaluators_measure_all_examples_once(caplog: pytest.LogCaptureFixture):
    """On four devices with a batch that is not full, of weights and their average, with mirrored images."""
    config = config_of(classes={"kind": "per_class", "confusions": 2}, calibration={"kind": "calibration", "bins": 7})
    config.eval.flip = True
    source = Pictures(np.random.RandomState(1).randint(0, 4, 21).tolist(), size=20, num_classes=5)
    source.class_names = ("ant", "bee", "cat", "dog", "elk")
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:4])
    objective = build.make_objective(config, 5)
    initialize = jax.jit(functools.partial(build.initialize, objective))
    variables = {
        prefix: jax.device_put(initialize(jax.random.key(seed)), sharding.replicated(mesh))
        for seed, prefix in enumerate(("", "ema_"))
    }
    evaluators, tables = build.make_evaluators(config, objective, mesh, source), {}
    with caplog.at_level(logging.INFO):
        results = evaluate.measure(evaluators, objective, variables, keep_tables=tables.update)
    assert metric_directions(config).keys() | {"classes/count", "calibration/count"} == results.keys() - {
        "calibration/temperature",
        "calibration/ema_temperature",
    }
    assert results["classes/count"] == results["calibration/count"] == 21

    evaluator = evaluators["calibration"]
    step = evaluator.context.compile(evaluator.make_step(objective), variables)
    rows = collect(evaluator.context, step, variables)
    labels = np.array([label for _, label in source.records])
    assert (rows["label"] == labels).all()
    for prefix in variables:
        logits = rows[f"{prefix}logits"]
        predictions = logits.argmax(1)
        accuracy = (predictions == labels).mean()
        for name in ("precision", "recall", "f1"):
            assert results[f"classes/{prefix}micro_{name}"] == pytest.approx(accuracy)
        table = tables[f"classes/{prefix}classes"]
        assert table["classes"] == list(source.class_names)
        assert table["support"] == np.bincount(labels, minlength=5).tolist()
        matrix = sklearn.metrics.confusion_matrix(labels, predictions, labels=range(5))
        assert {(i, j): n for i, j, n in table["confusion"]} == {
            (i, j): matrix[i, j] for i in range(5) for j in range(5) if matrix[i, j]
        }
        label, predicted, number, of = table["confusions"][0]
        assert f"{label} as {predicted}: {number} of {of}" in caplog.text
        temperature = results[f"calibration/{prefix}temperature"]
        assert temperature == calibration.fit_temperature(logits[::2], labels[::2])
        expected = calibration.probability_scores(logits, labels, bins=7)
        half = calibration.probability_scores(logits[1::2], labels[1::2], temperature=temperature, bins=7)
        for name in ("nll", "brier", "ece", "mce", "rms"):
            assert results[f"calibration/{prefix}{name}"] == pytest.approx(expected[name], rel=1e-5)
            assert results[f"calibration/{prefix}scaled_{name}"] == pytest.approx(half[name], rel=1e-5)
    text = evaluate.format_results(results)
    assert len({len(line) for line in text.splitlines()[:3]}) == 1
    assert "  macro_precision" in text


def test_a_temperature_needs_two_examples():
    config = config_of(calibration={"kind": "calibration"})
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    objective = build.make_objective(config, 5)
    variables = jax.jit(lambda: build.initialize(objective, jax.random.key(0)))()
    made = build.make_evaluators(config, objective, mesh, Pictures([0], size=20, num_classes=5))
    with pytest.raises(DataError, match="There is one example"):
        evaluate.measure(made, objective, {"": variables})


def test_tables_of_a_run_are_kept(tmp_path: pathlib.Path):
    """One line for each evaluation, also of --mode=eval; those after the step that a run resumes from are dropped."""
    config = config_of(val={}, classes={"kind": "per_class"})
    config.data.synthetic_train_examples = config.data.synthetic_val_examples = 16
    config.model.num_classes, config.batch_size, config.total_steps = 10, 8, 4
    config.eval.every_steps, config.schedule.warmup_epochs, config.log.tensorboard = 2, 0.0, False

    def lines() -> list[dict]:
        return [json.loads(line) for line in (tmp_path / "tables.jsonl").read_text().splitlines()]

    with (tmp_path / "tables.jsonl").open("w") as file:  # as of a run that was killed before its first checkpoint
        file.write('{"step": 2, "classes/classes": {"support": []}}\n{"step": 4, "cla')
    train.train_and_evaluate(config, tmp_path)
    evaluate.evaluate_checkpoint(tmp_path)
    assert [(line["step"], line.get("mode")) for line in lines()] == [(2, None), (4, None), (4, "eval")]
    assert all(sum(line["classes/classes"]["support"]) == 16 for line in lines())
    last = records(tmp_path)[-1]
    assert last["mode"] == "eval"
    assert last["classes/micro_f1"] == pytest.approx(last["val/top1"])
    assert not any("classes/classes" in line for line in records(tmp_path))

    # As if it had been killed between the tables and the other results of step 4.
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"step": 2' in line))
    train.train_and_evaluate(config, tmp_path)
    assert [(line["step"], line.get("mode")) for line in lines()] == [(2, None), (4, None)]


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        ("rotation", {"kind": "per_class"}, "kind is 'per_class', but the objective rotation trains no classifier"),
        (None, {"kind": "calibration", "bin": 3}, "evals.val.bin is no option of Calibration: did you mean bins"),
    ],
)
def test_wrong_evaluations(objective: str | None, options: dict, message: str):
    config = config_of(val=options)
    config.objective.name = objective
    with pytest.raises(ConfigError) as caught:
        config_lib.validate(config, 1)
    assert message in str(caught.value)


@pytest.mark.parametrize(("kind", "options"), [("calibration", {"bins": 0}), ("per_class", {"confusions": -1})])
def test_values_out_of_range(kind: str, options: dict):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} is {next(iter(options.values()))}"):
        EVALUATORS[kind](context=None, **options)


def test_lists_of_labels():
    """Any label counts, examples without labels do not, and one with NaN among its logits is wrong."""
    logits = jnp.array([[0.0, 3, 2, 1], [5, 0, 0, 0], [1, 0, 0, math.nan], [0, 1, 1, 0]])
    best = np.asarray(suites.top_classes(logits, 2))
    assert best.tolist() == [[1, 2], [0, 1], [-1, -1], [1, 2]]
    found = suites.multi_label_accuracy(best, [[2, 0], [], [0, 3], (1,)])
    assert found == {"top1": 1 / 3, "top5": 2 / 3, "count": 3}
    assert suites.top_classes(logits, 5, among=[3, 1]).tolist() == [[1, 0], [0, 1], [-1, -1], [1, 0]]
    with pytest.raises(DataError, match="predictions of 4 examples, and labels of 1"):
        suites.accuracy(best, [1])
    with pytest.raises(DataError, match="None of 4 examples has a label"):
        suites.multi_label_accuracy(best, [[]] * 4)


def test_faults_of_suites_are_named():
    for name in ("n01440764", "007", "1000", "-1"):
        with pytest.raises(DataError, match=f"'{name}' is no class of ImageNet-V2"):
            suites.imagenet_v2_classes(["0", name])
    errors = {name: [0.5] * 5 for name in suites.ALEXNET_ERRORS if name != "fog"} | {"rain": [0.1]}
    with pytest.raises(DataError, match=r"\['fog'\] are missing, and \['rain'\] are not among them"):
        suites.corruption_errors(errors, 0.2)
    for classes in (suites.IMAGENET_A_CLASSES, suites.IMAGENET_R_CLASSES):
        assert len(set(classes)) == 200
        assert list(classes) == sorted(classes)
