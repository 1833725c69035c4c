"""The base of objectives that compare several crops of an image, and how networks are applied to them."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax import augment
from vision_jax.data.views import View
from vision_jax.errors import ConfigError
from vision_jax.objectives.base import Objective, Rows, Variables, Views

_CROP = 2**31  # sets the keys of crops apart from those of the stages of augmentation, which are made of the same key


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropsObjective(Objective):
    """An objective of several crops of each image; by default, of two of the same size.

    Each crop has a key of its own, and its own augmentation (`Setup.augmentations`).
    """

    crops: ClassVar[bool] = True
    # Whether it takes further views, of smaller crops, besides the two.
    local_crops: ClassVar[bool] = False

    @property
    def heads(self) -> Mapping[str, nn.Module]:
        """Modules beside the backbone, by their name at the root of `params`, applied one after another."""
        return {}

    @classmethod
    def check_views(cls, views: tuple[View, ...], name: str) -> None:
        """Checks that the configured views are those that it takes.

        Raises:
            ConfigError: if not.
        """
        size = views[0].size
        if (views[0].name, views[0].count) != ("image", 2) or (len(views) > 1 and not cls.local_crops):
            more = f", and with smaller ones, 2x{size}:0.14-1,6x96:0.05-0.14" if cls.local_crops else ""
            raise ConfigError(
                f"The objective {name} compares two crops of each image: set data.views to 2x{size}, or with a "
                f"range of areas, 2x{size}:0.2-1{more}."
            )

    def init(self, key: jax.Array, inputs: Rows) -> dict[str, Any]:
        keys = jax.random.split(key, 1 + len(self.heads))
        variables = super().init(keys[0], inputs)
        params, stats = dict(variables["params"]), dict(variables.get("batch_stats", {}))
        images = jnp.zeros((1, *self.setup.image_shape), jnp.float32)
        x = self.setup.model.apply(variables, images, train=False, method="features")
        for (name, head), head_key in zip(self.heads.items(), keys[1:], strict=True):
            made = head.init(head_key, x, train=False)
            params[name] = made["params"]
            if "batch_stats" in made:
                stats[name] = made["batch_stats"]
            x = head.apply(made, x, train=False)
        return {**variables, "params": params, "batch_stats": stats}

    def views(self, keys: jax.Array, rows: Rows) -> Views:
        """Returns each view as (rows, crops, height, width, channels) float32, under its name, and `mask`.

        An evaluation has one crop of each image, the center: it stands for all crops of the first view, each augmented
        by itself, and there are no other views.
        """
        made: Views = {"mask": rows["mask"]}
        first = 0
        for view in self.inputs():
            if view.name not in rows:
                continue
            images = rows[view.name]
            if images.ndim == 4:
                images = jnp.broadcast_to(images[:, None], (len(images), view.count, *images.shape[1:]))
            made[view.name] = self.augment_crops(keys, images, first)
            first += view.count
        return made

    def augment_crops(self, keys: jax.Array, images: jax.Array, first: int) -> jax.Array:
        """Returns augmented and normalized crops.

        Args:
            keys: (rows,) keys, one per image.
            images: (rows, crops, height, width, channels) uint8.
            first: number of the first of these crops among all of an image.

        Returns:
            (rows, crops, height, width, channels) float32.
        """
        setup = self.setup
        crop_keys = [_crop_key(keys, first + i) for i in range(images.shape[1])]
        parts = []
        # Consecutive crops with the same augmentation are one program.
        for augmentation, group in itertools.groupby(
            range(images.shape[1]), lambda i: setup.augmentation_of(first + i)
        ):
            chosen = list(group)
            part_keys = jnp.stack([crop_keys[i] for i in chosen], 1)
            part = jax.vmap(jax.vmap(augmentation.augment_image))(part_keys, images[:, chosen[0] : chosen[-1] + 1])
            part = augment.normalize(part, setup.mean, setup.std)
            parts.append(jax.vmap(jax.vmap(augmentation.after_normalize))(part_keys, part))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, 1)

    def embed(
        self,
        variables: Variables,
        images: jax.Array,
        *,
        train: bool,
        key: jax.Array,
        heads: int | None = None,
        model: nn.Module | None = None,
    ) -> tuple[jax.Array, Any]:
        """Applies the backbone and its heads, one after another.

        Args:
            variables: `params` and `batch_stats`.
            images: (n, height, width, channels).
            train: normalize by batch statistics, and update the running ones.
            key: of dropout.
            heads: how many of the heads are applied; None: all.
            model: the backbone; None: that of the setup.

        Returns:
            (n, features) float32, and the batch statistics afterwards.
        """
        x, stats = self.encode(variables, images, train=train, key=key, model=model)
        return self.apply_heads(variables["params"], stats, x, train=train, heads=heads)

    def encode(
        self, variables: Variables, images: jax.Array, *, train: bool, key: jax.Array, model: nn.Module | None = None
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Applies the backbone alone; arguments and results as for `embed`."""
        x, updates = (model or self.setup.model).apply(
            variables,
            images,
            train=train,
            method="features",
            mutable=["batch_stats"] if train else [],
            rngs={"dropout": key},
        )
        return x, {**variables["batch_stats"], **updates.get("batch_stats", {})}

    def encode_views(
        self, variables: Variables, views: Views, *, train: bool, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Applies the backbone to all crops, in one forward pass per view, within which they are normalized together.

        Args:
            variables, train, key: as for `embed`.
            views: of `views`.

        Returns:
            (rows, crops of all views, features) float32, and the batch statistics afterwards.
        """
        stats, parts = variables["batch_stats"], []
        for number, view in enumerate(self.inputs()):
            if view.name not in views:
                continue
            crops = views[view.name]
            x, stats = self.encode(
                {**variables, "batch_stats": stats},
                crops.reshape(-1, *crops.shape[2:]),
                train=train,
                key=jax.random.fold_in(key, number),
            )
            parts.append(x.reshape(*crops.shape[:2], -1))
        return jnp.concatenate(parts, 1), stats

    def apply_heads(
        self, params: Any, stats: Mapping[str, Any], x: jax.Array, *, train: bool, heads: int | None = None
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Applies the heads to (n, features); returns the result, and all batch statistics afterwards."""
        stats = dict(stats)
        for name, head in list(self.heads.items())[:heads]:
            x, stats = apply_head(head, name, params, stats, x, train=train)
        return x, stats


def _crop_key(keys: jax.Array, number: int) -> jax.Array:
    """Returns the keys of a crop of each image; those of the first crop are the images' own."""
    return jax.vmap(lambda key: jax.random.fold_in(key, _CROP + number))(keys) if number else keys


def apply_head(
    head: nn.Module, name: str, params: Any, stats: Mapping[str, Any], x: jax.Array, *, train: bool
) -> tuple[Any, dict[str, Any]]:
    """Applies a head beside the backbone; returns its result, and all batch statistics afterwards."""
    variables = {"params": params[name]}
    if name in stats:
        variables["batch_stats"] = stats[name]
    out, updates = head.apply(variables, x, train=train, mutable=["batch_stats"] if train else [])
    return out, {**stats, **({name: updates["batch_stats"]} if "batch_stats" in updates else {})}


def for_each_crop(
    embed: Callable[[Variables, jax.Array], tuple[Any, Any]], variables: Variables, crops: jax.Array
) -> tuple[list[Any], Any]:
    """Applies networks to each crop in its own forward pass, which normalizes it by its own statistics.

    Args:
        embed: (variables, images) -> (result, batch statistics afterwards).
        variables: `params` and `batch_stats`.
        crops: (rows, crops, height, width, channels).

    Returns:
        the result for each crop, and the batch statistics after the last.
    """
    results, stats = [], variables["batch_stats"]
    for number in range(crops.shape[1]):
        result, stats = embed({"params": variables["params"], "batch_stats": stats}, crops[:, number])
        results.append(result)
    return results, stats
