"""Measures against metrics.*.json: one test for each case, and of suites for each set; see README.md."""

import json
import math
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from references import common
from references.common import near

from vision_jax.evaluators import calibration, features, ood, per_class, retrieval, suites
from vision_jax.metrics import classification_sums

TOLERANCE = 1e-5


def read_cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns (kind, case) of every case of the files, by what the tests are called."""
    found = {}
    for path in common.files("eval", "metrics.*.json"):
        kind, content = path.name.split(".")[1], json.loads(path.read_text())
        for number, case in enumerate(content if isinstance(content, list) else [content]):
            key = f"{path.name}:{case.get('name', number)}"
            if kind == "suites":  # one for each set, with the logits that they share
                shared = {name: case[name] for name in ("name", "n", "classes")}
                found |= {f"{key}/{name}": (name, {**shared, **case[name]}) for name in case.keys() - shared.keys()}
            else:
                found[key] = (kind, case)
    return dict(sorted(found.items()))


CASES = read_cases()


def check_classification(case: dict[str, Any]) -> None:
    classes, count = case["classes"], case["n"]
    logits, labels = common.scores(case["name"], count, classes, case["absent"], case["never"])
    # Two batches with padding, whose sums are added up as in an evaluation.
    size = count // 2 + 1
    sums: dict[str, Any] = {}
    for rows in (np.arange(size), np.arange(size, 2 * size)):
        mask = jnp.asarray(rows < count, jnp.float32)
        batch = jnp.asarray(logits[rows % count]), jnp.asarray(labels[rows % count]), mask
        for name, value in (classification_sums(*batch) | per_class.confusion_sums(*batch)).items():
            sums[name] = sums.get(name, 0) + np.asarray(value)
    confusion, support = sums["confusion"], sums["support"]
    each = per_class.class_scores(confusion, support)
    before = calibration.probability_scores(logits, labels)
    temperature = calibration.fit_temperature(logits, labels)
    after = calibration.probability_scores(logits, labels, temperature=case["temperature"])
    everywhere = per_class.averages(confusion, support, all_classes=True)
    present = per_class.averages(confusion, support)
    found = {
        "top1": sums["top1"] / sums["count"],
        "top5": sums["top5"] / sums["count"],
        "confusion": confusion,
        "confusion_normalized_true": confusion / np.maximum(support, 1)[:, None],
        "support": support,
        **each,
        "per_class_sums": [*(each[name].sum() for name in ("precision", "recall", "f1")), support.sum()],
        "balanced_accuracy": per_class.balanced_accuracy(confusion, support),
        **{name: before[name] for name in ("nll", "brier")},
        "max_softmax_mean": before["confidence"],
    }
    assert int(sums["count"]) == count
    near(sums["loss"] / count, case["nll"], TOLERANCE)
    for key, expected in case.items():
        if key in ("name", "n", "classes", "absent", "never"):
            continue
        if key in found:
            near(found[key], expected, TOLERANCE)
        elif key == "temperature":
            near(temperature, expected, 1e-3)
        elif key == "after_temperature":
            near([after[name] for name in expected], list(expected.values()), TOLERANCE)
        elif match := re.fullmatch(r"calibration_(\d+)", key):
            of_bins = calibration.probability_scores(logits, labels, bins=int(match[1]))
            near([of_bins[name] for name in expected], list(expected.values()), TOLERANCE)
        elif match := re.fullmatch(r"(macro|micro|weighted)(_present)?", key):
            means = (present if match[2] else everywhere)[match[1]]
            near([means[name] for name in expected], list(expected.values()), TOLERANCE)
        elif match := re.fullmatch(r"torchmetrics_(macro|micro|weighted)", key):
            near([present[match[1]][name] for name in expected], list(expected.values()), TOLERANCE)
        else:
            pytest.fail(f"there is no reader for {key}")


def check_calibration_edges(case: dict[str, Any]) -> None:
    near(np.linspace(0, 1, case["bins"] + 1), case["edges"], 1e-12)
    sums = calibration.bin_sums(np.array(case["confidence"]), np.array(case["correct"]), case["bins"])
    errors, expected = calibration.calibration_errors(sums), case["closed_left"]  # the convention here
    near([errors[name] for name in expected], list(expected.values()), TOLERANCE)


def check_ood(case: dict[str, Any]) -> None:
    inside, _ = common.scores(case["in"], case["n_in"], case["classes"])
    outside = np.float32(case["out_scale"]) * common.normal(case["out"], (case["n_out"], case["classes"]))
    for name in case.keys() - {"in", "out", "n_in", "n_out", "classes", "out_scale", "name"}:
        found = ood.separation(ood.SCORES[name](inside), ood.SCORES[name](outside))
        near([found[measure] for measure in case[name]], list(case[name].values()), TOLERANCE)


def check_retrieval(case: dict[str, Any]) -> None:
    raw, labels = common.features(case["name"], case["n"], case["dim"], case["classes"])
    normalized = features.normalize(raw)
    ks = tuple(sorted({int(k) for k in (*case["recall_at_k"], *case["share_of_positives_in_top_k"])}))
    # Blocks that do not divide the number of queries.
    rankings = retrieval.rank_by_class(normalized, labels, ks=ks, block=50)
    means = rankings.means()
    for key, expected in case.items():
        if key in ("name", "n", "dim", "classes", "smallest_gap", "revisited"):
            continue
        if key in means:
            near(means[key], expected, TOLERANCE)
        elif key in ("recall_at_k", "share_of_positives_in_top_k"):
            prefix = key.split("_")[0]
            near([means[f"{prefix}@{k}"] for k in expected], list(expected.values()), TOLERANCE)
        elif key == "first_average_precisions":
            found = rankings.average_precision[rankings.positives > 0][: len(expected)]
            near(found, expected, TOLERANCE)
        elif key == "knn":
            check_neighbors(expected, np.asarray(normalized), labels, case["classes"])
        elif key == "revisited_map":
            queries = len(case["revisited"])  # the first items; the others are numbered on
            truth = [{name: np.array(v, int) - queries for name, v in one.items()} for one in case["revisited"]]
            for setting, value in expected.items():
                arguments = normalized[:queries], normalized[queries:], truth, setting
                near(retrieval.rank_revisited(*arguments).means()["map_trapezoid"], value, TOLERANCE)
        else:
            pytest.fail(f"there is no reader for {key}")


def check_neighbors(case: dict[str, Any], normalized: np.ndarray, labels: np.ndarray, classes: int) -> None:
    memory, temperature = case["memory"], case["temperature"]
    for k in case.keys() - {"memory", "temperature"}:
        # Blocks that divide neither the queries nor the items.
        similarities, numbers = features.nearest(
            normalized[memory:], normalized[:memory], int(k), query_block=17, item_block=23
        )
        neighbors = labels[:memory][numbers]
        expected = case[k]
        votes = features.neighbor_votes(similarities, neighbors, classes, temperature)
        assert np.argmax(votes, -1).tolist() == expected["predictions"]
        near(features.top1(votes, labels[memory:]), expected["accuracy"], TOLERANCE)
        counts = features.neighbor_votes(similarities, neighbors, classes, math.inf)
        near(features.top1(counts, labels[memory:]), expected["majority_accuracy"], TOLERANCE)


def check_real(case: dict[str, Any]) -> None:
    logits, _ = common.scores(case["name"], case["n"], case["classes"])
    found = suites.multi_label_accuracy(np.asarray(suites.top_classes(logits)), case["labels"])
    assert found["count"] == case["scored"]
    near([found["top1"], found["top5"]], [case["top1"], case["top5"]], TOLERANCE)
    near(found["top1"] * found["count"] / case["n"], case["all_as_denominator_is_wrong"], TOLERANCE)


def check_subset(case: dict[str, Any], published: tuple[int, ...]) -> None:
    classes, targets, boosted = (np.array(case[name]) for name in ("indices", "targets", "boosted"))
    assert tuple(classes) == published
    logits, _ = common.scores(case["name"], case["n"], case["classes"])
    logits[boosted, classes[targets[boosted]]] += np.float32(4.0)
    best = np.asarray(suites.top_classes(logits, among=classes))
    assert best[:, 0].tolist() == case["predictions"]
    found = suites.accuracy(best, targets)
    near([found["top1"], found["top5"]], [case["top1"], case["top5"]], TOLERANCE)
    of_all = suites.accuracy(np.asarray(suites.top_classes(logits)), classes[targets])
    near(of_all["top1"], case["top1_of_1000_is_wrong"], TOLERANCE)


def check_imagenet_v2(case: dict[str, Any]) -> None:
    folders = case["folders_sorted_as_strings"]
    assert suites.imagenet_v2_classes(folders) == case["index_of_these"]
    ranked = suites.imagenet_v2_classes(sorted(map(str, range(case["classes"]))))
    assert sum(rank != label for rank, label in enumerate(ranked)) == case["wrong_if_ranked_as_strings"]


def check_imagenet_c(case: dict[str, Any]) -> None:
    assert case["alexnet_error"] == suites.ALEXNET_ERRORS
    baseline = {"baseline": case["alexnet_error"], "baseline_clean_error": case["alexnet_clean_error"]}
    found = suites.corruption_errors(case["errors"], case["clean_error"], **baseline)
    near([found["mce"], found["relative_mce"]], [case["mce"], case["relative_mce"]], TOLERANCE)
    for kind in ("ce", "relative_ce"):
        near([found[f"{kind}/{name}"] for name in case[kind]], list(case[kind].values()), TOLERANCE)
    near(found["error"], case["mean_corruption_error"], TOLERANCE)
    half = suites.corruption_errors(dict.fromkeys(case["errors"], [0.5] * 5), 0.0, **baseline)
    near(half["mce"], case["mce_of_half"], TOLERANCE)


READERS = {
    "classification": check_classification,
    "calibration_edges": check_calibration_edges,
    "ood": check_ood,
    "retrieval": check_retrieval,
    "real": check_real,
    "imagenet_a": lambda case: check_subset(case, suites.IMAGENET_A_CLASSES),
    "imagenet_r": lambda case: check_subset(case, suites.IMAGENET_R_CLASSES),
    "imagenet_v2": check_imagenet_v2,
    "imagenet_c": check_imagenet_c,
}


@pytest.mark.parametrize("name", CASES)
def test_measures_agree_with_the_references(name: str):
    kind, case = CASES[name]
    assert kind in READERS, f"there is no reader for {kind}"
    READERS[kind](case)
