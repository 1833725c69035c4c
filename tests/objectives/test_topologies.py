"""Steps of all methods without labels or with attacks: on one device, eight, and in two processes; and killed runs."""

import functools
import json
import pathlib
import re
import signal
import time
from typing import Any

import jax
import numpy as np
import pytest
from chaos import TIMINGS
from conftest import REPOSITORY, Command, launch, records
from method_cases import BEFORE, FROZEN, METHODS, Case

from vision_jax.devices import sharding

# The others have nothing that these do not have; of them, the steps on other topologies are exhaustive tests.
OFTEN = ("mocov2",)
ALL = [name if name in OFTEN else pytest.param(name, marks=pytest.mark.exhaustive) for name in METHODS]


@functools.cache
def by_one_device(name: str) -> tuple[Case, list[Any], dict[str, float]]:
    """Returns a method on one device; its states, on the host, at first, and before and after a step; and its metrics.

    Before the step, the queue has been filled, the teacher is no copy any more, and what was frozen is trained.
    """
    case = Case(name, jax.devices()[:1])
    state = case.program.initialize()
    states = [jax.device_get(state)]  # the step takes over the arrays
    state, _ = case.train(state, 0, BEFORE)
    states.append(jax.device_get(state))
    state, metrics = case.train(state, BEFORE, BEFORE + 1)
    return case, [*states, jax.device_get(state)], metrics


def check_same(found: Any, expected: Any) -> None:
    """Two states are the same but for rounding: each array to 1e-4 of its largest value.

    Gradients that are zero but for rounding, as those of biases before a norm are, count as zero.
    """
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        tolerance = 1e-4 * np.abs(b).max(initial=0) + 1e-5
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("name", ALL)
def test_a_step_on_eight_devices(name: str):
    _, (_, before, expected), metrics = by_one_device(name)
    case = Case(name)
    assert case.mesh.size == 8
    state = sharding.place(before, jax.tree.map(lambda x: x.sharding, case.program.abstract_state))
    after, found = case.train(state, BEFORE, BEFORE + 1)
    assert found == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    assert found.keys() >= {"loss", "grad_norm", *case.objective.metrics}
    check_same(jax.device_get(after), expected)


@pytest.mark.parametrize("name", ALL)
def test_what_a_step_changes(name: str):
    """Parameters, teacher, queue and center; and at first, but for normalizing it again, not what is frozen then."""
    case, (initial, before, after), _ = by_one_device(name)
    for part in ("params", "ema", "extra"):
        old, new = (jax.tree.leaves(getattr(state, part)) for state in (before, after))
        assert not old or not all(map(np.array_equal, old, new)), part
    assert (after.ema is not None) == case.objective.teaches
    for path, old in jax.tree_util.tree_leaves_with_path(initial.params):
        if re.search(FROZEN.get(name, "^$"), "/".join(key.key for key in path)):
            first, later = (
                np.asarray(functools.reduce(lambda tree, key: tree[key.key], path, state.params))
                for state in (before, after)
            )
            np.testing.assert_allclose(first, old, atol=1e-6)
            assert not np.allclose(later, old, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("mocov2",),
        pytest.param(("barlow_twins", "byol", "simclr", "simsiam"), marks=pytest.mark.exhaustive),
        pytest.param(("dino", "mae", "mocov3", "simmim"), marks=pytest.mark.exhaustive),
        pytest.param(("rotation", "swav", "vicreg"), marks=pytest.mark.exhaustive),
        pytest.param(("adversarial", "advprop"), marks=pytest.mark.exhaustive),
        pytest.param(("free_adversarial", "trades"), marks=pytest.mark.exhaustive),
    ],
    ids="-".join,
)
def test_a_step_of_two_processes(command: Command, tmp_path: pathlib.Path, names: list[str]):
    """With four devices each, from a checkpoint of one, which has every bit; what they save is read by one again."""
    for name in names:
        case, (_, before, _), _ = by_one_device(name)
        case.save(tmp_path / name, BEFORE, sharding.place(before, sharding.replicated(case.mesh)))
        jax.tree.map(np.testing.assert_array_equal, case.restore(tmp_path / name, BEFORE), before)
    flags = "--xla_backend_optimization_level=0"
    launch(command, "method_cases", f"--directory={tmp_path}", *names, devices=4, timeout=300, XLA_FLAGS=flags)
    for name in names:
        case, (_, _, expected), _ = by_one_device(name)
        found = case.restore(tmp_path / f"{name}.after", BEFORE + 1)
        check_same(jax.device_get(found), expected)


RUN = ("--config.total_steps=40", "--config.eval.every_steps=40", "--config.checkpoint.every_steps=5")


def outcome(workdir: pathlib.Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns digests of every array of the last state, and all metrics but the timings."""
    about = json.loads((workdir / "checkpoints" / "40" / "about" / "metadata").read_text())
    lines = [{k: v for k, v in line.items() if not k.startswith(TIMINGS)} for line in records(workdir)]
    return about["arrays"], lines


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["adversarial", "byol", "dino", "free_adversarial", "mae", "mocov2", "swav"])
def test_a_run_that_is_killed_ends_bitwise_the_same(command: Command, tmp_path: pathlib.Path, name: str):
    """With its attacks, target network, center, perturbation, masks, queue and prototypes."""
    arguments = (f"--config=tests/method_cases.py:{name}", *RUN)
    tests = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
    command(*arguments, f"--workdir={tmp_path / 'whole'}", **tests)
    killed = tmp_path / "killed"
    process = command.start(*arguments, f"--workdir={killed}", **tests)
    while not (killed / "metrics.jsonl").exists() or not any(line["step"] >= 12 for line in records(killed)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "checkpoints" / "40").exists()
    assert "Going on from step" in command(*arguments, f"--workdir={killed}", **tests)
    (arrays, lines), (expected, expected_lines) = outcome(killed), outcome(tmp_path / "whole")
    assert arrays == expected
    assert lines == expected_lines
    kept = {"adversarial": "fc", "byol": "ema", "dino": "center", "free_adversarial": "perturbation", "mae": "decoder"}
    assert any(kept.get(name, "queue") in path for path in arrays)
