"""ResNet-50 on ImageNet by free adversarial training: the attack costs nothing, and each batch is seen four times.

Result:   published top-1 of clean images, and under PGD-50, with four replays:
              eps4  60.21, 31.88   eps2  64.45, 43.39
          We have not run it yet.
Source:   Shafahi et al. 2019, arXiv:1904.12843; mahyarnajibi/FreeAdversarialTraining, configs.yml, main_free.py and
          lib/utils.py. The 90 epochs there are 23 passes through the data, and the rate falls after every 8 of them: 92
          and 32 epochs of steps here.
          Known differences: norms have the batch of one GPU there, of 64 images on four.
Command:  python -m vision_jax.main --config=configs/free_adversarial.py:eps4 --config.data.dir=IMAGENET
          --workdir=runs/free_eps4
"""

import math

from ml_collections import ConfigDict

from vision_jax import recipes

# The radius in 1/255.
VARIANTS = {"eps4": 4, "eps2": 2}
REPLAYS = 4


def get_config(variant: str = "eps4") -> ConfigDict:
    eps = recipes.choose(VARIANTS, variant)
    config = recipes.imagenet("resnet50")
    config.batch_size = 256
    config.epochs = float(REPLAYS * math.ceil(90 / REPLAYS))
    config.objective = recipes.objective("free_adversarial", eps=eps / 255, relative_step=1.0, replays=REPLAYS)

    config.model.zero_init_last = False
    config.data.train_filter = "pillow-bilinear"

    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_rule = "all"
    config.schedule.name = "step"
    config.schedule.every_epochs = float(REPLAYS * math.ceil(30 / REPLAYS))
    config.schedule.factor = 0.1
    config.schedule.warmup_epochs = 0.0

    recipes.robustness(config, "pgd-50-1", f"{eps}/255", every_epochs=8.0)
    config.checkpoint.best_metric = "robust/robust_top1"
    return config
