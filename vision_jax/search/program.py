"""Searching by images, and measuring what a search finds."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.build import TrainedModel
from vision_jax.data.decode import decode
from vision_jax.data.images import ImageSource
from vision_jax.data.transforms import EvalTransform
from vision_jax.errors import DataError
from vision_jax.evaluators import features as protocols
from vision_jax.evaluators import retrieval
from vision_jax.features import Extractor, Features, check_same_classes, check_same_model
from vision_jax.search.index import Index

log = logging.getLogger(__name__)

_MOST_SORTED = 2**26  # similarities that are sorted at once: a gigabyte with their order


@dataclasses.dataclass(frozen=True)
class Match:
    """An image that was found.

    Attributes:
        row: of the features.
        name: of the image.
        cosine: of its features and the query's.
        label: the name of its class; None: it has none.
    """

    row: int
    name: str
    cosine: float
    label: str | None


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found for a query.

    Attributes:
        number: of the query in its source.
        query: its path; within an archive, ARCHIVE/MEMBER.
        matches: the most similar images, the best first. Empty if the query is damaged.
        error: why there are none; None: there are.
    """

    number: int
    query: str
    matches: tuple[Match, ...]
    error: str | None = None


def find(
    trained: TrainedModel,
    source: ImageSource,
    features: Features,
    index: Index,
    *,
    topk: int = 10,
    batch_size: int = 128,
) -> Iterator[Found]:
    """Yields the most similar images of each query, in the order of the queries.

    Args:
        trained: the model that has made the features.
        source: the queries.
        features: what is searched.
        index: of the features.
        topk: how many images are found for each query; all if there are fewer.
        batch_size: images that are computed at once.

    Raises:
        DataError: if the features are of another model, or those of a query are not finite.
    """
    check_made_by(trained, features)
    extractor = Extractor(trained, source, batch_size=batch_size, max_bad=len(source))
    computed = extractor.compute(range(len(source)), "queries")
    assert computed is not None  # there is one process
    rows = dict(zip(computed.numbers.tolist(), range(len(computed.numbers)), strict=True))
    if rows:
        cosines, numbers = index.search(computed.features, topk)
    for number in range(len(source)):
        query = source.describe(number)
        if number not in rows:
            yield Found(number, query, (), _problem(source, number, trained.preprocessing.transform))
            continue
        row = rows[number]
        yield Found(number, query, matches(features, numbers[row], cosines[row]))


def matches(features: Features, rows: np.ndarray, cosines: np.ndarray) -> tuple[Match, ...]:
    """Returns what was found for one query: rows of the features, and their cosines."""
    return tuple(
        Match(row, features.names[row], cosine, features.label_name(row))
        for row, cosine in zip(rows.tolist(), cosines.tolist(), strict=True)
    )


def _problem(source: ImageSource, number: int, transform: EvalTransform) -> str:
    """Returns what is wrong with a damaged image."""
    try:
        decode(source[number]["image"], transform.channels, max_pixels=transform.max_pixels)
    except ValueError as error:
        return str(error)
    return "it could not be read"  # and now it can


def check_made_by(trained: TrainedModel, features: Features) -> None:
    """Checks that features are those of a model.

    Raises:
        DataError: if they are of other weights or preprocessing.
    """
    if trained.digest != features.about.digest:
        raise DataError(
            f"The features in {features.directory} are of {features.about.model}, {features.about.origin}, and not of "
            f"{trained.name}, {trained.origin}, with this preprocessing (their digests differ): give the model that "
            "made them."
        )


def measure(features: Features, queries: Features | None = None, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Returns how well images of a query's class are found; see `retrieval.Rankings.means`.

    Args:
        features: what is searched, with labels.
        queries: with labels; None: each image searches among the others. So it does if they are the same features:
            no image is counted as found by itself.
        ks: of recall@k and share@k.

    Raises:
        DataError: if there are no labels, or the features are not of the same model and classes.
    """
    check_same_classes(features, *([] if queries is None else [queries]))
    items, labels = _unit(features), np.asarray(features.labels)
    block = max(1, min(256, _MOST_SORTED // len(items)))
    if queries is not None and queries.digest == features.digest:
        log.info("The queries are the images that are searched: each of them searches among the others.")
        queries = None
    if queries is None:
        return retrieval.rank_by_class(items, labels, ks=ks, block=block).means()
    check_same_model(queries, features)
    wanted = np.asarray(queries.labels)

    def relations(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        positive = wanted[start:stop, None] == labels
        return positive, np.zeros_like(positive)

    return retrieval.rank(_unit(queries), items, relations, ks=ks, block=block).means()


def _unit(features: Features) -> jax.Array:
    return protocols.normalize(jnp.asarray(np.asarray(features.features)))
