"""The configuration of `small_resnet.py` with a vision transformer of one block, whose steps are smooth functions.

Rounding that differs, as on another topology, stays small in it: no gate of a ReLU can flip.
"""

import functools

import small_resnet
from ml_collections import ConfigDict

from vision_jax.models import registry
from vision_jax.models.vit import VisionTransformer

NAME = "small_vit"
if NAME not in registry.list_models():
    create = functools.partial(VisionTransformer, patch_size=4, embed_dim=32, depth=1, num_heads=4, img_size=8)
    registry.register(NAME, create, library="")


def get_config() -> ConfigDict:
    config = small_resnet.get_config()
    config.model.name = NAME
    return config
