"""Models on ImageNet by torchvision's second recipe: long, with more augmentation, and on images of 176 pixels.

Result:   published top-1 of the weights: resnet50 80.86, wide_resnet50_2 81.60, resnext50_32x4d 81.20,
          resnext101_32x8d 82.83, mobilenet_v2 72.15, mobilenet_v3_large 75.27, efficientnet_v2_s 84.23 (at 384 pixels),
          efficientnet_v2_m 85.11 (at 480), convnext_tiny 82.52, vit_b_16 81.07, swin_t 81.47, shufflenet_v2_x1_5 73.00,
          shufflenet_v2_x2_0 76.23; at 224 pixels if not said. We have not run it yet.
Source:   pytorch/vision, references/classification: README.md, train.py and presets.py; issue 3995 and pull requests
          4964 and 5560 for the convolutional models; top-1 from the metadata of the weights in torchvision 0.28. Known
          differences: mobilenet_v3_large had a "tuned regularization" that we could not look up, and has the recipe of
          mobilenet_v2 here; vit_b_16's RandAugment (magnitude 9 of 30) is here timm's at magnitude 3 of 10, applied
          always, with Invert and SolarizeAdd in the place of the identity; an epoch leaves out the examples that do not
          fill a batch; updates of the average are counted over epochs, and there within each.
Command:  python -m vision_jax.main --config=configs/torchvision_v2.py:resnet50 --config.data.dir=IMAGENET
          --workdir=runs/torchvision_v2
"""

from typing import Any

from ml_collections import ConfigDict

from vision_jax import recipes

# bn_group_size and mix_group are the batch of one GPU; torchvision starts no norm's scale at zero.
_NORMS = {"model.bn_group_size": 128}
_RESNET = {**_NORMS, "model.zero_init_last": False}
_MOBILENET = {**_NORMS, "model.drop_rate": 0.2}
_EFFICIENTNET = {"model.bn_group_size": 32, "augment.mix_group": 32, "model.drop_path_rate": 0.2}
_TEST_384, _TEST_480 = (dict.fromkeys(("data.eval_size", "data.eval_resize"), size) for size in (384, 480))
_EACH_ONCE = {"data.repeats": 1}
_LARGE = {"data.image_size": 224}
_ADAMW = {"optimizer.name": "adamw", "optimizer.momentum": None, "optimizer.learning_rate": 1e-3}

VARIANTS: dict[str, dict[str, Any]] = {
    "resnet50": _RESNET,
    "wide_resnet50_2": {**_RESNET, **_EACH_ONCE},
    "resnext50_32x4d": {**_RESNET, **_EACH_ONCE, **_LARGE},
    "resnext101_32x8d": {**_RESNET, **_EACH_ONCE},
    **dict.fromkeys(("mobilenet_v2", "mobilenet_v3_large"), _MOBILENET),
    "efficientnet_v2_s": {**_EFFICIENTNET, "model.drop_rate": 0.2, "data.image_size": 300, **_TEST_384},
    "efficientnet_v2_m": {**_EFFICIENTNET, "model.drop_rate": 0.3, "data.image_size": 384, **_TEST_480},
    "convnext_tiny": {**_ADAMW, "optimizer.weight_decay": 0.05, "model.drop_path_rate": 0.1, "data.eval_resize": 236},
    "vit_b_16": {
        **{**_ADAMW, **_LARGE, "batch_size": 4096, "epochs": 300.0, "label_smoothing": 0.11, "data.eval_resize": 256},
        **{"optimizer.learning_rate": 3e-3, "optimizer.weight_decay": 0.3, "optimizer.decay_rule": "all"},
        **{"optimizer.clip_global_norm": 1.0, "schedule.warmup_epochs": 30.0, "schedule.warmup_factor": 0.033},
        **{"data.repeats": 3, "augment.policy": "rand-m3-n2-p1-inc1", "augment.erase": 0.0, "augment.mix_group": 512},
    },
    "swin_t": {
        **{**_ADAMW, **_LARGE, "epochs": 300.0, "model.drop_path_rate": 0.2, "augment.mixup": 0.8},
        **{"optimizer.weight_decay": 0.05, "optimizer.decay_rule": "timm", "optimizer.clip_global_norm": 5.0},
        **{"schedule.warmup_epochs": 20.0, "schedule.end_factor": 0.01, "augment.erase": 0.25},
        **{"data.train_filter": "pillow-bicubic", "data.eval_filter": "bicubic"},
    },
    **dict.fromkeys(("shufflenet_v2_x1_5", "shufflenet_v2_x2_0"), _NORMS),
}


def get_config(variant: str = "resnet50") -> ConfigDict:
    fields = recipes.choose(VARIANTS, variant)
    config = recipes.imagenet(variant)
    config.batch_size = 1024
    config.epochs = 600.0
    config.label_smoothing = 0.1
    config.data.update({"image_size": 176, "eval_size": 224, "eval_resize": 232})
    config.data.update({"train_filter": "pillow-bilinear", "repeats": 4})
    # Mixup or CutMix, each for half of the batches.
    config.augment.update({"policy": "trivialaugment_wide", "erase": 0.1, "mixup": 0.2, "cutmix": 1.0})
    config.augment.mix_group = 128
    config.optimizer.learning_rate = 0.5
    config.optimizer.weight_decay = 2e-5
    config.optimizer.decay_rule = "not_norms"
    config.optimizer.momentum = 0.9
    config.schedule.by_epoch = True
    config.schedule.warmup_factor = 0.01
    config.update_from_flattened_dict(fields)
    # The average is one over about the same share of any training; until the warm-up is over, it is begun anew.
    config.ema_every_steps = 32
    config.ema_decay = 1 - min(1.0, (1 - 0.99998) * config.batch_size * config.ema_every_steps / config.epochs)
    config.ema_start_epochs = config.schedule.warmup_epochs
    return config
