"""The networks and pictures of the files of `eval/`: both are functions of names and seeds."""

import functools
import json
import pathlib
import zlib
from typing import Any

import numpy as np
from references import common

import vision_jax
from vision_jax.models import registry

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@functools.cache
def load(folder: pathlib.Path, name: str, *, scan: bool = False) -> tuple[Any, dict[str, Any]]:
    """Returns a network of models.json, and its variables.

    Args:
        folder, name: where it is described.
        scan: compile equal blocks once where the model has that, which is quicker.
    """
    entry = json.loads((folder / "models.json").read_text())[name]
    options = {"num_classes": entry["classes"], **entry["options"]}
    if scan and "scan_blocks" in registry.option_names(entry["timm"]):
        options["scan_blocks"] = True
    model = vision_jax.create_model(entry["timm"], **options)
    variances = entry["variances"]
    state = {
        key: common.fill(key, shape, variances.get(key.rpartition(".")[0], 1.0))
        for key, shape in entry["state"].items()
    }
    return model, vision_jax.pretrained.from_torch(entry["timm"], state, **options)


def pictures(about: dict[str, int]) -> np.ndarray:
    """Returns images (batch, height, width, channels) float64 in [0, 1]."""
    found = common.images(about["seed"], about["batch"], about["size"])
    assert zlib.crc32(found.tobytes()) == about["crc32"]
    return to_nhwc(found / 255)


def to_nhwc(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1)
