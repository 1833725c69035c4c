"""Handwritten digits with LeNet-5, trained to withstand attacks: a check of the methods, in minutes on two cores.

Result:   measured here; see docs/robustness.md.
Source:   the methods are those of the recipes for ImageNet and CIFAR-10; the numbers here are this project's.
Command:  python -m vision_jax.main --config=configs/digits_adversarial.py:pgd --workdir=runs/digits_pgd
"""

from typing import Any

from ml_collections import ConfigDict

from vision_jax import recipes

_PGD = {"steps": 5, "relative_step": 0.5, "start": "ball", "best_iterate": False}
# The objective, and its options besides the radius; None is training without an attack.
VARIANTS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "pgd": ("adversarial", _PGD),
    "standard": None,
    "fast": ("adversarial", _PGD | {"steps": 1, "relative_step": 1.25, "mode": "train"}),
    "trades": ("trades", {"steps": 5, "relative_step": 0.5}),
    "mart": ("mart", {"steps": 5, "relative_step": 0.5}),
}
EPS = 0.2  # of pixels in [0, 1]


def get_config(variant: str = "pgd") -> ConfigDict:
    method = recipes.choose(VARIANTS, variant)
    config = recipes.digits("lenet5")
    config.batch_size = 64
    config.epochs = 60.0
    config.ema_decay = 0.99
    if method:
        name, options = method
        config.objective = recipes.objective(name, eps=EPS, warmup_epochs=15.0, **options)
    # Attacks leave less to be learned from small crops.
    config.data.crop_scale = (0.8, 1.0)
    config.data.crop_ratio = (0.9, 1.1)

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.003
    config.optimizer.weight_decay = 0.01
    config.schedule.warmup_epochs = 3.0

    config.eval.every_epochs = 20.0
    recipes.robustness(config, "pgd-20-1", str(EPS), examples=0)
    return config
