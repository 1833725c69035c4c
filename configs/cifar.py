"""ResNet-18 and Wide ResNet-28-10 on CIFAR-10 and CIFAR-100 in 200 epochs.

Result:   top-1, published as errors, mean or median of 5 runs:
              cifar10_resnet18   95.28 %  (4.72)      cifar10_wrn    96.00 %  (4.00)
              cifar100_resnet18  77.54 %  (22.46)     cifar100_wrn   80.75 %  (19.25)
          We have not run it yet.
Source:   ResNet-18: DeVries and Taylor 2017, arXiv:1708.04552, without Cutout, and uoguelph-mlrg/Cutout: README.md and
          train.py, whose model is that of kuangliu/pytorch-cifar. Wide ResNet: Zagoruyko and Komodakis 2016,
          arXiv:1605.07146, and szagoruyko/wide-residual-networks: README.md and scripts/train_cifar.sh. Known
          differences: for ResNet-18, convolutions are initialized as torch does by default there, with normal noise by
          their fan-out here, and CIFAR-100 is normalized as CIFAR-10 there.
Command:  python -m vision_jax.main --config=configs/cifar.py:cifar10_wrn --config.data.dir=CIFAR10 --workdir=runs/wrn
          where CIFAR10 is the folder that tfds wrote, or `python -m vision_jax prepare --dataset=cifar10 --encoding=raw
          DOWNLOADS CIFAR10`, with cifar-10-binary.tar.gz in DOWNLOADS; and the same for cifar100.
"""

from ml_collections import ConfigDict

from vision_jax import recipes
from vision_jax.config import default_config

# model, classes
VARIANTS = {
    "cifar10_resnet18": ("resnet18", 10),
    "cifar100_resnet18": ("resnet18", 100),
    "cifar10_wrn": ("wrn_28_10", 10),
    "cifar100_wrn": ("wrn_28_10", 100),
}
# Mean and deviation of the training images, by the number of classes.
_STATISTICS = {
    10: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def get_config(variant: str = "cifar10_resnet18") -> ConfigDict:
    config = default_config()
    config.batch_size = 128
    config.epochs = 200.0

    config.model.name, config.model.num_classes = recipes.choose(VARIANTS, variant)
    if config.model.name == "resnet18":
        config.model.small_stem = True
        config.model.zero_init_last = False

    config.data.val_split = "test"
    config.data.image_size = 32
    config.data.eval_resize = 32
    config.data.mean, config.data.std = _STATISTICS[config.model.num_classes]
    config.data.crop_scale = (1.0, 1.0)
    config.data.crop_ratio = (1.0, 1.0)
    config.augment.shift = 4
    config.augment.shift_mode = "constant" if config.model.name == "resnet18" else "reflect"

    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.decay_rule = "all"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.schedule.name = "step"
    config.schedule.factor = 0.2
    config.schedule.milestone_epochs = (60, 120, 160)
    config.schedule.warmup_epochs = 0.0

    config.eval.every_epochs = 5.0
    config.eval.batch_size = 1000
    return config
