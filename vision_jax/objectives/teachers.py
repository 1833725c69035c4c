"""The base of objectives whose targets come from a teacher: the EMA of the network itself, applied in training mode."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.objectives.base import Progress, Variables, check_ranges
from vision_jax.objectives.crops import CropsObjective, for_each_crop


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherObjective(CropsObjective):
    """An objective with a teacher (momentum encoder, target network): the EMA of the parameters, heads included.

    The teacher normalizes by the statistics of its own batches, and keeps their running means as its own. Where a
    source moves it before the keys are computed, and with the parameters before the update (MoCo), this is the same as
    after the update of the step before, with the momentum of the step that follows.

    Attributes:
        momentum: decay of the EMA, at the start.
        momentum_end: at the end of the run, reached on a half cosine; the same as `momentum`: it is constant.
    """

    teaches: ClassVar[bool] = True
    # Whether the source moves the teacher before the keys of a step are computed; else, after the update.
    moves_first: ClassVar[bool] = False

    momentum: float = 0.996
    momentum_end: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(self, shares=("momentum", "momentum_end"))

    def momentum_at(self, share: jax.Array) -> jax.Array:
        """Returns the momentum at a share of the run."""
        end = self.momentum_end
        return end - (end - self.momentum) * (1 + jnp.cos(jnp.pi * share)) / 2

    def ema_decay(self, progress: Progress) -> jax.Array:
        step = progress.step if self.moves_first else progress.step - 1
        return self.momentum_at(jnp.maximum(step, 0).astype(jnp.float32) / self.setup.total_steps)

    @property
    def teacher_model(self) -> nn.Module:
        """The backbone of the teacher, which drops nothing."""
        model: Any = self.setup.model
        rates = ("drop_rate", "drop_path_rate", "proj_drop_rate")
        return model.clone(**{name: 0.0 for name in rates if getattr(model, name, 0.0)})

    def teach(
        self, average: Variables, crops: jax.Array, key: jax.Array, *, train: bool, heads: int | None = None
    ) -> tuple[list[jax.Array], Any]:
        """Applies the teacher to each crop, in its own forward pass; arguments as for `embed`.

        Args:
            average: the teacher's variables.
            crops: (rows, crops, height, width, channels).
            key: of dropout.
            train: False: a validation loss, where it normalizes by its running statistics.
            heads: how many of the heads it has; None: all.

        Returns:
            (rows, features) float32 for each crop; and its batch statistics afterwards, for `Out.average_stats`.
        """
        model = self.teacher_model

        def embed(variables: Variables, images: jax.Array) -> tuple[jax.Array, Any]:
            return self.embed(variables, images, train=train, key=key, heads=heads, model=model)

        return for_each_crop(embed, average, crops)
