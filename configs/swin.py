"""Swin Transformer on ImageNet in 300 epochs.

Result:   top-1 at 224 pixels, published: tiny 81.2 %, small 83.2 %, base 83.5 %. We have not run it yet.
Source:   Liu et al. 2021 (arXiv:2103.14030); microsoft/Swin-Transformer, config.py, configs/, data/build.py and the
          lr_scheduler.py of that time, whose cosine begins with the training, behind the warm-up.
Command:  python -m vision_jax.main --config=configs/swin.py:tiny --config.data.dir=IMAGENET --workdir=runs/swin_tiny
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# drop_path_rate
VARIANTS: dict[str, float] = {"tiny": 0.2, "small": 0.3, "base": 0.5}


def get_config(variant: str = "tiny") -> ConfigDict:
    drop_path_rate = recipes.choose(VARIANTS, variant)
    config = recipes.imagenet(f"swin_{variant}_patch4_window7_224")
    recipes.deit_augmentation(config)
    config.batch_size = 1024
    config.epochs = 300.0
    config.model.drop_path_rate = drop_path_rate
    # The batch of one of 8 GPUs.
    config.augment.mix_group = 128

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.learning_rate_batch_size = 512
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay_rule = "timm"
    config.optimizer.clip_global_norm = 5.0
    # From 1e-6 to 1e-3, and down to 1e-5.
    config.schedule.warmup_epochs = 20.0
    config.schedule.warmup_factor = 1e-3
    config.schedule.end_factor = 1e-2
    config.schedule.overlap_warmup = True
    return config
