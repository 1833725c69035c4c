"""Searching by words, among features of a model that learned from pairs of images and texts."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.build import TrainedModel
from vision_jax.errors import ConfigError
from vision_jax.evaluators import features as protocols
from vision_jax.features import Features
from vision_jax.objectives.pairs import Pairs, to_clip
from vision_jax.search.program import Found, check_made_by, matches

_ROWS = 65536  # that are projected at once


def find_by_words(
    trained: TrainedModel, texts: Sequence[str], features: Features, *, topk: int = 10
) -> Iterator[Found]:
    """Yields the images that fit each text best, in the order of the texts.

    Features are the backbone's; what the training has learned beside it projects them to where the texts are.

    Args:
        trained: the model that has made the features.
        texts: the queries, whole sentences as in the training.
        features: what is searched.
        topk: how many images are found for each text; all if there are fewer.

    Raises:
        ConfigError: if the model learned no words, or a text is empty.
        DataError: if the features are of another model, or its tokenizer cannot be read.
    """
    objective = trained.objective
    if not isinstance(objective, Pairs):
        raise ConfigError(f"{trained.origin} learned no words: its objective is none of clip and siglip.")
    if not all(text.strip() for text in texts):
        raise ConfigError("One of --words is empty: write what the images show.")
    check_made_by(trained, features)
    tokens = jnp.asarray(objective.open_tokenizer()(texts))
    variables = to_clip(trained.variables)
    embed = jax.jit(lambda v, tokens: objective.clip.apply(v, tokens, train=False, method="encode_texts"))
    queries = np.asarray(embed(variables, tokens))
    kernel = jnp.asarray(variables["params"]["visual"]["head"]["kernel"])
    project = jax.jit(lambda rows, kernel: jnp.matmul(rows.astype(jnp.float32), kernel, precision="highest"))
    rows = features.features
    items = np.concatenate([np.asarray(project(rows[i : i + _ROWS], kernel)) for i in range(0, len(rows), _ROWS)])
    cosines, numbers = protocols.nearest(queries, items, topk, cosine=True)
    for number, text in enumerate(texts):
        yield Found(number, text, matches(features, numbers[number], cosines[number]))
