"""The recipes of configs/ against numbers that torch, torchvision and timm computed from the published ones.

tests/parity/make_recipe_reference.py has the sources, and makes the numbers again.
"""

import functools
import importlib.util
import json
import pathlib
import re
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from vision_jax import build, losses, optim, recipes
from vision_jax import config as config_lib
from vision_jax.config import command_line
from vision_jax.models import registry
from vision_jax.objectives import OBJECTIVES, Dense, Pairs

TESTS = pathlib.Path(__file__).parent
FILES = sorted((TESTS.parent / "configs").glob("*.py"))
REFERENCE = json.loads((TESTS / "parity" / "recipes.json").read_text())
# How weight decay acts where a recipe does not say.
FORMS = dict.fromkeys(("adamw", "lamb", "nadamw"), "decoupled") | dict.fromkeys(
    ("adam", "lars", "rmsprop", "rmsprop_tf", "sgd"), "coupled"
)
# Files of which recipes.json has nothing; those of this project's own recipes are not in NUMBERS either.
SMALL = (
    *(
        "ares",
        "digits_adversarial",
        "fast_adversarial",
        "free_adversarial",
        "revisiting_at",
        "robust_resnet50",
        "trades",
    ),
    *(
        "barlow_twins",
        "bit_hyperrule",
        "byol",
        "cifar",
        "cifar10_fast",
        "digits_clip",
        "digits_pruned",
        "digits_selfsupervised",
        "fashion_selfsupervised",
        "dino",
        "finetune",
        "finetune_mae",
        "finetune_mocov3",
        "finetune_simmim",
        "fixres",
        "linear_probe",
        "mae",
        "mnist",
    ),
    *("mocov2", "mocov3", "quickstart", "rotnet", "semi_supervised", "simclr", "simmim", "simsiam", "swav", "vicreg"),
    *("vit_transfer", "vtab"),
    *("deeplabv3", "digits_dense", "fcn", "fcos", "retinanet", "upernet"),
)
_SIMMIM = {
    **{"examples": 1_281_167, "batch_size": 2048, "steps": 100 * 625, "weight_decay": 0.05, "b2": 0.999},
    "rates": {0: 1e-6, 10: 2.5005e-3, 20: 4.522638e-3, 60: 1.728112e-3},
}
_CIFAR = {
    **{"examples": 50_000, "batch_size": 128, "steps": 200 * 390, "undecayed": 0, "weight_decay": 5e-4},
    **{"momentum": 0.9, "nesterov": True, "rates": {0: 0.1, 59.9: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008, 199: 0.0008}},
}
# Scales and biases of the 53 norms of ResNet-50: its only vectors but for the 1000 biases of a classifier, which count
# here, although a model without labels has none.
_NORMS = 2 * 26_560 + 1000
_MAE = {
    **{"examples": 1_281_167, "batch_size": 4096, "steps": 800 * 312, "weight_decay": 0.05, "b2": 0.95},
    "rates": {0: 0, 20: 1.2e-3, 40: 2.4e-3, 420: 1.2e-3},
}
_LARGE_MAE_PROBE = {"examples": 1_281_167, "batch_size": 16384, "steps": 50 * 78, "rates": {10: 6.4, 30: 3.2}}
_DINO_PROBE = {
    **{"examples": 1_281_167, "batch_size": 1024, "steps": 100 * 1251, "weight_decay": 0, "momentum": 0.9},
    **{"nesterov": False, "rates": {0: 4e-3, 0.9: 4e-3, 50: 2e-3, 50.9: 2e-3}},
}
_VIT_MOCO_PROBE = {"examples": 1_281_167, "batch_size": 1024, "weight_decay": 0, "rates": {0: 12.0, 45: 6.0}}
_ROBUST_RESNET = {
    **{"examples": 1_281_167, "batch_size": 256, "steps": 200 * 5004, "undecayed": 0, "weight_decay": 1e-4},
    **{"momentum": 0.9, "nesterov": False, "rates": {0: 0.1, 49.9: 0.1, 50: 0.01, 100: 1e-3, 150: 1e-4, 199: 1e-4}},
}
_FREE = {
    **{"examples": 1_281_167, "batch_size": 256, "steps": 92 * 5004, "undecayed": 0, "weight_decay": 1e-4},
    **{"momentum": 0.9, "nesterov": False, "rates": {0: 0.1, 31.9: 0.1, 32: 0.01, 64: 1e-3, 91: 1e-3}},
}
NUMBERS: dict[str, dict[str, Any]] = {
    # MadryLab/robustness, README.md and defaults.py: a tenth every 50 epochs.
    **dict.fromkeys(("robust_resnet50:linf_4", "robust_resnet50:linf_8", "robust_resnet50:l2_3"), _ROBUST_RESNET),
    # mahyarnajibi/FreeAdversarialTraining, configs.yml and lib/utils.py: ceil(30 / 4) = 8 of 23 passes, 4 times each.
    **dict.fromkeys(("free_adversarial:eps4", "free_adversarial:eps2"), _FREE),
    # locuslab/fast_adversarial: on straight lines between (0, 0), (1, .4), (6, .04), (12, .004) and (15, .0004).
    "fast_adversarial:eps4_phase1": {
        **{"examples": 1_281_167, "batch_size": 512, "steps": 6 * 2502, "undecayed": 2 * 26_560, "weight_decay": 1e-4},
        **{"momentum": 0.9, "nesterov": False, "rates": {0: 0, 0.5: 0.2, 1: 0.4, 3: 0.256, 6: 0.04}},
    },
    "fast_adversarial:eps2_phase2": {
        **{"examples": 1_281_167, "batch_size": 224, "steps": 6 * 5719, "rates": {0: 0.04, 3: 0.022, 6: 0.004}},
    },
    "fast_adversarial:eps4_phase3": {
        **{"examples": 1_281_167, "batch_size": 128, "steps": 3 * 10_009, "rates": {0: 4e-3, 1: 2.8e-3, 3: 4e-4}},
    },
    # yaodongyu/TRADES, train_trades_cifar10.py, whose epochs count from 1: a tenth from the 75th on.
    "trades": {
        **{"examples": 50_000, "batch_size": 128, "steps": 76 * 390, "undecayed": 0, "weight_decay": 2e-4},
        **{"momentum": 0.9, "nesterov": False, "rates": {0: 0.1, 73.9: 0.1, 74: 0.01, 75.5: 0.01}},
    },
    # nmndeep/revisiting-at, main.py: 1e-4 of the peak at first, the peak after 20 or 10 epochs, then a half cosine.
    "revisiting_at:convnext_tiny": {
        **{"examples": 1_281_167, "batch_size": 640, "steps": 300 * 2001, "weight_decay": 0.05, "b1": 0.9, "b2": 0.95},
        "rates": {0: 1e-7, 10: 5.0005e-4, 20: 1e-3, 160: 5e-4},
    },
    "revisiting_at:vit_base": {
        # 25 norms of twice 768; biases of the patches, of 9 * 768 a block, and of the classifier.
        **{"examples": 1_281_167, "undecayed": 25 * 2 * 768 + 768 + 12 * 9 * 768 + 1000},
        **{"steps": 50 * 2001, "rates": {0: 1e-7, 5: 5.0005e-4, 10: 1e-3, 30: 5e-4}},
    },
    # thu-ml/ares, train_configs: lrb of 512 images; warm-up from 1e-4 or 1e-6 in five epochs, on which timm's schedules
    # do not wait.
    "ares:resnet50": {
        **{"examples": 1_281_167, "batch_size": 512, "steps": 95 * 2502, "undecayed": _NORMS, "weight_decay": 1e-4},
        **{"momentum": 0.9, "nesterov": True},
        "rates": {0: 1e-4, 2.5: 0.10005, 5: 0.2, 29: 0.2, 30: 0.02, 60: 2e-3, 90: 2e-4},
    },
    "ares:convnext_base": {
        **{"examples": 1_281_167, "batch_size": 512, "steps": 300 * 2502, "weight_decay": 0.05, "b1": 0.9, "b2": 0.999},
        "rates": {0: 1e-6, 2.5: 2.505e-4, 150: 2.55e-4},
    },
    # uoguelph-mlrg/Cutout, train.py: MultiStepLR, milestones 60, 120 and 160, gamma 0.2.
    **dict.fromkeys(("cifar:cifar10_resnet18", "cifar:cifar100_resnet18"), _CIFAR),
    # szagoruyko/wide-residual-networks, scripts/train_cifar.sh; arXiv:1605.07146, section 3.
    **dict.fromkeys(("cifar:cifar10_wrn", "cifar:cifar100_wrn"), _CIFAR),
    # davidcpage/cifar10-fast, dawn.py: PiecewiseLinear([0, 5, 24], [0, 0.4, 0]) of a sum over the batch, drop_last.
    "cifar10_fast:resnet9": {
        **{"examples": 50_000, "batch_size": 512, "steps": 24 * 97, "undecayed": 0, "weight_decay": 5e-4},
        **{"momentum": 0.9, "nesterov": True, "rates": {0: 0, 1: 0.08, 5: 0.4, 14.5: 0.2, 23: 0.4 / 19}},
    },
    # facebookresearch/dino, README.md, main_dino.py and utils.cosine_scheduler: np.linspace(0, peak, 10 * n), and then
    # 1e-6 + (peak - 1e-6) * (1 + cos(pi * i / len)) / 2.
    "dino:vit_s16": {
        **{"examples": 1_281_167, "batch_size": 1024, "steps": 300 * 1251, "weight_decay": 0.04},
        "rates": {0: 0, 1: 2e-3 * 1251 / 12509, 10: 2e-3, 155: (2e-3 + 1e-6) / 2},
    },
    "dino:vit_s16_100": {
        **{"examples": 1_281_167, "batch_size": 512, "steps": 100 * 2502, "weight_decay": 0.04},
        "rates": {0: 0, 5: 1e-3 * 12510 / 25019, 10: 1e-3, 55: (1e-3 + 1e-6) / 2},
    },
    "dino:r50": {
        **{"examples": 1_281_167, "batch_size": 512, "steps": 100 * 2502, "weight_decay": 1e-4},
        **{"momentum": 0.9, "nesterov": False, "rates": {0: 0, 10: 0.06, 55: (0.06 + 1e-6) / 2}},
    },
    # The arguments of the released weights.
    "dino:vit_s16_800": {
        **{"examples": 1_281_167, "batch_size": 1024, "steps": 800 * 1251, "weight_decay": 0.04},
        "rates": {0: 0, 10: 2e-3, 405: (2e-3 + 1e-5) / 2},
    },
    "dino:r50_800": {
        **{"examples": 1_281_167, "batch_size": 4080, "steps": 800 * 314, "weight_decay": 1e-6, "momentum": 0.9},
        **{"by_rank": True, "classic_momentum": False},
        "rates": {0: 0, 10: 0.3 * 4080 / 256, 405: (0.3 * 4080 / 256 + 0.0048) / 2},
    },
    # facebookresearch/swav, README.md, scripts and main_swav.py: np.linspace(.3, 4.8, 10 * n), then a cosine to .0048.
    "swav:ep800": {
        **{"examples": 1_281_167, "batch_size": 4096, "steps": 800 * 312, "undecayed": 0, "weight_decay": 1e-6},
        **{"momentum": 0.9, "nesterov": False},
        "rates": {0: 0.3, 5: 0.3 + 4.5 * 1560 / 3119, 10: 4.8, 405: (4.8 + 0.0048) / 2},
    },
    "swav:b256_400": {
        **{"examples": 1_281_167, "batch_size": 256, "steps": 400 * 5004, "undecayed": 0, "weight_decay": 1e-6},
        **{"momentum": 0.9, "nesterov": False, "rates": {0: 0.6, 200: (0.6 + 0.0006) / 2}},
    },
    # google-research/simclr, run.py and model_util.py: .3 * 4096 / 256, ten epochs of warm-up, then a half cosine.
    "simclr:r50_100": {
        **{"examples": 1_281_167, "batch_size": 4096, "steps": 100 * 312, "undecayed": _NORMS, "weight_decay": 1e-6},
        **{"momentum": 0.9, "by_rank": True, "classic_momentum": True, "rates": {0: 0, 5: 2.4, 10: 4.8, 55: 2.4}},
    },
    "simclr:r50_800": {
        **{"examples": 1_281_167, "batch_size": 4096, "steps": 800 * 312, "undecayed": _NORMS, "weight_decay": 1e-4},
        **{"by_rank": True, "classic_momentum": True, "rates": {10: 4.8, 405: 2.4}},
    },
    # facebookresearch/moco, main_moco.py with --cos: .03 * .5 * (1 + cos(pi * epoch / epochs)), of whole epochs.
    "mocov2:r50_200": {
        **{"examples": 1_281_167, "batch_size": 256, "steps": 200 * 5004, "undecayed": 0, "weight_decay": 1e-4},
        **{"momentum": 0.9, "nesterov": False, "rates": {0: 0.03, 0.9: 0.03, 50: 0.015 * (1 + 0.5**0.5), 100: 0.015}},
    },
    "mocov2:r50_800": {"examples": 1_281_167, "steps": 800 * 5004, "rates": {400: 0.015, 400.9: 0.015}},
    # facebookresearch/moco-v3, CONFIG.md and main_moco.py.
    "mocov3:r50_100": {
        **{"examples": 1_281_167, "batch_size": 4096, "steps": 100 * 312, "undecayed": _NORMS, "weight_decay": 1e-6},
        **{"momentum": 0.9, "by_rank": True, "classic_momentum": False, "rates": {0: 0, 5: 4.8, 10: 9.6, 55: 4.8}},
    },
    "mocov3:r50_300": {"examples": 1_281_167, "weight_decay": 1e-6, "rates": {5: 2.4, 10: 4.8, 155: 2.4}},
    "mocov3:r50_1000": {"examples": 1_281_167, "weight_decay": 1.5e-6, "rates": {10: 4.8, 505: 2.4}},
    "mocov3:vit_s": {
        **{"examples": 1_281_167, "batch_size": 4096, "steps": 300 * 312, "undecayed": 0, "weight_decay": 0.1},
        **{"b1": 0.9, "b2": 0.999, "eps": 1e-8, "rates": {0: 0, 20: 1.2e-3, 40: 2.4e-3, 170: 1.2e-3}},
    },
    "mocov3:vit_b": {"examples": 1_281_167, "weight_decay": 0.1, "rates": {40: 2.4e-3, 170: 1.2e-3}},
    # google-deepmind/deepmind-research, byol/configs/byol.py and utils/schedules.py.
    "byol:r50_40": {"examples": 1_281_167, "weight_decay": 1e-6, "rates": {10: 7.2, 25: 3.6}},
    "byol:r50_100": {"examples": 1_281_167, "weight_decay": 1e-6, "rates": {5: 3.6, 10: 7.2, 55: 3.6}},
    "byol:r50_300": {
        **{"examples": 1_281_167, "batch_size": 4096, "steps": 300 * 312, "undecayed": _NORMS, "weight_decay": 1e-6},
        **{"momentum": 0.9, "by_rank": True, "classic_momentum": False, "rates": {0: 0, 10: 4.8, 155: 2.4}},
    },
    "byol:r50_1000": {"examples": 1_281_167, "weight_decay": 1.5e-6, "rates": {10: 3.2, 505: 1.6}},
    # facebookresearch/simsiam, README.md and main_simsiam.py: .05 * batch / 256, of whole epochs.
    "simsiam:b512": {
        **{"examples": 1_281_167, "batch_size": 512, "steps": 100 * 2502, "undecayed": 0, "weight_decay": 1e-4},
        **{"momentum": 0.9, "nesterov": False, "rates": {0: 0.1, 0.9: 0.1, 50: 0.05, 50.9: 0.05}},
    },
    "simsiam:b256": {"examples": 1_281_167, "batch_size": 256, "rates": {0: 0.05, 50: 0.025}},
    # facebookresearch/barlowtwins, main.py: .2 * 2048 / 256, and a thousandth of it at the end.
    "barlow_twins": {
        **{"examples": 1_281_167, "batch_size": 2048, "steps": 1000 * 625, "undecayed": _NORMS, "weight_decay": 1e-6},
        **{"momentum": 0.9, "by_rank": True, "rates": {0: 0, 5: 0.8, 10: 1.6, 505: 0.8008, 1000: 0.0016}},
    },
    # facebookresearch/vicreg, README.md and main_vicreg.py.
    "vicreg:r50_1000": {
        **{"examples": 1_281_167, "batch_size": 2048, "steps": 1000 * 625, "undecayed": _NORMS, "weight_decay": 1e-6},
        **{"momentum": 0.9, "by_rank": True, "rates": {0: 0, 5: 0.8, 10: 1.6, 505: 0.8008, 1000: 0.0016}},
    },
    "vicreg:r50_100": {"examples": 1_281_167, "batch_size": 512, "rates": {10: 0.6, 55: 0.3003, 100: 0.0006}},
    # facebookresearch/vissl, rotnet_8gpu_resnet.yaml: four inputs of an image, so a fourth of its batch and epochs.
    "rotnet": {
        **{"examples": 1_281_167, "batch_size": 64, "steps": 525_472, "undecayed": 2 * 26_560, "weight_decay": 1e-4},
        **{"momentum": 0.9, "nesterov": False},
        "rates": {0: 0.1, 7: 0.1, 8: 0.01, 15: 0.001, 23: 1e-4, 25: 1e-5, 26: 1e-5},
    },
    # facebookresearch/FixRes, README.md and imnet_finetune/train.py: 8 * 1e-3 * 512 / 512, StepLR(step_size=30).
    "fixres:resnet50": {
        **{"examples": 1_281_167, "batch_size": 512, "steps": 31 * 2502, "weight_decay": 1e-4},
        **{"momentum": 0.9, "nesterov": False, "rates": {0: 8e-3, 29.9: 8e-3, 30: 8e-4}},
    },
    # facebookresearch/mae, PRETRAIN.md and util/lr_sched.py: 1.5e-4 * 4096 / 256, floor(1281167 / 4096) steps an epoch.
    **dict.fromkeys(("mae:vit_b", "mae:vit_l", "mae:vit_h"), _MAE),
    # The same, FINETUNE.md: 5e-4 and 1e-3 for 256 images, down to 1e-6; 0.65^13, 0.65^12, 0.65, and of 24 blocks.
    "finetune_mae:vit_b": {
        **{"examples": 1_281_167, "batch_size": 1024, "steps": 100 * 1251, "weight_decay": 0.05, "b2": 0.999},
        "rates": {0: 0, 5: 2e-3, 52.5: 1.0005e-3},
        "multipliers": [0.003697206, 0.005688009, 0.65, 1.0],
    },
    "finetune_mae:vit_l": {
        **{"examples": 1_281_167, "batch_size": 1024, "steps": 50 * 1251, "weight_decay": 0.05, "b2": 0.999},
        "rates": {0: 0, 5: 4e-3, 27.5: 2.0005e-3},
        "multipliers": [0.000752543, 0.001003391, 0.75, 1.0],
    },
    # 0.75^33, 0.75^32: of 32 blocks.
    "finetune_mae:vit_h": {
        **{"examples": 1_281_167, "batch_size": 1024, "steps": 50 * 1251, "weight_decay": 0.05, "b2": 0.999},
        "rates": {0: 0, 5: 4e-3, 27.5: 2.0005e-3},
        "multipliers": [7.53393193e-05, 1.00452426e-04, 0.75, 1.0],
    },
    # microsoft/SimMIM, configs/*/simmim_finetune__*.yaml and timm's cosine, which begins behind the warm-up:
    # 1.25e-3 * 2048 / 512 = 5e-3, from and down to 2.5e-7 * 4; 0.65^13, 0.65^12, 0.65.
    **dict.fromkeys(("finetune_simmim:swin_b", "finetune_simmim:swin_b_192", "finetune_simmim:swin_b_800"), _SIMMIM),
    "finetune_simmim:vit_b": {**_SIMMIM, "multipliers": [0.003697206, 0.005688009, 0.65, 1.0]},
    # Of frozen features. facebookresearch/mae, FINETUNE.md and main_linprobe.py: .1 * 16384 / 256.
    "linear_probe:mae": {
        **{"examples": 1_281_167, "batch_size": 16384, "steps": 90 * 78, "weight_decay": 0, "momentum": 0.9},
        **{"by_rank": True, "rates": {0: 0, 5: 3.2, 10: 6.4, 50: 3.2}},
    },
    **dict.fromkeys(("linear_probe:mae_vit_l", "linear_probe:mae_vit_h"), _LARGE_MAE_PROBE),
    # facebookresearch/dino, eval_linear.py: .001 * 1024 / 256, of whole epochs, as those that follow.
    **dict.fromkeys(("linear_probe:dino", "linear_probe:dino_vit_b16", "linear_probe:dino_r50"), _DINO_PROBE),
    # facebookresearch/moco-v3, CONFIG.md and main_lincls.py.
    "linear_probe:mocov3": {
        **{"examples": 1_281_167, "batch_size": 1024, "steps": 90 * 1251, "weight_decay": 0, "momentum": 0.9},
        **{"nesterov": False, "rates": {0: 0.4, 45: 0.2, 45.9: 0.2}},
    },
    **dict.fromkeys(("linear_probe:mocov3_vit_s", "linear_probe:mocov3_vit_b"), _VIT_MOCO_PROBE),
    # facebookresearch/moco, main_lincls.py: a tenth at epochs 60 and 80.
    "linear_probe:mocov2": {
        **{"examples": 1_281_167, "batch_size": 256, "steps": 100 * 5004, "weight_decay": 0, "momentum": 0.9},
        **{"nesterov": False, "rates": {0: 30.0, 59.9: 30.0, 60: 3.0, 80: 0.3}},
    },
    # google-research/simclr, README.md: .1 * 4096 / 256, of single steps; without biases in the decay.
    "linear_probe:simclr": {
        **{"examples": 1_281_167, "batch_size": 4096, "steps": 90 * 312, "weight_decay": 1e-6, "momentum": 0.9},
        **{"nesterov": True, "undecayed": _NORMS, "rates": {0: 1.6, 45: 0.8}},
    },
    # google-deepmind/deepmind-research, byol/configs/eval.py.
    "linear_probe:byol": {
        **{"examples": 1_281_167, "batch_size": 4096, "steps": 80 * 312, "weight_decay": 0, "momentum": 0.9},
        **{"nesterov": True, "rates": {0: 3.2, 40: 1.6}},
    },
    # facebookresearch/simsiam, main_lincls.py with --lars.
    "linear_probe:simsiam": {
        **{"examples": 1_281_167, "batch_size": 4096, "steps": 90 * 312, "weight_decay": 0, "momentum": 0.9},
        **{"by_rank": False, "undecayed": 0, "rates": {0: 1.6, 45: 0.8, 45.9: 0.8}},
    },
    # facebookresearch/barlowtwins and vicreg, evaluate.py; swav, eval_linear.py.
    **{
        f"linear_probe:{name}": {
            **{"examples": 1_281_167, "batch_size": 256, "steps": 100 * 5004, "weight_decay": 1e-6, "momentum": 0.9},
            **{"nesterov": False, "undecayed": 0, "rates": {0: rate, 50: rate / 2, 50.9: rate / 2}},
        }
        for name, rate in (("barlow_twins", 0.3), ("vicreg", 0.02), ("swav", 0.3))
    },
    # facebookresearch/moco-v3, README.md and transfer/README.md: 5e-4 and 3e-4 times 1024 / 512, down to 1e-5.
    "finetune_mocov3:vit_b": {
        **{"examples": 1_281_167, "batch_size": 1024, "steps": 150 * 1251, "weight_decay": 0.05},
        "rates": {0: 1e-6, 5: 1e-5 + 9.9e-4 * (1 + np.cos(np.pi / 30)) / 2, 75: 5.05e-4},
    },
    "finetune_mocov3:cifar10": {
        **{"examples": 50_000, "batch_size": 1024, "steps": 100 * 48, "weight_decay": 0.1},
        "rates": {0: 1e-6, 50: 3.05e-4},
    },
    "finetune_mocov3:oxford_flowers102": {"examples": 2040, "weight_decay": 0.3, "rates": {50: 3.05e-4}},
    # facebookresearch/barlowtwins and vicreg, evaluate.py; swav, eval_semisup.py: classifiers have a rate of their own.
    "semi_supervised:vicreg_10": {
        **{"examples": 128_116, "batch_size": 256, "steps": 20 * 500, "weight_decay": 0, "momentum": 0.9},
        **{"nesterov": False, "classifier": 0.1, "rates": {0: 0.01, 10: 0.005, 10.9: 0.005}},
    },
    "semi_supervised:swav_1": {
        **{"examples": 12_811, "batch_size": 256, "steps": 20 * 50, "weight_decay": 0, "momentum": 0.9},
        **{"nesterov": False, "classifier": 5.0, "rates": {0: 0.02, 11.9: 0.02, 12: 0.004, 16: 8e-4}},
    },
    "semi_supervised:barlow_twins_1": {"examples": 12_811, "classifier": 0.5, "rates": {0: 0.005, 10: 0.0025}},
    # google-research/big_transfer, bit_hyperrule.py: a step that is a support has the old rate.
    "bit_hyperrule:cifar10": {
        **{"examples": 49_000, "batch_size": 512, "steps": 10_000, "weight_decay": 0, "momentum": 0.9},
        **{"nesterov": False, "rates_by_step": {0: 0, 250: 0.0015, 500: 0.003, 3000: 0.003, 3001: 3e-4, 9001: 3e-6}},
    },
    "bit_hyperrule:imagenet": {
        **{"examples": 1_268_355, "batch_size": 512, "steps": 20_000},
        "rates_by_step": {500: 0.003, 6000: 0.003, 6001: 3e-4, 12_001: 3e-5, 18_000: 3e-5, 18_001: 3e-6},
    },
    "bit_hyperrule:vtab_dtd": {
        **{"examples": 1000, "batch_size": 512, "steps": 500},
        "rates_by_step": {50: 0.0015, 200: 0.003, 201: 3e-4, 301: 3e-5, 401: 3e-6},
    },
    # google-research/task_adaptation, scripts/run_all_tasks.sh and README.md; tf.train.piecewise_constant has the old
    # rate at a boundary.
    "vtab:dtd": {
        **{"examples": 1000, "batch_size": 64, "steps": 1000, "weight_decay": 0, "momentum": 0.9, "nesterov": False},
        "rates_by_step": {0: 0, 40: 0.005, 80: 0.01, 300: 0.01, 301: 1e-3, 601: 1e-4, 901: 1e-5},
    },
    "vtab:dtd_full": {
        **{"examples": 3760, "batch_size": 512, "steps": 2500},
        "rates_by_step": {0: 0.01, 750: 0.01, 751: 1e-3, 1501: 1e-4, 2251: 1e-5},
    },
    # google-research/big_vision, configs/transfer.py: a half cosine after the warm-up.
    "vit_transfer:cifar10": {
        **{"examples": 49_000, "batch_size": 512, "steps": 10_000, "weight_decay": 0, "momentum": 0.9},
        **{"mu_dtype": "bfloat16", "nesterov": False, "rates_by_step": {0: 0, 250: 0.0015, 500: 0.003, 5250: 0.0015}},
    },
    "vit_transfer:oxford_iiit_pet": {
        **{"examples": 3312, "batch_size": 512, "steps": 500, "rates_by_step": {50: 0.0015, 100: 0.003, 300: 0.0015}},
    },
    # microsoft/SimMIM, configs/ and lr_scheduler.py: times 2048 / 512; timm's cosine also runs during the warm-up.
    "simmim:swin_b": {
        **{"examples": 1_281_167, "batch_size": 2048, "steps": 100 * 625, "weight_decay": 0.05, "b2": 0.999},
        "rates": {0: 4e-6, 5: 4.02e-4, 10: 4e-5 + 3.8e-4 * 1.9510565, 50: 4.2e-4},
    },
    "simmim:vit_b": {
        **{"examples": 1_281_167, "batch_size": 2048, "steps": 800 * 625, "weight_decay": 0.05, "b2": 0.999},
        "rates": {0: 2e-6, 10: 4e-4, 699: 4e-4, 700: 4e-5},
    },
}
LABELS = np.array([3, 141, 592, 653])
LOGITS = (np.sin(1 + np.arange(4 * 1000).reshape(4, 1000)) * 3).astype(np.float32)
# What a recipe has otherwise than its source, as its docstring says. "warm-up" is the learning rates until its end.
DEVIATIONS: dict[str, set[str]] = {
    # NVIDIA's begins at an eighth, or a sixteenth, of the peak, is at the peak an epoch earlier, and stays there.
    "resnet50:.*": {"warm-up"},
    "resnext101:.*": {"warm-up"},
    "efficientnet:b0_dle": {"warm-up"},
    # It changes with each step there.
    "mmpretrain:vit_base": {"warm-up"},
}


