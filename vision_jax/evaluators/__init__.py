"""Evaluators by kind, one file each; `base` has their interface."""

from vision_jax.evaluators.base import Context, Evaluator, collect, run_pass
from vision_jax.evaluators.classification import Classification
from vision_jax.evaluators.objective import ObjectiveLoss

EVALUATORS: dict[str, type[Evaluator]] = {
    "classification": Classification,
    "objective": ObjectiveLoss,
}

__all__ = ["EVALUATORS", "Classification", "Context", "Evaluator", "ObjectiveLoss", "collect", "run_pass"]
