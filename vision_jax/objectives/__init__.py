"""Training objectives by name, one file each; `base` has their interface."""

from vision_jax.objectives.base import Constant, Ema, Objective, Out, Progress, Setup, options_of
from vision_jax.objectives.classification import Classification
from vision_jax.objectives.distillation import Distillation
from vision_jax.objectives.rotation import Rotation
from vision_jax.objectives.simclr import SimCLR

OBJECTIVES: dict[str, type[Objective]] = {
    "classification": Classification,
    "distillation": Distillation,
    "rotation": Rotation,
    "simclr": SimCLR,
}

__all__ = ["OBJECTIVES", "Constant", "Ema", "Objective", "Out", "Progress", "Setup", "options_of"]
