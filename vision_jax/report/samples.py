"""What a training sees: images of its first batch, as they are augmented, with their targets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vision_jax import augment, build
from vision_jax import config as config_lib
from vision_jax.data.sources import closing
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError
from vision_jax.evaluators.per_class import class_names
from vision_jax.objectives import Dense, Objective
from vision_jax.pretrained import display_names
from vision_jax.report import dense
from vision_jax.report.runs import Run

_LEAST_SHARE = 0.05  # of a target: smaller ones are those of label smoothing
_MOST_SHARES = 3


@dataclasses.dataclass(frozen=True)
class Sample:
    """An example of a training batch.

    Attributes:
        images: its views, (views, height, width, channels) uint8.
        shares: of its target, (name of the class, share), the largest first; without labels, nothing.
        side: pixels of height and width that it is shown with at most.
    """

    images: np.ndarray
    shares: tuple[tuple[str, float], ...]
    side: int = 160


def first_batch(run: Run, number: int = 16) -> list[Sample]:
    """Returns examples of step 0, as the networks see them but for the normalization, which is undone.

    If the whole batch is mixed, half of the examples are its first ones, and half their partners, its last ones.

    Raises:
        VisionJaxError: if the data or the configuration cannot be used here.
    """
    try:
        config = config_lib.resolve(config_lib.from_dict(run.config))
    except (
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
    ) as error:  # what ConfigDict raises for values of other types
        raise ConfigError(f"The configuration of {run.workdir} is damaged: {error}.") from error
    config_lib.reset_mesh(config)  # one device makes them, wherever they were made in training
    config_lib.validate(config, 1)
    source = build.create_source(config, train=True)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    with closing(source):
        plan = config_lib.make_plan(config, len(source))
        objective = build.make_objective(config, source.num_classes, plan)
        with build.make_train_loader(config, plan, mesh, source) as loader:
            batch = loader.start(0)()
            rows = {name: np.array(values) for name, values in batch.arrays.items() if name != "replaced"}
            batch.release()
    views = _views(config, objective, rows, number)
    images = np.asarray(views["image"])
    if isinstance(objective, Dense):
        names = display_names(class_names(source.class_names, objective.num_classes))
        return [Sample(drawn[None], (), dense.SIDE) for drawn in dense.drawn_views(images, views, names)]
    images = images[:, None] if images.ndim == 4 else images
    model: Any = objective.setup.model
    names = display_names(class_names(source.class_names, model.num_classes)) if objective.classifies else []
    targets = np.asarray(views["target"], np.float32) if objective.classifies else np.zeros((len(images), 0))
    return [Sample(image, _shares(target, names)) for image, target in zip(images, targets, strict=True)]


def _views(config: ConfigDict, objective: Objective, rows: Mapping[str, np.ndarray], number: int) -> dict[str, Any]:
    """Returns the views of some rows of a batch, with the images as pixels, (rows, ..., channels) uint8."""
    size = len(rows["mask"])
    number = min(number, size)
    chosen = np.arange(number)
    if objective.mixes and number < size:
        chosen = np.concatenate([chosen[: (number + 1) // 2], np.arange(size - number // 2, size)])

    def make(rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        keys = augment.example_keys(config.seed, jnp.int32(0), size)
        if objective.mixes:
            views = objective.mix(augment.batch_key(config.seed, jnp.int32(0), size), objective.views(keys, rows))
            views = {name: values[chosen] for name, values in views.items()}
        else:
            views = objective.views(keys[chosen], {name: values[chosen] for name, values in rows.items()})
        setup = objective.setup
        pixels = 255 * (views["image"].astype(jnp.float32) * jnp.asarray(setup.std) + jnp.asarray(setup.mean))
        return {**views, "image": jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)}

    return jax.device_get(jax.jit(make)(dict(rows)))


def _shares(target: np.ndarray, names: list[str]) -> tuple[tuple[str, float], ...]:
    """Returns the largest shares of a target, by name."""
    order = np.argsort(-target, kind="stable")[:_MOST_SHARES]
    return tuple((names[i], float(target[i])) for i in order if target[i] >= _LEAST_SHARE)
