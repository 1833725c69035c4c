"""MoCo v2 on ImageNet: ResNet-50 without labels, by telling a crop's key from those of a queue.

Result:   top-1 of a linear classifier on frozen features, as published: 67.7 % in 200 epochs (67.5 +- 0.1 in five
          runs), 71.1 % in 800. We have not run it yet.
Source:   Chen et al. 2020 (arXiv:2003.04297); facebookresearch/moco 5670021, README.md and main_moco.py with
          `--mlp --moco-t 0.2 --aug-plus --cos`.
          Known differences: JPEGs may be decoded at a smaller size.
Command:  python -m vision_jax.main --config=configs/mocov2.py:r50_200 --config.data.dir=IMAGENET --workdir=runs/mocov2
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Epochs.
VARIANTS: dict[str, float] = {"r50_200": 200.0, "r50_800": 800.0}


def get_config(variant: str = "r50_200") -> ConfigDict:
    epochs = recipes.choose(VARIANTS, variant)
    config = recipes.selfsupervised("resnet50", "mocov2")
    config.batch_size = 256
    config.epochs = epochs
    # The batch of one GPU.
    config.model.bn_group_size = 32
    config.model.zero_init_last = False
    recipes.mocov2_augmentation(config)

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.learning_rate = 0.03
    config.optimizer.learning_rate_batch_size = 256
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_rule = "all"
    config.schedule.warmup_epochs = 0.0
    config.schedule.by_epoch = True
    return config