@functools.cache
def load(stem: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"configs_{stem}", TESTS.parent / "configs" / f"{stem}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe(name: str) -> ConfigDict:
    stem, _, variant = name.partition(":")
    config = load(stem).get_config(variant) if variant else load(stem).get_config()
    config.data.source = "synthetic"
    return config


def variants(stem: str) -> list[str]:
    names = getattr(load(stem), "VARIANTS", None)
    return [stem] if names is None else [f"{stem}:{name}" for name in names]


NAMES = [name for path in FILES for name in variants(path.stem)]


@functools.cache
def decays(name: str, options: str, rules: optim.GroupRules) -> tuple[int, int]:
    """Returns how many parameters of a model decay, and how many do not."""
    shapes = parameter_shapes(name, options)
    sizes = np.array([x.size for x in jax.tree.leaves(shapes)], np.int64)
    mask = np.array(jax.tree.leaves(rules.decay_mask(shapes)))
    return int(sizes[mask].sum()), int(sizes[~mask].sum())


@functools.cache
def parameter_shapes(name: str, options: str) -> Any:
    config = config_lib.default_config()
    config.update_from_flattened_dict({"model.name": name, **json.loads(options)})
    return build.variable_shapes(config, build.build_model(config, 1000))["params"]


def decays_of(config: ConfigDict) -> tuple[int, int]:
    # Nothing of these changes a parameter's shape; blocks in one scan are traced once.
    shapeless = (
        "bn_group_size",
        "drop_rate",
        "proj_drop_rate",
        "drop_path_rate",
        "drop_path_uniform",
        "head_bias",
        "head_std",
        "interpolate_positions",
        "zero_init_last",
        "blur_pool",
        "output_stride",
        "norm_epsilon",
        "remat",
    )
    options = {f"model.{k}": v for k, v in build.model_options(config).items() if k not in (*shapeless, "scan_blocks")}
    takes = registry.option_names(config.model.name)
    if "scan_blocks" in takes:
        options["model.scan_blocks"] = True
    if "img_size" in takes or config.model.aux_logits or config.data.image_size < 64:
        options["data.image_size"] = config.data.image_size
    return decays(
        config.model.name, json.dumps(options), build.make_rules(config, config_lib.make_plan(config, 1_281_167))
    )


def policy(text: str) -> tuple[str, dict[str, float]]:
    """Returns what a policy's string says, with what it leaves out."""
    name, *parts = text.split("-")
    options = {m[1]: float(m[2]) for m in (re.fullmatch(r"([a-z]+)([0-9.]+)", part) for part in parts) if m}
    if name == "rand":
        options = {"m": 10.0, "n": 2.0, "p": 0.5, "mstd": 0.0, "mmax": 10.0, "inc": 0.0} | options
        options["m"] = min(options["m"], options["mmax"])
        if not options["mstd"]:
            del options["mmax"]
    return {"original": "autoaugment", "3a": "3augment"}.get(name, name), options


def loss_of(config: ConfigDict, share: float) -> float:
    """Returns the loss where so much of each image is its own, and the rest that of the one in the opposite order."""
    loss = losses.create_loss(
        config.loss.name,
        threshold=config.loss.threshold,
        sum_classes=config.loss.sum_classes,
        class_weights=config.loss.class_weights,
    )
    targets = losses.smooth_targets(LABELS, 1000, config.label_smoothing)
    return float(loss(LOGITS, share * targets + (1 - share) * targets[::-1]).mean())


def drop_path(config: ConfigDict) -> float:
    if config.model.drop_path_rate is not None:
        return config.model.drop_path_rate
    return getattr(build.build_model(config, 1000), "drop_path_rate", 0.0)


def actual(config: ConfigDict, expected: dict[str, Any]) -> dict[str, Any]:
    """Returns what a configuration has for each key of the reference."""
    plan = config_lib.make_plan(config, expected["examples"])
    takes = optim.optimizer_arguments(config.optimizer.name) | build.optimizer_options(config)
    decayed, undecayed = decays_of(config)
    values = {
        "examples": expected["examples"] if config.data.train_split == split_of(expected["examples"]) else None,
        "batch_size": config.batch_size,
        "steps_per_epoch": plan.steps_per_epoch,
        "steps": plan.total_steps,
        "epochs": config.epochs,
        "peak": plan.learning_rate,
        "ema_decay": config.ema_decay,
        "ema_every": config.ema_every_steps,
        "ema_start": config.ema_start_epochs,
        "augmentation": policy(config.augment.policy),
        "mixup": config.augment.mixup,
        "cutmix": config.augment.cutmix,
        "erase": config.augment.erase,
        "color_jitter": config.augment.color_jitter[0] if config.augment.color_jitter else 0.0,
        "train_size": plan.train_sizes[-1][1] if plan.train_sizes else config.data.image_size,
        "sizes": [[step / plan.steps_per_epoch, size] for step, size in plan.train_sizes],
        "test_size": config_lib.eval_size(config),
        "test_resize": config_lib.eval_resize(config),
        "flip": config.eval.flip,
        "clip": config.optimizer.clip_global_norm,
        "drop_path": drop_path(config),
        "drop_path_uniform": bool(config.model.drop_path_uniform),
        "drop_rate": config.model.drop_rate,
        "repeats": config.data.repeats,
        "optimizer": config.optimizer.name,
        "weight_decay": config.optimizer.weight_decay,
        "decay_form": config.optimizer.decay_form or FORMS[config.optimizer.name],
        "sam": [config.optimizer.sam_rho, config.optimizer.sam_every],
        "decayed": decayed,
        "undecayed": undecayed,
        "loss": loss_of(config, 1.0),
        "mixed_loss": loss_of(config, 0.85),
        "momentum": takes.get("momentum"),
        "nesterov": takes.get("nesterov"),
        "decay": takes.get("decay"),
        "b1": takes.get("b1"),
        "b2": takes.get("b2"),
        "eps": takes.get("eps"),
        "mu_dtype": takes.get("mu_dtype"),
    }
    if "learning_rates" in expected:
        schedule = build.make_schedule(config, plan)
        steps = [int(step) for step in expected["learning_rates"]]
        rates = np.asarray(schedule(np.array(steps)), float).tolist()
        values["learning_rates"] = dict(zip(expected["learning_rates"], rates, strict=True))
    return {key: values[key] for key in expected}


def split_of(examples: int) -> str:
    return {1_281_167: "train", 1_268_355: "train[:99%]"}[examples]


# Larger models of recipes that are otherwise the same take long to trace.
LARGE = (
    r"torchvision_v1:(regnet_[xy]_(?!400mf).+|resnet(34|101|152)|resnext.*|wide_.*|vgg1[369]_bn)"
    r"|torchvision_v2:(efficientnet_v2_m|shufflenet_v2_x2_0)|densenet:densenet(169|201)|convnext:(base|large)"
    r"|swin:(small|base)|deit3:large"
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.exhaustive] * bool(re.fullmatch(LARGE, name))) for name in REFERENCE],
)
def test_what_a_recipe_comes_to(name: str):
    expected = dict(REFERENCE[name])
    warmup_steps = expected.pop("warmup_steps")
    values = actual(recipe(name), expected)
    if "augmentation" in expected:
        expected["augmentation"] = policy(expected["augmentation"])
    excused = {key for pattern, keys in DEVIATIONS.items() if re.fullmatch(pattern, name) for key in keys}
    wrong = {}
    for key, value in expected.items():
        ours = values[key]
        if key == "learning_rates":
            if "warm-up" in excused:
                value = {step: rate for step, rate in value.items() if not 0 < int(step) < warmup_steps}
            # Towards the end float32 has what is left of differences of larger numbers.
            ours = {step: ours[step] for step in value}
            same = ours == pytest.approx(value, rel=1e-6, abs=1e-7 * max(value.values()))
        else:
            same = ours == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
        if not same and key not in excused:
            wrong[key] = (ours, value)
    assert not wrong, "\n".join(f"{key}: {ours} here, {theirs} there" for key, (ours, theirs) in wrong.items())


