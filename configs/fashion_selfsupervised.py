"""Fashion-MNIST without labels, with LeNet-5 or a small vision transformer, in minutes on two cores.

Result:   top-1 of 20 nearest neighbors and of a linear classifier; see docs/selfsupervised.md.
Source:   the methods are those of the recipes for ImageNet; the numbers here are this project's. The data: Xiao et al.
          2017 (arXiv:1708.07747); Debian has them as dataset-fashion-mnist.
Command:  python -m vision_jax prepare --dataset=fashion_mnist --encoding=raw /usr/share/datasets/fashion-mnist FASHION
          python -m vision_jax.main --config=configs/fashion_selfsupervised.py:simclr --config.data.dir=FASHION
          --workdir=runs/simclr
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vision_jax import recipes

CROPS, SMALL_CROPS = "2x28:0.3-1", "2x28:0.4-1,4x28:0.1-0.4"
VIT = "vit_pico_patch7_28"
DECODER = {"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 2}


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a variant of this file trains; without an objective, a classifier with labels."""

    model: str
    objective: str = ""
    views: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


VARIANTS: dict[str, Variant] = {
    "simclr": Variant("lenet5", "simclr", CROPS, {"hidden": (256,), "out": 64, "temperature": 0.2}),
    "byol": Variant("lenet5", "byol", CROPS, {"hidden": 256, "out": 64}),
    "dino": Variant("lenet5", "dino", SMALL_CROPS, {"hidden": (256,), "bottleneck": 64, "out": 1024, "momentum": 0.99}),
    "mae": Variant(VIT, "mae", "", {"normalize_pixels": False, **DECODER}),
    "lenet5": Variant("lenet5"),
    "vit": Variant(VIT),
}


def get_config(variant: str = "simclr") -> ConfigDict:
    chosen = recipes.choose(VARIANTS, variant)
    config = recipes.digits(chosen.model)
    config.data.source = "tfds"
    config.data.val_split = "test"
    config.data.mean, config.data.std = (0.286,), (0.353,)
    config.batch_size = 128
    config.epochs = 8.0
    config.augment.flip = 0.5

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.002
    config.optimizer.weight_decay = 0.05
    config.schedule.warmup_epochs = 0.5
    config.eval.every_epochs = 4.0
    config.eval.batch_size = 512
    if not chosen.objective:
        return config

    config.objective = recipes.objective(chosen.objective, **chosen.options)
    config.data.views = chosen.views
    if chosen.views:
        config.augment.color_jitter = (0.4, 0.4, 0.0)
        config.augment.color_jitter_prob = 0.8
    if chosen.objective == "dino":
        config.optimizer.clip_parameter_norm = 3.0
        config.optimizer.frozen_until = ((r"^projector/last_layer/", 1.0),)
    if chosen.objective == "mae":
        config.model.positions = "mae"
        config.data.crop_scale = (0.5, 1.0)
        config.optimizer.b2 = 0.95
        config.optimizer.frozen = (r"(^|/)pos_embed$",)
    config.checkpoint.best_metric = "knn/top1"
    recipes.neighbors(config, config.eval.every_epochs)
    return config
