"""DenseNets on ImageNet by the recipe of their paper.

Result:   published top-1 at 224 pixels: densenet121 75.0, densenet169 76.4, densenet201 77.5; of the same weights in
          torchvision, which resizes bilinearly, 74.43, 75.60 and 76.90. 90 epochs. We have not run it yet.
Source:   Huang et al. 2016, arXiv:1608.06993, section 4.2; liuzhuang13/DenseNet, README.md (on 4 GPUs), which trains by
          facebookarchive/fb.resnet.torch, datasets/imagenet.lua; the last figures are in the metadata of torchvision's
          weights. Known differences: no noise along the principal components of the colors; crops are resized
          bilinearly, and there bicubically.
Command:  python -m vision_jax.main --config=configs/densenet.py:densenet121 --config.data.dir=IMAGENET
          --workdir=runs/densenet
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# They differ in the model alone.
VARIANTS: dict[str, str] = {name: name for name in ("densenet121", "densenet169", "densenet201")}


def get_config(variant: str = "densenet121") -> ConfigDict:
    config = recipes.imagenet(recipes.choose(VARIANTS, variant))
    config.batch_size = 256
    config.epochs = 90.0
    config.model.bn_group_size = 64
    config.augment.color_jitter = (0.4, 0.4, 0.4)
    config.optimizer.learning_rate = 0.1
    config.optimizer.decay_rule = "all"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.schedule.name = "step"
    config.schedule.every_epochs = 30.0
    config.schedule.warmup_epochs = 0.0
    return config