def multipliers_of(config: ConfigDict) -> list[float]:
    """Returns the learning-rate multipliers of the first and the last layers."""
    config.model.scan_blocks = True
    plan = config_lib.make_plan(config, 1_281_167)
    params = build.variable_shapes(config, build.build_model(config, 1000))["params"]
    rows = {row.path: row.multiplier for row in build.make_rules(config, plan).table(params)}
    blocks = rows["blocks/attn/qkv/kernel"]
    return [rows["cls_token"], blocks[0], blocks[-1], rows["head/kernel"]]


@pytest.mark.parametrize(("name", "decay"), [("swin_b", 0.9), ("swin_b_192", 0.9), ("swin_b_800", 0.8)])
def test_layers_of_swin_are_those_of_simmim(name: str, decay: float):
    """The 26 of optimizer.py's get_swin_layer: a reduction counts with the block before it, the norm with the head."""
    config = recipe(f"finetune_simmim:{name}")
    params = build.variable_shapes(config, build.build_model(config, 1000))["params"]
    rows = {
        row.path: (row.multiplier, row.decays)
        for row in build.make_rules(config, config_lib.make_plan(config, 1_281_167)).table(params)
    }
    layers = {
        **{"patch_embed/proj/kernel": 0, "layers/0/blocks/1/mlp/fc1/kernel": 2, "layers/1/downsample/norm/scale": 2},
        **{"layers/2/blocks/0/attn/qkv/kernel": 5, "layers/3/downsample/reduction/kernel": 22},
        **{"layers/3/blocks/0/norm1/bias": 23, "layers/3/blocks/1/norm1/bias": 24, "norm/scale": 25},
        **{"head/fc/kernel": 25, "layers/2/blocks/17/attn/relative_position_bias_table": 22},
    }
    assert {path: rows[path][0] for path in layers} == pytest.approx(
        {path: decay ** (25 - layer) for path, layer in layers.items()}, rel=1e-5
    )
    assert not rows["layers/2/blocks/17/attn/relative_position_bias_table"][1]
    assert config.data.eval_resize == (219 if name == "swin_b_192" else 256)


