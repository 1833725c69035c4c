"""Distillation: classification that also learns from another model's logits for the same images."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax import augment, losses, models, pretrained
from vision_jax.metrics import in_top_k
from vision_jax.objectives.base import Constant, Out, Progress, Variables, Views, total
from vision_jax.objectives.classification import Classification


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(Classification):
    """The losses of the labels and of a teacher's logits.

    A model with `heads`, such as one with a distillation token, learns from the teacher by its second head.

    Attributes:
        teacher, pretrained: its name, and the file of its weights; see `vision_jax.pretrained.load`.
        teacher_options: what it is created with, as (name, value).
        kind, temperature: see `losses.distillation_loss`.
        weight: of the distillation loss; the label loss gets 1 - weight.
        teacher_mean, teacher_std: normalization of its images.
    """

    configured: ClassVar[frozenset[str]] = Classification.configured | {
        *("teacher", "pretrained", "teacher_options", "kind", "temperature", "weight", "teacher_mean", "teacher_std")
    }

    teacher: str
    pretrained: str
    teacher_options: tuple[tuple[str, Any], ...] = ()
    kind: str = "soft"
    temperature: float = 1.0
    weight: float = 0.5
    teacher_mean: tuple[float, ...]
    teacher_std: tuple[float, ...]

    @functools.cached_property
    def teacher_model(self) -> nn.Module:
        """The module of the teacher, which computes in the dtype of the model that learns."""
        return models.create_model(self.teacher, dtype=self.setup.model.dtype, **dict(self.teacher_options))

    def frozen(self) -> Mapping[str, Constant]:
        images = jnp.zeros((1, *self.setup.image_shape), jnp.float32)
        shapes = jax.eval_shape(lambda: self.teacher_model.init(jax.random.key(0), images, train=False))
        # It is not trained, so that its classifier cannot be a new one.
        options = {"classifier_seed": None, **dict(self.teacher_options)}
        load = functools.partial(pretrained.load, self.teacher, self.pretrained, **options)
        return {"teacher": Constant({"batch_stats": {}, **shapes}, load)}

    def targets(
        self,
        variables: Variables,
        average: Variables | None,
        extra: Any,
        frozen: Mapping[str, Any],
        views: Views,
        key: jax.Array,
        progress: Progress,
        *,
        train: bool = True,
    ) -> jax.Array:
        del variables, average, extra, key, progress, train
        images, setup = views["image"], self.setup
        if (setup.mean, setup.std) != (self.teacher_mean, self.teacher_std):
            pixels = 255 * (images * jnp.asarray(setup.std) + jnp.asarray(setup.mean))
            images = augment.normalize(pixels, self.teacher_mean, self.teacher_std)
        return self.teacher_model.apply(frozen["teacher"], images, train=False)  # type: ignore[return-value]

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del progress
        auxiliary: tuple[jax.Array, ...] = ()
        if train and hasattr(self.setup.model, "heads"):
            (logits, student), updates = self.forward(variables, views["image"], key, train=train, method="heads")
        else:
            logits, auxiliary, updates = self.logits(variables, views["image"], key, train=train)
            student = logits
        mask = None if train else views["mask"]
        value, weight = self.label_loss(logits, auxiliary, views["target"], mask)
        distances = losses.distillation_loss(student, targets, kind=self.kind, temperature=self.temperature)
        value = (1 - self.weight) * value + self.weight * total(distances, mask)[0]
        if student is not logits:
            logits = (logits + student) / 2
        return Out(value, weight, updates, {"top1": total(in_top_k(logits, views["label"], 1), mask)})
