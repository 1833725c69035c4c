"""Handwritten digits with LeNet-5: a check that everything works, in under a minute on two cores.

Result:   about 99 % top-1 on 360 held-out digits of scikit-learn's 1,797, with each of the optimizers (measured here,
          see docs/benchmarks.md).
Source:   LeNet-5 is LeCun et al. 1998; the recipe is this project's.
Command:  python -m vision_jax.main --config=configs/quickstart.py
          With another optimizer: --config=configs/quickstart.py:lamb --workdir=runs/quickstart_lamb
"""

from typing import Any

from ml_collections import ConfigDict

from vision_jax import recipes

# By optimizer: learning rate, weight decay and further arguments.
VARIANTS: dict[str, tuple[float, float, dict[str, Any]]] = {
    "sgd": (0.05, 5e-4, {"momentum": 0.9, "nesterov": True}),
    "adamw": (0.003, 0.05, {}),
    "nadamw": (0.003, 0.05, {}),
    "lamb": (0.01, 0.02, {}),
    "lars": (5.0, 5e-4, {"momentum": 0.9}),
    "lion": (5e-4, 0.1, {}),
    "muon": (0.02, 0.05, {}),
    "sophia": (0.003, 0.05, {}),
    "rmsprop_tf": (0.002, 1e-5, {"momentum": 0.9, "eps": 1e-3}),
}


def get_config(variant: str = "sgd") -> ConfigDict:
    learning_rate, weight_decay, arguments = recipes.choose(VARIANTS, variant)
    config = recipes.digits("lenet5")
    config.batch_size = 64
    config.epochs = 60.0
    config.label_smoothing = 0.1
    config.ema_decay = 0.99

    config.optimizer.name = variant
    config.optimizer.learning_rate = learning_rate
    config.optimizer.weight_decay = weight_decay
    config.optimizer.update(arguments)
    config.schedule.warmup_epochs = 3.0

    config.eval.every_epochs = 20.0
    return config
