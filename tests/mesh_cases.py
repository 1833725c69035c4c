"""Small models on meshes of several shapes, trained for a few steps: what the tests of sharding run in each process.

As a command, `python -m mesh_cases --directory=DIR --coordinator_address=… --num_processes=… --process_id=… CASE …`, it
trains cases such as vit-fsdp on all devices, saves them, takes one step more from a checkpoint that a single process
saved, and writes the losses as JSON.
"""

import dataclasses
import functools
import json
import pathlib
import sys

import jax
import launched
import numpy as np
from ml_collections import ConfigDict

from vision_jax import build
from vision_jax import config as config_lib
from vision_jax.data.loader import batch_fields
from vision_jax.data.transforms import EvalTransform
from vision_jax.devices import compilation, sharding
from vision_jax.models import registry
from vision_jax.models.resnet import BasicBlock, ResNet
from vision_jax.models.vit import VisionTransformer
from vision_jax.runtime.checkpoint import Checkpointer

BATCH_SIZE = 16
STEPS = 3
IMAGE_FIELDS = batch_fields(EvalTransform(8, 8, 3))
ABOUT = {"config": {}, "num_classes": 8, "class_names": []}
MESHES = {"data": (-1, 1, 1), "fsdp": (2, -1, 1), "tensor": (2, 1, -1)}
if "tiny_vit" not in registry.list_models():
    resnet = functools.partial(ResNet, block=BasicBlock, depths=(1, 0, 0, 0), small_stem=True)
    registry.register("tiny_resnet", resnet, library="")
    vit = functools.partial(VisionTransformer, patch_size=4, embed_dim=32, depth=1, num_heads=4, img_size=8)
    registry.register("tiny_vit", vit, library="")


def make_config(model: str, mesh: str) -> ConfigDict:
    """Returns the configuration of a case.

    resnet has batch norm over the batch, grouped_resnet over four examples; pruned is a vit of which half is pruned.
    """
    if pruned := model == "pruned":
        model = "vit"
    config = config_lib.default_config()
    config.update({"batch_size": BATCH_SIZE, "total_steps": 10, "dtype": "float32", "ema_decay": 0.9})
    config.model.name = "tiny_vit" if model == "vit" else "tiny_resnet"
    if model == "grouped_resnet":
        config.model.bn_group_size = 4
    if model == "vit":
        config.model.drop_path_rate = 0.1
    config.data.update({"source": "synthetic", "image_size": 8, "eval_resize": 8})
    config.optimizer.update({"name": "adamw" if model == "vit" else "sgd", "learning_rate": 1e-3})
    if pruned:
        config.prune.update({"sparsity": 0.5, "begin_epochs": 0.1, "end_epochs": 0.2, "scope": "global"})
        config.prune.update({"every_steps": 1, "masked": "updated"})
    config.schedule.warmup_epochs, config.augment.flip = 0.0, 0.0
    config.mesh.update(dict(zip(sharding.AXES, MESHES[mesh], strict=True)) | {"fsdp_min_size": 1})
    return config


@dataclasses.dataclass
class Case:
    """A training that is compiled for a mesh, step by step on batches of noise."""

    model: str
    mesh_name: str
    devices: list[jax.Device] | None = None

    def __post_init__(self) -> None:
        config = make_config(self.model, self.mesh_name)
        self.mesh = mesh = sharding.make_mesh(config.mesh, self.devices)
        plan = config_lib.make_plan(config, num_examples=160)
        program = build.make_program(config, plan, build.make_objective(config, 8, plan), mesh)
        self.initialize, self.abstract_state = program.initialize, program.abstract_state
        batch = sharding.abstract_batch(mesh, BATCH_SIZE, IMAGE_FIELDS)
        self.step = compilation.compile_step(
            compilation.trace_step(mesh, program.train_step, self.abstract_state, batch, {})
        )

    def train(self, state, first: int, last: int):
        """Returns the state after steps `first` to `last` - 1, and their losses and norms of gradients."""
        place, rows = sharding.batch_placer(self.mesh, BATCH_SIZE), sharding.local_rows(self.mesh, BATCH_SIZE)
        found = []
        for number in range(first, last):
            random = np.random.RandomState(number)
            batch = {
                "image": random.randint(0, 256, (BATCH_SIZE, 8, 8, 3)).astype(np.uint8),
                "label": random.randint(0, 8, BATCH_SIZE).astype(np.int32),
                "mask": np.ones(BATCH_SIZE, np.float32),
            }
            state, metrics = self.step(state, place({name: values[rows] for name, values in batch.items()}), {})
            found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        return state, found

    def save(self, directory: pathlib.Path, state) -> None:
        with Checkpointer(directory) as checkpointer:
            checkpointer.save(STEPS, state, ABOUT)

    def restore(self, directory: pathlib.Path):
        with Checkpointer(directory) as checkpointer:
            return checkpointer.restore(STEPS, self.abstract_state)


def main() -> None:
    arguments = launched.start()
    losses = {}
    for name in arguments.cases:
        model, mesh = name.split("-")
        case = Case(model, mesh)
        state, found = case.train(case.initialize(), 0, STEPS)
        case.save(arguments.directory / name, state)
        _, more = case.train(case.restore(arguments.directory / model), STEPS, STEPS + 1)
        losses[name] = found + more
    if jax.process_index() == 0:
        (arguments.directory / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    sys.exit(main())
