"""Checks the losses of detectors and segmenters with torchvision's; see README.md."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from references import common

from vision_jax.dense import anchors, losses


def maps(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """The sizes of the maps of strides 8 to 128: each is half the one before, rounded up."""
    sizes = [(height, width)]
    for _ in range(7):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return tuple(sizes[3:])


def levels_of(network: str, size: Any) -> tuple[np.ndarray, ...]:
    """The anchors of the levels of retinanet or fcos, on a canvas (height, width)."""
    shapes = {"retinanet": anchors.RETINANET, "fcos": anchors.FCOS}[network]
    height, width = (int(length) for length in size)
    return shapes.levels(maps(height, width), (height, width))


def padded(boxes: list[np.ndarray], labels: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and labels of a batch with two rows of padding more than are needed."""
    count = max(len(rows) for rows in boxes) + 2
    all_boxes, all_labels = np.zeros((len(boxes), count, 4), np.float32), np.full((len(boxes), count), -1, np.int32)
    for number, (rows, numbers) in enumerate(zip(boxes, labels, strict=True)):
        all_boxes[number, : len(rows)], all_labels[number, : len(rows)] = rows, numbers
    return all_boxes, all_labels


def means(sums: losses.Sums) -> dict[str, jax.Array]:
    return {name: total / jnp.maximum(1, weight) for name, (total, weight) in sums.items()}


def check_detection_losses_of(case: dict[str, Any], outputs: Any) -> None:
    """Compares the losses of a detector's own outputs (`HeadOutputs`) with the stored ones, within 1e-4."""
    expected = case["losses"]
    network = "fcos" if "bbox_ctrness" in expected else "retinanet"
    levels = levels_of(network, case["size"])
    images = range(len(outputs.cls_logits))
    boxes = padded(
        [case[f"target_boxes_{number}"] for number in images], [case[f"target_labels_{number}"] for number in images]
    )

    @jax.jit
    def compute(*arrays: jax.Array) -> dict[str, jax.Array]:
        heads = heads_of(arrays)
        if network == "fcos":
            return means(losses.fcos_loss(heads, levels, *boxes))
        # RetinaNet v2 has group norms in its heads, and learns boxes by their GIoU.
        version_2 = "head.classification_head.conv.0.1.weight" in case["state"]
        return means(losses.retinanet_loss(heads, levels, *boxes, regression="giou" if version_2 else "l1"))

    arrays = outputs.cls_logits, outputs.bbox_regression, outputs.bbox_ctrness
    found = compute(*(array for array in arrays if array is not None))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(found["loss"], sum(expected.values()), rtol=1e-4)


def check_segmentation_losses_of(case: dict[str, Any], outputs: dict[str, jax.Array]) -> None:
    """Compares the losses of a segmenter's own outputs with the stored ones, within 1e-5."""
    found = means(jax.jit(losses.segmentation_loss)(dict(outputs), case["labels"]))
    for name, value in case["losses"].items():
        np.testing.assert_allclose(found[name.removeprefix("loss_")], value, rtol=1e-5, err_msg=name)


def made_up_heads(network: str, seed: int, size: Any, num_classes: int, batch: int) -> tuple[np.ndarray, ...]:
    """The outputs of heads that a seed stands for: of classes, boxes, and with fcos of centre-ness."""
    count = sum(len(level) for level in levels_of(network, size))
    logits = np.float32(1.5) * common.seeded(seed, (batch, count, num_classes)) - np.float32(3.5)
    codes = common.seeded(seed + 1, (batch, count, 4))
    if network == "retinanet":
        return logits, codes * np.float32(0.3)
    return logits + np.float32(1.5), np.abs(codes) * np.float32(2), common.seeded(seed + 2, (batch, count, 1))


def heads_of(arrays: Any) -> Any:
    return SimpleNamespace(cls_logits=arrays[0], bbox_regression=arrays[1], bbox_ctrness=(*arrays, None)[2])
