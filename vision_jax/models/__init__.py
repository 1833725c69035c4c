"""Models under timm's names, as flax.linen modules."""

from vision_jax.models import (  # noqa: F401  each family registers its models
    alexnet,
    convnext,
    deit,
    densenet,
    efficientnet,
    googlenet,
    inception,
    lenet,
    mixer,
    mobilenet,
    registry,
    regnet,
    resnet,
    resnet9,
    resnetv2,
    shufflenet,
    squeezenet,
    swin,
    vgg,
    vit,
    wideresnet,
)
from vision_jax.models.registry import create_model, list_models

__all__ = ["create_model", "list_models"]
