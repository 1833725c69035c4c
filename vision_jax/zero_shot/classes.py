"""A classifier made of words: the published protocol (Radford et al. 2021, arXiv:2103.00020, section 3.1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.models.clip import Clip, class_weights
from vision_jax.text import Tokenizer
from vision_jax.text.prompts import prompts

_TEXTS = 256  # that are computed at once


class WordClassifier(nn.Module):
    """Classes whose weights are embeddings of their names: logits are scaled cosines.

    Attributes:
        model: whose towers they are of.
        num_classes: number of classes.
    """

    model: Clip
    num_classes: int

    def setup(self) -> None:
        shape = (self.model.text.embed_dim, self.num_classes)
        self.weights = self.variable("classes", "weights", lambda: jnp.zeros(shape, jnp.float32))

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits, (batch, classes) float32, of images, (batch, height, width, channels)."""
        features = self.model.encode_images(images, train=train)
        return self.model.logits_of_classes(features, self.weights.value)


def embed_classes(
    model: Clip, variables: Mapping[str, Any], tokenizer: Tokenizer, names: Sequence[str], templates: Sequence[str]
) -> jax.Array:
    """Returns the weights, (features, classes) float32, of classes by their names."""
    tokens = tokenizer(prompts(names, templates))
    size = min(_TEXTS, len(tokens))
    padded = np.pad(tokens, ((0, -len(tokens) % size), (0, 0)), "edge").reshape(-1, size, tokens.shape[1])
    embed = jax.jit(lambda variables, tokens: model.apply(variables, tokens, train=False, method="encode_texts"))
    parts: list[Any] = [np.asarray(embed(variables, batch)) for batch in padded]
    embeddings = np.concatenate(parts)[: len(tokens)]
    return class_weights(jnp.asarray(embeddings.reshape(len(names), len(templates), -1)))


def as_classifier(
    model: Clip, variables: Mapping[str, Any], weights: jax.Array
) -> tuple[WordClassifier, dict[str, Any]]:
    """Returns a classifier and its variables, without those of the tower for texts, which it does not need."""
    params = {name: value for name, value in variables["params"].items() if name != "text"}
    found: dict[str, Any] = {"params": {"model": params}, "classes": {"weights": weights}}
    if stats := variables.get("batch_stats"):
        found["batch_stats"] = {"model": stats}
    return WordClassifier(model, weights.shape[1]), found
