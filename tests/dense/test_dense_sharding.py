"""A batch that is divided over devices stays so: only sums are exchanged, and detections not even that."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vision_jax.dense import anchors, iou_metrics, losses, postprocess

MAPS = ((4, 5), (2, 3), (1, 2), (1, 1), (1, 1))
COLLECTIVE = r" (all-gather|all-to-all|all-reduce|collective-permute)(?:-start)?\("


def compiled(function: Callable[..., Any], arrays: list[np.ndarray]) -> tuple[Any, str]:
    """Returns what a function of a divided batch returns, and the program's text."""
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    placed = [jax.device_put(array, NamedSharding(mesh, PartitionSpec("data"))) for array in arrays]
    program = jax.jit(function).lower(*placed).compile()
    return program(*placed), program.as_text()


def batch(levels: tuple[np.ndarray, ...]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The outputs of heads, and boxes and their labels, of four images."""
    generator, count = np.random.default_rng(0), sum(map(len, levels))
    heads = [generator.standard_normal((4, count, size)).astype(np.float32) for size in (3, 4, 1)]
    corners = generator.uniform(0, 20, (4, 3, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(6, 30, (4, 3, 2))], -1).astype(np.float32)
    return heads, [boxes, generator.integers(-1, 3, (4, 3)).astype(np.int32)]


CASES = [
    (anchors.RETINANET, losses.retinanet_loss, postprocess.RETINANET),
    (anchors.FCOS, losses.fcos_loss, postprocess.FCOS),
]


@pytest.mark.parametrize(("shapes", "function", "selection"), CASES)
def test_only_sums_are_exchanged(shapes: Any, function: Any, selection: Any):
    levels = shapes.levels(MAPS, (32, 40))
    heads, truth = batch(levels)

    def heads_of(arrays: Any) -> Any:
        return SimpleNamespace(cls_logits=arrays[0], bbox_regression=jnp.abs(arrays[1]), bbox_ctrness=arrays[2])

    def loss(logits: jax.Array, *rest: jax.Array) -> jax.Array:
        sums = function(heads_of((logits, *rest)), levels, *rest[2:])
        return sums["loss"][0]

    gradient, text = compiled(jax.value_and_grad(loss), heads + truth)
    assert set(re.findall(COLLECTIVE, text)) == {"all-reduce"}
    alone = jax.jit(jax.value_and_grad(loss))(*heads, *truth)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, alone)

    def detect(*arrays: jax.Array) -> postprocess.Detections:
        return postprocess.detections(selection, heads_of(arrays), levels, arrays[3])

    sizes = np.full((4, 2), 32, np.int32)
    found, text = compiled(detect, [*heads, sizes])
    assert not re.findall(COLLECTIVE, text)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, jax.jit(detect)(*heads, sizes))


def test_a_confusion_matrix_is_added_up_once():
    generator = np.random.default_rng(0)
    maps = list(generator.integers(0, 4, (2, 4, 6, 7)).astype(np.uint8))
    found, text = compiled(lambda *maps: iou_metrics.confusion_matrix(*maps, 4), maps)
    assert re.findall(COLLECTIVE, text) == ["all-reduce"]
    assert found.sum() == 4 * 6 * 7
