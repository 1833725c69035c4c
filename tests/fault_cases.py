"""Every objective there is, on files and small enough to be trained in seconds: `--config=tests/fault_cases.py:dino`.

`write_data` writes the images; `--config.data.dir` says where they are.
"""

import os
import pathlib
from typing import Any

import method_cases
import numpy as np
import PIL.Image
import sklearn.datasets
import tiny_dense
from dense_cases import write_coco, write_masks
from ml_collections import ConfigDict

from vision_jax import recipes
from vision_jax.objectives import OBJECTIVES

TEXTS = {"context_length": 16, "embed_dim": 8, "text_width": 16, "text_depth": 1, "text_heads": 2}
OTHERS: dict[str, dict[str, Any]] = {
    "classification": {},
    "clip": {**TEXTS, "templates": ("a {}.",)},
    "linear_probe": {},
    "mart": {"eps": 0.1, "steps": 2},
    "siglip": {**TEXTS, "templates": ("a {}.",)},
}
# Distillation is left out: its teacher is a file of weights of a model that another library has.
NAMES = tuple(sorted({*method_cases.METHODS, *OTHERS, *tiny_dense.OPTIONS}))
MISSING = tuple(sorted(OBJECTIVES.keys() - set(NAMES)))
STEPS, SAVES, EVALUATIONS = 16, 2, 8
BATCH_SIZE, EXAMPLES, VALIDATION = 16, 160, 32


def get_config(name: str) -> ConfigDict:
    """Returns the training with an objective, for a program that has not started its devices."""
    # Helpers of the tests that are imported above ask for eight devices; a run has one, which is quicker.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    config = _dense(name) if name in tiny_dense.OPTIONS else _images(name)
    config.total_steps = STEPS
    config.checkpoint.update({"every_steps": SAVES, "keep": 3, "best_metric": "val/loss"})
    config.eval.every_steps = EVALUATIONS
    config.data.num_threads = 2
    config.log.update({"every_steps": 1, "tensorboard": False})
    config.watchdog_seconds = 100.0
    return config


def _images(name: str) -> ConfigDict:
    config = method_cases.get_config(name if name in method_cases.METHODS else "rotation")
    if name in OTHERS:
        config.objective = recipes.objective(name, **OTHERS[name])
    config.data.source, config.eval.batch_size = "folder", VALIDATION
    if name in method_cases.FROZEN:
        share = method_cases.BEFORE / (EXAMPLES // BATCH_SIZE)
        config.optimizer.frozen_until = ((method_cases.FROZEN[name], share),)
    return config


def _dense(name: str) -> ConfigDict:
    config = tiny_dense.evaluation_config("masks" if name == "segmentation" else "coco", pathlib.Path("unknown"))
    config.objective = recipes.objective(name, **tiny_dense.OPTIONS[name])
    config.data.train_split = "training" if name == "segmentation" else "train2017"
    config.data.dense.canvases = ((64, 64),)
    config.schedule.update({"name": "constant", "warmup_epochs": 0.0})
    config.optimizer.update({"name": "sgd", "learning_rate": 0.001})
    with config.unlocked():
        config.evals = {"val": {"kind": "objective"}}  # what is measured beside the loss is not what is broken here
    return config


def write_data(directory: pathlib.Path, name: str) -> pathlib.Path:
    """Writes the images of an objective, and returns their folder."""
    if name == "segmentation":
        return write_masks(directory)
    if name in tiny_dense.OPTIONS:
        write_coco(directory)
        return write_coco(directory, split="val2017")
    levels, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = np.rint(levels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    for number, (image, label) in enumerate(zip(images[: EXAMPLES + VALIDATION], labels, strict=False)):
        folder = directory / ("train" if number < EXAMPLES else "validation") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(folder / f"{number:04}.png")
    return directory


def train_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of the training images that `write_data` has written."""
    suffixes = (".png", ".jpg")
    folders = ("train", "training", "images/training", "train2017")
    found = {path for folder in folders for path in (directory / folder).rglob("*") if path.suffix in suffixes}
    return sorted(found)
