"""Writes weights as safetensors in the names of torch's libraries."""

import json

import jax
import numpy as np
import safetensors
import safetensors.numpy

import vision_jax
from vision_jax import build, pretrained
from vision_jax.build import TrainedModel
from vision_jax.dense import weights as dense_weights
from vision_jax.errors import CheckpointError, ConfigError
from vision_jax.export import card, program
from vision_jax.export.program import Target
from vision_jax.models import registry
from vision_jax.objectives import Dense

LIBRARIES = ("timm", "torchvision")


def _state(trained: TrainedModel, library: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a model by the names that a library has for them.

    Raises:
        ConfigError: if it has none.
    """
    objective = trained.objective
    if not isinstance(objective, Dense):
        _check_library(registry.entry(trained.name), library)
        variables = build.without_heads(objective, trained.variables)
        return pretrained.to_torch(registry.entry(trained.name).name, jax.device_get(variables), library)
    if library != "torchvision":
        raise ConfigError(
            f"{library} has no detectors and segmenters: --format=torchvision, or train a classifier from this run "
            "with --config.model.pretrained=WORKDIR."
        )
    return dense_weights.to_torch(objective.network, jax.device_get(dict(trained.variables)))


def _check_library(known: registry.Entry, library: str) -> None:
    """Checks that a library has a model, and so names for its weights.

    Raises:
        ConfigError: if not; it says what can be written instead.
    """
    having = [name for name in LIBRARIES if pretrained.has_model(known, name)]
    if library in having:
        return
    what = f"{library} has no {known.name}, and so no names for its weights. "
    what += f"{having[0]} has it: --format={having[0]}. " if having else ""
    raise ConfigError(
        f"{what}The model as a program is written by --format=onnx, for onnxruntime and others, and by "
        "--format=stablehlo, for JAX without this package; another training starts from the run, by "
        "--config.model.pretrained=WORKDIR."
    )


def export_weights(trained: TrainedModel, target: Target, library: str = "timm") -> None:
    """Writes a model's weights as a safetensors file, with a model card beside it.

    Args:
        trained: the model.
        target: where they go; they are not computed with, and so not checked.
        library: "timm" or "torchvision": whose names the tensors get.

    Raises:
        ConfigError: if the library does not have the model, or files are there.
        CheckpointError: if the file cannot be written.
    """
    target.check()
    name, state = card.title(trained), _state(trained, library)
    data = trained.config.data
    metadata = {
        "format": "pt",  # what transformers and timm ask for
        "architecture": name,
        # Of a training without labels, it is the backbone.
        "num_classes": str(trained.num_classes),
        "class_names": json.dumps(list(trained.class_names) if trained.num_classes else []),
        "step": "" if trained.step is None else str(trained.step),
        "weights": "ema" if trained.averaged else "raw",
        "mean": str(tuple(data.mean)),
        "std": str(tuple(data.std)),
        "written_by": f"vision_jax {vision_jax.__version__}",
    }
    with program.aside(target) as folder:
        try:
            safetensors.numpy.save_file(state, folder / target.path.name, metadata)
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"Cannot write {target.path}: {error}. Give another FILE.") from error
        sections, packages = card.weights_sections(library), card.versions("safetensors")
        text = card.card(
            trained, target.path.name, sections, program.measured(trained, target), packages, target.license
        )
        (folder / target.card.name).write_text(text, encoding="utf-8")
