"""The quickstart with a residual network of two blocks, which has batch norm and compiles in seconds."""

import functools

from ml_collections import ConfigDict

from vision_jax.config import default_config
from vision_jax.models import registry
from vision_jax.models.resnet import BasicBlock, ResNet

NAME = "small_resnet"
if NAME not in registry.list_models():
    create = functools.partial(ResNet, block=BasicBlock, depths=(1, 1, 0, 0), small_stem=True)
    registry.register(NAME, create, library="")


def get_config() -> ConfigDict:
    config = default_config()
    config.model.name = NAME
    config.update({"batch_size": 32, "total_steps": 4, "dtype": "float32", "label_smoothing": 0.1, "ema_decay": 0.99})
    config.data.update({"source": "digits", "image_size": 8, "channels": 1, "mean": (0.3,), "std": (0.35,)})
    config.data.update({"crop_scale": (0.6, 1.0), "eval_resize": 8})
    config.optimizer.update({"learning_rate": 0.005, "momentum": 0.9, "nesterov": True})
    config.schedule.warmup_epochs = 0.0
    config.eval.update({"every_steps": 4, "batch_size": 128})
    config.log.update({"every_steps": 1, "tensorboard": False})
    return config
