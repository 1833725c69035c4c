"""MoCo v2 (He et al. 2019, arXiv:1911.05722; Chen et al. 2020, arXiv:2003.04297): contrast with a queue of keys."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import ConfigError
from vision_jax.objectives.base import Out, Progress, Variables, Views, check_ranges, total
from vision_jax.objectives.heads import Layer, Mlp, normalize, spread
from vision_jax.objectives.teachers import TeacherObjective
from vision_jax.pretrained import OfficialNames


def queue_loss(
    queries: jax.Array, keys: jax.Array, queue: jax.Array, temperature: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the contrastive loss of each query, whose negatives are the keys of earlier batches.

    With the cosine similarity s, it is -log(exp(s(q_i, k_i) / t) / (exp(s(q_i, k_i) / t) + sum_j exp(q_i n_j / t))).

    Args:
        queries, keys: (n, dim), embeddings of one crop and of the other; keys get no gradient.
        queue: (length, dim), rows of length 1.
        temperature: t.

    Returns:
        (n,) float32 each: the loss, and whether its own key is more similar than all in the queue.
    """
    queries, keys = normalize(queries), jax.lax.stop_gradient(normalize(keys))
    own = (queries * keys).sum(-1, keepdims=True) / temperature
    logits = jnp.concatenate([own, jnp.matmul(queries, queue.T, precision="highest") / temperature], 1)
    return jax.nn.logsumexp(logits, 1) - own[:, 0], (jnp.argmax(logits, 1) == 0).astype(jnp.float32)


def enqueue(queue: jax.Array, position: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the queue with (n, dim) keys written at a position, the oldest ones replaced; and the next position.

    At the end it goes on from the beginning: n need not divide the position, which may be that of another batch.
    """
    rows = (position + jnp.arange(len(keys), dtype=jnp.int32)) % len(queue)
    return queue.at[rows].set(keys, unique_indices=True), (position + len(keys)) % len(queue)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoCoV2(TeacherObjective):
    """MoCo v2. The first crop is the query, the second the key.

    With batch norm over groups (`model.bn_group_size`, the 32 images of a GPU in the official code), the network could
    tell a pair by the statistics that it shares: so the keys are computed in another order, and with other neighbors.

    Attributes:
        hidden: width of the projector's hidden layer; 0: none, as in version 1.
        out: width of the embedding.
        queue: length of the queue, a multiple of the batch.
        temperature: of the loss; 0.07 in version 1.
    """

    couples: ClassVar[bool] = True
    moves_first: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "pair_top1": True, "spread": True}

    momentum: float = 0.999
    momentum_end: float = 0.999
    hidden: int = 2048
    out: int = 128
    queue: int = 65536
    temperature: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, positive=("out", "queue", "temperature"), not_negative=("hidden",))

    @property
    def heads(self) -> Mapping[str, nn.Module]:
        """The projector, which has no batch norm."""
        model: Any = self.setup.model
        hidden = (Layer(self.hidden, bias=True, norm=""),) if self.hidden else ()
        layers = (*hidden, Layer(self.out, bias=True, norm="", activation=""))
        return {"projector": Mlp(layers, dtype=model.dtype)}

    @property
    def official(self) -> OfficialNames:
        # A projector of one layer, as in version 1, has the place of the classifier.
        heads = {"projector.": "encoder_q.fc."} if self.hidden else {"projector.0.": "encoder_q.fc."}
        return OfficialNames(heads, ("encoder_q.", "encoder_k."), ("queue", "queue_ptr"))

    def from_official(self, given: dict[str, Any], state: Mapping[str, np.ndarray]) -> dict[str, Any]:
        extra = {"queue": state["queue"].T, "position": state["queue_ptr"].reshape(()).astype(np.int32)}
        return {**given, "extra": extra}

    def init_extra(self, variables: Variables) -> Any:
        """Returns the queue of random keys, the same for every seed, and the position of the next one."""
        queue = normalize(jax.random.normal(jax.random.key(0), (self.queue, self.out)))
        return {"queue": queue, "position": jnp.zeros((), jnp.int32)}

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
        images = views["image"][:, 1:2]
        if train and self.queue % len(images):
            raise ConfigError(
                f"objective.queue is {self.queue}, which the batch of {len(images)} does not divide: make it a "
                "multiple."
            )
        if not train or not getattr(self.setup.model, "bn_group_size", None):
            keys, stats = self.teach(average, images, key, train=train)
            return normalize(keys[0]), stats, extra["queue"]
        order = jax.random.permutation(key, len(images))
        keys, stats = self.teach(average, images[order], key, train=train)
        return normalize(keys[0])[jnp.argsort(order)], stats, extra["queue"]

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del progress
        keys, average_stats, queue = targets
        queries, stats = self.embed(variables, views["image"][:, 0], train=train, key=key)
        mask = None if train else views["mask"]
        values, found = queue_loss(queries, keys, queue, self.temperature)
        value, weight = total(values, mask)
        metrics = {"pair_top1": total(found, mask), "spread": (spread(keys, mask), jnp.float32(1))}
        return Out(value, weight, {"batch_stats": stats}, metrics, rows=keys, average_stats=average_stats)

    def after(self, params: Any, extra: Any, sums: Any, rows: Any, progress: Progress) -> Any:
        queue, position = enqueue(extra["queue"], extra["position"], rows)
        return {"queue": queue, "position": position}
