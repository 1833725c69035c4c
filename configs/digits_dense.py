"""Handwritten digits on made-up images, found and outlined: detection and segmentation in minutes on two cores.

Result:   measured here; see docs/dense.md.
Source:   the methods are those of the recipes for COCO and ADE20K; the numbers here are this project's.
Command:  python -m vision_jax.main --config=configs/digits_dense.py:retinanet --workdir=runs/digits_retinanet
"""

from typing import Any

from ml_collections import ConfigDict

from vision_jax import recipes

# Digits are from 28 to 48 pixels high, and the smallest anchors are published for objects of 32. The published width
# of the heads would take four times as long.
_SMALL = {"anchor_scale": 0.5, "channels": 64}
# The objective, its options, and epochs.
VARIANTS: dict[str, tuple[str, dict[str, Any], float]] = {
    # With norms in its heads: those of version 1 begin so small that this narrow they hardly learn.
    "retinanet": ("retinanet", {**_SMALL, "version": 2}, 12.0),
    "fcos": ("fcos", _SMALL, 12.0),
    "fcn": ("segmentation", {"head": "fcn"}, 6.0),
    "upernet": ("segmentation", {"head": "upernet"}, 6.0),
}


def get_config(variant: str = "retinanet") -> ConfigDict:
    name, options, epochs = recipes.choose(VARIANTS, variant)
    config = recipes.scenes("resnet18", name, **options)
    config.batch_size = 8
    config.epochs = epochs
    config.model.zero_init_last = False

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_global_norm = 1.0
    config.schedule.warmup_epochs = 1.0

    if name == "segmentation" and options["head"] == "fcn":
        config.model.output_stride = 8
    config.eval.every_epochs = 3.0
    return config
