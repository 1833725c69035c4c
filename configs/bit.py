"""Big Transfer's ResNet-50, with group norms and standardized kernels, on ImageNet in 90 epochs.

Result:   none is published with the source, which says that it takes about 32 minutes on a TPU v3-128. We have not run
          it yet.
Source:   google-research/big_vision, configs/bit_i1k.py, optax.py, utils.py and pp/; the model is of Kolesnikov et al.
          2019 (arXiv:1912.11370). Known differences: the model of models/bit.py there has its norms and activations
          after the convolutions, and the last norm scale of each branch begins at zero; here they are before the
          convolutions, as in the paper and its published weights. Here large crops are reduced by the decoder before
          the resizing, and evaluation resizes by an antialiased bilinear filter, not by areas.
Command:  python -m vision_jax.main --config=configs/bit.py:r50 --config.data.dir=IMAGENET --workdir=runs/bit_r50
          As there, 1 % of the training images is left out: an epoch has 1,268,355 examples, and the plan follows from
          them. Slices need the source tfds; with others pass --config.data.train_split=train too.
"""

from ml_collections import ConfigDict

from vision_jax import recipes

VARIANTS: dict[str, str] = {"r50": "resnetv2_50x1_bit"}


def get_config(variant: str = "r50") -> ConfigDict:
    config = recipes.imagenet(recipes.choose(VARIANTS, variant))
    config.batch_size = 4096
    config.epochs = 90.0

    config.data.train_split = "train[:99%]"
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.5, 0.5, 0.5)
    config.data.crop_scale = (0.05, 1.0)

    config.optimizer.learning_rate = 0.1
    config.optimizer.learning_rate_batch_size = 256
    # Not times the learning rate, and also for a batch of 256 in the beginning: change it with the batch.
    config.optimizer.weight_decay = 1e-4 * 4096 / 256
    config.optimizer.decay_form = "relative"
    config.optimizer.momentum = 0.9
    config.optimizer.mu_dtype = "bfloat16"
    config.optimizer.clip_global_norm = 1.0
    config.schedule.warmup_steps = 1_000
    return config
