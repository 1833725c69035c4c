"""Evaluators by the names of their kinds: one file each; `base` has what they have in common."""

from vision_jax.evaluators.base import Context, Evaluator, collect, run_pass
from vision_jax.evaluators.classification import Classification
from vision_jax.evaluators.objective import ObjectiveLoss

EVALUATORS: dict[str, type[Evaluator]] = {
    "classification": Classification,
    "objective": ObjectiveLoss,
}

__all__ = ["EVALUATORS", "Classification", "Context", "Evaluator", "ObjectiveLoss", "collect", "run_pass"]
