"""Training objectives by name, one file each; `base` has their interface."""

from vision_jax.objectives.adversarial import Adversarial
from vision_jax.objectives.advprop import AdvProp
from vision_jax.objectives.barlow_twins import BarlowTwins
from vision_jax.objectives.base import Constant, Ema, Objective, Out, Progress, Setup, options_of, total
from vision_jax.objectives.byol import Byol
from vision_jax.objectives.classification import Classification
from vision_jax.objectives.dense import Dense
from vision_jax.objectives.detection import Detection, Fcos, RetinaNet
from vision_jax.objectives.dino import Dino
from vision_jax.objectives.distillation import Distillation
from vision_jax.objectives.free_adversarial import FreeAdversarial
from vision_jax.objectives.linear_probe import LinearProbe
from vision_jax.objectives.mae import MAE
from vision_jax.objectives.mocov2 import MoCoV2
from vision_jax.objectives.mocov3 import MoCoV3
from vision_jax.objectives.pairs import Clip, Pairs, SigLip
from vision_jax.objectives.rotation import Rotation
from vision_jax.objectives.segmentation import Segmentation
from vision_jax.objectives.simclr import SimCLR
from vision_jax.objectives.simmim import SimMIM
from vision_jax.objectives.simsiam import SimSiam
from vision_jax.objectives.swav import SwAV
from vision_jax.objectives.trades import Mart, Trades
from vision_jax.objectives.vicreg import VICReg

OBJECTIVES: dict[str, type[Objective]] = {
    "adversarial": Adversarial,
    "advprop": AdvProp,
    "barlow_twins": BarlowTwins,
    "byol": Byol,
    "classification": Classification,
    "clip": Clip,
    "dino": Dino,
    "distillation": Distillation,
    "fcos": Fcos,
    "free_adversarial": FreeAdversarial,
    "linear_probe": LinearProbe,
    "mae": MAE,
    "mart": Mart,
    "mocov2": MoCoV2,
    "mocov3": MoCoV3,
    "retinanet": RetinaNet,
    "rotation": Rotation,
    "segmentation": Segmentation,
    "siglip": SigLip,
    "simclr": SimCLR,
    "simmim": SimMIM,
    "simsiam": SimSiam,
    "swav": SwAV,
    "trades": Trades,
    "vicreg": VICReg,
}

__all__ = [
    "OBJECTIVES",
    "Constant",
    "Dense",
    "Detection",
    "Ema",
    "Objective",
    "Out",
    "Pairs",
    "Progress",
    "Segmentation",
    "Setup",
    "options_of",
    "total",
]
