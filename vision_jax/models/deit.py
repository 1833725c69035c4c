"""DeiT (Touvron et al. 2020, arXiv:2012.12877), with its distillation token, and DeiT III (2022, arXiv:2204.07118)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.errors import ConfigError
from vision_jax.models.layers import capture, capture_beside
from vision_jax.models.registry import InputSpec
from vision_jax.models.vit import VisionTransformer, register_variant


class DistilledVisionTransformer(VisionTransformer, kw_only=True):
    """A vision transformer with a second token, whose own classifier learns from a teacher.

    The logits are the average of those of both classifiers, in training too; `heads` gives them apart. There is no
    `classify`, because there is more than one representation: `features` is the average of both tokens.
    """

    def __post_init__(self) -> None:
        if self.global_pool != "token" or self.num_registers or self.norm_after_pooling:
            raise ConfigError(
                "The two tokens of a distilled model are its features: leave global_pool at token, num_registers at 0 "
                "and norm_after_pooling at False."
            )
        super().__post_init__()

    def tokens(self) -> dict[str, int]:
        return {"cls_token": 1, "dist_token": 1}

    def setup(self) -> None:
        super().setup()
        if self.num_classes:
            self.head_dist = self.make_head()

    def heads(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the logits of the class token and of the distillation token, (batch, num_classes) float32 each."""
        tokens, _ = self.encode(images, train=train)
        capture_beside(self, lambda: self._average(tokens), "features")

        def logits(head: nn.Module, token: jax.Array) -> jax.Array:
            return head(self.dropout(token, deterministic=not train)).astype(jnp.float32)

        return logits(self.head, tokens[:, 0]), logits(self.head_dist, tokens[:, 1])

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        return self._average(self.encode(images, train=train)[0])

    def _average(self, tokens: jax.Array) -> jax.Array:
        return tokens.astype(jnp.float32).mean(1)

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        raise NotImplementedError("each of the two classifiers sees its own token: call the model, or its heads")

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        if not self.num_classes:
            return capture(self, self.features(images, train=train), "features")
        first, second = self.heads(images, train=train)
        return capture(self, (first + second) / 2, "logits")


# size, patch_size, image sizes
DEIT = (("tiny", 16, (224,)), ("small", 16, (224,)), ("base", 16, (224, 384)))
DEIT3 = (
    ("small", 16, (224, 384)),
    ("medium", 16, (224,)),
    ("base", 16, (224, 384)),
    ("large", 16, (224, 384)),
    ("huge", 14, (224,)),
)
FAMILIES: tuple[tuple[str, type[VisionTransformer], Any, dict[str, Any]], ...] = (
    ("deit_{}_patch{}_{}", VisionTransformer, DEIT, {}),
    ("deit_{}_distilled_patch{}_{}", DistilledVisionTransformer, DEIT, {}),
    ("deit3_{}_patch{}_{}", VisionTransformer, DEIT3, {"no_embed_class": True, "layer_scale": 1e-6}),
)
for _name, _create, _variants, _options in FAMILIES:
    for _size, _patch_size, _img_sizes in _variants:
        for _img_size in _img_sizes:
            _input = InputSpec(_img_size, crop_pct=0.9 if _img_size == 224 else 1.0)
            register_variant(_name.format(_size, _patch_size, _img_size), _create, _size, _patch_size, _input, _options)
