"""Every numeric field of the configuration refuses what is absurd."""

import re

import pytest
from ml_collections import ConfigDict

from vision_jax import config as config_lib
from vision_jax.errors import ConfigError

TYPES = {}
for _path, _ in config_lib.flatten(config_lib.default_config()):
    _node = config_lib.default_config()
    *_parents, _name = _path.split(".")
    for _parent in _parents:
        _node = _node[_parent]
    TYPES[_path] = _node.get_type(_name)
NUMBERS = sorted(path for path, kind in TYPES.items() if kind in (int, float))

# Any finite number will do.
FREE = {"model.head_bias"}
# What is refused at 1e9 too: probabilities, shares, and what is limited by something else.
LIMITED = {
    *("label_smoothing", "ema_decay", "loss.threshold", "distill.weight"),
    *("model.drop_rate", "model.proj_drop_rate", "model.drop_path_rate", "model.output_stride"),
    *("data.channels", "data.eval_size", "data.eval_crop", "data.repeats", "data.image_size"),
    *("augment.flip", "augment.color_jitter_prob", "augment.greyscale", "augment.solarize", "augment.blur"),
    *("augment.erase", "augment.mix_prob", "augment.mix_switch_prob", "augment.col_out", "augment.shift"),
    *("optimizer.momentum", "optimizer.b1", "optimizer.b2", "optimizer.decay", "optimizer.layer_decay"),
    *("schedule.warmup_epochs", "schedule.warmup_share", "schedule.warmup_factor", "schedule.factor"),
    "data.dense.eval_shorter",
    *("mesh.data", "mesh.fsdp", "mesh.tensor", "optimizer.accumulate"),
    *("prune.sparsity", "prune.initial_sparsity", "prune.begin_epochs", "prune.end_epochs", "prune.every_steps"),
}
# Tuples that hold numbers, with one that cannot be.
TUPLES = {
    "augment.color_jitter": [(-1e9, 0.4, 0.4), (0.4, 0.4, 0.4, 1e9)],
    "data.dense.shorter": [(), (0,), (-(10**9),), (800.5,), (10**9,)],
    "data.dense.jitter": [(-1e9, 1.0), (2.0, 1.0), (1.0,)],
    "data.dense.canvases": [((-800, 1344),), ((800, 1344.5),), ((800, 1344),), ()],
    "data.dense.eval_canvases": [((0, 5),), ((800, 800), (800, 800))],
    "data.mean": [(-1e9, 0.5, 0.5), (0.5, 0.5, 1e9)],
    "data.std": [(-1e9, 0.5, 0.5), (0.0, 0.5, 0.5)],
    "data.crop_scale": [(-1e9, 1.0), (0.1, 1e9), (1.0, 0.5)],
    "data.crop_ratio": [(-1e9, 1.0), (2.0, 1.0)],
    "data.progressive_epochs": [(-1e9,), (0, 5, 5)],
    "data.progressive_sizes": [(-(10**9),), (96.5,)],
    "log.profile_steps": [(-(10**9), 3), (5, 3)],
    "loss.class_weights": [(-1e9, 1.0)],
    "optimizer.frozen_until": [(("^fc/", -1e9),)],
    "optimizer.multipliers": [(("^fc/", -1e9),)],
    "schedule.milestone_epochs": [(-1e9, 3)],
    "schedule.milestone_steps": [(-(10**9), 3)],
    "schedule.points": [((-1e9, 1.0), (2, 0.5)), ((0, 1.0), (2, -1e9))],
}
STRINGS = {
    *("mesh.rules", "log.trackers", "optimizer.no_decay", "optimizer.no_clip_adaptive", "optimizer.frozen"),
    *("optimizer.layers", "optimizer.constant_rate", "data.dense.categories", "prune.exclude"),
}


def problems(**fields: object) -> list[str]:
    """Returns what `validate` says of these values of fields, but not that a name has no such option."""
    config: ConfigDict = config_lib.default_config()
    config.data.source = "synthetic"
    config.loss.name = "sigmoid"  # which has a threshold
    config.update_from_flattened_dict(fields)
    try:
        config_lib.validate(config, num_devices=8)
    except ConfigError as error:
        return [line for line in str(error).splitlines()[1:] if "has no such option" not in line]
    return []


def says(lines: list[str], path: str) -> bool:
    """Returns whether one of the lines is on a field."""
    return any(re.search(rf"(?<![\w.]){re.escape(path)}(?!\w)", line) for line in lines)


@pytest.mark.parametrize("path", sorted({*NUMBERS} - FREE))
def test_numbers_that_are_absurd_are_refused(path: str):
    kind = TYPES[path]
    assert says(problems(**{path: kind(-1e9)}), path)
    assert says(problems(**{path: kind(1e9)}), path) == (path in LIMITED)


def test_all_fields_that_hold_numbers_are_in_these_tables():
    assert {*NUMBERS} >= FREE | LIMITED
    assert TUPLES.keys() | STRINGS == {path for path, kind in TYPES.items() if kind is tuple}
    for path in FREE:
        assert not problems(**{path: -1e9})


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in TUPLES.items() for value in values])
def test_tuples_that_are_absurd_are_refused(path: str, value: tuple):
    assert says(problems(**{path: value}), path)


@pytest.mark.parametrize(
    ("path", "good", "bad"),
    [
        ("model.drop_rate", (0.0, 0.999), (1.0, 2.0, -0.1)),
        ("model.proj_drop_rate", (0.0, 0.999), (1.0, -0.1)),
        ("model.drop_path_rate", (0.0, 0.999), (1.0, -1.0)),
        ("model.layer_scale", (0.0, 1e-6, 1.0), (-1e-6,)),
        ("optimizer.eps", (1e-12, 1e-3), (0.0, -1e-8)),
        ("optimizer.layer_decay", (0.65, 1.0), (0.0, 1.001)),
        ("schedule.factor", (0.1, 1.0), (0.0, 1.5)),
        ("schedule.power", (0.5, 2.0), (0.0,)),
        ("schedule.timescale", (1.0, 1e4), (0.0,)),
        ("schedule.warmup_factor", (0.0, 1.0), (-0.1, 1.1)),
        ("loss.threshold", (0.0, 0.2), (-0.1, 1.0)),
        ("augment.shift", (0, 223), (224, -1)),
        ("data.mean", ((0.0, 0.5, 1.0),), ((-0.1, 0.5, 0.5),)),
    ],
)
def test_where_ranges_end(path: str, good: tuple, bad: tuple):
    assert not any(says(problems(**{path: value}), path) for value in good)
    assert all(says(problems(**{path: value}), path) for value in bad)
