"""Objectives that compare two crops of each image, but for what their references test: padding, teachers, options."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vision_jax
from vision_jax import augment, build, recipes
from vision_jax import config as config_lib
from vision_jax.data.views import View
from vision_jax.errors import ConfigError
from vision_jax.objectives import OBJECTIVES, Setup
from vision_jax.objectives.mocov2 import enqueue
from vision_jax.steps import make_train_step

OPTIONS: dict[str, dict[str, Any]] = {
    "barlow_twins": {"hidden": (16,), "out": 12},
    "byol": {"hidden": 16, "out": 12},
    "mocov2": {"hidden": 16, "out": 12, "queue": 64},
    "mocov3": {"hidden": (16,), "predictor_hidden": 16, "out": 12},
    "simclr": {"hidden": (16,), "out": 12},
    "simsiam": {"hidden": (16,), "out": 12, "bottleneck": 8},
    "vicreg": {"hidden": (16,), "out": 12},
}
SIZE, ROWS = 28, 16
CROPS = np.random.RandomState(0).randint(0, 256, (ROWS, 2, SIZE, SIZE, 1)).astype(np.uint8)
BATCH = {"image": CROPS, "label": np.zeros(ROWS, np.int32), "mask": np.ones(ROWS, np.float32)}


def objective(name: str, **options: Any):
    model = vision_jax.create_model("lenet5", num_classes=0)
    # Blur tells the crops apart, also where they are the same pixels.
    crops = tuple(augment.create_augmentation(augment.AugmentConfig(blur=blur)) for blur in (1.0, 0.0))
    setup = Setup(
        *(model, (SIZE, SIZE, 1), (0.5,), (0.5,)),
        augmentations=crops,
        inputs=(View(size=SIZE, count=2),),
        total_steps=4,
    )
    return OBJECTIVES[name](setup=setup, **{**OPTIONS[name], **options})


# Of losses over the batch, over its statistics, and with a queue; the others are of one example at a time, or as these.
OFTEN = ("barlow_twins", "mocov2", "simclr")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name not in OFTEN)) for name in OPTIONS]
)
def test_padding_does_not_count(name: str):
    """A validation loss of 11 rows, and of the same ones with five more that are masked."""
    mine = objective(name)
    variables = jax.jit(lambda: build.initialize(mine, jax.random.key(0)))()

    @jax.jit
    def loss(rows: Any) -> Any:
        keys = augment.example_keys(0, jnp.int32(0), ROWS)[: len(rows["mask"])]
        views = mine.views(keys, rows)
        progress = mine.progress(jnp.int32(0))
        targets = mine.targets(
            variables, variables, mine.init_extra(variables), {}, views, jax.random.key(1), progress, train=False
        )
        out = mine.loss(variables, views, targets, jax.random.key(2), progress, train=False)
        return {"loss": out.loss / out.weight, **{key: total / weight for key, (total, weight) in out.metrics.items()}}

    mask = np.arange(ROWS) < 11
    padded = {**BATCH, "mask": mask.astype(np.float32)}
    alone = {key: values[mask] for key, values in BATCH.items()}
    found, expected = loss(padded), loss(alone)
    assert found.keys() == set(mine.metrics)
    for key, value in found.items():
        assert float(value) == pytest.approx(float(expected[key]), rel=2e-5, abs=1e-6), key


def test_the_scale_of_simclr():
    """The official code's loss is twice the paper's; other metrics are the same."""
    variables = jax.jit(lambda: build.initialize(objective("simclr"), jax.random.key(0)))()
    views = {"image": jnp.asarray(CROPS[:4], jnp.float32) / 255, "mask": jnp.ones(4)}
    outs = []
    for scale in (1.0, 2.0):
        mine = objective("simclr", scale=scale)
        outs.append(mine.loss(variables, views, (), jax.random.key(1), mine.progress(jnp.int32(0)), train=True))
    assert float(outs[1].loss) == pytest.approx(2 * float(outs[0].loss), rel=1e-6)
    assert outs[1].weight == outs[0].weight == 4
    assert outs[1].metrics["pair_top1"] == outs[0].metrics["pair_top1"]


def test_a_teacher_moves_after_the_update_and_has_its_own_statistics():
    mine = objective("byol", momentum=0.9)
    optimizer = optax.sgd(0.05)
    first = jax.jit(lambda: build.create_state(mine, optimizer, seed=0))()
    second, _ = jax.jit(make_train_step(mine, optimizer, lambda step: 0.05, seed=0))(first, BATCH)
    # tau = 1 - (1 - 0.9) (1 + cos(pi * 0 / 4)) / 2 in the first step
    expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, first.params, second.params)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(second.ema["params"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # The teacher was the network itself, in training mode: its projector has seen the same. It has no predictor.
    one, other = second.batch_stats, second.ema["batch_stats"]
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), one["projector"], other["projector"]))
    unchanged = first.batch_stats["predictor"]
    assert jax.tree.all(jax.tree.map(np.array_equal, other["predictor"], unchanged))
    assert not jax.tree.all(jax.tree.map(np.array_equal, one["predictor"], unchanged))


def test_the_momentum_of_teachers():
    """BYOL's is that of the step that was done, MoCo v3's that of the step to come (their official code)."""
    progress = [objective("byol", momentum=0.996).progress(jnp.int32(step)) for step in range(5)]
    byol = [float(objective("byol", momentum=0.996).ema_decay(p)) for p in progress[1:]]
    moco = [float(objective("mocov3", momentum=0.996).ema_decay(p)) for p in progress]
    expected = [0.996, 0.996586, 0.998, 0.999414, 1.0]  # at quarters of the run
    np.testing.assert_allclose(byol, expected[:4], rtol=1e-6)
    np.testing.assert_allclose(moco, expected, rtol=1e-6)
    assert float(objective("mocov2").ema_decay(progress[3])) == pytest.approx(0.999)


def test_keys_are_computed_in_another_order_where_norms_have_groups(monkeypatch: pytest.MonkeyPatch):
    """The keys are in the queries' order again; and the queue is a ring."""
    mine = objective("mocov2")
    variables = jax.jit(lambda: build.initialize(mine, jax.random.key(0)))()
    views = mine.views(augment.example_keys(0, jnp.int32(0), ROWS), BATCH)
    extra, progress = mine.init_extra(variables), mine.progress(jnp.int32(0))
    arguments = (variables, variables, extra, {}, views, jax.random.key(3), progress)
    expected = mine.targets(*arguments)[0]
    seen = []
    monkeypatch.setattr(type(mine.setup.model), "bn_group_size", 4, raising=False)
    teach = type(mine).teach
    monkeypatch.setattr(
        type(mine),
        "teach",
        lambda self, average, crops, *a, **k: seen.append(crops) or teach(self, average, crops, *a, **k),
    )
    keys = mine.targets(*arguments)[0]
    assert not np.array_equal(seen[0][:, 0], views["image"][:, 1])
    np.testing.assert_allclose(keys, expected, atol=1e-6)
    for number in range(5):
        extra = mine.after({}, extra, (), keys + number, progress)
        assert int(extra["position"]) == ROWS * (number + 1) % 64
    np.testing.assert_array_equal(extra["queue"][:ROWS], keys + 4)
    np.testing.assert_array_equal(extra["queue"][ROWS:], np.concatenate([keys + 1, keys + 2, keys + 3]))


