"""SwAV (Caron et al. 2020, arXiv:2006.09882; facebookresearch/swav): which prototypes is another crop assigned to?"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.models.layers import dense_init
from vision_jax.objectives.base import Out, Progress, Variables, Views, check_ranges, total
from vision_jax.objectives.crops import CropsObjective
from vision_jax.objectives.heads import Layer, Mlp, normalize, spread
from vision_jax.pretrained import OfficialNames


def sinkhorn(scores: jax.Array, epsilon: float, iterations: int, mask: jax.Array | None = None) -> jax.Array:
    """Returns assignments of rows to prototypes that use all prototypes alike, by the algorithm of Sinkhorn and Knopp.

    From Q = exp(scores / epsilon), in turn the sums over rows are made 1 / prototypes, and those over prototypes 1 / n
    (Cuturi 2013, arXiv:1306.0895); then each row is multiplied by n. There is no gradient.

    Args:
        scores: (n, prototypes).
        epsilon: the smaller it is, the sharper the assignments are.
        iterations: how often that is done.
        mask: (n,), 0 for rows that do not count, which are assigned to nothing; None: all count.

    Returns:
        (n, prototypes) float32, each row with the sum 1.
    """
    logits = jax.lax.stop_gradient(scores).astype(jnp.float32) / epsilon
    count: float | jax.Array = len(scores)
    if mask is not None:
        logits, count = jnp.where(mask[:, None] > 0, logits, -jnp.inf), mask.sum()
    q = jnp.exp(logits - logits.max())

    def scaled(q: jax.Array, axis: int, number: float | jax.Array) -> jax.Array:
        sums = q.sum(axis, keepdims=True)
        return q / (jnp.where(sums > 0, sums, 1) * number)

    for _ in range(iterations):
        q = scaled(q, 0, scores.shape[1])
        q = scaled(q, 1, count)
    return q * count


def swav_loss(scores: jax.Array, assignments: jax.Array, temperature: float) -> jax.Array:
    """Returns the cross-entropy between the assignment of a crop and the scores of all others.

    It is the mean over the assigned crops i, and over all other crops v, of

    -sum_k q_ik log softmax(s_v / temperature)_k

    Args:
        scores: (n, crops, prototypes), of all crops; the first ones are assigned.
        assignments: (n, assigned crops, prototypes).
        temperature: of the scores.

    Returns:
        (n,) float32.
    """
    log_p = jax.nn.log_softmax(scores.astype(jnp.float32) / temperature)
    crops, assigned = scores.shape[1], assignments.shape[1]
    pairs = [(i, v) for i in range(assigned) for v in range(crops) if v != i]
    return sum((-(assignments[:, i] * log_p[:, v]).sum(-1) for i, v in pairs), jnp.float32(0)) / len(pairs)


def unit_prototypes(kernel: jax.Array) -> jax.Array:
    """Returns prototypes of length 1, from (dim, prototypes)."""
    return normalize(kernel.T).T


class Prototypes(nn.Module):
    """The products of normalized features with prototypes.

    Attributes:
        number: of prototypes.
    """

    number: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns (n, number) float32 of x, (n, dim)."""
        del train
        kernel = self.param("kernel", dense_init, (x.shape[-1], self.number), jnp.float32)
        return jnp.matmul(normalize(x), kernel, precision="highest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwAV(CropsObjective):
    """SwAV. The two crops of the first view are assigned to prototypes, and each crop predicts the others' assignments.

    Before each forward pass, the prototypes are given the length 1, which the gradient does not see; they are frozen at
    first (`optimizer.frozen_until`). The crops of a view are normalized together.

    Attributes:
        hidden: width of the projector's hidden layer.
        out: width of the embedding.
        prototypes: their number.
        temperature: of the scores.
        epsilon, iterations: of `sinkhorn`, over the global batch.
        queue: number of earlier embeddings of each of the two crops that are assigned too, for small batches; 0: none.
        queue_epochs: epochs before the queue is filled; it is used as soon as it is full.
    """

    couples: ClassVar[bool] = True
    local_crops: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "assignment_entropy": False, "spread": True}

    hidden: int = 2048
    out: int = 128
    prototypes: int = 3000
    temperature: float = 0.1
    epsilon: float = 0.05
    iterations: int = 3
    queue: int = 0
    queue_epochs: int = 15

    def __post_init__(self) -> None:
        positive = ("hidden", "out", "prototypes", "temperature", "epsilon", "iterations")
        check_ranges(self, positive=positive, not_negative=("queue", "queue_epochs"))

    @property
    def heads(self) -> Mapping[str, nn.Module]:
        """The projector, and the prototypes."""
        model: Any = self.setup.model
        layers = (Layer(self.hidden, bias=True), Layer(self.out, bias=True, norm="", activation=""))
        return {"projector": Mlp(layers, dtype=model.dtype), "prototypes": Prototypes(self.prototypes)}

    @property
    def official(self) -> OfficialNames:
        # The queue is in files of its own, one for each GPU, which are not read: it fills up anew.
        return OfficialNames({"projector.": "projection_head.", "prototypes.": "prototypes."})

    def from_official(self, given: dict[str, Any], state: Mapping[str, np.ndarray]) -> dict[str, Any]:
        # There, prototypes get their length when the next step begins.
        return {**given, "params": self.constrain(given["params"])}

    def init(self, key: jax.Array, inputs: Any) -> dict[str, Any]:
        variables = super().init(key, inputs)
        return {**variables, "params": self.constrain(variables["params"])}

    def init_extra(self, variables: Variables) -> Any:
        del variables
        if not self.queue:
            return {}
        return {"queue": jnp.zeros((2, self.queue, self.out), jnp.float32), "filled": jnp.zeros((), jnp.int32)}

    def constrain(self, params: Any) -> Any:
        return {**params, "prototypes": {"kernel": unit_prototypes(params["prototypes"]["kernel"])}}

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
        """Returns what is assigned besides the batch: the queue."""
        return extra if train else {}

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del progress
        features, stats = self.encode_views(variables, views, train=train, key=key)
        rows, crops, _ = features.shape
        # Here too, since weights may come from elsewhere, or be averages.
        kernel = variables["params"]["prototypes"]["kernel"]
        kernel += jax.lax.stop_gradient(unit_prototypes(kernel) - kernel)
        params = {**variables["params"], "prototypes": {"kernel": kernel}}
        z, stats = self.apply_heads(params, stats, features.reshape(rows * crops, -1), train=train, heads=1)
        z = normalize(z).reshape(rows, crops, -1)

        def scores_of(z: jax.Array) -> Any:
            return Prototypes(self.prototypes).apply({"params": params["prototypes"]}, z, train=train)

        scores, mask = scores_of(z), None if train else views["mask"]
        assigned = [
            self.assign(scores[:, i], mask, (scores_of(targets["queue"][i]), targets["filled"]) if targets else None)
            for i in range(2)
        ]
        assignments = jnp.stack(assigned, 1)
        metrics = {
            "assignment_entropy": total(jax.scipy.special.entr(assignments).sum(-1).mean(1), mask),
            "spread": (spread(z[:, 0], mask), jnp.float32(1)),
        }
        values = swav_loss(scores, assignments, self.temperature)
        kept = jax.lax.stop_gradient(z[:, :2]) if targets else ()
        return Out(*total(values, mask), {"batch_stats": stats}, metrics, rows=kept)

    def assign(self, scores: jax.Array, mask: jax.Array | None, queue: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        """Returns the assignments of the batch, (rows, prototypes), together with those of a queue that is full.

        Args:
            scores: (rows, prototypes).
            mask: (rows,), 0 for rows that do not count; None: all count.
            queue: the scores in the queue, (queue, prototypes), and how many are in it.
        """
        if queue is None:
            return sinkhorn(scores, self.epsilon, self.iterations, mask)
        earlier, filled = queue
        used = jnp.broadcast_to((filled >= len(earlier)).astype(jnp.float32), len(earlier))
        both = jnp.concatenate([used, jnp.ones(len(scores)) if mask is None else mask])
        return sinkhorn(jnp.concatenate([earlier, scores]), self.epsilon, self.iterations, both)[len(earlier) :]

    def after(self, params: Any, extra: Any, sums: Any, rows: Any, progress: Progress) -> Any:
        if not self.queue:
            return extra
        done = progress.step - 1  # the step that the rows are of
        begun = done // self.setup.steps_per_epoch >= self.queue_epochs
        queue = jnp.concatenate([rows.swapaxes(0, 1), extra["queue"]], 1)[:, : self.queue]
        return {
            "queue": jnp.where(begun, queue, extra["queue"]),
            "filled": jnp.where(begun, jnp.minimum(extra["filled"] + len(rows), self.queue), 0),
        }
