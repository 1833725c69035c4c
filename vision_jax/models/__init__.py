"""Models under timm's names, as flax.linen modules."""

from vision_jax.models import (  # noqa: F401  each family registers its models
    alexnet,
    convnext,
    deit,
    densenet,
    efficientnet,
    googlenet,
    inception,
    intermediates,
    lenet,
    mixer,
    mobilenet,
    patch_mlp,
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
from vision_jax.models.intermediates import apply_with_intermediates
from vision_jax.models.registry import create_model, list_models

__all__ = ["apply_with_intermediates", "create_model", "list_models"]
