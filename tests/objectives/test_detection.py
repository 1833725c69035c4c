"""RetinaNet and FCOS as objectives: what a step minimizes, what it leaves alone, and what is refused."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_dense

from vision_jax import augment, build, recipes
from vision_jax import config as config_lib
from vision_jax.dense import losses
from vision_jax.dense.networks import norm_paths
from vision_jax.errors import ConfigError
from vision_jax.optim import masks

METHODS = ("retinanet", "fcos")
FROZEN = (("frozen_norms", True),)


def gradient(before: Any, after: Any) -> Any:
    """The change that descent with a rate of 1 makes."""
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), before.params, after.params)


@functools.cache
def begun(name: str) -> Any:
    return tiny_dense.state_of(tiny_dense.objective(name, *FROZEN), optax.sgd(1.0))


@functools.cache
def stepped(name: str, accumulate: int = 1) -> tuple[Any, dict[str, float]]:
    """The gradient and the metrics of a step whose backbone normalizes by running statistics."""
    state = begun(name)
    after, metrics = tiny_dense.step_of(name, accumulate, *FROZEN)(state, tiny_dense.rows(name))
    return gradient(state, after), {key: float(value) for key, value in metrics.items()}


def mirrored(rows: dict[str, np.ndarray], flips: np.ndarray) -> dict[str, np.ndarray]:
    """Images and boxes, some of them mirrored within their part of the canvas."""
    image, boxes = rows["image"].copy(), rows["boxes"].copy()
    for number, (height, width) in enumerate(rows["size"]):
        if flips[number]:
            image[number, :height, :width] = rows["image"][number, :height, :width][:, ::-1]
            valid = rows["box_labels"][number] >= 0
            x1, y1, x2, y2 = rows["boxes"][number][valid].T
            boxes[number][valid] = np.stack([width - x2, y1, width - x1, y2], 1)
    return {**rows, "image": image, "boxes": boxes}


def network_input(rows: dict[str, np.ndarray]) -> np.ndarray:
    """Images as torchvision's detectors batch them: normalized, and 0 beside them."""
    found = np.zeros(rows["image"].shape, np.float32)
    for number, (height, width) in enumerate(rows["size"]):
        part = rows["image"][number, :height, :width] / np.float32(255)
        found[number, :height, :width] = (part - np.float32(tiny_dense.MEAN)) / np.float32(tiny_dense.STD)
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_step_minimizes_the_loss_of_its_augmented_batch(name: str):
    """Mirrored and normalized by numpy, with the keys of the step; all metrics, and gradients, too."""
    rows, of, state = tiny_dense.rows(name), tiny_dense.objective(name, *FROZEN), begun(name)
    keys = augment.example_keys(5, jnp.int32(0), tiny_dense.BATCH)
    views = of.views(keys, rows)
    flips = np.array([not np.array_equal(a, b) for a, b in zip(views["boxes"], rows["boxes"], strict=True)])
    flips[1] = not np.allclose(views["image"][1], network_input(rows)[1], atol=1e-6)  # which has no box
    assert 0 < flips.sum() < len(flips)
    changed = mirrored(rows, flips)
    np.testing.assert_allclose(views["image"], network_input(changed), atol=1e-6)
    np.testing.assert_allclose(views["boxes"], changed["boxes"], atol=1e-4)
    loss = {"retinanet": losses.retinanet_loss, "fcos": losses.fcos_loss}[name]
    levels = of.levels(*tiny_dense.CANVAS)

    @jax.jit
    def sums(params: Any) -> losses.Sums:
        variables = {"params": params, "batch_stats": state.batch_stats}
        outputs, _ = of.network.apply(variables, network_input(changed), train=False)
        return loss(outputs, levels, changed["boxes"], changed["box_labels"])

    _, metrics = stepped(name)
    for key, (total, weight) in sums(state.params).items():
        assert metrics[key] == pytest.approx(float(total) / max(1, float(weight)), rel=1e-4), key
    assert metrics.keys() >= of.metrics.keys()


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_add_up(name: str):
    """The weight of FCOS is the number of foreground points, which differs between them."""
    (whole, of_whole), (parts, of_parts) = stepped(name), stepped(name, 2)
    assert of_parts == pytest.approx(of_whole, rel=1e-4)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale), parts, whole)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_without_boxes(name: str, accumulate: int):
    """Everything is background: loss and gradient are numbers, and classification has a gradient."""
    rows = tiny_dense.rows(name)
    rows["box_labels"][:], rows["boxes"][:] = -1, 0
    after, metrics = tiny_dense.step_of(name, accumulate, *FROZEN)(begun(name), rows)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["bbox_regression"] == 0
    assert metrics["loss"] == metrics["classification"] > 0
    changes = gradient(begun(name), after)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(changes))
    flat = {masks.path_string(path): np.abs(x).max() for path, x in jax.tree_util.tree_leaves_with_path(changes)}
    assert max(size for path, size in flat.items() if "cls_logits" in path) > 0
    assert max(size for path, size in flat.items() if "bbox_reg" in path) == 0


