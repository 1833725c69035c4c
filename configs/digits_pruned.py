"""Handwritten digits with LeNet-5, whose weights are pruned: a check of pruning, in minutes on two cores.

Result:   measured here; see docs/export.md.
Source:   the schedule is Zhu and Gupta 2017, arXiv:1710.01878; 2:4 is Mishra et al. 2021, arXiv:2104.08378; the numbers
          here are this project's.
Command:  python -m vision_jax.main --config=configs/digits_pruned.py:80 --workdir=runs/digits_80
          From a dense run, which is pruned at once and trained again, as NVIDIA does for 2:4:
          python -m vision_jax.main --config=configs/digits_pruned.py:dense --workdir=runs/digits_dense
          python -m vision_jax.main --config=configs/digits_pruned.py:2to4 --workdir=runs/digits_2to4 \
              --config.model.pretrained=runs/digits_dense
"""

from typing import Any

from ml_collections import ConfigDict

from vision_jax import recipes

# What `config.prune` has: it is over after 33 of 60 epochs, and with 2to4 before the first step.
_GRADUAL = {"begin_epochs": 6.0, "every_steps": 20}
VARIANTS: dict[str, dict[str, Any]] = {
    "80": {"sparsity": 0.8, **_GRADUAL},
    "dense": {},
    "90": {"sparsity": 0.9, **_GRADUAL},
    "95": {"sparsity": 0.95, **_GRADUAL},
    "98": {"sparsity": 0.98, **_GRADUAL},
    "2to4": {"pattern": "2:4", "end_epochs": 0.0},
}


def get_config(variant: str = "80") -> ConfigDict:
    options = recipes.choose(VARIANTS, variant)
    config = recipes.digits("lenet5")
    config.batch_size = 64
    config.epochs = 60.0
    config.label_smoothing = 0.1
    config.ema_decay = 0.99
    config.prune.update(options)

    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 5e-4
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.schedule.warmup_epochs = 3.0

    config.eval.every_epochs = 20.0
    return config
