"""SimSiam (Chen and He 2020, arXiv:2011.10566; facebookresearch/simsiam): BYOL without a momentum encoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.objectives.base import Out, Progress, Variables, Views, check_ranges, total
from vision_jax.objectives.crops import CropsObjective, apply_head, for_each_crop
from vision_jax.objectives.heads import Layer, Mlp, normalize, spread
from vision_jax.pretrained import OfficialNames


def negative_cosine(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns -cos(p, z) of each row, (n,) float32, without a gradient for z; p and z are (n, dim)."""
    return -(normalize(predictions) * jax.lax.stop_gradient(normalize(targets))).sum(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimSiam(CropsObjective):
    """SimSiam: half of the sum over both crops. Each crop has a forward pass of its own.

    The official projector's last linear layer has a bias that is never trained, and that the batch norm behind it
    cancels: here there is none.

    Attributes:
        hidden: widths of the projector's hidden layers.
        out: width of the embedding.
        bottleneck: width of the predictor's hidden layer.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "spread": True}

    hidden: tuple[int, ...] = (2048, 2048)
    out: int = 2048
    bottleneck: int = 512

    def __post_init__(self) -> None:
        check_ranges(self, positive=("hidden", "out", "bottleneck"))

    @property
    def heads(self) -> Mapping[str, nn.Module]:
        """Projector and predictor."""
        model: Any = self.setup.model
        projector = (*(Layer(width) for width in self.hidden), Layer(self.out, norm="plain", activation=""))
        predictor = (Layer(self.bottleneck), Layer(self.out, bias=True, norm="", activation=""))
        stacks = {"projector": projector, "predictor": predictor}
        return {name: Mlp(layers, dtype=model.dtype) for name, layers in stacks.items()}

    @property
    def official(self) -> OfficialNames:
        return OfficialNames({"projector.": "encoder.fc.", "predictor.": "predictor."}, state=(self._official_bias,))

    @property
    def _official_bias(self) -> str:
        """The name of the bias that is not trained."""
        return f"encoder.fc.{3 * len(self.hidden)}.bias"

    def from_official(self, given: dict[str, Any], state: Mapping[str, np.ndarray]) -> dict[str, Any]:
        # It is a part of the running mean there, and of nothing here.
        projector = dict(given["batch_stats"]["projector"])
        last = str(3 * len(self.hidden) + 1)
        projector[last] = {**projector[last], "mean": projector[last]["mean"] - state[self._official_bias]}
        return {**given, "batch_stats": {**given["batch_stats"], "projector": projector}}

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del targets, progress

        def embed(variables: Variables, images: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
            z, stats = self.embed(variables, images, train=train, key=key, heads=1)
            p, stats = apply_head(self.heads["predictor"], "predictor", variables["params"], stats, z, train=train)
            return (p, z), stats

        ((p1, z1), (p2, z2)), stats = for_each_crop(embed, variables, views["image"])
        mask = None if train else views["mask"]
        value, weight = total((negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2, mask)
        metrics = {"spread": (spread(z1, mask), jnp.float32(1))}
        return Out(value, weight, {"batch_stats": stats}, metrics)
