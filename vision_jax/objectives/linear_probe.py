"""The linear probe: a classifier of the features of a network that is not trained."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax

from vision_jax.errors import ConfigError
from vision_jax.objectives.base import Variables
from vision_jax.objectives.classification import Classification


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe(Classification):
    """Classification by the model's own classifier, which alone is trained, on augmented images.

    The rest of the model is as in evaluation: its norms have their running statistics, which do not move, nothing is
    dropped, and it has no gradient, no decay and no optimizer state. The classifier is a new one, whatever the weights
    are. What stands between the features and the classifier, dropout or `norm_before_head`, is as in training.

    The result is a classifier like any other, for evaluation and prediction. Where features need no
    augmentation, the evaluator `linear_probe` is faster, since it computes them once.
    """

    classifier_alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if hasattr(self.setup.model, "heads"):
            raise ConfigError(
                "The objective linear_probe trains one classifier of pooled features, and the model has several, of a "
                "token each: choose the model without distillation token."
            )

    def logits(
        self, variables: Variables, images: jax.Array, key: jax.Array, *, train: bool
    ) -> tuple[jax.Array, tuple[jax.Array, ...], Mapping[str, Any]]:
        if not train:
            return super().logits(variables, images, key, train=False)
        features: Any = self.setup.model.apply(variables, images, train=False, method="features")
        features = jax.lax.stop_gradient(features)
        logits, updates = self.forward(variables, features, key, train=True, method="logits")
        return logits, (), updates
