"""What becomes of steps whose numbers are bad: the run goes back, and on with the batches after them."""

import dataclasses
import json
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Pictures, records

from vision_jax import build, train
from vision_jax import config as config_lib
from vision_jax.data.order import BalancedOrder, OffsetOrder, TrainOrder
from vision_jax.devices import sharding
from vision_jax.errors import NonFiniteError
from vision_jax.runtime.preemption import Preemption
from vision_jax.runtime.tracker import Tracker

RECORDS, BATCH, STEPS = 120, 4, 14  # all within one epoch, so that a bad batch comes once


class Crash(Exception):
    """The process ends."""


class Never(Preemption):
    """Never tells a run to stop."""

    def should_stop(self) -> bool:
        return False

    def noticed(self) -> bool:
        return False


def configuration(**fields: Any):
    config = config_lib.default_config()
    config.batch_size, config.total_steps, config.schedule.warmup_epochs = BATCH, STEPS, 0.0
    config.model.name, config.ema_decay, config.compilation_cache = "lenet5", 0.9, ""
    config.data.update({"source": "synthetic", "image_size": 16, "eval_resize": 16, "channels": 1})
    config.data.update({"mean": (0.5,), "std": (0.5,)})
    config.optimizer.update({"learning_rate": 0.01, "momentum": 0.9})
    config.mesh.data = -1
    config.checkpoint.update({"every_steps": 4, "keep": 9})
    config.eval.update({"every_steps": 12, "batch_size": 40})
    config.log.update({"every_steps": 1, "tensorboard": False})
    config.guard.nonfinite = "rewind"
    for path, value in fields.items():
        node, _, name = path.rpartition("__")
        (config[node] if node else config)[name] = value
    return config


def record_of(batch: int) -> int:
    """Returns a record that is in a batch of the first epoch."""
    return int(TrainOrder(RECORDS, BATCH, 0).records(batch)[0])


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch):
    """Records whose batch makes everything NaN; the label of a record is its number."""
    records: list[int] = []
    source = Pictures(list(range(RECORDS)), 16, RECORDS)
    source.close = lambda: None
    monkeypatch.setattr(build, "create_source", lambda config, train: source)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    make_mesh, make_program = sharding.make_mesh, build.make_program
    monkeypatch.setattr(sharding, "make_mesh", lambda mesh: make_mesh(mesh, jax.devices()[:1]))

    made: list[Any] = []  # a test trains several times with the same functions: they are made and compiled once
    compile_steps = build.compile_steps

    def poisoned(*arguments: Any):
        return made[0] if made else made.append(poison_step(make_program(*arguments))) or made[0]

    def compiled(*arguments: Any):
        return made[1] if len(made) > 1 else made.append(compile_steps(*arguments)) or made[1]

    def poison_step(program: build.Program):

        def train_step(state: Any, batch: Any, constants: Any = None):
            state, metrics = program.train_step(state, batch, constants)
            bad = jnp.isin(batch["label"], jnp.array([*records, -1])).any()
            poison = jnp.where(bad, jnp.nan, 0.0)
            params = jax.tree.map(lambda x: x + poison, state.params)
            return state.replace(params=params), {**metrics, "loss": metrics["loss"] + poison}

        return dataclasses.replace(program, train_step=train_step)

    monkeypatch.setattr(build, "make_program", poisoned)
    monkeypatch.setattr(build, "compile_steps", compiled)
    return types.SimpleNamespace(records=records, source=source)


def run(config: Any, workdir: pathlib.Path, crash: tuple[int, int] = (-1, 1)):
    """Trains; with `crash`, (step, n), until so many steps are done for the n-th time."""
    (last, left), add = crash, Tracker.add

    def add_or_crash(tracker: Tracker, step: int, metrics: Any) -> None:
        nonlocal left
        add(tracker, step, metrics)
        left -= step == last
        if step == last and not left:
            raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracker, "add", add_or_crash)
        return train.train_and_evaluate(config, workdir, preemption=Never())