def config_of(name: str, **fields: Any):
    config = config_lib.default_config()
    config.objective = recipes.objective(name)
    config.model.name = "lenet5"
    config.data.update({"source": "digits", "image_size": SIZE, "channels": 1, "mean": (0.5,), "std": (0.5,)})
    config.data.views = "2x28:0.4-1"
    for path, value in fields.items():
        section, _, field = path.rpartition("__")
        (config[section] if section else config)[field] = value
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__views": ""}, "simclr compares two crops of each image: set data.views to 2x28"),
        ({"data__views": "2x28,4x14"}, "compares two crops"),
        ({"augment__crops": "blur=1|blur=0|blur=0.5"}, "for 3 crops, and data.views has 2"),
        ({"augment__crops": "blurr=1"}, "augment.crops has 'blurr=1': did you mean blur"),
        ({"augment__crops": "blur=yes"}, "augment.crops has 'blur=yes': blur takes a float"),
        ({"augment__crops": "mixup=1"}, "augment.crops has 'mixup=1'"),
    ],
)
def test_views_that_cannot_be_compared(fields: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message.replace("|", r"\|")):
        build.make_objective(config_of("simclr", **fields), 10)


def test_the_average_of_a_teacher_is_not_the_users():
    with pytest.raises(ConfigError, match=r"ema_decay is 0\.99, but the average of the objective byol is its teacher"):
        build.make_objective(config_of("byol", ema_decay=0.99), 10)


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("barlow_twins", "off_diagonal", -1.0, "it must not be negative"),
        ("barlow_twins", "out", 0, "it must be positive"),
        ("byol", "hidden", 0, "it must be positive"),
        ("byol", "momentum", 1.5, "it must be between 0 and 1"),
        ("mocov2", "hidden", -1, "it must not be negative"),
        ("mocov2", "momentum_end", -0.1, "it must be between 0 and 1"),
        ("mocov2", "queue", 0, "it must be positive"),
        ("mocov3", "predictor_hidden", 0, "it must be positive"),
        ("mocov3", "temperature", -1.0, "it must be positive"),
        ("simclr", "hidden", (16, 0), "each of them must be positive"),
        ("simclr", "temperature", 0.0, "it must be positive"),
        ("simsiam", "bottleneck", 0, "it must be positive"),
        ("vicreg", "covariance", -1.0, "it must not be negative"),
    ],
)
def test_options_out_of_range(name: str, option: str, value: Any, message: str):
    with pytest.raises(ConfigError) as caught:
        objective(name, **{option: value})
    assert str(caught.value) == f"objective.{option} is {value}: {message}."


