"""Rotation prediction on the digits, small: a third objective, which nothing but its own file and its name knows."""

from ml_collections import ConfigDict

from vision_jax import recipes
from vision_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.objective = recipes.objective("rotation")
    config.model.name = "lenet5"
    config.update({"batch_size": 32, "total_steps": 160, "dtype": "float32", "ema_decay": 0.95})
    config.data.update({"source": "digits", "image_size": 16, "channels": 1, "mean": (0.3,), "std": (0.35,)})
    config.data.update({"crop_scale": (0.8, 1.0), "eval_resize": 16})
    config.augment.flip = 0.0
    config.optimizer.update({"learning_rate": 0.05, "momentum": 0.9, "nesterov": True})
    config.schedule.warmup_epochs = 1.0
    config.eval.update({"every_steps": 80, "batch_size": 128})
    config.checkpoint.update({"best_metric": "val/loss", "every_steps": 40})
    config.log.update({"every_steps": 20, "tensorboard": False})
    return config
