"""Inception v3 on ImageNet by the recipe of its paper.

Result:   78.8 % top-1 at 299 pixels, published; 77.29 % of the weights that torchvision took over from TensorFlow. 100
          epochs on 50 GPUs. We have not run it yet.
Source:   Szegedy et al. 2015, arXiv:1512.00567, section 8; what it leaves open is from tensorflow/models,
          inception/inception: inception_model.py, inception_train.py and image_processing.py. Known differences: the
          paper does not say whether its 50 GPUs, of 32 examples each, waited for one another; here 1,600 examples make
          one step. Crops depend on no bounding boxes and are resized in one way, and there in four; brightness is
          multiplied, and there added; evaluation crops have seven eighths of the shorter side, and there of each.
Command:  python -m vision_jax.main --config=configs/inception.py --config.data.dir=IMAGENET --workdir=runs/inception
"""

from ml_collections import ConfigDict

from vision_jax import recipes

VARIANTS: dict[str, str] = {"paper": "inception_v3"}


def get_config(variant: str = "paper") -> ConfigDict:
    config = recipes.imagenet(recipes.choose(VARIANTS, variant))
    config.batch_size = 1600
    config.epochs = 100.0
    config.label_smoothing = 0.1
    config.ema_decay = 0.9999

    config.model.bn_group_size = 32
    config.model.drop_rate = 0.2
    config.model.aux_logits = True
    config.loss.auxiliary_weight = 0.4

    config.data.image_size = 299
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.5, 0.5, 0.5)
    config.data.crop_scale = (0.05, 1.0)
    config.data.eval_crop = 0.875
    # Of brightness, contrast, saturation and hue.
    config.augment.color_jitter = (32 / 255, 0.5, 0.5, 0.2)

    config.optimizer.name = "rmsprop_tf"
    config.optimizer.learning_rate = 0.045
    config.optimizer.weight_decay = 4e-5
    config.optimizer.decay = 0.9
    config.optimizer.eps = 1.0
    config.optimizer.momentum = 0.9
    config.optimizer.clip_global_norm = 2.0
    config.schedule.name = "step"
    config.schedule.every_epochs = 2.0
    config.schedule.factor = 0.94
    config.schedule.warmup_epochs = 0.0
    return config
