"""Mean intersection over union and accuracy of pixels."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from vision_jax.dense.iou_metrics import agreement, confusion_matrix, join_counts, split_counts
from vision_jax.dense.windows import mirrored_probabilities, sliding_logits
from vision_jax.errors import ConfigError
from vision_jax.evaluators.base import Prefixed, Step, Table, run_pass
from vision_jax.evaluators.dense import DenseEvaluator
from vision_jax.evaluators.per_class import class_names
from vision_jax.objectives.base import Objective
from vision_jax.objectives.dense import predictor


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationEvaluator(DenseEvaluator):
    """`miou`, `pixel_accuracy` and `mean_accuracy` over all pixels of a split, and a table of the classes.

    They are measured on the canvas, with the mask resized as the image is, as torchvision does. A class that is neither
    labelled nor predicted is left out of means.

    Attributes:
        flip: average the probabilities with those of the mirrored image.
        window: side of windows whose logits are averaged; None: the whole canvas at once.
        stride: from one window to the next; None: two thirds of the window, rounded down, as in the recipes for ADE20K.
    """

    dense: ClassVar[str] = "masks"
    metrics: ClassVar[Mapping[str, bool]] = {"miou": True, "pixel_accuracy": True, "mean_accuracy": True}

    flip: bool = False
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.stride is not None and self.window is None:
            raise ConfigError(f"stride is {self.stride}, and there are no windows: set window too, or neither.")
        for name in ("window", "stride"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} is {value!r}: it takes a number of pixels, 1 or more.")
        if self.window is not None and self.window_stride > self.window:
            raise ConfigError(f"stride is {self.stride}, more than window={self.window}: pixels would be left out.")

    @property
    def window_stride(self) -> int:
        """Pixels from one window to the next."""
        assert self.window is not None
        return max(1, self.window * 2 // 3) if self.stride is None else self.stride

    def make_step(self, objective: Any) -> Step:
        """Returns (variables by prefix, batch) -> the words of the confusion matrix by prefix, and `count`."""

        def step(variables: Prefixed, batch: Any) -> dict[str, Any]:
            images = objective.normalized(batch)
            window = None if self.window is None else (self.window, self.window_stride)
            sums = {"count": batch["mask"].sum()}
            for prefix, values in variables.items():
                outputs = predictor(objective, values)
                classes = predict_classes(outputs, images, batch["size"], flip=self.flip, window=window)
                matrix = confusion_matrix(classes, batch["segmentation"], objective.num_classes, batch["mask"])
                sums[f"{prefix}words"] = split_counts(matrix)
            return sums

        return step

    def __call__(self, objective: Objective, variables: Prefixed) -> dict[str, float | Table]:
        variables = dict(variables)
        parts = []
        for evaluator, _ in self.by_canvas:
            compiled = evaluator.compiled(objective, self.make_step, variables)
            parts.append(run_pass(evaluator.context, compiled, variables))
        results: dict[str, float | Table] = {}
        for prefix in variables:
            matrix = np.sum([join_counts(part[f"{prefix}words"]) for part in parts], axis=0)
            found = agreement(matrix)
            results |= {prefix + name: getattr(found, name) for name in self.metrics}
            results[f"{prefix}classes"] = {
                "classes": class_names(self.context.source.class_names, len(matrix)),
                "iou": _with_none(found.iou),
                "accuracy": _with_none(found.class_accuracy),
                "pixels": matrix.sum(1).tolist(),
            }
        return {**results, "count": self.check_count(sum(int(part["count"]) for part in parts))}


def predict_classes(
    outputs: Callable[[jax.Array], Mapping[str, jax.Array]],
    images: jax.Array,
    sizes: jax.Array,
    *,
    flip: bool = False,
    window: tuple[int, int] | None = None,
) -> jax.Array:
    """Returns the class of each pixel, (batch, height, width) integers.

    Args:
        outputs: from normalized images to the outputs of a segmenter.
        images: (batch, height, width, channels), normalized.
        sizes: (batch, 2), height and width of the valid part of each.
        flip: average the probabilities with those of the mirrored image.
        window: side of windows whose logits are averaged, and pixels from one to the next; None: the whole at once.
    """

    def logits(part: jax.Array) -> jax.Array:
        return outputs(part)["out"]

    def whole(part: jax.Array) -> jax.Array:
        return logits(part) if window is None else sliding_logits(logits, part, *window)

    if flip:
        return mirrored_probabilities(whole, images, sizes[:, 1]).argmax(-1)
    return whole(images).argmax(-1)


def _with_none(values: np.ndarray) -> list[float | None]:
    """Returns numbers for JSON, which has no NaN."""
    return [None if np.isnan(value) else float(value) for value in values]
