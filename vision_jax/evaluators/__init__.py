"""Evaluators by kind, one file each; `base` has their interface.

`protocols` has those of frozen features. `suites`, `features` with `neighbors` and `probe`, `retrieval` and `ood` are
pure functions: how evaluation sets are scored, and measures of features and of scores.
"""

from vision_jax.evaluators.adversarial import Adversarial
from vision_jax.evaluators.base import Bank, Context, Evaluator, Table, collect, run_pass
from vision_jax.evaluators.calibration import Calibration
from vision_jax.evaluators.classification import Classification
from vision_jax.evaluators.dense import DenseEvaluator
from vision_jax.evaluators.detection import DetectionEvaluator
from vision_jax.evaluators.frozen import FrozenFeatures
from vision_jax.evaluators.logits import LogitsEvaluator
from vision_jax.evaluators.objective import ObjectiveLoss
from vision_jax.evaluators.per_class import PerClass
from vision_jax.evaluators.protocols import Knn, LinearProbes, Logistic, Ridge
from vision_jax.evaluators.segmentation import SegmentationEvaluator
from vision_jax.evaluators.zero_shot import ZeroShot

EVALUATORS: dict[str, type[Evaluator]] = {
    "adversarial": Adversarial,
    "calibration": Calibration,
    "classification": Classification,
    "detection": DetectionEvaluator,
    "knn": Knn,
    "linear_probe": LinearProbes,
    "logistic": Logistic,
    "objective": ObjectiveLoss,
    "per_class": PerClass,
    "ridge": Ridge,
    "segmentation": SegmentationEvaluator,
    "zero_shot": ZeroShot,
}

__all__ = [
    "EVALUATORS",
    "Adversarial",
    "Bank",
    "Calibration",
    "Classification",
    "Context",
    "DenseEvaluator",
    "DetectionEvaluator",
    "Evaluator",
    "FrozenFeatures",
    "LogitsEvaluator",
    "ObjectiveLoss",
    "PerClass",
    "SegmentationEvaluator",
    "Table",
    "ZeroShot",
    "collect",
    "run_pass",
]
