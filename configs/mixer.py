"""MLP-Mixer B/16 on ImageNet as google-research/big_vision trains it, in 300 or 60 epochs.

Result:   top-1 at 224 pixels, published: b16 76.3 % in 2 h 11 min, b16_60 70.5 % in 27 min, on a TPU v3-128. We have
          not run it yet.
Source:   configs/mlp_mixer_i1k.py, optax.py, utils.py, pp/ and models/mlp_mixer.py there; the model is of Tolstikhin et
          al. 2021 (arXiv:2105.01601). Known differences: stochastic depth does not scale up what is kept there; GELU is
          approximated by tanh there; mixup is with the next image of the same device there. RandAugment there has
          Cutout too and resamples to the nearest pixel; levels mean the same. Here large crops are reduced by the
          decoder before the resizing, and evaluation resizes by an antialiased bilinear filter, not by areas.
Command:  python -m vision_jax.main --config=configs/mixer.py:b16 --config.data.dir=IMAGENET --workdir=runs/mixer_b16
          As there, 1 % of the training images is left out: an epoch has 1,268,355 examples, and the plan follows from
          them. Slices need the source tfds; with others pass --config.data.train_split=train too.
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Epochs.
VARIANTS: dict[str, float] = {"b16": 300.0, "b16_60": 60.0}


def get_config(variant: str = "b16") -> ConfigDict:
    epochs = recipes.choose(VARIANTS, variant)
    config = recipes.imagenet("mixer_b16_224")
    config.batch_size = 4096
    config.epochs = epochs
    config.loss.name = "sigmoid"
    config.loss.sum_classes = True
    # sigmoid(-6.9) is 1 of 1,000.
    config.model.head_bias = -6.9
    config.model.drop_path_rate = 0.1

    config.data.train_split = "train[:99%]"
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.5, 0.5, 0.5)
    config.data.crop_scale = (0.05, 1.0)
    # Operations are always applied (p1), and levels above 10 are not cut off (mmax).
    config.augment.policy = "rand-m15-n2-p1-mmax15"
    config.augment.mixup = 0.5

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    # Not times the learning rate: as 0.1 in AdamW.
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_form = "relative"
    config.optimizer.clip_global_norm = 1.0
    config.schedule.name = "linear"
    config.schedule.warmup_steps = 10_000
    config.schedule.end_factor = 1e-5
    return config
