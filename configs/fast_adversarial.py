"""ResNet-50 on ImageNet by fast adversarial training: one step from a random start, in three phases of growing images.

Result:   published top-1 of clean images of 288 pixels, and under PGD-50 with ten random starts, after 15 epochs:
              eps2  60.90, 43.46 (in 12 hours)   eps4  55.45, 30.28 (26.24 under AutoAttack, 5,000 images)
          We have not run it yet.
Source:   Wong et al. 2020, arXiv:2001.03994; locuslab/fast_adversarial, README.md and ImageNet/. Known differences: it
          reads images whose shorter sides have been made 160 and 352 pixels for the first two phases; the momentum of
          SGD begins anew with each phase here; a pixel that the random start takes out of [0, 1] has no gradient
          there, and that at the border here.
Command:  for each phase in turn, with the one before in model.pretrained:
          python -m vision_jax.main --config=configs/fast_adversarial.py:eps4_phase1 --config.data.dir=IMAGENET
          --workdir=runs/fast_eps4_phase1
          python -m vision_jax.main --config=configs/fast_adversarial.py:eps4_phase2 --config.data.dir=IMAGENET
          --workdir=runs/fast_eps4_phase2, and the same for phase3.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from vision_jax import recipes


class Phase(NamedTuple):
    """Epochs, size of crops, batch, and (epoch, learning rate) between which the rate is on straight lines."""

    epochs: float
    size: int
    batch_size: int
    rates: tuple[tuple[float, float], ...]


PHASES = (
    Phase(6.0, 128, 512, ((0.0, 0.0), (1.0, 0.4), (6.0, 0.04))),
    Phase(6.0, 224, 224, ((0.0, 0.04), (6.0, 0.004))),
    Phase(3.0, 288, 128, ((0.0, 0.004), (3.0, 0.0004))),
)
# The radius in 1/255, and the number of the phase.
VARIANTS = {f"eps{eps}_phase{number}": (eps, number) for eps in (4, 2) for number in (1, 2, 3)}


def get_config(variant: str = "eps4_phase1") -> ConfigDict:
    eps, number = recipes.choose(VARIANTS, variant)
    phase = PHASES[number - 1]
    config = recipes.imagenet("resnet50")
    config.batch_size, config.epochs = phase.batch_size, phase.epochs
    if number > 1:
        config.model.pretrained = f"runs/fast_eps{eps}_phase{number - 1}"
    # In training mode, so that the attack's forward pass moves the running statistics too.
    fast = {"steps": 1, "relative_step": 1.25, "start": "ball", "best_iterate": False, "mode": "train"}
    config.objective = recipes.objective("adversarial", eps=eps / 255, **fast)

    config.model.zero_init_last = False
    config.data.image_size = phase.size
    config.data.train_filter = "pillow-bilinear"
    config.data.eval_size, config.data.eval_resize = 288, 352

    config.optimizer.learning_rate = peak = max(rate for _, rate in phase.rates)
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_rule = "not_norms"
    config.schedule.name = "piecewise"
    config.schedule.points = tuple((epoch, rate / peak) for epoch, rate in phase.rates)
    config.schedule.warmup_epochs = 0.0

    recipes.robustness(config, "pgd-50-1", f"{eps}/255", every_epochs=phase.epochs)
    config.checkpoint.best_metric = "robust/robust_top1"
    return config
