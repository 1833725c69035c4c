"""What detection and segmentation share: images on canvases, with boxes or masks, and a network behind the backbone."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from vision_jax.augment import dense as dense_augment
from vision_jax.dense import weights
from vision_jax.dense.losses import Sums
from vision_jax.dense.networks import Network
from vision_jax.errors import ConfigError
from vision_jax.models.layers import ImageModel
from vision_jax.objectives.base import Objective, Out, Progress, Rows, Variables, Views
from vision_jax.pretrained import WeightFile

# The fields of a batch that augmentation changes together; see `vision_jax.data.dense`.
_EXAMPLE = ("image", "size", "boxes", "box_labels", "segmentation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense(Objective):
    """An objective that learns from boxes or masks.

    Attributes:
        num_classes: of the boxes or the pixels.
        frozen_norms: the backbone's batch norms keep their statistics, scales and biases, as with torchvision's
            FrozenBatchNorm2d; see `vision_jax.dense.Network`.
    """

    configured: ClassVar[frozenset[str]] = frozenset({"num_classes"})

    num_classes: int
    frozen_norms: bool = False

    def __post_init__(self) -> None:
        _ = self.network  # which refuses a backbone that does not fit

    @property
    def backbone(self) -> ImageModel:
        """The model, without a classifier."""
        model = self.setup.model
        if not isinstance(model, ImageModel):
            raise ConfigError(f"{type(model).__name__} has no maps of features: take another model.")
        return model

    @functools.cached_property
    def network(self) -> Network:
        """The backbone, and what stands behind it.

        Raises:
            ConfigError: if the backbone does not give the maps that it needs.
        """
        raise NotImplementedError

    def init(self, key: jax.Array, inputs: Rows) -> dict[str, Any]:
        del inputs
        return self.network.init(key, jnp.zeros((1, *self.setup.image_shape), jnp.float32))

    def from_file(self, file: WeightFile, *, seed: int | None) -> dict[str, Any] | None:
        """Returns the variables of the whole network, if a file has them under torchvision's names.

        Args:
            file: its content.
            seed: of a new classifier, if the file's is of other classes; None: that is an error.

        Raises:
            DataError: if it is a file of another network of this kind.
        """
        if not weights.is_whole(file):
            return None
        return weights.load(self.network, file, new_seed=seed)

    def views(self, keys: jax.Array, rows: Rows) -> Views:
        examples = {name: rows[name] for name in _EXAMPLE if name in rows}
        changed = jax.vmap(functools.partial(dense_augment.augment, augmentation=self.setup.augmentation))(
            keys, examples
        )
        return {**changed, "image": self.normalized(changed), "mask": rows["mask"]}

    def normalized(self, rows: Rows) -> jax.Array:
        """Returns the images of a batch as the network takes them, with 0 outside of them.

        Args:
            rows: `image` (rows, height, width, channels) uint8 and `size` (rows, 2), height and width of each.
        """
        normalize = functools.partial(dense_augment.normalize_valid, mean=self.setup.mean, std=self.setup.std)
        return jax.vmap(normalize)(rows["image"], rows["size"])

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        del targets, progress
        outputs, stats = self.network.apply(variables, views["image"], train=train, rngs={"dropout": key})
        sums = dict(self.sums_of(outputs, views, None if train else views["mask"]))
        value, weight = sums.pop("loss")
        return Out(value, weight, {"batch_stats": stats} if train and stats else {}, sums)

    def sums_of(self, outputs: Any, views: Views, mask: jax.Array | None) -> Sums:
        """Returns sums and weights of the losses, `loss` among them, of what the network gives.

        Args:
            outputs: of the network.
            views: as `views` returns them.
            mask: (rows,), 0 for rows that do not count; None: all do.
        """
        raise NotImplementedError


def predictor(objective: Dense, variables: Mapping[str, Any]) -> Any:
    """Returns a function from normalized images to the outputs of the network in evaluation mode."""
    return lambda images: objective.network.apply(variables, images, train=False)[0]
