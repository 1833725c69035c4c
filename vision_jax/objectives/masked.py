"""The base of objectives that reconstruct what is hidden of an image: masked image modeling."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.errors import ConfigError
from vision_jax.objectives.base import Objective, Out, Rows, Views, total

_MASK = 2**30  # sets the keys of masks apart from those of the stages of augmentation, which are made of the same key


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedObjective(Objective):
    """An objective that hides some of the cells of an image, and has a decoder at `params["decoder"]`.

    Its metric `explained` is the share of the squared targets that the predictions explain, of what is hidden: 1 if it
    is all reconstructed, and 0 for predictions of zero, which are gray, or with normalized targets the means of their
    patches.
    """

    metrics: ClassVar[Any] = {"loss": False, "explained": True}

    @property
    def cells(self) -> int:
        """How many parts of an image are hidden or not."""
        raise NotImplementedError

    @property
    def decoder(self) -> nn.Module:
        """What is beside the backbone."""
        raise NotImplementedError

    @property
    def initial_model(self) -> nn.Module:
        """The backbone as it is initialized."""
        return self.setup.model

    def decoder_inputs(self) -> tuple[Any, ...]:
        """Returns arrays in the shapes of what the decoder takes."""
        raise NotImplementedError

    def init(self, key: jax.Array, inputs: Rows) -> dict[str, Any]:
        del inputs
        model_key, head_key = jax.random.split(key)
        images = jnp.zeros((1, *self.setup.image_shape), jnp.float32)
        variables = dict(self.initial_model.init(model_key, images, train=False))
        head = self.decoder.init(head_key, *self.decoder_inputs(), train=False)["params"]
        return {**variables, "params": {**variables["params"], "decoder": head}}

    def views(self, keys: jax.Array, rows: Rows) -> Views:
        """Returns `image`, augmented; `order`, (rows, cells) int32, the cells in a random order; and `mask`.

        Raises:
            ConfigError: if the images are not of the size that the decoder is made for.
        """
        height, width = rows["image"].shape[1:3]
        if (height, width) != self.setup.image_shape[:2]:
            raise ConfigError(
                f"The objective {type(self).__name__} reconstructs images of data.image_size alone, "
                f"{self.setup.image_shape[0]} pixels, not of {height}: leave data.eval_size and data.progressive_sizes "
                "unset."
            )
        mask_keys = jax.vmap(lambda key: jax.random.fold_in(key, _MASK))(keys)
        draws = jax.vmap(lambda key: jax.random.uniform(key, (self.cells,)))(mask_keys)
        order = jnp.argsort(draws, axis=1)
        return {"image": self.augment(keys, rows["image"]), "order": order, "mask": rows["mask"]}


def reconstruction_out(
    errors: jax.Array, squares: tuple[jax.Array, jax.Array], counts: jax.Array, mask: jax.Array | None, updates: Any
) -> Out:
    """Returns the result of a loss that is the mean over all that is hidden in a batch.

    Args:
        errors: (rows,), the sum over what is hidden of each image.
        squares: (rows,) each, of predictions minus targets, and of targets, summed likewise.
        counts: (rows,), how much is hidden.
        mask: (rows,), 0 for rows that do not count; None: all count.
        updates: see `Out.variables`.
    """
    missed, whole = (total(values, mask)[0] for values in squares)
    metrics = {"explained": (whole - missed, whole)}
    return Out(total(errors, mask)[0], total(counts, mask)[0], updates, metrics)
