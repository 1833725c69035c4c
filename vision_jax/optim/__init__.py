"""Optimizers, schedules, and which parameters decay."""

from vision_jax.optim.masks import decay_mask
from vision_jax.optim.optimizers import create_optimizer, list_optimizers
from vision_jax.optim.schedules import create_schedule

__all__ = ["create_optimizer", "create_schedule", "decay_mask", "list_optimizers"]
