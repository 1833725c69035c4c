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
    configured: ClassVar[frozenset[str]] = frozenset(
        ("label_smoothing", "loss_name", "threshold", "sum_classes", "class_weights", "auxiliary_weight")
    )
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
        # As the model computes: partners may come from other devices, and what is mixed is written and read again.
        images = views["image"].astype(self.setup.model.dtype)
        images = augmentation.col_out(key, images)
        images, targets = augmentation.mix(key, images, views["target"])
        return {**views, "image": images, "target": targets}

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del targets, progress
        logits, auxiliary, updates = self.logits(variables, views["image"], key, train=train)
        mask = None if train else views["mask"]
        value, weight = self.label_loss(logits, auxiliary, views["target"], mask)
        return Out(value, weight, updates, {"top1": total(in_top_k(logits, views["label"], 1), mask)})

    def logits(
        self, variables: Variables, images: jax.Array, key: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[jax.Array, ...], Mapping[str, Any]]:
        """Returns the logits of images, those of auxiliary classifiers that learn, and the collections that moved."""
        if train and getattr(self.setup.model, "aux_logits", False):
            (logits, auxiliary), updates = self.forward(
                variables, images, key, train=train, method="logits_and_auxiliary"
            )
            return logits, auxiliary, updates
        logits, updates = self.forward(variables, images, key, train=train)
        return logits, (), updates

    def label_loss(
        self, logits: jax.Array, auxiliary: tuple[jax.Array, ...], targets: jax.Array, mask: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the sum of the losses of the labels, with the auxiliary classifiers', and its weight; see `total`."""
        value, weight = total(self.loss_of(logits, targets), mask)
        for other in auxiliary:
            value += self.auxiliary_weight * total(self.loss_of(other, targets), mask)[0]
        return value, weight

    def forward(
        self, variables: Variables, images: jax.Array, key: jax.Array, *, train: bool, method: str | None = None
    ) -> tuple[Any, Mapping[str, Any]]:
        """Returns what the model makes of images, and the collections that this has moved."""
        model, rngs = self.setup.model, {"dropout": key}
        if not train:
            return model.apply(variables, images, train=False, method=method), {}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs, method=method)
