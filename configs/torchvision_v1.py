"""Models on ImageNet by torchvision's first recipes, those of its weights called IMAGENET1K_V1.

Result:   published top-1 of the weights at 224 pixels: resnet50 76.13, resnet18 69.76, resnet34 73.31, resnet101 77.37,
          resnet152 78.31, resnext50_32x4d 77.62, resnext101_32x8d 79.31, wide_resnet50_2 78.47, wide_resnet101_2 78.85,
          alexnet 56.52, vgg11 69.02, vgg13 69.93, vgg16 71.59, vgg19 72.38, vgg11_bn 70.37, vgg13_bn 71.59,
          vgg16_bn 73.36, vgg19_bn 74.22, mobilenet_v2 71.88, mobilenet_v3_large 74.04, mobilenet_v3_small 67.67,
          regnet_x_400mf 72.83, 800mf 75.21, 1_6gf 77.04, 3_2gf 78.36, 8gf 79.34, 16gf 80.06, 32gf 80.62,
          regnet_y_400mf 74.05, 800mf 76.42, 1_6gf 77.95, 3_2gf 78.95, 8gf 80.03, 16gf 80.42, 32gf 80.88. Trained on 8
          V100, resnext101_32x8d on 64 GPUs. We have not run it yet.
Source:   pytorch/vision, references/classification: README.md, train.py and presets.py; top-1 from the metadata of
          the weights in torchvision 0.28. Known differences: the published wide ResNets had another recipe, of 256
          epochs and cosines with warm restarts (pull request 912), and have that of the ResNets here; published
          MobileNetV3s are the mean of the last three checkpoints that were the best so far; their AutoAugment is
          timm's here, which shows the mean color where torchvision shows black; an epoch leaves out the examples that
          do not fill a batch.
Command:  python -m vision_jax.main --config=configs/torchvision_v1.py:resnet50 --config.data.dir=IMAGENET
          --workdir=runs/torchvision_v1
"""

from typing import Any

from ml_collections import ConfigDict

from vision_jax import recipes

# bn_group_size is the batch of one GPU; torchvision starts no norm's scale at zero.
_STEPS = {"schedule.name": "step", "schedule.every_epochs": 30.0, "schedule.warmup_epochs": 0.0}
_NORMS = {"model.bn_group_size": 32}
_RESNET = {**_STEPS, **_NORMS, "model.zero_init_last": False}
_RESNEXT = {**_RESNET, "epochs": 100.0}
_RESNEXT_64_GPUS = {"batch_size": 1024, "model.bn_group_size": 16, "optimizer.learning_rate": 0.4}
_PLAIN = {**_STEPS, "optimizer.learning_rate": 0.01}
_VGG_BN = {**_STEPS, **_NORMS}
_MOBILENET_V2 = {
    **{**_STEPS, **_NORMS, "epochs": 300.0, "model.drop_rate": 0.2, "optimizer.learning_rate": 0.045},
    **{"optimizer.weight_decay": 4e-5, "schedule.every_epochs": 1.0, "schedule.factor": 0.98},
}
_MOBILENET_V3 = {
    **{**_STEPS, "batch_size": 1024, "epochs": 600.0, "model.bn_group_size": 128, "model.drop_rate": 0.2},
    **{"optimizer.name": "rmsprop", "optimizer.decay": 0.9, "optimizer.eps": 0.0316, "optimizer.learning_rate": 0.064},
    **{"optimizer.weight_decay": 1e-5, "schedule.every_epochs": 2.0, "schedule.factor": 0.973},
    **{"augment.policy": "autoaugment", "augment.erase": 0.2},
}
_REGNET = {
    **{"epochs": 100.0, "model.zero_init_last": False, "optimizer.weight_decay": 5e-5},
    **{"schedule.by_epoch": True, "schedule.warmup_factor": 0.1},
}
_REGNET_SMALL = {**_REGNET, "batch_size": 1024, "model.bn_group_size": 128, "optimizer.learning_rate": 0.8}
_REGNET_MEDIUM = {**_REGNET, "batch_size": 512, "model.bn_group_size": 64, "optimizer.learning_rate": 0.4}
_REGNET_LARGE = {**_REGNET, "batch_size": 256, "model.bn_group_size": 32, "optimizer.learning_rate": 0.2}

VARIANTS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("resnet50", "resnet18", "resnet34", "resnet101", "resnet152"), _RESNET),
    **dict.fromkeys(("wide_resnet50_2", "wide_resnet101_2"), _RESNET),
    **{"resnext50_32x4d": _RESNEXT, "resnext101_32x8d": {**_RESNEXT, **_RESNEXT_64_GPUS}},
    **dict.fromkeys(("alexnet", "vgg11", "vgg13", "vgg16", "vgg19"), _PLAIN),
    **dict.fromkeys(("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"), _VGG_BN),
    "mobilenet_v2": _MOBILENET_V2,
    **dict.fromkeys(("mobilenet_v3_large", "mobilenet_v3_small"), _MOBILENET_V3),
    **dict.fromkeys(("regnet_x_400mf", "regnet_x_800mf", "regnet_x_1_6gf"), _REGNET_SMALL),
    **dict.fromkeys(("regnet_x_3_2gf", "regnet_x_8gf", "regnet_x_16gf"), _REGNET_MEDIUM),
    "regnet_x_32gf": _REGNET_LARGE,
    "regnet_y_400mf": {**_REGNET_SMALL, "optimizer.learning_rate": 0.4},
    **dict.fromkeys(("regnet_y_800mf", "regnet_y_1_6gf"), _REGNET_SMALL),
    **dict.fromkeys(("regnet_y_3_2gf", "regnet_y_8gf"), _REGNET_MEDIUM),
    **dict.fromkeys(("regnet_y_16gf", "regnet_y_32gf"), _REGNET_LARGE),
}


def get_config(variant: str = "resnet50") -> ConfigDict:
    fields = recipes.choose(VARIANTS, variant)
    config = recipes.imagenet(variant)
    config.data.train_filter = "pillow-bilinear"
    config.optimizer.momentum = 0.9
    config.optimizer.decay_rule = "all"
    config.update_from_flattened_dict(fields)
    return config
