"""ResNet-50 and ResNet-18 on ImageNet by FFCV's short recipes, which train on images of 160, then 192 pixels.

Result:   published top-1 at 256 pixels, the mean of image and mirror image, after 16, 24, 32, 40, 56 and 88 epochs:
          rn50 73.8, 75.6, 76.6, 77.2, 78.0, 78.4 in 14.9, 21.7, 28.7, 35.6, 49.4, 77.2 minutes on 8 A100;
          rn18 66.9, 68.8, 70.0, 70.6, 71.3, 72.4 in 35.0, 51.6, 68.9, 85.5, 119.4, 187.3 minutes on one A100.
          We have not run it yet.
Source:   libffcv/ffcv-imagenet, README.md, train_imagenet.py, rn50_configs and rn18_configs. Known differences: it
          reads images that were made smaller beforehand (sides of at most 500 pixels, or 400 for rn18), half of them,
          or nine tenths for rn18, as pixels, the others as JPEGs of quality 90; its evaluation crops are resized by
          OpenCV's area filter.
Command:  python -m vision_jax.main --config=configs/ffcv.py:rn50_16 --config.data.dir=IMAGENET --workdir=runs/ffcv
"""

import math

from ml_collections import ConfigDict

from vision_jax import recipes

# The epochs between which the size of images rises from 160 to 192 pixels, by the epochs of the training.
_RAMPS = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}
_MODELS = {"rn50": "resnet50", "rn18": "resnet18"}

# The model, and the epochs of the training.
VARIANTS: dict[str, tuple[str, int]] = {
    f"{short}_{epochs}": (model, epochs) for short, model in _MODELS.items() for epochs in _RAMPS
}


def get_config(variant: str = "rn50_88") -> ConfigDict:
    model, epochs = recipes.choose(VARIANTS, variant)
    large = model == "resnet50"
    config = recipes.imagenet(model)
    config.batch_size = 4096 if large else 1024
    config.epochs = float(epochs)
    config.label_smoothing = 0.1

    # The batch of one GPU.
    config.model.bn_group_size = 512 if large else 1024
    config.model.blur_pool = "conv"
    config.model.zero_init_last = False

    config.data.image_size = 192
    # Rounded to multiples of 32, the size changes once: in the first epoch that is not in the first half of the ramp.
    config.data.progressive_epochs = (0.0, float(math.ceil(sum(_RAMPS[epochs]) / 2)))
    config.data.progressive_sizes = (160, 192)
    config.data.train_filter = "area"
    config.data.eval_size = 256
    config.data.eval_crop = 224 / 256
    config.eval.flip = True

    config.optimizer.learning_rate = 1.7 if large else 0.5
    config.optimizer.weight_decay = 1e-4 if large else 5e-5
    # As there, by name: so the biases decay, and the norms of the shortcuts, which are not called bn.
    config.optimizer.decay_rule = "all"
    config.optimizer.no_decay = (r"bn\d/",)
    config.optimizer.momentum = 0.9
    config.schedule.name = "piecewise"
    config.schedule.points = ((0.0, 1e-4), (2.0, 1.0), (float(epochs), 0.0))
    config.schedule.warmup_epochs = 0.0
    return config
