"""Rotation prediction, RotNet (Gidaris, Singh and Komodakis 2018, arXiv:1803.07728): which way is up?"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax import losses
from vision_jax.metrics import in_top_k
from vision_jax.models.layers import dense_init
from vision_jax.objectives.base import Objective, Out, Progress, Rows, Variables, Views, total

ANGLES = 4  # multiples of 90 degrees


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotation(Objective):
    """The cross-entropy of a linear classifier of four rotations, on the backbone's features.

    All four rotations of an image are in the batch, as the paper recommends, so it is four times as large for the
    backbone. Images must be square.
    """

    metrics: ClassVar[Mapping[str, bool]] = {"loss": False, "top1": True}

    @property
    def head(self) -> nn.Dense:
        """The classifier of rotations, at `params["rotation"]`."""
        return nn.Dense(ANGLES, kernel_init=dense_init)

    def init(self, key: jax.Array, inputs: Rows) -> dict[str, Any]:
        model_key, head_key = jax.random.split(key)
        variables = super().init(model_key, inputs)
        images = jnp.zeros((1, *self.setup.image_shape), jnp.float32)
        features = self.setup.model.apply(variables, images, train=False, method="features")
        head = self.head.init(head_key, features)["params"]
        return {**variables, "params": {**variables["params"], "rotation": head}}

    def views(self, keys: jax.Array, rows: Rows) -> Views:
        images = self.augment(keys, rows["image"])
        turned = jnp.stack([jnp.rot90(images, k, axes=(1, 2)) for k in range(ANGLES)], axis=1)
        return {"image": turned, "mask": rows["mask"]}

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del targets, progress
        images = views["image"].reshape(-1, *views["image"].shape[2:])
        features, updates = self.setup.model.apply(
            variables,
            images,
            train=train,
            method="features",
            mutable=["batch_stats"] if train else [],
            rngs={"dropout": key},
        )
        logits = self.head.apply({"params": variables["params"]["rotation"]}, features)
        angles = jnp.tile(jnp.arange(ANGLES), len(views["mask"]))
        mask = None if train else jnp.repeat(views["mask"], ANGLES)
        value, weight = total(losses.softmax_cross_entropy(logits, angles), mask)  # type: ignore[arg-type]
        return Out(value, weight, updates, {"top1": total(in_top_k(logits, angles, 1), mask)})  # type: ignore[arg-type]
