"""A configuration that has all that a step can do: policies, mixing, averages, LAMB, parts, SAM, guards, pruning."""

from ml_collections import ConfigDict

from vision_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.update({"batch_size": 64, "total_steps": 60, "dtype": "float32", "label_smoothing": 0.1})
    config.update({"ema_decay": 0.9, "ema_every_steps": 2, "ema_start_epochs": 0.5, "ema_warmup": True})
    config.loss.update({"name": "sigmoid", "threshold": 0.2})
    config.model.update({"name": "lenet5", "drop_rate": 0.1})
    config.data.update({"source": "digits", "image_size": 28, "channels": 1, "mean": (0.3,), "std": (0.35,)})
    config.data.update({"crop_scale": (0.6, 1.0), "eval_resize": 28, "repeats": 2})
    config.augment.update({"flip": 0.5, "policy": "rand-m7-mstd0.5-inc1", "erase": 0.25, "mixup": 0.2, "cutmix": 1.0})
    config.optimizer.update({"name": "lamb", "learning_rate": 0.01, "weight_decay": 0.02, "decay_rule": "timm"})
    config.optimizer.update({"weight_decay_end": 0.1, "accumulate": 2, "sam_rho": 0.05, "sam_every": 3})
    config.optimizer.update({"layer_decay": None, "multipliers": (("^fc3/", 2.0),), "mu_dtype": "bfloat16"})
    config.guard.update({"nonfinite": "skip", "spike_deviations": 8.0, "window": 16})
    config.prune.update({"sparsity": 0.7, "begin_epochs": 0.2, "end_epochs": 1.5, "every_steps": 4, "masked": "held"})
    config.schedule.update({"warmup_epochs": 1.0, "by_epoch": True, "warmup_factor": 0.1})
    config.eval.update({"every_steps": 20, "batch_size": 128, "flip": True})
    config.checkpoint.every_steps = 7
    config.log.update({"every_steps": 5, "tensorboard": False})
    return config
