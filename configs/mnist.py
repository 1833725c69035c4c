"""LeNet-5 on MNIST in 20 epochs, and on Fashion-MNIST in 25.

Result:   lenet5: about 99 % top-1 is expected: LeCun et al. 1998 report 99.05 % for their LeNet-5 without distorted
          images. We have not run it yet.
          fashion_lenet5: 91.53 % top-1, measured here with one seed; see docs/results.md.
Source:   LeCun et al. 1998, "Gradient-based learning applied to document recognition"; the recipe is this project's.
          Known differences to the paper: units are rectified and maps pooled by their maximum, the second convolution
          sees all maps, the loss is the cross-entropy, and images are shifted by up to two pixels.
Command:  python -m vision_jax.main --config=configs/mnist.py --config.data.dir=MNIST --workdir=runs/mnist
          where MNIST is the folder that tfds wrote, or `python -m vision_jax prepare --dataset=mnist --encoding=raw
          DOWNLOADS MNIST`, with the four files of MNIST in DOWNLOADS. Kuzushiji-MNIST fits as well; Fashion-MNIST is
          --config=configs/mnist.py:fashion_lenet5, and --dataset=fashion_mnist.
"""

from ml_collections import ConfigDict

from vision_jax import recipes
from vision_jax.config import default_config

# The model, epochs, mean and standard deviation of the pixels, and how images are flipped and shifted.
VARIANTS = {
    "lenet5": ("lenet5", 20.0, 0.1307, 0.3081, 0.0, 2),
    "fashion_lenet5": ("lenet5", 25.0, 0.286, 0.353, 0.5, 1),
}


def get_config(variant: str = "lenet5") -> ConfigDict:
    model, epochs, mean, std, flip, shift = recipes.choose(VARIANTS, variant)
    config = default_config()
    config.batch_size = 128
    config.epochs = epochs

    config.model.name = model
    config.model.num_classes = 10

    config.data.val_split = "test"
    config.data.image_size = 28
    config.data.eval_resize = 28
    config.data.channels = 1
    config.data.mean = (mean,)
    config.data.std = (std,)
    config.data.crop_scale = (1.0, 1.0)
    config.data.crop_ratio = (1.0, 1.0)
    config.augment.flip = flip
    config.augment.shift = shift

    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 5e-4
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.schedule.warmup_epochs = 1.0

    config.eval.batch_size = 1000
    return config
