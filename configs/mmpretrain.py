"""ResNet-50, two relatives and a vision transformer on ImageNet as open-mmlab/mmpretrain trains them.

Result:   published top-1 at 224 pixels: resnet50 76.55 % (100 epochs), resnet50d 77.54 % (100 epochs), seresnet50
          77.74 % (140 epochs), on 8 V100; vit_base 82.37 % (300 epochs, on 32 GPUs). We have not run it yet.
Source:   open-mmlab/mmpretrain, configs: resnet/{README.md, resnet50_8xb32_in1k.py, resnetv1d50_8xb32_in1k.py},
          seresnet/{README.md, seresnet50_8xb32_in1k.py}, vision_transformer/{README.md,
          vit-base-p16_32xb128-mae_in1k.py}, and what those include from _base_. Known differences: in vit_base's
          warm-up the learning rate rises with each epoch, from 1e-3 of the peak, and there with each step; resnet50 is
          evaluated through OpenCV's bilinear filter there, without antialiasing; an epoch leaves out the examples that
          do not fill a batch.
Command:  python -m vision_jax.main --config=configs/mmpretrain.py:resnet50 --config.data.dir=IMAGENET
          --workdir=runs/mmpretrain
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Model, epochs, and epochs between divisions of the learning rate by 10.
VARIANTS: dict[str, tuple[str, float, float | None]] = {
    "resnet50": ("resnet50", 100.0, 30.0),
    "resnet50d": ("resnet50d", 100.0, 30.0),
    "seresnet50": ("seresnet50", 140.0, 40.0),
    "vit_base": ("vit_base_patch16_224", 300.0, None),
}


def get_config(variant: str = "resnet50") -> ConfigDict:
    name, epochs, every_epochs = recipes.choose(VARIANTS, variant)
    config = recipes.imagenet(name)
    config.epochs = epochs
    if every_epochs is not None:
        config.batch_size = 256
        # Batch statistics of one GPU of 8.
        config.model.bn_group_size = 32
        config.data.train_filter = "bilinear" if variant == "resnet50" else "pillow-bilinear"
        config.optimizer.learning_rate = 0.1
        config.optimizer.weight_decay = 1e-4
        config.optimizer.decay_rule = "all"
        config.optimizer.momentum = 0.9
        config.schedule.name = "step"
        config.schedule.every_epochs = every_epochs
        config.schedule.warmup_epochs = 0.0
        return config

    recipes.deit_augmentation(config)
    # Mixtures among the examples of one GPU of 32.
    config.augment.mix_group = 128
    config.batch_size = 4096
    config.ema_decay = 0.9999
    config.model.drop_path_rate = 0.1
    config.optimizer.name = "adamw"
    # For this batch; 1e-4 for 256.
    config.optimizer.learning_rate = 1.6e-3
    config.optimizer.weight_decay = 0.3
    config.optimizer.decay_rule = "timm"
    config.optimizer.b2 = 0.95
    config.schedule.by_epoch = True
    config.schedule.warmup_epochs = 20.0
    config.schedule.warmup_factor = 1e-3
    config.schedule.end_factor = 1e-5 / 1.6e-3
    return config
