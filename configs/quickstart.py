"""Handwritten digits with LeNet-5: a check that everything works, in under a minute on two cores.

Result:   about 99 % top-1 on 360 held-out digits of scikit-learn's 1,797 (measured here, see docs/benchmarks.md).
Source:   LeNet-5 is LeCun et al. 1998; the recipe is this project's.
Command:  python -m vision_jax.main --config=configs/quickstart.py
"""

from ml_collections import ConfigDict

from vision_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.batch_size = 64
    config.epochs = 60.0
    config.dtype = "float32"
    config.label_smoothing = 0.1
    config.ema_decay = 0.99

    config.model.name = "lenet5"

    config.data.source = "digits"
    config.data.image_size = 28
    config.data.channels = 1
    config.data.mean = (0.3,)
    config.data.std = (0.35,)
    config.data.crop_scale = (0.6, 1.0)
    config.data.eval_resize = 28

    config.augment.flip = 0.0

    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 5e-4
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.schedule.warmup_epochs = 3.0

    config.eval.every_epochs = 20.0
    config.eval.batch_size = 128
    return config
