"""ResNet-50 on ImageNet by adversarial training with three steps of PGD, as MadryLab/robustness trains it.

Result:   published top-1 of clean images, and under PGD-100 at the radius of the training:
              linf_4  62.42, 33.38 (29.22 under AutoAttack, 5,000 images)   linf_8  47.91, 19.52   l2_3  57.90, 35.09
          We have not run it yet.
Source:   MadryLab/robustness: README.md, defaults.py, attacker.py, data_augmentation.py. The number of steps and their
          length, 3 and 2/3 of the radius, are those of Salman et al. 2020 (arXiv:2007.08489), as the published weights
          do not say. Known differences: there images also have AlexNet's noise of lighting, of deviation 0.05, and
          norms have the batch of one GPU, whose size is not known.
Command:  python -m vision_jax.main --config=configs/robust_resnet50.py:linf_4 --config.data.dir=IMAGENET
          --workdir=runs/robust_linf_4
          The accuracy under PGD-100 afterwards: the same with --mode=eval --config.evals.robust.attack=pgd-100
          --config.evals.robust.examples=0
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# The norm, and the radius: that of linf in 1/255.
VARIANTS: dict[str, tuple[str, float]] = {"linf_4": ("linf", 4.0), "linf_8": ("linf", 8.0), "l2_3": ("l2", 3.0)}


def get_config(variant: str = "linf_4") -> ConfigDict:
    norm, radius = recipes.choose(VARIANTS, variant)
    config = recipes.imagenet("resnet50")
    config.batch_size = 256
    config.epochs = 200.0
    eps = radius / 255 if norm == "linf" else radius
    # Evaluation mode in the attack, no random start, the best of the iterates.
    config.objective = recipes.objective("adversarial", norm=norm, eps=eps, steps=3, relative_step=2 / 3)

    config.model.zero_init_last = False
    config.data.train_filter = "pillow-bilinear"
    config.augment.color_jitter = (0.1, 0.1, 0.1)

    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_rule = "all"
    config.schedule.name = "step"
    config.schedule.every_epochs = 50.0
    config.schedule.factor = 0.1
    config.schedule.warmup_epochs = 0.0

    text = f"{radius:g}/255" if norm == "linf" else f"{radius:g}"
    recipes.robustness(config, "pgd-20", text, norm=norm, every_epochs=10.0)
    config.checkpoint.best_metric = "robust/robust_top1"
    return config
