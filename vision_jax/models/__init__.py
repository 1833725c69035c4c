"""Models under timm's names, as flax.linen modules."""

from vision_jax.models import lenet, resnet  # noqa: F401  each registers its models
from vision_jax.models.registry import create_model, list_models

__all__ = ["create_model", "list_models"]
