"""BYOL (Grill et al. 2020, arXiv:2006.07733; google-deepmind/deepmind-research, byol): predict a teacher."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.objectives.base import Out, Progress, Variables, Views, check_ranges, total
from vision_jax.objectives.crops import for_each_crop
from vision_jax.objectives.heads import Layer, Mlp, normalize, spread
from vision_jax.objectives.teachers import TeacherObjective


def regression_loss(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns |p / |p| - z / |z||^2 = 2 - 2 cos(p, z) of each row, (n,) float32; p and z are (n, dim)."""
    return 2 - 2 * (normalize(predictions) * normalize(targets)).sum(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Byol(TeacherObjective):
    """BYOL: the sum over both crops, not halved, as in the official code.

    Each crop has a forward pass of its own. The teacher begins as a copy of the network, in the official code as
    another random one; and there is no online probe in the loss, as `config.evals` measures features.

    Attributes:
        hidden: width of the hidden layer of projector and predictor.
        out: width of the embedding.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "spread": True}

    momentum: float = 0.99
    hidden: int = 4096
    out: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, positive=("hidden", "out"))

    @property
    def heads(self) -> Mapping[str, nn.Module]:
        """Projector and predictor; the teacher has the former."""
        model: Any = self.setup.model
        layers = (Layer(self.hidden, bias=True), Layer(self.out, norm="", activation=""))
        return {name: Mlp(layers, dtype=model.dtype, kernel_init="haiku") for name in ("projector", "predictor")}

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
    ) -> Any:
        assert average is not None  # it is the teacher
        return self.teach(average, views["image"], key, train=train, heads=1)

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del progress
        taught, average_stats = targets
        predictions, stats = for_each_crop(
            lambda variables, images: self.embed(variables, images, train=train, key=key), variables, views["image"]
        )
        mask = None if train else views["mask"]
        values = regression_loss(predictions[0], taught[1]) + regression_loss(predictions[1], taught[0])
        value, weight = total(values, mask)
        metrics = {"spread": (spread(taught[0], mask), jnp.float32(1))}
        return Out(value, weight, {"batch_stats": stats}, metrics, average_stats=average_stats)
