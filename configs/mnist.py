"""LeNet-5 on MNIST in 20 epochs; and LeNet-5, a small residual network and a small transformer on Fashion-MNIST.

Result:   lenet5: about 99 % top-1 is expected: LeCun et al. 1998 report 99.05 % for their LeNet-5 without distorted
          images. We have not run it yet.
          Measured here, with one seed; see docs/results.md: fashion_lenet5 91.53 %, fashion_wrn 93.82 %,
          fashion_vit 89.70 %.
Source:   LeCun et al. 1998, "Gradient-based learning applied to document recognition"; Zagoruyko and Komodakis 2016
          (arXiv:1605.07146), of whose networks fashion_wrn trains the narrowest of 16 layers; the recipes are this
          project's. Known differences to LeCun's paper: units are rectified and maps pooled by their maximum, the
          second convolution sees all maps, the loss is the cross-entropy, and images are shifted by up to two pixels.
Command:  python -m vision_jax.main --config=configs/mnist.py --config.data.dir=MNIST --workdir=runs/mnist
          where MNIST is the folder that tfds wrote, or `python -m vision_jax prepare --dataset=mnist --encoding=raw
          DOWNLOADS MNIST`, with the four files of MNIST in DOWNLOADS. Kuzushiji-MNIST fits as well; Fashion-MNIST is
          --config=configs/mnist.py:fashion_lenet5, fashion_wrn or fashion_vit, and --dataset=fashion_mnist.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from vision_jax import recipes
from vision_jax.config import default_config


class Variant(NamedTuple):
    """The model, epochs, and the learning rate of SGD or, for a transformer, of AdamW."""

    model: str
    epochs: float
    learning_rate: float


VARIANTS = {
    "lenet5": Variant("lenet5", 20.0, 0.05),
    "fashion_lenet5": Variant("lenet5", 25.0, 0.05),
    "fashion_wrn": Variant("wrn_16_1", 16.0, 0.1),
    "fashion_vit": Variant("vit_pico_patch7_28", 20.0, 0.001),
}


def get_config(variant: str = "lenet5") -> ConfigDict:
    chosen = recipes.choose(VARIANTS, variant)
    config = default_config()
    config.batch_size = 128
    config.epochs = chosen.epochs

    config.model.name = chosen.model
    config.model.num_classes = 10

    config.data.val_split = "test"
    config.data.image_size = 28
    config.data.eval_resize = 28
    config.data.channels = 1
    config.data.crop_scale = (1.0, 1.0)
    config.data.crop_ratio = (1.0, 1.0)
    if variant.startswith("fashion"):
        config.data.mean, config.data.std = (0.286,), (0.353,)
        config.augment.flip, config.augment.shift = 0.5, 1
    else:
        config.data.mean, config.data.std = (0.1307,), (0.3081,)
        config.augment.flip, config.augment.shift = 0.0, 2

    config.optimizer.learning_rate = chosen.learning_rate
    if chosen.model.startswith("vit"):
        config.optimizer.name = "adamw"
        config.optimizer.weight_decay = 0.05
        config.model.drop_path_rate = 0.1
        config.label_smoothing = 0.1
    else:
        config.optimizer.weight_decay = 5e-4
        config.optimizer.momentum = 0.9
        config.optimizer.nesterov = True
    config.schedule.warmup_epochs = 1.0

    config.eval.batch_size = 1000
    return config
