"""Writes weights as safetensors in the names of torch's libraries."""

import json

import jax
import safetensors
import safetensors.numpy

import vision_jax
from vision_jax import build, pretrained
from vision_jax.build import TrainedModel
from vision_jax.errors import CheckpointError
from vision_jax.export import card, program
from vision_jax.export.program import Target
from vision_jax.models import registry

LIBRARIES = ("timm", "torchvision")


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
    name = registry.entry(trained.name).name
    variables = build.without_heads(trained.objective, trained.variables)
    state = pretrained.to_torch(name, jax.device_get(variables), library)
    data = trained.preprocessing
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
            raise CheckpointError(f"Cannot write {target.path}: {error}") from error
        sections, packages = card.weights_sections(library), card.versions("safetensors")
        text = card.card(
            trained, target.path.name, sections, program.measured(trained, target), packages, target.license
        )
        (folder / target.card.name).write_text(text, encoding="utf-8")
