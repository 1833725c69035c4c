"""VICReg (Bardes, Ponce and LeCun 2021, arXiv:2105.04906; facebookresearch/vicreg): features that vary."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.objectives.base import Out, Progress, Variables, Views, check_ranges
from vision_jax.objectives.crops import CropsObjective, for_each_crop
from vision_jax.objectives.heads import Layer, Mlp, spread
from vision_jax.pretrained import OfficialNames

_EPSILON = 1e-4  # added to variances


def vicreg_terms(a: jax.Array, b: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns invariance, variance and covariance terms, () float32 each.

    invariance: mean over rows and dimensions of (a - b)^2
    variance:   mean over the dimensions of a, and of b, of max(0, 1 - s), with s^2 the unbiased variance + 1e-4
    covariance: of a and of b, the sum of the squares of the covariances off the diagonal, divided by the dimensions

    Args:
        a, b: (n, dim), embeddings of both crops.
        mask: (n,), 0 for rows that do not count; None: all count.
    """
    weights = jnp.ones(len(a)) if mask is None else mask
    count, dim = weights.sum(), a.shape[1]
    rows = weights[:, None]

    def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = x.astype(jnp.float32)
        centered = rows * (x - (rows * x).sum(0) / jnp.maximum(count, 1))
        covariance = jnp.matmul(centered.T, centered, precision="highest") / jnp.maximum(count - 1, 1)
        variances = jnp.diagonal(covariance)
        hinge = jax.nn.relu(1 - jnp.sqrt(variances + _EPSILON)).mean()
        return hinge, (jnp.square(covariance).sum() - jnp.square(variances).sum()) / dim

    (variance_a, covariance_a), (variance_b, covariance_b) = moments(a), moments(b)
    invariance = (rows * jnp.square(a.astype(jnp.float32) - b)).sum() / (jnp.maximum(count, 1) * dim)
    return invariance, (variance_a + variance_b) / 2, covariance_a + covariance_b


@dataclasses.dataclass(frozen=True, kw_only=True)
class VICReg(CropsObjective):
    """VICReg, over the global batch. Each crop has a forward pass of its own.

    Attributes:
        hidden: widths of the expander's hidden layers.
        out: width of the embedding.
        invariance, variance, covariance: weights of the terms.
    """

    couples: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, bool]] = {
        "loss": False,
        "invariance_loss": False,
        "variance_loss": False,
        "covariance_loss": False,
        "spread": True,
    }

    hidden: tuple[int, ...] = (8192, 8192)
    out: int = 8192
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(self, positive=("hidden", "out"), not_negative=("invariance", "variance", "covariance"))

    @property
    def heads(self) -> Mapping[str, nn.Module]:
        """The expander, called the projector as elsewhere."""
        model: Any = self.setup.model
        layers = (*(Layer(width, bias=True) for width in self.hidden), Layer(self.out, norm="", activation=""))
        return {"projector": Mlp(layers, dtype=model.dtype)}

    @property
    def official(self) -> OfficialNames:
        return OfficialNames({"projector.": "projector."})

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del targets, progress
        (a, b), stats = for_each_crop(
            lambda variables, images: self.embed(variables, images, train=train, key=key), variables, views["image"]
        )
        mask = None if train else views["mask"]
        names, weights = ("invariance", "variance", "covariance"), (self.invariance, self.variance, self.covariance)
        terms = vicreg_terms(a, b, mask)
        count = jnp.float32(len(a)) if mask is None else mask.sum()
        metrics = {f"{name}_loss": (count * term, count) for name, term in zip(names, terms, strict=True)}
        metrics["spread"] = (spread(a, mask), jnp.float32(1))
        loss = sum(weight * term for weight, term in zip(weights, terms, strict=True))
        return Out(count * loss, count, {"batch_stats": stats}, metrics)
