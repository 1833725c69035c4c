"""ConvNeXt on ImageNet in 300 epochs.

Result:   top-1 at 224 pixels, published: tiny 82.1 %, small 83.1 %, base 83.8 %, large 84.3 %, of the moving average
          (val/ema_top1). Trained on 32 GPUs, large on 64. We have not run it yet.
Source:   Liu et al. 2022 (arXiv:2201.03545); facebookresearch/ConvNeXt, TRAINING.md, main.py and utils.py.
Command:  python -m vision_jax.main --config=configs/convnext.py:tiny --config.data.dir=IMAGENET
          --workdir=runs/convnext_tiny
          Where memory does not suffice, --config.optimizer.accumulate=4 computes the batch in parts.
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# drop_path_rate
VARIANTS: dict[str, float] = {"tiny": 0.1, "small": 0.4, "base": 0.5, "large": 0.5}


def get_config(variant: str = "tiny") -> ConfigDict:
    drop_path_rate = recipes.choose(VARIANTS, variant)
    config = recipes.imagenet(f"convnext_{variant}")
    recipes.deit_augmentation(config)
    config.batch_size = 4096
    config.epochs = 300.0
    config.ema_decay = 0.9999
    config.checkpoint.best_metric = "val/ema_top1"
    config.model.drop_path_rate = drop_path_rate
    # The batch of one GPU.
    config.augment.mix_group = 64 if variant == "large" else 128

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay_rule = "timm"
    config.schedule.warmup_epochs = 20.0
    # Down to 1e-6.
    config.schedule.end_factor = 1e-6 / 4e-3
    return config
