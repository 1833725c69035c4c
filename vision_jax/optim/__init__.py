"""Optimizers, schedules, and what holds for which parameters."""

from vision_jax.optim.clipping import clip_adaptive, clip_parameters, create_clipping
from vision_jax.optim.groups import GroupRules, Row, format_table, layer_ids, merge
from vision_jax.optim.guard import GuardState, guard
from vision_jax.optim.late import LateState, begin_late
from vision_jax.optim.masks import decay_mask
from vision_jax.optim.optimizers import create_optimizer, list_optimizers, optimizer_arguments
from vision_jax.optim.pruning import PruneState, Pruning, apply_masks, masks_of, prune, sparsity_of
from vision_jax.optim.sam import sam_gradients
from vision_jax.optim.schedules import (
    create_schedule,
    interpolate_cosine,
    list_schedules,
    scale_learning_rate,
    schedule_arguments,
    shift_schedule,
)

__all__ = [
    "GroupRules",
    "GuardState",
    "LateState",
    "PruneState",
    "Pruning",
    "Row",
    "apply_masks",
    "begin_late",
    "clip_adaptive",
    "clip_parameters",
    "create_clipping",
    "create_optimizer",
    "create_schedule",
    "decay_mask",
    "format_table",
    "guard",
    "interpolate_cosine",
    "layer_ids",
    "list_optimizers",
    "list_schedules",
    "masks_of",
    "merge",
    "optimizer_arguments",
    "prune",
    "sam_gradients",
    "scale_learning_rate",
    "schedule_arguments",
    "shift_schedule",
    "sparsity_of",
]
