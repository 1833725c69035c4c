"""DINO and SwAV, which compare crops of two sizes: padding, devices, what begins late, resuming, wrong options."""

import itertools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_vit
from ml_collections import ConfigDict

from vision_jax import augment, build, recipes, train
from vision_jax import config as config_lib
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError, Preempted

OPTIONS: dict[str, dict[str, Any]] = {
    "dino": {"hidden": (16,), "bottleneck": 8, "out": 24, "koleo": 0.1},
    "swav": {"hidden": 16, "out": 8, "prototypes": 12, "queue": 32, "queue_epochs": 0},
}
FROZEN = {"dino": ("projector", "last_layer", "weight_v"), "swav": ("prototypes", "kernel")}
ROWS, EXAMPLES = 16, 1437
RANDOM = np.random.RandomState(0)
BATCH = {
    "image": RANDOM.randint(0, 256, (ROWS, 2, 16, 16, 1)).astype(np.uint8),
    "view1": RANDOM.randint(0, 256, (ROWS, 3, 8, 8, 1)).astype(np.uint8),
    "label": np.zeros(ROWS, np.int32),
    "mask": np.ones(ROWS, np.float32),
}


def configuration(name: str, **fields: Any) -> ConfigDict:
    """Of the digits, a transformer of one block, and what it has last frozen for two steps."""
    config = config_lib.default_config()
    config.objective = recipes.objective(name, **OPTIONS[name])
    config.update({"batch_size": ROWS, "total_steps": 6, "dtype": "float32", "compilation_cache": ""})
    config.model.update({"name": small_vit.NAME, "interpolate_positions": True, "drop_path_rate": 0.1})
    config.data.update({"source": "digits", "image_size": 16, "channels": 1, "mean": (0.3,), "std": (0.35,)})
    config.data.update({"views": "2x16:0.4-1,3x8:0.1-0.4", "eval_resize": 16})
    config.optimizer.update({"name": "adamw", "learning_rate": 0.002, "clip_parameter_norm": 3.0})
    steps_per_epoch = EXAMPLES // ROWS
    config.optimizer.frozen_until = (("^" + "/".join(FROZEN[name]) + "$", 2 / steps_per_epoch),)
    config.schedule.update({"warmup_epochs": 0.0, "name": "constant"})
    config.checkpoint.best_metric = "val/loss"
    config.log.update({"every_steps": 1, "tensorboard": False})
    config.update_from_flattened_dict(fields)
    return config


def objective(name: str, **fields: Any) -> Any:
    config = configuration(name, **fields)
    return build.make_objective(config, 10, config_lib.make_plan(config, EXAMPLES))


def at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


@pytest.mark.parametrize("name", OPTIONS)
def test_padding_does_not_count(name: str):
    """A validation loss of 11 images, of which there is one crop, and of the same ones with five that are masked."""
    mine = objective(name)
    variables = jax.jit(lambda: build.initialize(mine, jax.random.key(0)))()

    @jax.jit
    def loss(rows: Any) -> Any:
        keys = augment.example_keys(0, jnp.int32(0), ROWS)[: len(rows["mask"])]
        views, progress = mine.views(keys, rows), mine.progress(jnp.int32(0))
        assert views.keys() == {"image", "mask"}
        assert views["image"].shape[1] == 2
        extra = mine.init_extra(variables)
        targets = mine.targets(variables, variables, extra, {}, views, jax.random.key(1), progress, train=False)
        out = mine.loss(variables, views, targets, jax.random.key(2), progress, train=False)
        return {"loss": out.loss / out.weight, **{key: total / weight for key, (total, weight) in out.metrics.items()}}

    batch = {"image": BATCH["image"][:, 0], "mask": BATCH["mask"]}
    mask = np.arange(ROWS) < 11
    found = loss({**batch, "mask": mask.astype(np.float32)})
    expected = loss({key: values[mask] for key, values in batch.items()})
    assert found.keys() == set(mine.metrics)
    for key, value in found.items():
        assert float(value) == pytest.approx(float(expected[key]), rel=2e-5, abs=1e-6), key


