"""LeNet-5 on MNIST in 20 epochs.

Result:   about 99 % top-1 is expected: LeCun et al. 1998 report 99.05 % for their LeNet-5 without distorted images.
          We have not run it yet.
Source:   LeCun et al. 1998, "Gradient-based learning applied to document recognition"; the recipe is this project's.
          Known differences to the paper: units are rectified and maps pooled by their maximum, the second convolution
          sees all maps, the loss is the cross-entropy, and images are shifted by up to two pixels.
Command:  python -m vision_jax.main --config=configs/mnist.py --config.data.dir=MNIST --workdir=runs/mnist
          where MNIST is the folder that tfds wrote, or `python -m vision_jax prepare --dataset=mnist --encoding=raw
          DOWNLOADS MNIST`, with the four files of MNIST in DOWNLOADS. Fashion-MNIST and kmnist fit as well.
"""

from ml_collections import ConfigDict

from vision_jax import recipes
from vision_jax.config import default_config

VARIANTS = {"lenet5": "lenet5"}


def get_config(variant: str = "lenet5") -> ConfigDict:
    config = default_config()
    config.batch_size = 128
    config.epochs = 20.0

    config.model.name = recipes.choose(VARIANTS, variant)
    config.model.num_classes = 10

    config.data.val_split = "test"
    config.data.image_size = 28
    config.data.eval_resize = 28
    config.data.channels = 1
    config.data.mean = (0.1307,)
    config.data.std = (0.3081,)
    config.data.crop_scale = (1.0, 1.0)
    config.data.crop_ratio = (1.0, 1.0)
    config.augment.flip = 0.0
    config.augment.shift = 2

    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 5e-4
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.schedule.warmup_epochs = 1.0

    config.eval.batch_size = 1000
    return config
