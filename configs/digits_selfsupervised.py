"""Handwritten digits with LeNet-5 and without labels: a check of self-supervised methods, in a minute on two cores.

Result:   top-1 of 20 nearest neighbors; see docs/selfsupervised.md.
Source:   the methods are those of the recipes for ImageNet; the numbers here are this project's.
Command:  python -m vision_jax.main --config=configs/digits_selfsupervised.py:simclr --workdir=runs/simclr
"""

from typing import Any

from ml_collections import ConfigDict

from vision_jax import recipes

# Options of the objectives that are smaller than for ImageNet.
VARIANTS: dict[str, dict[str, Any]] = {
    "simclr": {"hidden": (128,), "out": 32, "temperature": 0.2},
    "mocov2": {"hidden": 128, "out": 32, "queue": 1024, "momentum": 0.99, "momentum_end": 0.99},
    "mocov3": {"hidden": (128,), "predictor_hidden": 128, "out": 32, "temperature": 0.2},
    "byol": {"hidden": 128, "out": 32},
    "simsiam": {"hidden": (128, 128), "out": 128, "bottleneck": 32},
    "barlow_twins": {"hidden": (128, 128), "out": 128},
    "vicreg": {"hidden": (128, 128), "out": 128},
    "rotation": {},
}


def get_config(variant: str = "simclr") -> ConfigDict:
    options = recipes.choose(VARIANTS, variant)
    config = recipes.digits("lenet5")
    config.batch_size = 128
    config.epochs = 50.0
    config.objective = recipes.objective(variant, **options)
    if variant != "rotation":
        config.data.views = "2x28:0.3-1"
        config.augment.color_jitter = (0.4, 0.4, 0.0)
        config.augment.color_jitter_prob = 0.8
        config.augment.blur = 0.5

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.003
    config.optimizer.weight_decay = 0.05
    config.schedule.warmup_epochs = 5.0
    config.checkpoint.best_metric = "knn/top1"
    config.eval.every_epochs = 25.0
    recipes.neighbors(config, config.eval.every_epochs)
    return config
