"""Schedules: those of the recipes, with the numbers of a case."""

from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from references.common import Case, near_largest
from test_recipes import recipe

from vision_jax import build, optim
from vision_jax import config as config_lib

SCHEDULE = 1e-6
RECIPES = {
    "barlow_twins": "barlow_twins",
    "byol": "byol:r50_100",
    "dino": "dino:vit_s16",
    "mae": "mae:vit_b",
    "moco_v3": "mocov3:r50_100",
    "vicreg": "vicreg:r50_100",
}
KINDS = {
    "barlow_twins": ("lr of weights, lr of 1-D parameters",),
    "byol": ("lr", "teacher_momentum"),
    "dino": ("lr", "weight_decay", "teacher_momentum", "teacher_temperature"),
    "mae": ("lr",),
    "moco_v3": ("lr", "teacher_momentum"),
    "vicreg": ("lr",),
}
# The rates that are written down are those of batches of 256 images.
SCALED = ("byol", "barlow_twins", "vicreg")
PUBLISHED_BARLOW_TWINS = (0.2, 0.0048)  # the recipe's own


def configure(about: dict[str, Any]) -> ConfigDict:
    """The recipe of the method of a case, with the case's numbers."""
    method, kind = about["method"], about["kind"]
    fine_tuned = method == "mae" and about.get("final", 0) != 0
    config = recipe("finetune_mae:vit_b" if fine_tuned else RECIPES[method])
    config.epochs = float(about["total_steps"] if "total_steps" in about else about["epochs"])
    config.schedule.warmup_epochs = float(about.get("warmup_steps", about.get("warmup_epochs", 0)))
    config.batch_size = about["batch_size"] if method in SCALED and "batch_size" in about else 256
    if kind.startswith("lr"):
        base = about["base_weights"] if "base_weights" in about else about["base"]
        config.optimizer.learning_rate = base
        if method not in SCALED:
            config.optimizer.learning_rate_batch_size = None
        if "final" in about:
            config.schedule.end_factor = about["final"] / base
        if "base_1d" in about and (base, about["base_1d"]) != PUBLISHED_BARLOW_TWINS:
            ((vectors, _),) = config.optimizer.multipliers
            config.optimizer.multipliers = ((vectors, about["base_1d"] / base),)
    elif kind == "weight_decay":
        assert config.optimizer.weight_decay_end is not None
        config.optimizer.weight_decay, config.optimizer.weight_decay_end = about["base"], about["final"]
    elif kind == "teacher_momentum":
        config.objective.momentum, config.objective.momentum_end = about["base"], about.get("final", 1.0)
    else:
        config.objective.teacher_temperature_start = about["warmup"]
        config.objective.teacher_temperature = about["final"]
        config.objective.teacher_temperature_epochs = about["warmup_epochs"]
    return config


def values_at(config: ConfigDict, about: dict[str, Any], per_epoch: int, steps: np.ndarray) -> np.ndarray:
    """The values of a schedule after some numbers of steps."""
    kind, plan = about["kind"], config_lib.make_plan(config, per_epoch * config.batch_size)
    if kind == "weight_decay":
        decay = optim.interpolate_cosine(
            config.optimizer.weight_decay, config.optimizer.weight_decay_end, plan.total_steps
        )
        return np.asarray(decay(steps), np.float64)
    if kind.startswith("lr"):
        rates = np.asarray(build.make_schedule(config, plan)(steps), np.float64)
        if kind == "lr":
            return rates
        params = {"conv1": {"kernel": np.zeros((2, 2))}, "bn1": {"scale": np.zeros(2), "bias": np.zeros(2)}}
        multipliers = {row.path: row.multiplier for row in build.make_rules(config, plan).table(params)}
        assert multipliers["bn1/scale"] == multipliers["bn1/bias"]
        return np.stack([rates * multipliers[path] for path in ("conv1/kernel", "bn1/bias")], 1)
    mine = build.make_objective(config, 1000, plan)
    if kind == "teacher_momentum":
        # The teachers of BYOL and DINO move after the update, that of MoCo before the keys of the next step.
        after = steps if mine.moves_first else steps + 1
        return np.asarray([mine.ema_decay(mine.progress(jnp.int32(step))) for step in after], np.float64)
    return np.asarray([mine.teacher_temperature_at(mine.progress(jnp.int32(step))) for step in steps], np.float64)


def check(case: Case) -> None:
    about, steps = case.about, case["steps"]
    method, kind = about["method"], about["kind"]
    assert kind in KINDS.get(method, ()), f"There is no reader for {kind} of {method}."
    config = configure(about)
    if kind == "teacher_temperature":
        # By epochs: it is the same in the first and the last step of each.
        for step in (0, 6):
            near_largest(values_at(config, about, 7, 7 * steps + step), case["values"], SCHEDULE, floor=0)
        return
    if "total_steps" in about:
        found = values_at(config, about, 1, steps)
    elif "iterations_per_epoch" in about:
        found = values_at(config, about, about["iterations_per_epoch"], steps)
    else:  # of epochs, in parts: of as many steps as make each a whole number
        parts = [Fraction(float(step)).limit_denominator(10_000) for step in steps]
        found = np.concatenate(
            [values_at(config, about, part.denominator, np.array([part.numerator])) for part in parts]
        )
    assert set(case.names()) == {"steps", "values"}
    near_largest(found, case["values"], SCHEDULE, floor=0)
