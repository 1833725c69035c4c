"""Free adversarial training: one backward pass for the parameters and for the perturbation."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vision_jax.errors import ConfigError
from vision_jax.metrics import in_top_k
from vision_jax.objectives.adversarial import Perturbing
from vision_jax.objectives.base import ROWS, Out, Progress, Variables, Views, check_ranges, total


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreeAdversarial(Perturbing):
    """Free adversarial training (Shafahi et al. 2019, arXiv:1904.12843), as in mahyarnajibi/FreeAdversarialTraining.

    Each batch is seen in `replays` steps, one after another. Of one backward pass, a step takes the gradient of the
    parameters for its update, and that of the perturbation, which goes on from step to step and from batch to batch:

        perturbation = clip(perturbation + step sign(gradient), -radius, radius)

    It is kept by position in the batch, (batch, height, width, channels) float32, and divided over devices as the batch
    is. Replays have the same crops, augmentation and mixing. A step costs as much as one without an attack, and epochs
    and the schedule count steps as always: 90 epochs pass through the data 90 / `replays` times.

    In a validation loss, images are not perturbed.

    Attributes:
        relative_step: see `Perturbing`; 1 in the paper.
        replays: m, the steps that each batch is seen in.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "robust_top1": True}
    climbs: ClassVar[bool] = True

    replays: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, positive=("replays",))

    @property
    def steps_per_batch(self) -> int:
        return self.replays

    def init_extra(self, variables: Variables) -> Any:
        del variables
        shape = (self.setup.batch_size, *self.setup.image_shape)
        return {ROWS: {"perturbation": jnp.zeros(shape, jnp.float32)}}

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
        del variables, average, frozen, key, progress
        perturbation, shape = extra[ROWS]["perturbation"], views["image"].shape
        if not train:
            return jnp.zeros(shape, jnp.float32)
        if perturbation.shape != shape:
            raise ConfigError(
                f"The objective free_adversarial keeps a perturbation of {perturbation.shape}, and the images are "
                f"{shape}: it takes neither optimizer.accumulate, augment.col_out nor data.progressive_sizes."
            )
        return perturbation

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del progress
        images = self.normalized(jnp.clip(self.pixels(views) + targets, 0, 1))
        logits, auxiliary, updates = self.logits(variables, images, key, train=train)
        mask = None if train else views["mask"]
        value, weight = self.label_loss(logits, auxiliary, views["target"], mask)
        return Out(value, weight, updates, {"robust_top1": total(in_top_k(logits, views["label"], 1), mask)})

    def after(self, params: Any, extra: Any, sums: Any, rows: Any, progress: Progress) -> Any:
        del params, sums
        radius, step_size = self.radius(progress)
        perturbation = extra[ROWS]["perturbation"] + step_size * jnp.sign(rows.climbed)
        return {ROWS: {"perturbation": jnp.clip(perturbation, -radius, radius)}}
