"""Parameters whose learning rate leaves the schedule, through the configuration."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from vision_jax import build, optim
from vision_jax import config as config_lib
from vision_jax.errors import ConfigError

SHAPES = {"conv1": {"kernel": (3, 4)}, "predictor": {"kernel": (4, 2), "bias": (2,)}}
STEPS, PER_EPOCH = 6, 2


def tree(seed: int) -> Any:
    random = np.random.RandomState(seed)
    draw = lambda shape: jnp.asarray(random.standard_normal(shape), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def configured(**fields: object) -> ConfigDict:
    config = config_lib.default_config()
    config.data.source = "synthetic"
    config.update({"batch_size": 64, "epochs": STEPS / PER_EPOCH})
    config.optimizer.update({"learning_rate": 0.2, "learning_rate_batch_size": 128, "weight_decay": 0.01})
    config.optimizer.update({"momentum": 0.9, "decay_rule": "all", "constant_rate": ("^predictor/",), **fields})
    config.schedule.update({"warmup_epochs": 0.0, "by_epoch": True})
    config_lib.validate(config, num_devices=1)
    return config


def trained(config: ConfigDict) -> Any:
    """Parameters after six steps of the configuration's optimizer."""
    plan = config_lib.make_plan(config, 64 * PER_EPOCH)
    split = build.make_rules(config, plan).split
    params, frozen = split(tree(0))
    optimizer = build.make_optimizer(config, plan, tree(0))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(STEPS):
        updates, state = update(split(tree(1 + step))[0], state, params)
        params = optax.apply_updates(params, updates)
    return optim.merge(params, frozen)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_predictor_keeps_the_peak(name: str):
    """SGD with momentum and coupled decay, or AdamW, in NumPy; the cosine is that of whole epochs."""
    fields = {"name": "adamw", "momentum": None} if name == "adamw" else {}
    found = trained(configured(multipliers=(("bias$", 0.5),), **fields))
    for module, leaves in SHAPES.items():
        for leaf in leaves:
            p, m, v = np.asarray(tree(0)[module][leaf], np.float64), 0.0, 0.0
            for step in range(STEPS):
                epoch = step // PER_EPOCH
                rate = 0.1 if module == "predictor" else 0.1 * (1 + np.cos(np.pi * epoch * PER_EPOCH / STEPS)) / 2
                rate *= 0.5 if leaf == "bias" else 1
                g = np.asarray(tree(1 + step)[module][leaf], np.float64)
                if name == "sgd":
                    m = 0.9 * m + g + 0.01 * p
                    p = p - rate * m
                else:
                    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                    corrected = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                    p = p - rate * (corrected[0] / (np.sqrt(corrected[1]) + 1e-8) + 0.01 * p)
            np.testing.assert_allclose(found[module][leaf], p, rtol=1e-4, atol=1e-6)


def test_frozen_parameters_stay_out_of_it():
    found = trained(configured(frozen=("^predictor/bias",), frozen_until=(("^conv1/", 1.0),)))
    without = trained(configured(frozen=("^predictor/bias",)))
    np.testing.assert_array_equal(found["predictor"]["bias"], tree(0)["predictor"]["bias"])
    np.testing.assert_array_equal(found["predictor"]["kernel"], without["predictor"]["kernel"])
    assert np.abs(found["conv1"]["kernel"] - without["conv1"]["kernel"]).max() > 1e-3


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=re.escape("optimizer.constant_rate: the pattern '^predicter/' matches no")):
        trained(configured(constant_rate=("^predicter/",)))
    with pytest.raises(ConfigError, match="sophia cannot split the parameters"):
        configured(name="sophia", momentum=None)
    stacked = {"blocks": {"mlp": {"kernel": jnp.zeros((2, 3, 3))}}}
    with pytest.raises(ConfigError, match="constant_rate matches only some of the blocks"):
        optim.GroupRules(constant_rate=("^blocks/0/",)).table(stacked)


def test_the_table_says_so():
    table = optim.format_table(optim.GroupRules(constant_rate=("^predictor/",)).table(tree(0)))
    assert re.search(r"predictor/kernel +4x2 +yes +x 1, constant", table)
    assert re.search(r"conv1/kernel +3x4 +yes +x 1$", table, re.MULTILINE)
