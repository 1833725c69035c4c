"""Segmentation as an objective: what a step minimizes, what it leaves alone, and what is refused."""

import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest
import tiny_dense

from vision_jax import augment, build, recipes
from vision_jax import config as config_lib
from vision_jax.augment import pipeline
from vision_jax.errors import ConfigError
from vision_jax.optim import masks

# A linear head and one more, which has norms, but not in the loss of `out`.
LINEAR = (("frozen_norms", True),)
AUX = (("head", "fcn"), ("frozen_norms", True), ("aux_weight", 0.4))


@functools.cache
def stepped(accumulate: int) -> tuple[Any, dict[str, float]]:
    """The gradient and the metrics of a step of a linear head."""
    state = begun()
    after, metrics = tiny_dense.step_of("segmentation", accumulate, *LINEAR)(state, tiny_dense.rows("segmentation"))
    changes = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, after.params)
    return changes, {key: float(value) for key, value in metrics.items()}


@functools.cache
def begun() -> Any:
    return tiny_dense.state_of(tiny_dense.objective("segmentation", *LINEAR), optax.sgd(1.0))


def mirrored(rows: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Images and masks as a step with this seed mirrors them."""
    keys = augment.example_keys(seed, np.int32(0), tiny_dense.BATCH)
    found = {name: rows[name].copy() for name in ("image", "segmentation")}
    for number, (height, width) in enumerate(rows["size"]):
        if jax.random.bernoulli(pipeline.stage_key(keys[number], "flip"), 0.5):
            for name, values in found.items():
                values[number, :height, :width] = rows[name][number, :height, :width][:, ::-1]
    return {**rows, **found}


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean over pixels that are not ignored, in float64."""
    logits, counted = np.asarray(logits, np.float64), labels != 255
    shifted = logits - logits.max(-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_probabilities, np.where(counted, labels, 0)[..., None].astype(int), -1)[..., 0]
    return -chosen[counted].mean()


def test_a_step_minimizes_the_cross_entropy_of_its_augmented_batch():
    rows, of, state = tiny_dense.rows("segmentation"), tiny_dense.objective("segmentation", *LINEAR), begun()
    changed = mirrored(rows, 5)
    assert not np.array_equal(changed["segmentation"], rows["segmentation"])
    images = np.zeros(rows["image"].shape, np.float32)
    for number, (height, width) in enumerate(rows["size"]):
        part = changed["image"][number, :height, :width] / 255
        images[number, :height, :width] = (part - tiny_dense.MEAN) / tiny_dense.STD
    outputs, _ = jax.jit(lambda variables, images: of.network.apply(variables, images, train=False))(
        state.variables, images
    )
    assert outputs.keys() == {"out"}
    expected = cross_entropy(outputs["out"], changed["segmentation"])
    metrics = stepped(1)[1]
    assert metrics["loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["out"] == metrics["loss"]


def test_micro_batches_add_up():
    """The weight is the number of pixels that count, which differs between them."""
    (whole, of_whole), (parts, of_parts) = stepped(1), stepped(2)
    assert of_parts == pytest.approx(of_whole, rel=1e-4)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale), parts, whole)


def test_pixels_that_do_not_count():
    """What is beside an image changes nothing, and a batch without labels has a loss and a gradient of 0."""
    rows = tiny_dense.rows("segmentation")
    for number, (height, width) in enumerate(rows["size"]):
        rows["image"][number, height:], rows["image"][number, :height, width:] = 200, 100
    step = tiny_dense.step_of("segmentation", 1, *LINEAR)
    _, metrics = step(begun(), rows)
    assert {key: float(value) for key, value in metrics.items()} == stepped(1)[1]
    rows["segmentation"][:] = 255
    after, metrics = step(begun(), rows)
    assert metrics["loss"] == metrics["grad_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, after.params, begun().params)


def test_an_auxiliary_head_and_frozen_norms():
    """The loss is a weighted sum; of statistics, only those of the heads move."""
    of = tiny_dense.objective("segmentation", *AUX)
    state = tiny_dense.state_of(of, optax.sgd(1.0))
    after, metrics = tiny_dense.step_of("segmentation", 1, *AUX)(state, tiny_dense.rows("segmentation"))
    assert metrics["loss"] == pytest.approx(float(metrics["out"] + 0.4 * metrics["aux"]), rel=1e-5)
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(state.batch_stats), jax.tree.leaves(after.batch_stats), strict=True
    ):
        beside = masks.path_string(path).startswith(("head/", "aux_head/"))
        assert np.array_equal(old, new) != beside, path


def recipe(**fields: Any) -> Any:
    """A configuration for the made-up images; fields of `objective` and `evals` are options."""
    options = {key.removeprefix("objective."): fields.pop(key) for key in list(fields) if key.startswith("objective.")}
    config = recipes.scenes(tiny_dense.BACKBONE, "segmentation", **options)
    config.batch_size, config.total_steps, config.schedule.warmup_epochs = 4, 4, 0.0
    if evaluation := fields.pop("evals.val", None):
        with config.unlocked():
            config.evals = {"val": evaluation}
    config.update_from_flattened_dict(fields)
    return config


def objective_of(config: Any) -> tuple[Any, Any]:
    config = config_lib.resolve(config)
    config_lib.validate(config, 1)
    plan = config_lib.make_plan(config, 100)
    return build.make_objective(config, 11, plan), plan


@pytest.mark.parametrize("head", ["fcn", "deeplabv3", "upernet", "linear"])
def test_layer_decay_and_frozen_stages(head: str):
    """What is beside the backbone is the last layer, whatever its parts are called."""
    config = recipe(**{"objective.head": head, "optimizer.layer_decay": 0.5, "optimizer.frozen": ("^conv1/", "^bn1/")})
    of, plan = objective_of(config)
    params = jax.eval_shape(lambda: build.init_variables(of, jax.random.key(0)))["params"]
    rows = build.make_rules(config, plan, of).table(params)
    assert {row.path.split("/")[0] for row in rows if row.frozen} == {"conv1", "bn1"}
    beside = [row for row in rows if row.path.startswith(("neck/", "head/", "aux_head/"))]
    assert {row.layer for row in beside} == {5}
    assert {row.multiplier for row in beside} == {1.0}
    assert {row.multiplier for row in rows if row.path.startswith("layer4/")} == {0.5}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective.head": "fnc"}, "objective.head is 'fnc': did you mean fcn"),
        ({"objective.aux": "yes"}, "objective.aux is 'yes'"),
        ({"objective.aux_weight": -1.0}, "objective.aux_weight is -1.0: it must not be negative"),
        ({"model.name": "lenet5", "objective.head": "upernet"}, "upernet needs 4 maps of the backbone"),
        ({"evals.val": {"kind": "detection"}}, "evals.val.kind is 'detection', and the objective segmentation"),
        ({"evals.val": {"stride": 5}}, "evals.val.stride is 5, and there are no windows"),
        ({"evals.val": {"window": 0}}, "evals.val.window is 0: it takes a number of pixels"),
        ({"evals.val": {"window": 32.0}}, "evals.val.window is 32.0: it takes a number of pixels"),
        ({"evals.val": {"window": 32, "stride": 40}}, "evals.val.stride is 40, more than window=32"),
        ({"eval.flip": True}, "and set evals.val.flip"),
        ({"checkpoint.best_metric": "val/mio"}, "checkpoint.best_metric is 'val/mio'"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as raised:
        objective_of(recipe(**fields))
    assert message in str(raised.value)