@pytest.mark.parametrize("name", [pytest.param("dino", marks=pytest.mark.exhaustive), "swav"])
def test_steps_are_the_same_on_one_device_and_on_eight(name: str):
    """Of four steps, the first two leave what is frozen at first as it was; the queue is full after them."""
    # Adam would make steps of the rounding of gradients that are zero, as those of the keys' biases are.
    config = configuration(name, **{"optimizer.name": "sgd", "optimizer.learning_rate": 0.05})
    plan = config_lib.make_plan(config, EXAMPLES)
    mine, results = objective(name), []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = sharding.make_mesh(config.mesh, devices)
        program = build.make_program(config, plan, mine, mesh)
        batch = sharding.batch_placer(mesh, ROWS)(BATCH)
        state, seen = program.initialize(), []
        with jax.set_mesh(mesh):
            step = jax.jit(program.train_step)
            seen.append(jax.device_get(at(state.params, FROZEN[name])))
            for _ in range(4):
                state, metrics = step(state, batch)
                seen.append(jax.device_get(at(state.params, FROZEN[name])))
        results.append(jax.device_get((metrics, state)))
        for before, after in itertools.pairwise(seen[:3]):
            np.testing.assert_allclose(after, before, atol=1e-6)  # normalizing them again may round
        assert not np.allclose(seen[2], seen[3], atol=1e-4)
    (first, one), (second, eight) = results
    assert {*mine.metrics, "loss", "grad_norm"} <= first.keys()
    for key in first:
        assert float(first[key]) == pytest.approx(float(second[key]), rel=1e-4), key
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
    assert any(np.any(x) for x in jax.tree.leaves(one.extra))


class Stop:
    """In the place of `Preemption`: stops after so many steps."""

    def __init__(self, steps: int):
        self.left = steps

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left < 0

    def noticed(self) -> bool:
        return False


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["dino", pytest.param("swav", marks=pytest.mark.exhaustive)])
def test_a_run_that_is_resumed_ends_bitwise_the_same(name: str, tmp_path: pathlib.Path):
    """With its teacher, center or queue, and the optimizer of what begins late."""
    config = configuration(name)
    train.train_and_evaluate(config, tmp_path / "whole", preemption=Stop(99))  # type: ignore[arg-type]
    with pytest.raises(Preempted, match="step 3 is saved"):
        train.train_and_evaluate(config, tmp_path / "stopped", preemption=Stop(3))  # type: ignore[arg-type]
    train.train_and_evaluate(config, tmp_path / "stopped", preemption=Stop(99))  # type: ignore[arg-type]
    arrays, other = (
        json.loads((tmp_path / workdir / "checkpoints" / "6" / "about" / "metadata").read_text())["arrays"]
        for workdir in ("whole", "stopped")
    )
    assert any("extra" in path for path in arrays)
    assert arrays == other


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("dino", {"data.views": "1x16,3x8"}, "dino compares two crops of each image: set data.views to 2x16"),
        ("dino", {"data.views": "large=2x16,3x8"}, "set data.views to 2x16"),
        ("dino", {"objective.teacher_temperature": 0.0}, "objective.teacher_temperature is 0.0: it must be positive"),
        ("dino", {"objective.momentum": 1.5}, "objective.momentum is 1.5: it must be between 0 and 1"),
        ("dino", {"objective.koleo": -1.0}, "objective.koleo is -1.0: it must not be negative"),
        ("dino", {"ema_decay": 0.9}, "the average of the objective dino is its teacher"),
        ("swav", {"objective.epsilon": 0.0}, "objective.epsilon is 0.0: it must be positive"),
        ("swav", {"objective.queue": -1}, "objective.queue is -1: it must not be negative"),
        ("swav", {"model.interpolate_positions": None}, "8 x 8 pixels, and there are positions for 16 x 16"),
        ("swav", {"optimizer.accumulate": 2}, "SwAV compares the examples of a batch with each other"),
        ("swav", {"optimizer.frozen_until": (("^prototype/", 1.0),)}, "optimizer.frozen_until: the pattern"),
    ],
)
def test_options_that_do_not_fit(name: str, fields: dict[str, Any], message: str):
    """They are refused before anything is compiled."""
    config = configuration(name, **fields)
    config.checkpoint.best_metric = "val/ema_loss" if name == "dino" else "val/loss"  # of the teacher
    config_lib.validate(config, 1)
    plan = config_lib.make_plan(config, EXAMPLES)

    def make() -> None:
        mine = build.make_objective(config, 10, plan)
        build.check_sizes(config, mine.setup.model, train=True)
        build.make_program(config, plan, mine, sharding.make_mesh(config.mesh, jax.devices()[:1]))

    with pytest.raises(ConfigError, match=message):
        make()