@pytest.mark.parametrize("name", NUMBERS)
def test_what_a_recipe_for_few_images_or_weights_comes_to(name: str):
    config, expected = recipe(name), dict(NUMBERS[name])
    plan = config_lib.make_plan(config, expected.pop("examples"))
    rates, rates_by_step = expected.pop("rates", {}), expected.pop("rates_by_step", {})
    takes = optim.optimizer_arguments(config.optimizer.name) | build.optimizer_options(config)
    ours = {
        **{"batch_size": config.batch_size, "steps": plan.total_steps},
        **{"weight_decay": config.optimizer.weight_decay, **takes},
    }
    if "undecayed" in expected:
        ours["undecayed"] = decays_of(config)[1]
    if "classifier" in expected:
        ((_, factor),) = config.optimizer.multipliers
        ours["classifier"] = pytest.approx(factor * plan.learning_rate)
    if "multipliers" in expected:
        ours["multipliers"] = pytest.approx(multipliers_of(config), rel=1e-6)
    assert {key: ours[key] for key in expected} == expected
    schedule = build.make_schedule(config, plan)
    for epoch, rate in rates.items():
        # A fraction of an epoch may be no whole step.
        step = int(epoch * plan.steps_per_epoch)
        assert float(schedule(step)) == pytest.approx(rate, rel=2e-2 if epoch % 1 else 1e-6)
    for step, rate in rates_by_step.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5)


