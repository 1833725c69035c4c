"""MobileNetV3-Large on ImageNet by timm's recipe.

Result:   75.77 % top-1 at 224 pixels, published, on 2 GPUs. We have not run it yet.
Source:   huggingface/pytorch-image-models, docs/training_hparam_examples.md, and the defaults of train.py then. Known
          differences: from 42 to 90 % of the training its learning rate has noise, and here none; each training crop
          there is resized bilinearly or bicubically, by chance.
Command:  python -m vision_jax.main --config=configs/mobilenetv3.py --config.data.dir=IMAGENET
          --workdir=runs/mobilenetv3
"""

from ml_collections import ConfigDict

from vision_jax import recipes

VARIANTS: dict[str, str] = {"large": "mobilenetv3_large_100"}


def get_config(variant: str = "large") -> ConfigDict:
    config = recipes.imagenet(recipes.choose(VARIANTS, variant))
    config.batch_size = 1024
    config.epochs = 600.0
    config.label_smoothing = 0.1
    config.ema_decay = 0.9999

    # The batch of one GPU.
    config.model.bn_group_size = 512
    config.model.drop_rate = 0.2
    config.model.drop_path_rate = 0.2

    config.data.train_filter = "pillow-bicubic"
    config.data.eval_crop = 0.875
    config.data.eval_filter = "bicubic"
    config.augment.policy = "rand-m9-mstd0.5"
    config.augment.erase = 0.2
    config.augment.erase_mode = "pixel"

    config.optimizer.name = "rmsprop_tf"
    config.optimizer.learning_rate = 0.064
    config.optimizer.weight_decay = 1e-5
    config.optimizer.decay_rule = "timm"
    config.optimizer.decay = 0.9
    config.optimizer.eps = 0.001
    config.optimizer.momentum = 0.9
    config.schedule.name = "step"
    config.schedule.every_epochs = 2.4
    config.schedule.factor = 0.973
    config.schedule.by_epoch = True
    config.schedule.warmup_epochs = 3.0
    config.schedule.warmup_factor = 1e-6 / 0.064
    return config
