"""What the tests of MAE and of SimMIM share: small backbones, a batch, and properties that both have."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vision_jax
from vision_jax import augment, build
from vision_jax.devices import sharding
from vision_jax.objectives import OBJECTIVES, Setup
from vision_jax.objectives.masked import MaskedObjective
from vision_jax.steps import make_train_step

SIZE, ROWS = 16, 16
IMAGES = np.random.RandomState(0).randint(0, 256, (ROWS, SIZE, SIZE, 3)).astype(np.uint8)
BATCH = {"image": IMAGES, "label": np.zeros(ROWS, np.int32), "mask": np.ones(ROWS, np.float32)}


def vit(**options: Any) -> Any:
    sizes = {"img_size": SIZE, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0}
    return vision_jax.create_model("vit_base_patch16_224", **{**sizes, **options})


def objective(name: str, model: Any, **options: Any) -> Any:
    return OBJECTIVES[name](setup=Setup(model, (SIZE, SIZE, 3), (0.5,) * 3, (0.25,) * 3), **options)


def views_of(mine: MaskedObjective, rows: Any = BATCH) -> Any:
    keys = augment.example_keys(0, jnp.int32(0), ROWS)[: len(rows["mask"])]
    return mine.views(keys, rows)


def initialized(mine: MaskedObjective) -> Any:
    return jax.jit(lambda: build.initialize(mine, jax.random.key(0)))()


def check_padding(mine: MaskedObjective) -> None:
    """A validation loss of 11 rows equals that of the same ones with five more that are masked."""
    variables = initialized(mine)

    @jax.jit
    def loss(rows: Any) -> Any:
        out = mine.loss(variables, views_of(mine, rows), (), jax.random.key(1), None, train=False)  # type: ignore[arg-type]
        return {"loss": out.loss / out.weight, **{key: total / weight for key, (total, weight) in out.metrics.items()}}

    mask = np.arange(ROWS) < 11
    found = loss({**BATCH, "mask": mask.astype(np.float32)})
    expected = loss({key: values[mask] for key, values in BATCH.items()})
    assert found.keys() == set(mine.metrics)
    for key, value in found.items():
        assert float(value) == pytest.approx(float(expected[key]), rel=1e-5), key


def check_devices_and_parts(mine: MaskedObjective) -> None:
    """A step is the same on one device, on eight, and with the gradients of two micro-batches added."""
    optimizer, results = optax.sgd(0.1), []
    initial = jax.device_get(jax.jit(lambda: build.create_state(mine, optimizer, seed=0))())
    for devices, accumulate in ((jax.devices()[:1], 1), (jax.devices(), 1), (jax.devices()[:1], 2)):
        mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, devices)
        step = jax.jit(make_train_step(mine, optimizer, lambda step: 0.1, seed=0, accumulate=accumulate))
        state = jax.device_put(initial, sharding.replicated(mesh))
        batch = sharding.batch_placer(mesh, ROWS)(BATCH)
        with jax.set_mesh(mesh):
            state, metrics = step(state, batch)
        results.append(jax.device_get((metrics, state.params)))
    (first, one), *others = results
    for second, other in others:
        for key in first:
            assert float(first[key]) == pytest.approx(float(second[key]), rel=1e-4), key
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)
    assert first.keys() >= set(mine.metrics)


def check_masks(mine: MaskedObjective, hidden: Any) -> None:
    """Masks are those of the example's place: others for each, and in each step, and the same for a part of a batch.

    `hidden` makes (rows, cells) of an order: what is hidden.
    """
    views = views_of(mine)
    masks = np.asarray(hidden(views["order"]))
    assert len({mask.tobytes() for mask in masks}) == ROWS
    assert len(set(masks.reshape(ROWS, -1).sum(1).tolist())) == 1
    part = views_of(mine, {key: values[:3] for key, values in BATCH.items()})
    np.testing.assert_array_equal(part["order"], views["order"][:3])
    other = mine.views(augment.example_keys(0, jnp.int32(1), ROWS), BATCH)
    assert not np.array_equal(other["order"], views["order"])
