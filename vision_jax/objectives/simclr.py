"""SimCLR (Chen et al. 2020, arXiv:2002.05709; google-research/simclr): which two crops are of the same image?"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.objectives.base import Out, Progress, Variables, Views, check_ranges, total
from vision_jax.objectives.crops import CropsObjective
from vision_jax.objectives.heads import Layer, Mlp, normalize, spread


def nt_xent(
    a: jax.Array, b: jax.Array, temperature: float | jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the normalized temperature-scaled cross-entropy of pairs.

    With the cosine similarity s, the loss of the anchor a_i is

    -log(exp(s(a_i, b_i) / t) / (sum_j exp(s(a_i, b_j) / t) + sum_{j != i} exp(s(a_i, a_j) / t)))

    and likewise for b_i. The paper's loss is the mean over all 2 n anchors; the official code's is twice that.

    Args:
        a, b: (n, dim), embeddings of both crops.
        temperature: t.
        mask: (n,), 0 for pairs that do not count, neither as anchors nor as negatives; None: all count.

    Returns:
        the mean of the losses of both anchors of each pair, (n,) float32; and whether the pair is the most similar one
        for a_i, (n,) float32.
    """
    n = len(a)
    a, b = normalize(a), normalize(b)
    hidden = 0.0 if mask is None else jnp.where(mask > 0, 0.0, -jnp.inf)

    def similarities(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.matmul(x, y.T, precision="highest") / temperature + hidden

    itself = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, 0.0)
    positive = (a * b).sum(-1) / temperature

    def losses(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = jnp.concatenate([similarities(x, y), similarities(x, x) + itself], 1)
        return jax.nn.logsumexp(logits, 1) - positive, jnp.argmax(logits, 1) == jnp.arange(n)

    of_a, found = losses(a, b)
    of_b, _ = losses(b, a)
    return (of_a + of_b) / 2, found.astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimCLR(CropsObjective):
    """SimCLR. Both crops are in one forward pass, so that batch norm's statistics are those of all of them.

    The defaults are version 2 of the official code, whose projector has three layers; version 1 has two, as
    `hidden=(2048,)`.

    Attributes:
        hidden: widths of the projector's hidden layers.
        out: width of the embedding.
        temperature: of the loss.
        scale: factor of the loss; 2 is that of the official code, which shows in what LARS does not adapt.
    """

    couples: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "pair_top1": True, "spread": True}

    hidden: tuple[int, ...] = (2048, 2048)
    out: int = 128
    temperature: float = 0.1
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(self, positive=("hidden", "out", "temperature", "scale"))

    @property
    def heads(self) -> Mapping[str, nn.Module]:
        """The projector. Its last batch norm has no offset."""
        layers = (*(Layer(width) for width in self.hidden), Layer(self.out, norm="scale", activation=""))
        model: Any = self.setup.model
        return {"projector": Mlp(layers, dtype=model.dtype, kernel_init="normal_0.01")}

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del targets, progress
        images = views["image"]  # (rows, 2, height, width, channels)
        z, stats = self.embed(variables, images.reshape(-1, *images.shape[2:]), train=train, key=key)
        z = z.reshape(len(images), 2, -1)
        mask = None if train else views["mask"]
        values, found = nt_xent(z[:, 0], z[:, 1], self.temperature, mask)
        value, weight = total(self.scale * values, mask)
        metrics = {"pair_top1": total(found, mask), "spread": (spread(z[:, 0], mask), jnp.float32(1))}
        return Out(value, weight, {"batch_stats": stats}, metrics)
