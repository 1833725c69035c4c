"""Classification: labels, their smoothing and mixing, auxiliary classifiers."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from vision_jax import losses
from vision_jax.metrics import in_top_k
from vision_jax.objectives.base import Objective, Out, Progress, Rows, Variables, Views, total


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Objective):
    """The cross-entropy of the model's logits with the labels.

    If the model has `aux_logits` set, its auxiliary classifiers learn too.

    Attributes:
        label_smoothing: see `losses.smooth_targets`.
        loss_name, threshold, sum_classes, class_weights: see `losses.create_loss`.
        auxiliary_weight: weight of the loss of each auxiliary classifier.
    """

    classifies: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "top1": True}

    label_smoothing: float = 0.0
    loss_name: str = "softmax"
    threshold: float | None = None
    sum_classes: bool = False
    class_weights: tuple[float, ...] = ()
    auxiliary_weight: float = 0.3

    @functools.cached_property
    def loss_of(self) -> losses.Loss:
        """The loss of logits and targets."""
        return losses.create_loss(
            self.loss_name,
            threshold=self.threshold,
            sum_classes=self.sum_classes,
            class_weights=self.class_weights,
        )

    def views(self, keys: jax.Array, rows: Rows) -> Views:
        num_classes = self.setup.model.num_classes
        return {
            "image": self.augment(keys, rows["image"]),
            "label": rows["label"],
            "target": losses.smooth_targets(rows["label"], num_classes, self.label_smoothing),
            "mask": rows["mask"],
        }

    @property
    def mixes(self) -> bool:
        config = self.setup.augmentation.config
        return bool(config.mixup or config.cutmix or config.col_out)

    def mix(self, key: jax.Array, views: Views) -> Views:
        augmentation = self.setup.augmentation
        images = augmentation.col_out(key, views["image"])
        images, targets = augmentation.mix(key, images, views["target"])
        return {**views, "image": images, "target": targets}

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del targets, progress
        method = "logits_and_auxiliary" if train and getattr(self.setup.model, "aux_logits", False) else None
        result, updates = self.forward(variables, views["image"], key, train=train, method=method)
        logits, auxiliary = result if method else (result, ())
        mask = None if train else views["mask"]
        value, weight = total(self.loss_of(logits, views["target"]), mask)
        for other in auxiliary:
            value += self.auxiliary_weight * total(self.loss_of(other, views["target"]), mask)[0]
        return Out(value, weight, updates, {"top1": total(in_top_k(logits, views["label"], 1), mask)})

    def forward(
        self, variables: Variables, images: jax.Array, key: jax.Array, *, train: bool, method: str | None = None
    ) -> tuple[Any, Mapping[str, Any]]:
        """Returns what the model makes of images, and the collections that this has moved."""
        model, rngs = self.setup.model, {"dropout": key}
        if not train:
            return model.apply(variables, images, train=False, method=method), {}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs, method=method)
