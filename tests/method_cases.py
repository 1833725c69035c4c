"""Every self-supervised and adversarial method, small enough to be trained in seconds, with norms, queues, views.

As a configuration, `--config=tests/method_cases.py:dino`, it is one on the digits. As a command, `python -m
method_cases --directory=DIR --coordinator_address=… --num_processes=… --process_id=… dino …`, it takes one step of each
method on all devices, from a checkpoint that another process has saved, and saves what that leads to.
"""

import dataclasses
import functools
import pathlib
import sys
from typing import Any

import jax
import launched
import numpy as np
import small_vit
from ml_collections import ConfigDict

from vision_jax import build, recipes
from vision_jax import config as config_lib
from vision_jax.data.loader import batch_fields
from vision_jax.devices import compilation, sharding
from vision_jax.models import registry
from vision_jax.models.resnet import BasicBlock, ResNet
from vision_jax.runtime.checkpoint import Checkpointer

# Options of the objectives: small ones, and a queue that two batches fill.
METHODS: dict[str, dict[str, Any]] = {
    "adversarial": {"eps": 0.1, "steps": 2, "start": "ball", "mode": "train"},
    "advprop": {"eps": 0.1},
    "barlow_twins": {"hidden": (16,), "out": 12},
    "byol": {"hidden": 16, "out": 12},
    "dino": {"hidden": (16,), "bottleneck": 8, "out": 24},
    "free_adversarial": {"eps": 0.1, "replays": 2},
    "mae": {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2},
    "mocov2": {"hidden": 16, "out": 12, "queue": 32},
    "mocov3": {"hidden": (16,), "predictor_hidden": 16, "out": 12, "predictor_norm": True},
    "rotation": {},
    "simclr": {"hidden": (16,), "out": 12},
    "simmim": {"mask_size": 4},
    "simsiam": {"hidden": (16,), "out": 12, "bottleneck": 8},
    "swav": {"hidden": 16, "out": 8, "prototypes": 12, "queue": 32, "queue_epochs": 0},
    "trades": {"eps": 0.1, "steps": 2},
    "vicreg": {"hidden": (16,), "out": 12},
}
TRANSFORMERS = ("dino", "mae", "mocov3", "simmim")
MULTI_CROP = ("dino", "swav")
ADVERSARIAL = ("adversarial", "advprop", "free_adversarial", "trades")
ONE_CROP = (*ADVERSARIAL, "mae", "rotation", "simmim")
FROZEN = {"dino": "^projector/last_layer/", "swav": "^prototypes/"}
BATCH_SIZE, EXAMPLES, STEPS = 16, 1437, 6
BEFORE = 2  # steps after which queues are full, teachers are no copies, and what is frozen at first is trained
ABOUT = {"config": {}, "num_classes": 10, "class_names": []}
RESNET = "one_block"
if RESNET not in registry.list_models():
    resnet = functools.partial(ResNet, block=BasicBlock, depths=(1, 0, 0, 0), small_stem=True)
    registry.register(RESNET, resnet, library="")


def get_config(name: str = "simclr") -> ConfigDict:
    """Returns a method on the digits, on which augmentation is exact: it flips and solarizes whole pixels."""
    config = config_lib.default_config()
    config.objective = recipes.objective(name, **METHODS[name])
    config.update({"batch_size": BATCH_SIZE, "total_steps": STEPS, "dtype": "float32"})
    size = 16 if name in TRANSFORMERS else 8
    config.model.name = small_vit.NAME if name in TRANSFORMERS else RESNET
    config.data.update({"source": "digits", "image_size": size, "channels": 1, "mean": (0.3,), "std": (0.35,)})
    config.data.update({"eval_resize": size, "crop_scale": (0.4, 1.0)})
    config.augment.flip, config.augment.solarize = 0.5, 0.3
    if name not in ONE_CROP:
        config.data.views = f"2x{size}:0.4-1" + (f",2x{size // 2}:0.1-0.4" if name in MULTI_CROP else "")
        config.augment.crops = "flip=0.5,solarize=0.3|flip=0.5"
    if name == "dino":
        config.model.interpolate_positions = True
    if name == "mae":
        config.model.positions = "mae"
        config.optimizer.frozen = (r"(^|/)pos_embed$",)
    if name in TRANSFORMERS:
        config.model.drop_path_rate = 0.1
    if name == "mocov2":
        config.model.bn_group_size = 4  # so keys are computed in another order
    if name in FROZEN:
        config.optimizer.frozen_until = ((FROZEN[name], BEFORE / (EXAMPLES // BATCH_SIZE)),)
    # Adam would make steps of the rounding of gradients that are zero, as those of biases before a norm are.
    config.optimizer.update({"name": "sgd", "learning_rate": 0.05, "momentum": 0.9})
    config.schedule.update({"name": "constant", "warmup_epochs": 0.0})
    config.checkpoint.update({"every_steps": 2, "best_metric": "val/loss"})
    config.eval.update({"every_steps": STEPS, "batch_size": 128})
    config.log.update({"every_steps": 1, "tensorboard": False})
    return config


@dataclasses.dataclass
class Case:
    """A method whose step is compiled for some devices."""

    name: str
    devices: list[jax.Device] | None = None

    def __post_init__(self) -> None:
        config = get_config(self.name)
        self.mesh = sharding.make_mesh(config.mesh, self.devices)
        plan = config_lib.make_plan(config, EXAMPLES)
        self.objective = build.make_objective(config, 10, plan)
        self.program = build.make_program(config, plan, self.objective, self.mesh)
        self.fields = batch_fields(build.make_transform(config, plan, self.objective.inputs()))
        batch = sharding.abstract_batch(self.mesh, BATCH_SIZE, self.fields)
        state = self.program.abstract_state
        traced = compilation.trace_step(self.mesh, self.program.train_step, state, batch, {})
        self.step = compilation.compile_step(traced)

    def train(self, state: Any, first: int, last: int) -> tuple[Any, dict[str, float]]:
        """Returns the state after steps `first` to `last` - 1, on batches of noise, and the metrics of the last one."""
        place, rows = sharding.batch_placer(self.mesh, BATCH_SIZE), sharding.local_rows(self.mesh, BATCH_SIZE)
        metrics: Any = {}
        for number in range(first, last):
            random = np.random.RandomState(number)
            batch = {}
            for name, (shape, dtype) in self.fields.items():
                values = random.randint(0, 256 if dtype == np.uint8 else 10, (BATCH_SIZE, *shape)).astype(dtype)
                batch[name] = np.ones_like(values) if name == "mask" else values
            state, metrics = self.step(state, place({name: values[rows] for name, values in batch.items()}), {})
        return state, {name: float(value) for name, value in metrics.items()}

    def save(self, directory: pathlib.Path, step: int, state: Any) -> None:
        with Checkpointer(directory) as checkpointer:
            checkpointer.save(step, state, ABOUT)

    def restore(self, directory: pathlib.Path, step: int) -> Any:
        with Checkpointer(directory) as checkpointer:
            return checkpointer.restore(step, self.program.abstract_state)


def main() -> None:
    arguments = launched.start()
    for name in arguments.cases:
        case = Case(name)
        state, _ = case.train(case.restore(arguments.directory / name, BEFORE), BEFORE, BEFORE + 1)
        case.save(arguments.directory / f"{name}.after", BEFORE + 1, state)


if __name__ == "__main__":
    sys.exit(main())
