"""Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230; facebookresearch/barlowtwins): decorrelated features."""

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

_EPSILON = 1e-5  # added to variances


def barlow_twins_loss(
    a: jax.Array, b: jax.Array, weight: float | jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the two terms of the loss, () float32 each, whose sum it is.

    With c the correlation matrix of the dimensions of a and b over the batch:

    sum_i (c_ii - 1)^2   and   weight * sum_{i != j} c_ij^2

    Args:
        a, b: (n, dim), embeddings of both crops.
        weight: of the second term.
        mask: (n,), 0 for rows that do not count; None: all count.
    """
    weights = jnp.ones(len(a)) if mask is None else mask
    share = (weights / jnp.maximum(weights.sum(), 1))[:, None]

    def standardize(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        centered = x - (share * x).sum(0)
        return centered * jax.lax.rsqrt((share * jnp.square(centered)).sum(0) + _EPSILON)

    c = jnp.matmul((share * standardize(a)).T, standardize(b), precision="highest")
    diagonal = jnp.diagonal(c)
    return jnp.square(diagonal - 1).sum(), weight * (jnp.square(c).sum() - jnp.square(diagonal).sum())


@dataclasses.dataclass(frozen=True, kw_only=True)
class BarlowTwins(CropsObjective):
    """Barlow Twins, over the global batch. Each crop has a forward pass of its own.

    The gradients of the official code on n GPUs are those of this loss divided by n, since it adds up the matrix
    without a gradient. LARS does not see the difference for weights; for biases and norms, whose rate was tuned there,
    it is one.

    Attributes:
        hidden: widths of the projector's hidden layers.
        out: width of the embedding.
        off_diagonal: weight of the terms off the diagonal.
    """

    couples: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, bool]] = {
        "loss": False,
        "on_diagonal_loss": False,
        "off_diagonal_loss": False,
        "spread": True,
    }

    hidden: tuple[int, ...] = (8192, 8192)
    out: int = 8192
    off_diagonal: float = 0.0051

    def __post_init__(self) -> None:
        check_ranges(self, positive=("hidden", "out"), not_negative=("off_diagonal",))

    @property
    def heads(self) -> Mapping[str, nn.Module]:
        """The projector."""
        model: Any = self.setup.model
        layers = (*(Layer(width) for width in self.hidden), Layer(self.out, norm="", activation=""))
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
        on, off = barlow_twins_loss(a, b, self.off_diagonal, mask)
        count = jnp.float32(len(a)) if mask is None else mask.sum()
        metrics = {"on_diagonal_loss": (count * on, count), "off_diagonal_loss": (count * off, count)}
        metrics["spread"] = (spread(a, mask), jnp.float32(1))
        return Out(count * (on + off), count, {"batch_stats": stats}, metrics)
