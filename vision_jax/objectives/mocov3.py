"""MoCo v3 (Chen, Xie and He 2021, arXiv:2104.02057; facebookresearch/moco-v3): contrast with a momentum encoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.models.vit import VisionTransformer
from vision_jax.objectives.base import Out, Progress, Variables, Views, check_ranges, total
from vision_jax.objectives.crops import for_each_crop
from vision_jax.objectives.heads import Layer, Mlp, normalize, spread
from vision_jax.objectives.teachers import TeacherObjective
from vision_jax.pretrained import OfficialNames


def contrastive_loss(
    queries: jax.Array, keys: jax.Array, temperature: float | jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the contrastive loss of each query, times 2 t, as in the official code.

    With the cosine similarity s, it is -2 t log(exp(s(q_i, k_i) / t) / sum_j exp(s(q_i, k_j) / t)).

    Args:
        queries, keys: (n, dim), embeddings of one crop and of the other; keys get no gradient.
        temperature: t.
        mask: (n,), 0 for rows that do not count, neither as queries nor as keys; None: all count.

    Returns:
        (n,) float32 each: the loss, and whether its own key is the most similar one.
    """
    queries, keys = normalize(queries), jax.lax.stop_gradient(normalize(keys))
    logits = jnp.matmul(queries, keys.T, precision="highest") / temperature
    if mask is not None:
        logits = jnp.where(mask > 0, logits, -jnp.inf)
    own = (queries * keys).sum(-1) / temperature
    found = jnp.argmax(logits, 1) == jnp.arange(len(logits))
    return 2 * temperature * (jax.nn.logsumexp(logits, 1) - own), found.astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoCoV3(TeacherObjective):
    """MoCo v3, over the global batch. Each crop has a forward pass of its own.

    Attributes:
        hidden: widths of the projector's hidden layers: one for ResNets, two for ViTs.
        predictor_hidden: width of the predictor's hidden layer.
        out: width of the embedding.
        predictor_norm: a batch norm without parameters ends the predictor, as it does for ViTs.
        temperature: of the loss; 0.2 for ViTs.
    """

    couples: ClassVar[bool] = True
    moves_first: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "pair_top1": True, "spread": True}

    momentum: float = 0.99
    hidden: tuple[int, ...] = (4096,)
    predictor_hidden: int = 4096
    out: int = 256
    predictor_norm: bool = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, positive=("hidden", "predictor_hidden", "out", "temperature"))

    @property
    def heads(self) -> Mapping[str, nn.Module]:
        """Projector and predictor; the teacher has the former."""
        model: Any = self.setup.model
        projector = (*(Layer(width) for width in self.hidden), Layer(self.out, norm="plain", activation=""))
        last = Layer(self.out, norm="plain" if self.predictor_norm else "", activation="")
        stacks = {"projector": projector, "predictor": (Layer(self.predictor_hidden), last)}
        return {name: Mlp(layers, dtype=model.dtype) for name, layers in stacks.items()}

    @property
    def official(self) -> OfficialNames:
        # The projector has the place of the classifier, whose name depends on the network.
        classifier = "head" if isinstance(self.setup.model, VisionTransformer) else "fc"
        return OfficialNames(
            {"projector.": f"base_encoder.{classifier}.", "predictor.": "predictor."},
            ("base_encoder.", "momentum_encoder."),
        )

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
        (k1, k2), average_stats = targets
        (q1, q2), stats = for_each_crop(
            lambda variables, images: self.embed(variables, images, train=train, key=key), variables, views["image"]
        )
        mask = None if train else views["mask"]
        first, found = contrastive_loss(q1, k2, self.temperature, mask)
        second, _ = contrastive_loss(q2, k1, self.temperature, mask)
        value, weight = total(first + second, mask)
        metrics = {"pair_top1": total(found, mask), "spread": (spread(k1, mask), jnp.float32(1))}
        return Out(value, weight, {"batch_stats": stats}, metrics, average_stats=average_stats)
