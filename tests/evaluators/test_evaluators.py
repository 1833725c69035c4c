import functools
import logging

import jax
import numpy as np
import pytest
from conftest import Pictures

import vision_jax
from vision_jax import build, evaluate
from vision_jax import config as config_lib
from vision_jax.config.plan import metric_directions
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError, DataError, Interrupted
from vision_jax.evaluators import collect, run_pass


def config_of(**fields: object):
    config = config_lib.default_config()
    config.model.name, config.label_smoothing = "lenet5", 0.1
    config.data.image_size = config.data.eval_resize = 16
    config.eval.batch_size = 8
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return config


@functools.cache
def setting(num_devices: int = 4):
    """Evaluators on 21 pictures of five classes, which fill two batches of eight and a part of a third."""
    config = config_of(**{"augment.flip": 0.0})
    with config.unlocked():
        config.evals = {"val": {}, "loss": {"kind": "objective"}}
    labels = np.random.RandomState(1).randint(0, 5, 21).tolist()
    source = Pictures(labels, size=20, num_classes=5)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:num_devices])
    objective = build.make_objective(config, 5)
    variables = jax.device_put(
        jax.jit(lambda: build.initialize(objective, jax.random.key(0)))(), sharding.replicated(mesh)
    )
    return build.make_evaluators(config, objective, mesh, source), objective, variables, source


def test_collect_gives_each_row_once_in_the_order_of_the_split():
    evaluators, _, variables, source = setting()
    context = evaluators["val"].context
    step = lambda variables, batch: {"label": batch["label"], "mean": batch["image"].mean((1, 2, 3))}  # noqa: E731
    rows = collect(context, context.compile(step, variables), variables)
    assert rows["label"].tolist() == [source[i]["label"] for i in range(21)]
    assert rows["mean"].shape == (21,)
    assert len(set(rows["mean"].tolist())) == 21
    sums = run_pass(context, context.compile(lambda v, batch: batch["mask"].sum(), variables), variables)
    assert sums == 21


def test_the_loss_of_the_objective_counts_each_example_once():
    """With label smoothing, as in training, against the formula; the average of the whole split, not of batches."""
    evaluators, objective, variables, source = setting()
    results = evaluate.measure(evaluators, objective, {"": variables, "ema_": variables})
    assert {"val/top5", "val/ema_loss", "loss/loss", "loss/ema_top1", "loss/count"} <= results.keys()
    assert results["loss/count"] == results["val/count"] == 21
    assert results["loss/top1"] == pytest.approx(results["val/top1"])
    context = evaluators["val"].context
    model = objective.setup.model

    def logits(variables, batch):
        images = vision_jax.augment.normalize(batch["image"], context.mean, context.std)
        return {"logits": model.apply(variables, images, train=False)}

    scores = collect(context, context.compile(logits, variables), variables)["logits"].astype(np.float64)
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    labels = np.array([source[i]["label"] for i in range(21)])
    expected = -(0.9 * log_p[np.arange(21), labels] + 0.1 * log_p.mean(1)).mean()
    assert results["loss/loss"] == pytest.approx(expected, rel=1e-5)
    assert results["loss/loss"] != results["val/loss"]
    again = evaluate.measure(evaluators, objective, {"": variables, "ema_": variables})
    assert again == results


def test_damaged_images_are_left_out_and_said_to_be(caplog: pytest.LogCaptureFixture):
    _, objective, variables, source = setting(1)
    mesh = sharding.make_mesh(config_of().mesh, jax.devices()[:1])
    damaged = Pictures([source[i]["label"] for i in range(21)], size=20, num_classes=5)
    for i in (3, 4, 20):
        damaged.records[i] = (b"\xff\xd8 no image", damaged.records[i][1])

    def results(allowed: int, workers: int = 0):
        config = config_of(**{"data.max_bad_eval_records": allowed, "data.num_workers": workers})
        made = build.make_evaluators(config, objective, mesh, damaged)
        return evaluate.measure(made, objective, {"": variables})

    with pytest.raises(
        DataError, match=r"picture 3.*raise data.max_bad_eval_records .*data.check_val_images finds all"
    ):
        results(0)
    with caplog.at_level(logging.WARNING):
        mine = results(3)
    assert mine["val/count"] == 18
    assert "3 of 21 examples are damaged and left out: means are over the others" in caplog.text
    whole = Pictures([label for i, (_, label) in enumerate(damaged.records) if i not in (3, 4, 20)], 20, 5)
    whole.records = [record for i, record in enumerate(source.records) if i not in (3, 4, 20)]
    others = evaluate.measure(build.make_evaluators(config_of(), objective, mesh, whole), objective, {"": variables})
    assert mine == pytest.approx(others, rel=1e-6)
    assert results(3, workers=1) == mine


def test_an_evaluation_is_stopped_between_batches():
    class Stop:
        def should_stop(self) -> bool:
            return True

        def noticed(self) -> bool:
            return False

    evaluators, objective, variables, source = setting()
    config = config_of()
    made = build.make_evaluators(config, objective, evaluators["val"].context.mesh, source, preemption=Stop())
    with pytest.raises(Interrupted):
        evaluate.measure(made, objective, {"": variables})


def test_which_evaluations_are_due():
    config = config_of()
    config.batch_size, config.epochs, config.schedule.warmup_epochs = 10, 4.0, 0.0
    with config.unlocked():
        config.evals = {"val": {}, "slow": {"kind": "objective", "every_epochs": 3.0}}
    plan = config_lib.make_plan(config, 100)
    assert [(step, plan.evals_at(step)) for step in range(41) if plan.evaluates_at(step)] == [
        (10, ("val",)),
        (20, ("val",)),
        (30, ("slow", "val")),
        (40, ("slow", "val")),
    ]
    assert metric_directions(config)["slow/ema_loss"] is False
    assert metric_directions(config)["val/top5"] is True


@pytest.mark.parametrize(
    ("evals", "message"),
    [
        ({"val": {"kind": "classifcation"}}, "evals.val.kind is 'classifcation': did you mean classification"),
        ({"val": {"flop": True}}, "evals.val.flop is no option of Classification: did you mean flip"),
        ({"val": {"flip": 1}}, "evals.val.flip is 1; it takes a bool"),
        ({"val": {"every_epochs": -1.0}}, "evals.val.every_epochs is -1.0, which must be positive"),
        ({"train": {}}, "evals has 'train'"),
        ({"test": {}}, "checkpoint.best_metric is 'val/top1': did you mean"),
    ],
)
def test_wrong_evaluations(evals: dict, message: str):
    config = config_of(**{"data.source": "synthetic"})
    with config.unlocked():
        config.evals = evals
    with pytest.raises(ConfigError) as caught:
        config_lib.validate(config, 1)
    assert message in str(caught.value)