@pytest.mark.parametrize("name", METHODS)
def test_what_is_in_the_padding_does_not_matter(name: str):
    """Pixels beside the image, and boxes with the label of padding."""
    rows = tiny_dense.rows(name)
    for number, (height, width) in enumerate(rows["size"]):
        rows["image"][number, height:], rows["image"][number, :height, width:] = 200, 100
    rows["boxes"][rows["box_labels"] < 0] = (3, 4, 20, 30)
    after, metrics = tiny_dense.step_of(name, 1, *FROZEN)(begun(name), rows)
    whole, expected = stepped(name)
    assert {key: float(value) for key, value in metrics.items()} == expected
    jax.tree.map(np.testing.assert_array_equal, gradient(begun(name), after), whole)


def recipe(**fields: Any) -> Any:
    """A configuration for the made-up images; fields of `objective` and `evals` are options."""
    names = [key for key in fields if key.startswith("objective.")]
    objective = {key.removeprefix("objective."): fields.pop(key) for key in names}
    name = objective.pop("name", "retinanet")
    config = recipes.scenes(tiny_dense.BACKBONE, name, **{**tiny_dense.OPTIONS[name], **objective})
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
    return build.make_objective(config, 10, plan), plan


def shapes_of(of: Any) -> dict[str, Any]:
    return jax.eval_shape(lambda: build.init_variables(of, jax.random.key(0)))


@pytest.mark.parametrize("name", METHODS)
def test_frozen_norms_stay_bit_for_bit(name: str):
    """Statistics, scales and biases, also where all parameters decay; and all else learns."""
    state = begun(name)
    after, _ = tiny_dense.step_of(name, 1, *FROZEN)(state, tiny_dense.rows(name))
    kept = norm_paths(state.variables)
    assert len(kept) == 2 * 12  # the stem's, two of each block, and three of shortcuts
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, state.batch_stats)
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(after.params), strict=True
    ):
        assert np.array_equal(old, new) == (masks.path_string(path) in kept), path
    config = recipe(**{"objective.name": name, "objective.frozen_norms": True, "optimizer.decay_rule": "all"})
    of, plan = objective_of(config)
    rows = build.make_rules(config, plan, of).table(shapes_of(of)["params"])
    assert {row.path for row in rows if row.frozen} == set(kept)
    assert not {row.path for row in rows if row.decays} & set(kept)


@pytest.mark.parametrize("name", METHODS)
def test_frozen_stages_and_layer_decay(name: str):
    """Patterns of the backbone mean what they mean without a head, and what is beside it is the last layer."""
    frozen = ("^conv1/", "^bn1/", "^layer1/")
    config = recipe(**{"objective.name": name, "optimizer.frozen": frozen, "optimizer.layer_decay": 0.5})
    of, plan = objective_of(config)
    params = shapes_of(of)["params"]
    rules = build.make_rules(config, plan, of)
    rows = {row.path: row for row in rules.table(params)}
    trained, rest = rules.split(params)
    assert rest.keys() == {"conv1", "bn1", "layer1"}
    assert trained.keys() == {"layer2", "layer3", "layer4", "neck", "head"}
    assert {row.layer for path, row in rows.items() if path.startswith(("neck/", "head/"))} == {5}
    factors = {path.split("/")[0]: row.multiplier for path, row in rows.items() if not row.frozen}
    assert factors == {"layer2": 0.125, "layer3": 0.25, "layer4": 0.5, "neck": 1.0, "head": 1.0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective.version": 3}, "objective.version is 3: RetinaNet has the versions 1 and 2"),
        ({"objective.anchor_scale": 0.0}, "objective.anchor_scale is 0.0: it must be positive"),
        ({"objective.channels": 0}, "objective.channels is 0: it must be positive"),
        ({"objective.version": 2, "objective.channels": 48}, "channels is 48, and the heads of retinanet_v2"),
        ({"objective.name": "fcos", "objective.channels": 16}, "channels is 16, and the heads of fcos have norms"),
        ({"model.name": "lenet5"}, "retinanet is made of maps of the strides 8, 16, 32, and the backbone has none"),
        ({"model.num_classes": 5}, "model.num_classes is 5, but the data has 10 classes"),
        ({"evals.val": {"kind": "classification"}}, "evals.val.kind is 'classification', and the objective retinanet"),
        ({"evals.val": {"kind": "segmentation"}}, "evals.val.kind is 'segmentation', and the objective retinanet"),
        ({"evals.val": {"measure": "cocoo"}}, "evals.val.measure is 'cocoo': did you mean coco"),
        ({"evals.val": {"detections": 0}}, "evals.val.detections is 0"),
        ({"checkpoint.best_metric": "val/top1"}, "checkpoint.best_metric is 'val/top1'"),
        ({"eval.flip": True}, "eval.flip is set, which is for classifiers, and retinanet learns from boxes"),
        ({"optimizer.frozen": ("^layer9/",)}, "the pattern '^layer9/' matches no parameter"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str):
    def attempt() -> None:
        config = recipe(**fields)
        of, plan = objective_of(config)
        build.make_rules(config, plan, of).table(shapes_of(of)["params"])

    with pytest.raises(ConfigError) as raised:
        attempt()
    assert message in str(raised.value)