@pytest.mark.parametrize(
    ("option", "value", "takes"),
    [
        *(("hidden", value, r"a tuple, such as \(2048, 2048\)") for value in [("a",), (16.5,), (True,), 16]),
        *(("temperature", value, r"a float, such as 0\.1") for value in [float("nan"), float("inf"), "0.1"]),
    ],
)
def test_options_of_other_types(option: str, value: Any, takes: str):
    """Widths are integers, and a temperature is a finite number."""
    config = config_of("simclr")
    with config.ignore_type():
        config.objective[option] = value
    with pytest.raises(ConfigError, match=rf"objective\.{option} is .*; it takes {takes}"):
        config_lib.validate(config_lib.resolve(config), 1)


@pytest.mark.parametrize("name", ["simclr", "rotation"])
def test_what_needs_labels_is_refused(name: str):
    """Without a word, mixing would do nothing, and a teacher of classes would not be asked."""
    config = config_of(name)
    config.augment.update({"mixup": 0.2, "cutmix": 1.0, "col_out": 0.1})
    config.checkpoint.best_metric = "val/loss"
    problems = re.findall(r"augment\.(\w+) is", refusal(config))
    assert problems == ["mixup", "cutmix", "col_out"]
    config_lib.validate(config_lib.resolve(config), 1, train=False)  # what has been trained can be evaluated
    config.augment.update({"mixup": 0.0, "cutmix": 0.0, "col_out": 0.0})
    config.distill.update({"teacher": "lenet5", "pretrained": "a.safetensors"})
    assert f"objective.name is '{name}', and distill.teacher is 'lenet5': unset one." in refusal(config)


def refusal(config: Any) -> str:
    """Returns what is wrong with a configuration."""
    with pytest.raises(ConfigError) as caught:
        config_lib.validate(config_lib.resolve(config), 1)
    return str(caught.value)


def test_each_crop_has_its_augmentation():
    text = "blur=1,color_jitter=(0.4,0.4,0.2,0.1)|blur=0.1,solarize=0.2"
    first, second = augment.parse_crops(text, augment.AugmentConfig(flip=0.5))
    assert first == augment.AugmentConfig(flip=0.5, blur=1.0, color_jitter=(0.4, 0.4, 0.2, 0.1))
    assert second == augment.AugmentConfig(flip=0.5, blur=0.1, solarize=0.2)
    mine = build.make_objective(
        config_of("simclr", augment__crops=text.replace(",color_jitter=(0.4,0.4,0.2,0.1)", "")), 10
    )
    assert [mine.setup.augmentation_of(i).config.blur for i in range(3)] == [1.0, 0.1, 0.1]
    # The crops have keys of their own: the same pixels with the same augmentation become different images.
    same = dataclasses.replace(mine, setup=dataclasses.replace(mine.setup, augmentations=mine.setup.augmentations[:1]))
    rows = {**BATCH, "image": np.repeat(CROPS[:, :1], 2, 1)}
    made = same.views(augment.example_keys(0, jnp.int32(0), ROWS), rows)["image"]
    assert not np.allclose(made[:, 0], made[:, 1])


def test_a_queue_is_a_multiple_of_the_batch():
    mine = objective("mocov2", queue=40)
    state = jax.jit(lambda: build.create_state(mine, optax.sgd(0.1), seed=0))()
    with pytest.raises(ConfigError, match=r"objective\.queue is 40, which the batch of 16 does not divide"):
        jax.eval_shape(make_train_step(mine, optax.sgd(0.1), lambda step: 0.1, seed=0), state, BATCH)


def test_the_queue_goes_on_from_the_position_of_another_batch():
    """At its end, keys go on at its beginning, in the place of the oldest ones."""
    queue, position = enqueue(jnp.zeros((8, 1)), jnp.int32(6), jnp.arange(1.0, 5.0)[:, None])
    assert queue[:, 0].tolist() == [3, 4, 0, 0, 0, 0, 1, 2]
    assert int(position) == 2
