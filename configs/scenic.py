"""ResNet-50 and ViT-B/16 on ImageNet as google-research/scenic trains them.

Result:   published top-1 at 224 pixels: resnet50 76.1 % (90 epochs), vit_b16 79.7 % (300 epochs, AugReg). We have not
          run it yet.
Source:   google-research/scenic, projects/baselines: README.md, configs/imagenet/imagenet_resnet_config.py and
          imagenet_augreg_vit_config.py, resnet.py and vit.py; model_lib/base_models, train_lib/lr_schedules.py and
          optimizers.py. Known differences: resnet50: batch statistics are of one device's examples there, how many it
          does not say, and here of the whole batch (--config.model.bn_group_size); the bicubic filter there is not
          antialiased, and crops for evaluation are taken before resizing. vit_b16: there a tenth of the units is
          dropped behind positions too; weights of the classifier begin at zero, GELU is approximated by tanh, and
          RandAugment has Cutout too and resamples to the nearest pixel. Here large crops are reduced by the decoder
          before the resizing.
Command:  python -m vision_jax.main --config=configs/scenic.py:resnet50 --config.data.dir=IMAGENET --workdir=runs/scenic
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Model and epochs.
VARIANTS: dict[str, tuple[str, float]] = {
    "resnet50": ("resnet50", 90.0),
    "vit_b16": ("vit_base_patch16_224", 300.0),
}


def get_config(variant: str = "resnet50") -> ConfigDict:
    name, epochs = recipes.choose(VARIANTS, variant)
    config = recipes.imagenet(name)
    config.epochs = epochs
    if variant == "resnet50":
        config.batch_size = 8192
        config.model.head_bias = -10.0
        config.data.train_filter = "pillow-bicubic"
        config.data.eval_filter = "bicubic"
        config.optimizer.learning_rate = 0.1
        config.optimizer.learning_rate_batch_size = 256
        config.optimizer.weight_decay = 5e-5
        config.optimizer.momentum = 0.9
        config.schedule.warmup_epochs = 7.0
    else:
        config.batch_size = 4096
        config.loss.name = "sigmoid"
        config.loss.sum_classes = True
        # sigmoid(-6.9) is 1 of 1,000.
        config.model.head_bias = -6.9
        config.model.proj_drop_rate = 0.1
        config.model.drop_path_rate = 0.1
        config.data.mean = (0.5, 0.5, 0.5)
        config.data.std = (0.5, 0.5, 0.5)
        config.data.crop_scale = (0.05, 1.0)
        # Operations are always applied (p1), and levels above 10 are not cut off (mmax).
        config.augment.policy = "rand-m15-n2-p1-mmax15"
        config.augment.mixup = 0.5
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = 1e-3
        config.optimizer.weight_decay = 0.1
        # Everything decays: norms, biases and positions too.
        config.optimizer.decay_rule = "all"
        config.optimizer.clip_global_norm = 1.0
        config.schedule.warmup_steps = 10_000
    return config
