"""Writes a model as StableHLO, by `jax.export`: a program with its weights, that JAX runs without this package."""

import pathlib

import jax
import numpy as np
from jax import export as jax_export

from vision_jax.errors import ConfigError
from vision_jax.export.check import Results, Run
from vision_jax.export.subject import Subject, to_numpy

PLATFORMS = ("cpu", "cuda", "tpu")
_LARGEST = 2**31 - 2**26  # of a file of flatbuffers, less what is not weights


def serialize(subject: Subject) -> bytes:
    """Returns a function of images as bytes, for all of `PLATFORMS`.

    Raises:
        ConfigError: if its weights are larger than such a file may be.
    """
    size = sum(array.nbytes for array in jax.tree.leaves(subject.variables))
    if size > _LARGEST:
        raise ConfigError(
            f"{subject.trained.name} has {size / 2**30:.1f} GiB of weights, and a StableHLO file holds less than 2 GiB:"
            " use --format=onnx or timm."
        )
    batch = jax_export.symbolic_shape("batch")[0] if not subject.options.batch else subject.options.batch
    images = jax.ShapeDtypeStruct((batch, *subject.shape[1:]), subject.dtype)
    return bytes(jax_export.export(jax.jit(subject), platforms=PLATFORMS)(images).serialize())


def write(subject: Subject, path: pathlib.Path) -> None:
    """Writes the file.

    Raises:
        OSError: if it cannot be written.
        ConfigError: if its weights are larger than such a file may be.
    """
    path.write_bytes(serialize(subject))


def load(path: pathlib.Path) -> Run:
    """Returns the function that a file holds, on the CPU."""
    exported = jax_export.deserialize(bytearray(path.read_bytes()))
    cpu = jax.devices("cpu")[0]

    def run(images: np.ndarray) -> Results:
        with jax.default_matmul_precision("highest"):
            return to_numpy(exported.call(jax.device_put(images, cpu)))

    return run
