"""The evaluation of robust accuracy against `attacks.evaluate_robustness`, which is driven from the host."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Pictures

from vision_jax import attacks, build
from vision_jax import config as config_lib
from vision_jax.attacks.base import Attacked
from vision_jax.attacks.evaluation import Stage
from vision_jax.config.plan import metric_directions
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError
from vision_jax.evaluators import collect

COUNT, CLASSES = 21, 5


def config_of(**options: Any) -> Any:
    config = config_lib.default_config()
    config.model.name, config.dtype = "lenet5", "float32"
    config.data.image_size = config.data.eval_resize = 16
    config.data.channels, config.data.mean, config.data.std = 1, (0.4,), (0.2,)
    config.eval.batch_size = 8
    with config.unlocked():
        config.evals.robust = {"kind": "adversarial", "every_epochs": None, **options}
    return config


@functools.cache
def setting() -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """An untrained network on four devices, pictures, and what it takes them for, which is their labels but for two."""
    config = config_of()
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:4])
    objective = build.make_objective(config, CLASSES)
    variables = jax.device_put(
        jax.jit(lambda: build.initialize(objective, jax.random.key(0)))(), sharding.replicated(mesh)
    )
    # Otherwise all pictures are of one class.
    bias = variables["params"]["fc3"]["bias"]
    context = build.make_context(config, mesh, Pictures([0] * COUNT, size=20, num_classes=CLASSES))
    images = collect(context, context.compile(lambda _, batch: {"image": batch["image"]}, variables), variables)
    assert images is not None
    apply = attacks.classifier(objective.setup.model, jax.device_get(variables), (0.4,), (0.2,))
    logits = np.asarray(apply(images["image"].astype(np.float32) / 255))
    variables["params"]["fc3"]["bias"] = bias - logits.mean(0)
    labels = (logits - logits.mean(0)).argmax(1)
    labels[:2] = (labels[:2] + 1) % CLASSES
    return objective, variables, images["image"], labels


def evaluator_of(**options: Any) -> Any:
    objective, _, _, labels = setting()
    config = config_of(**options)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:4])
    source = Pictures(labels.tolist(), size=20, num_classes=CLASSES)
    return build.make_evaluators(config, objective, mesh, source)["robust"]


def toward(
    apply: Any, images: jax.Array, labels: jax.Array, key: Any, *, eps: float, norm: str, target: jax.Array
) -> Attacked:
    """One step that makes a class more likely."""
    gradient = jax.grad(lambda x: jnp.take_along_axis(apply(x), target[:, None], 1).sum())(images)
    moved = jnp.clip(images + eps * jnp.sign(gradient), 0, 1)
    return Attacked(moved, jnp.zeros(len(images), bool), jnp.zeros(len(images)))


def far(apply: Any, images: jax.Array, labels: jax.Array, key: Any, *, eps: float, norm: str) -> Attacked:
    """What fools the network, outside of the ball."""
    return Attacked(1 - images, jnp.ones(len(images), bool), jnp.zeros(len(images)))


STAGES = {
    "fgsm": attacks.find_stages("fgsm", CLASSES),
    "pgd-3": attacks.find_stages("pgd-3", CLASSES),
    "fgsm and targets": (*attacks.find_stages("fgsm", CLASSES), Stage("toward", toward, 3)),
    "far": (Stage("far", far),),
}


@pytest.mark.parametrize("name", STAGES)
def test_it_is_that_of_the_attack_on_each_image(name: str, monkeypatch: pytest.MonkeyPatch):
    objective, variables, images, labels = setting()
    monkeypatch.setattr(attacks, "find_stages", lambda *_: STAGES[name])
    evaluator = evaluator_of(attack="fgsm", eps="1/255", examples=0)
    apply = attacks.classifier(objective.setup.model, jax.device_get(variables), (0.4,), (0.2,))
    expected = attacks.evaluate_robustness(apply, images, labels, jax.random.key(0), STAGES[name], eps=1 / 255)
    found = evaluator(objective, {"": variables, "ema_": variables})
    assert found["count"] == COUNT
    assert found["top1"] == found["ema_top1"] == pytest.approx(expected.clean_accuracy) == pytest.approx(19 / 21)
    assert found["robust_top1"] == found["ema_robust_top1"] == pytest.approx(expected.robust_accuracy)
    if name == "far":
        assert found["robust_top1"] == found["top1"]
    else:
        assert 0 < found["robust_top1"] < found["top1"]


def test_of_some_examples_and_mirrored_ones():
    objective, variables, _, _ = setting()
    found = evaluator_of(attack="pgd-2-1", eps="1/255", examples=10, flip=True)(objective, {"": variables})
    assert found["count"] == 10
    assert found["robust_top1"] <= found["top1"]


def test_what_cannot_be_meant_is_refused():
    assert metric_directions(config_of())["robust/ema_robust_top1"] is True
    for options, message in (
        ({"attack": "pgd"}, "The attack is 'pgd'"),
        ({"eps": "200"}, "The radius is '200'"),
        ({"norm": "l0"}, "The norm is 'l0'"),
        ({"examples": -1}, "examples is -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluator_of(**options)