def by_hand(config: Any, source: Any, batches: list[int]):
    """Trains on the given batches, one after another."""
    plan = config_lib.make_plan(config, RECORDS)
    mesh = sharding.make_mesh(config.mesh)
    program = build.make_program(config, plan, build.make_objective(config, RECORDS, plan), mesh)
    state = program.initialize()
    compiled = build.compile_steps(build.trace_steps(config, plan, program, mesh))
    place = sharding.batch_placer(mesh, BATCH)
    with build.make_train_loader(config, plan, mesh, source) as loader:
        for number in batches:
            batch = loader.start(number)()
            state, _ = compiled(state, place(batch.arrays))
    return state


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_goes_back_and_past_the_bad_batches(poison, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    """Three times: before there is any checkpoint, then twice from the same one."""
    config = configuration()
    poison.records += [record_of(1), record_of(7), record_of(9)]
    # Step 2 sees batch 1: back to 0. Step 6 sees batch 7: back to 4, with batch 8. Step 6 sees batch 9: back to 4.
    batches = [2, 3, 4, 5, *range(10, 20)]
    state = run(config, tmp_path / "w")
    assert_same(state, by_hand(config, poison.source, batches))
    assert [message[:40] for message in caplog.messages if "GOING BACK" in message] == [
        "GOING BACK from step 2 to step 0, and on",
        "GOING BACK from step 6 to step 4, and on",
        "GOING BACK from step 6 to step 4, and on",
    ]
    written = records(tmp_path / "w")
    assert [line["step"] for line in written if "train/loss" in line] == [*range(1, STEPS + 1)]
    assert [line["step"] for line in written if "val/loss" in line] == [12, 14]
    assert [line.get("train/rewinds") for line in written if "train/loss" in line] == [1] * 4 + [3] * 10
    about = json.loads((tmp_path / "w" / "checkpoints" / str(STEPS) / "about" / "metadata").read_text())
    assert about["rewinds"] == [[2, 0], [6, 4], [6, 4]]

    # Killed before anything was saved after it went back, and later: the same bits.
    for crash in ((5, 3), (11, 1)):
        with pytest.raises(Crash):
            run(config, tmp_path / "killed", crash)
    assert_same(run(config, tmp_path / "killed"), state)
    keys = ("step", "train/loss", "train/rewinds", "val/loss")
    assert [[line.get(key) for key in keys] for line in records(tmp_path / "killed")] == [
        [line.get(key) for key in keys] for line in written
    ]

    with pytest.raises(NonFiniteError, match=r"At step 6 .*rewound 2 times, and guard\.max_rewinds allows no more"):
        run(configuration(guard__max_rewinds=2), tmp_path / "less")


@pytest.mark.parametrize("policy", ["rewind", "stop"])
def test_spikes(poison, tmp_path: pathlib.Path, policy: str):
    weights = [1.0] * RECORDS
    weights[record_of(6)] = 1000.0
    config = configuration(guard__spikes=policy, guard__spike_deviations=8.0, guard__window=4)
    config.loss.class_weights, config.total_steps = tuple(weights), 10
    if policy == "stop":
        with pytest.raises(NonFiniteError, match=r"At step 7 .* far above .*checkpoint is step 4"):
            run(config, tmp_path)
        return
    state = run(config, tmp_path)
    assert records(tmp_path)[-1]["step"] == 10
    assert records(tmp_path)[-2]["train/rewinds"] == 1
    assert records(tmp_path)[-2]["train/skipped_steps"] == 0  # it was not skipped but never made
    # Back from 7 to 4, and on with batch 7.
    assert_same(state, by_hand(config, poison.source, [*range(4), *range(7, 13)]))


def test_an_offset_order_is_the_same_order():
    for order in (TrainOrder(20, 4, 1, repeats=2), BalancedOrder(np.arange(20) % 3, 3, 4, 1)):
        later = OffsetOrder(order, 7)
        for step in (0, 3, 11):
            np.testing.assert_array_equal(later.records(step), order.records(step + 7))
            np.testing.assert_array_equal(later.visits(step), order.visits(step + 7))
