import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Pictures

import vision_jax
from vision_jax import build, evaluate
from vision_jax import config as config_lib
from vision_jax.data.sources import check_classes
from vision_jax.data.transforms import EvalTransform
from vision_jax.devices import sharding
from vision_jax.errors import DataError
from vision_jax.runtime.checkpoint import BestMetric


class Source(Pictures):
    """Pictures with random labels of five classes."""

    def __init__(self, length: int):
        super().__init__(np.random.RandomState(1).randint(0, 5, length).tolist(), size=20, num_classes=5)


def config_of(batch_size: int):
    config = config_lib.default_config()
    config.model.name = "lenet5"
    config.data.image_size = config.data.eval_resize = 16
    config.eval.batch_size = batch_size
    return config


@pytest.mark.parametrize(("length", "num_devices"), [(1, 8), (16, 8), (21, 8), (21, 1)])
def test_counts_each_example_once(length: int, num_devices: int):
    """Against a plain loop over the examples, one at a time."""
    config, source = config_of(8), Source(length)
    model = vision_jax.create_model("lenet5", num_classes=5, in_channels=3)
    variables = {"batch_stats": {}, **model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)}
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:num_devices])
    placed = jax.device_put(dict(variables), sharding.replicated(mesh))
    objective = build.make_objective(config, 5)
    results = evaluate.measure(build.make_evaluators(config, objective, mesh, source), objective, {"": placed})

    top1 = top5 = 0
    loss = 0.0
    transform = EvalTransform(16, 16, 3)
    for data, label in source.records:
        image = np.empty((1, 16, 16, 3), np.uint8)
        transform([{"image": data, "label": label}], np.array([0]), 0, {"image": image, "label": np.empty(1, np.int32)})
        normalized = (image / 255 - np.array(config.data.mean)) / np.array(config.data.std)
        scores = np.asarray(model.apply(variables, normalized.astype(np.float32), train=False))[0]
        top1 += int(scores.argmax() == label)
        top5 += int(label in np.argsort(-scores)[:5])
        loss += float(np.log(np.exp(scores).sum()) - scores[label])
    assert results["val/count"] == length
    assert results["val/top1"] == pytest.approx(top1 / length)
    assert results["val/top5"] == pytest.approx(top5 / length)
    assert results["val/loss"] == pytest.approx(loss / length, rel=1e-4)


def test_classes_must_be_those_of_training():
    source = Source(1)
    source.class_names = ["a", "b", "c", "d", "f"]
    with pytest.raises(DataError, match=r"missing are \['e'\], only there are \['f'\]"):
        check_classes(source, 5, ["a", "b", "c", "d", "e"], "validation")
    with pytest.raises(DataError, match="has 5 classes and the training data 6"):
        check_classes(Source(1), 6, [], "validation")


def test_scores():
    assert BestMetric("val/top1", high=True).score({"val/top1": 0.5}) == 0.5
    assert BestMetric("val/ece", high=False).score({"val/ece": 0.5}) == -0.5
    assert BestMetric("val/loss", high=False).score({"val/loss": None}) is None
    about = {"config": {"checkpoint": {"best_metric": "val/loss"}}}
    assert BestMetric.of(about) == BestMetric("val/loss", high=False)
    assert BestMetric.of({**about, "best_is_high": True}).high


def test_table():
    results = {"val/top1": 0.75, "val/top5": 1.0, "val/loss": 0.5, "val/count": 8}
    results |= {"val/ema_top1": 0.5, "val/ema_top5": 1.0, "val/ema_loss": 0.25}
    lines = evaluate.format_results(results).splitlines()
    assert lines[1].split() == ["weights", "75.00%", "100.00%", "0.5000", "8"]
    assert lines[2].split()[:2] == ["EMA", "50.00%"]
