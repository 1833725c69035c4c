"""FixRes: the end of a trained ResNet-50 learns the resolution and the crops of the test.

Result:   79.1 % top-1 at 384 pixels, published, from weights of 77.0 % at 224 pixels, after 31 epochs on 8 GPUs.
          We have not run it yet.
Source:   Touvron et al. 2019, arXiv:1906.06423; facebookresearch/FixRes: README.md, for FixResNet-50 with
          transforms_v2.py, main_finetune.py and imnet_finetune/train.py. Known differences: its crops are 0.875 of the
          shorter side and move from left to right alone; here they have the share of the area that these have of an
          image of 4 to 3, and move in both directions. All norms but the last one use their running statistics there,
          and here the batch's, with which the running ones adapt. That one's scale and bias learn here, as the paper
          describes it; its code adapts the statistics alone.
Command:  python -m vision_jax.main --config=configs/fixres.py --config.data.dir=IMAGENET --workdir=runs/fixres \\
              --config.model.pretrained=WEIGHTS
          where IMAGENET has images of their original size: what tfds or `python -m vision_jax prepare --short_side=0`
          wrote, or a folder of classes; WEIGHTS are those of a training at 224 pixels, as a safetensors file.
"""

from ml_collections import ConfigDict

from vision_jax import recipes

VARIANTS = {"resnet50": "resnet50"}


def get_config(variant: str = "resnet50") -> ConfigDict:
    config = recipes.imagenet(recipes.choose(VARIANTS, variant))
    config.batch_size = 512
    config.epochs = 31.0
    config.model.bn_group_size = 64

    config.data.image_size = 384
    config.data.eval_resize = 438
    # Squares of 0.875 times the shorter side of an image of 4 to 3.
    config.data.crop_scale = (0.574, 0.574)
    config.data.crop_ratio = (1.0, 1.0)
    config.data.train_filter = "pillow-bilinear"
    config.augment.color_jitter = (0.05, 0.05, 0.05)

    # The classifier and the last norm learn.
    config.optimizer.frozen = ("^(?!fc/|layer4/2/bn3/)",)
    # Its --learning-rate=1e-3, which it multiplies by 8 for a batch of 512.
    config.optimizer.learning_rate = 8e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_rule = "all"
    config.optimizer.momentum = 0.9
    config.schedule.name = "step"
    config.schedule.every_epochs = 30.0
    config.schedule.warmup_epochs = 0.0
    return config
