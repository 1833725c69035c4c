"""Synthetic weights and inputs that are functions of names and shapes alone; see tests/parity/README.md."""

import json
import math
import pathlib
import zlib

import numpy as np

PARITY = pathlib.Path(__file__).parent.parent / "parity"


def fill(name: str, shape: tuple[int, ...], variance: float = 1.0) -> np.ndarray:
    """The float32 value of the tensor called `name`; `variance` is that of the batch norm it belongs to."""
    noise = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape, dtype=np.float32)
    leaf = name.rpartition(".")[2]
    if leaf == "running_var":
        return np.float32(variance) * (1.0 + 0.2 * np.abs(noise))
    if leaf == "running_mean":
        return np.float32(0.02 * math.sqrt(variance)) * noise
    if leaf.endswith("bias"):
        return 0.02 * noise
    if len(shape) <= 1:
        return 1.0 + 0.1 * noise
    if leaf == "weight" or leaf.endswith("_weight"):
        return np.multiply(noise, np.float32(math.sqrt(1.5 / math.prod(shape[1:]))), out=noise)
    return 0.1 * noise  # tokens, positions


def load(name: str) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, int]:
    """Returns a model's state dict, its input (NHWC), the logits that torch computed, and the number of parameters."""
    with np.load(PARITY / f"{name}.npz") as file:
        variances = json.loads(str(file["variances"]))
        shapes = json.loads(str(file["state"]))
        logits, size, parameters = file["logits"], int(file["size"]), int(file["parameters"])
    state = {k: fill(k, tuple(s), variances.get(k.rpartition(".")[0], 1.0)) for k, s in shapes.items()}
    images = np.random.Generator(np.random.PCG64(size)).standard_normal((2, 3, size, size), dtype=np.float32)
    return state, images.transpose(0, 2, 3, 1), logits, parameters
