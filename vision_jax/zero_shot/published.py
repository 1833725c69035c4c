"""What lies beside published weights: their tokenizer, and what they say of their activation and of images."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from vision_jax.errors import ConfigError, DataError, reason
from vision_jax.models.clip_variants import Variant
from vision_jax.pretrained.files import find_beside
from vision_jax.text import KINDS, Tokenizer, read_tokenizer

_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu"}


def tokenizer_of(variant: Variant, weights: str, given: str | None, context_length: int) -> Tokenizer:
    """Reads the tokenizer that weights come with.

    Args:
        variant: of the model.
        weights: where they are; see `vision_jax.pretrained.load`.
        given: its file; None: it is looked for beside the weights.
        context_length: tokens of each text.

    Raises:
        DataError: if there is none, or it cannot be read.
        ConfigError: if a library is not installed.
    """
    path: str | pathlib.Path | None = given or find_beside(weights, KINDS[variant.texts])
    if path is None:
        raise DataError(
            f"Beside {weights} there is no tokenizer, without which texts have no tokens: put "
            f"{' or '.join(KINDS[variant.texts])} there, or name it by --tokenizer=FILE."
        )
    return read_tokenizer(variant.texts, path, context_length)


def as_published(variant: Variant, weights: str, activation: str) -> Variant:
    """Returns a variant with the images that weights expect, as far as a file beside them says so.

    Args:
        variant: of the model.
        weights: where they are.
        activation: with which the model is made.

    Raises:
        ConfigError: if they were trained with another activation: all shapes are the same, the answers are not.
        DataError: if a file beside them is damaged.
    """
    trained_with = None
    spec = variant.input
    if (about := _read(find_beside(weights, ("open_clip_config.json",)))) is not None:
        model = about.get("model_cfg", {})
        if variant.texts == "clip":
            trained_with = "quick_gelu" if model.get("quick_gelu") else "gelu"
        images = about.get("preprocess_cfg", {})
        spec = _normalized(spec, images.get("mean"), images.get("std"))
    elif (about := _read(find_beside(weights, ("config.json",)))) is not None:
        vision = about.get("vision_config")
        trained_with = _ACTIVATIONS.get(vision.get("hidden_act", "")) if isinstance(vision, Mapping) else None
        if (images := _read(find_beside(weights, ("preprocessor_config.json",)))) is not None:
            spec = _normalized(spec, images.get("image_mean"), images.get("image_std"))
    if trained_with is not None and trained_with != activation:
        raise ConfigError(
            f"{weights} was trained with the activation {trained_with}, and {variant.name} has {activation}: "
            f"{_advice(variant, trained_with)}"
        )
    return dataclasses.replace(variant, input=spec)


def _advice(variant: Variant, activation: str) -> str:
    if variant.texts != "clip":
        return f"give --activation={activation}."
    plain = variant.name.removesuffix("-quickgelu")
    return f"give --model={plain}{'-quickgelu' if activation == 'quick_gelu' else ''}."


def _normalized(spec: Any, mean: Any, std: Any) -> Any:
    if mean and std and len(mean) == len(std) == spec.channels:
        return dataclasses.replace(spec, mean=tuple(mean), std=tuple(std))
    return spec


def _read(path: pathlib.Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error
    return content if isinstance(content, dict) else None
