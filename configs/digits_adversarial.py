"""Handwritten digits, trained to withstand attacks: a check of the methods, in minutes on two cores.

Result:   measured here; see docs/robustness.md.
Source:   the methods are those of the recipes for ImageNet and CIFAR-10; the numbers here are this project's.
Command:  python -m vision_jax.main --config=configs/digits_adversarial.py:pgd --workdir=runs/digits_pgd
"""

from typing import Any

from ml_collections import ConfigDict

from vision_jax import recipes

# Seven steps, which add up to two and a half radii, as Madry et al. have them for CIFAR-10.
_PGD = {"steps": 7, "relative_step": 2.5 / 7, "start": "ball", "best_iterate": False}
# The objective, and its options besides the radius; None is training without an attack.
VARIANTS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "pgd": ("adversarial", _PGD),
    "standard": None,
    "fast": ("adversarial", _PGD | {"steps": 1, "relative_step": 1.25, "mode": "train"}),
    "trades": ("trades", {"steps": 7, "relative_step": 2.5 / 7}),
    "mart": ("mart", {"steps": 7, "relative_step": 2.5 / 7}),
}
EPS = 0.2  # of pixels in [0, 1]
TRAINED_EPS = 0.25  # what is learned for a larger radius holds better for this one


def get_config(variant: str = "pgd") -> ConfigDict:
    method = recipes.choose(VARIANTS, variant)
    config = recipes.digits("patch_mlp")
    config.batch_size = 128
    config.epochs = 300.0
    config.model.drop_rate = 0.2
    if method:
        name, options = method
        config.objective = recipes.objective(name, eps=TRAINED_EPS, warmup_epochs=75.0, **options)
    # All pixels as they are: a crop that is resized blurs digits, and brings those of different classes closer.
    config.data.image_size = 32
    config.data.eval_resize = 32
    config.data.crop_scale = (1.0, 1.0)
    config.data.crop_ratio = ()
    config.data.mean = (0.5,)
    config.data.std = (0.5,)

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.004
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_global_norm = 1.0
    config.schedule.warmup_epochs = 3.0

    config.eval.every_epochs = 100.0
    recipes.robustness(config, "pgd-20-1", str(EPS), examples=0)
    return config
