"""DINO and SwAV, which compare crops of two sizes: padding, and wrong options."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_vit
from ml_collections import ConfigDict

from vision_jax import augment, build, recipes
from vision_jax import config as config_lib
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError

OPTIONS: dict[str, dict[str, Any]] = {
    "dino": {"hidden": (16,), "bottleneck": 8, "out": 24, "koleo": 0.1},
    "swav": {"hidden": 16, "out": 8, "prototypes": 12, "queue": 32, "queue_epochs": 0},
}
FROZEN = {"dino": "^projector/last_layer/weight_v$", "swav": "^prototypes/kernel$"}
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
    config.optimizer.frozen_until = ((FROZEN[name], 2 / steps_per_epoch),)
    config.schedule.update({"warmup_epochs": 0.0, "name": "constant"})
    config.checkpoint.best_metric = "val/loss"
    config.log.update({"every_steps": 1, "tensorboard": False})
    config.update_from_flattened_dict(fields)
    return config


def objective(name: str, **fields: Any) -> Any:
    config = configuration(name, **fields)
    return build.make_objective(config, 10, config_lib.make_plan(config, EXAMPLES))


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