def test_the_splits_of_vtab():
    """By the numbers of examples, and the shares of them that train there (task_adaptation, data/*.py)."""
    for task, count, share in (
        ("caltech101", 3_059, 90),
        ("cifar100", 50_000, 90),
        ("oxford_iiit_pet", 3_680, 80),
        ("svhn_cropped", 73_257, 90),
        ("eurosat", 27_000, 60),
        ("resisc45", 31_500, 60),
    ):
        first = count * share // 100
        assert recipes.VTAB[task].validation == f"train[{first}:{first + 200}]"
        if share == 60:
            rest = first + count * 20 // 100
            assert recipes.VTAB[task].trainval == f"train[:{rest}]"
            assert recipes.VTAB[task].test == f"train[{rest}:]"
    config = recipe("vtab:smallnorb_azimuth")
    assert config.data.train_split == "train[:800]+test[:200]"
    assert config.data.label == "label_azimuth"


def test_every_recipe_has_a_reference():
    missing = [name for name in NAMES if name.partition(":")[0] not in SMALL and name not in REFERENCE]
    assert not missing
    assert not [name for name in REFERENCE if name not in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_valid(name: str):
    config = recipe(name)
    config.data.label = None  # made-up images have no other
    if config.model.pretrained is None:
        config_lib.validate(config, num_devices=8)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_is(path: pathlib.Path):
    text = path.read_text()
    assert len(text.splitlines()) <= 80
    for word in ("Result:", "Source:", "Command:"):
        assert word in (load(path.stem).__doc__ or "")


@pytest.mark.parametrize("name", NAMES)
def test_neighbors_are_counted_as_often_as_flags_say(name: str):
    """docs/selfsupervised.md has these flags for all recipes of methods without labels."""
    method = recipe(name).objective.name
    if method is None or OBJECTIVES[method].classifies or issubclass(OBJECTIVES[method], Pairs | Dense):
        assert "knn" not in recipe(name).evals
        return
    file, _, variant = name.partition(":")
    path = f"{TESTS.parent / 'configs' / file}.py" + (f":{variant}" if variant else "")
    flags = ("--config.evals.knn.every_epochs=5", "--config.evals.knn.train_examples=20000")
    evaluation = command_line.load(path, flags).evals.knn
    assert (evaluation.kind, evaluation.every_epochs, evaluation.train_examples) == ("knn", 5, 20000)
