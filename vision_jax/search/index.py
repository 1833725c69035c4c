"""Nearest neighbors among stored features."""

import contextlib
import json
import logging
import os
import pathlib
import time
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from vision_jax.errors import ConfigError
from vision_jax.evaluators import features as protocols
from vision_jax.features import Features

log = logging.getLogger(__name__)

APPROXIMATE_ABOVE = 1_000_000  # items, unless it is said which index to use
_FILE, _ABOUT = "neighbors.usearch", "neighbors.json"
# Of the graph: edges of each item, and items looked at to place one or to answer a query (HNSW's M and two efs).
_CONNECTIVITY, _EXPANSION = 16, 128
_BLOCK = 16384  # rows that are added at once


def _unit(rows: np.ndarray) -> np.ndarray:
    """Returns rows divided by their norms, (n, dim) float32."""
    return np.asarray(protocols.normalize(jnp.asarray(rows)))


class Index(Protocol):
    """Finds the nearest items."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k nearest items of each query by the cosine; all items if there are fewer.

        Args:
            queries: (queries, dim) float.
            k: number of neighbors, at least 1.

        Returns:
            cosines, (queries, k) float32, and the numbers of the items, (queries, k), the nearest first.
        """
        ...


class ExactIndex:
    """Compares each query with all items, by products of matrices on the device.

    Args:
        features: the items.
    """

    def __init__(self, features: Features):
        self._items: Any = features.features

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Index`. Of equally similar items, the first is the nearer one."""
        return protocols.nearest(queries, self._items, k, cosine=True)


class ApproximateIndex:
    """A graph of neighbors (HNSW: Malkov and Yashunin 2018, arXiv:1603.09320), by usearch.

    It may miss some of the nearest items, but the cosines of those that it finds are exact. The graph is kept beside
    the features, and made again if they change.

    Args:
        features: the items.

    Raises:
        ConfigError: if usearch is not installed.
    """

    def __init__(self, features: Features):
        try:
            import usearch
            from usearch.index import Index as Graph
        except ImportError as error:
            raise ConfigError(
                f"An approximate index, for {len(features):,} images, needs usearch: pip install 'vision_jax[search]'; "
                "or compare with all of them, --no-approximate."
            ) from error
        self._features = features
        self._graph: Any = Graph(
            ndim=features.about.dim,
            metric="cos",
            dtype="f16",
            connectivity=_CONNECTIVITY,
            expansion_add=_EXPANSION,
            expansion_search=_EXPANSION,
        )
        identity = {
            "features": features.digest,
            "usearch": usearch.__version__,
            "connectivity": _CONNECTIVITY,
            "expansion": _EXPANSION,
        }
        if not self._load(identity):
            self._build()
            self._save(identity)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Index`. Twice as many candidates, found with features in float16, are compared exactly."""
        items = self._features.features
        k = min(k, len(items))
        candidates = min(2 * k, len(items))
        self._graph.expansion_search = max(_EXPANSION, 2 * candidates)
        unit = _unit(queries)
        found = self._graph.search(unit, candidates)
        numbers = np.asarray(found.keys, np.int64).reshape(len(queries), -1)
        counts = np.atleast_1d(np.asarray(found.counts if len(queries) > 1 else len(found)))
        cosines = np.full(numbers.shape, -np.inf, np.float32)
        for row, count in enumerate(counts.tolist()):
            cosines[row, :count] = _unit(items[numbers[row, :count]]) @ unit[row]
        # Of equally similar items, the first is the nearer one, as in an exact search.
        order = np.lexsort((numbers, -cosines), axis=-1)[:, :k]
        return np.take_along_axis(cosines, order, -1), np.take_along_axis(numbers, order, -1)

    def _build(self) -> None:
        start = time.perf_counter()
        items = self._features.features
        log.info("Making an index of %d images, which is kept in %s.", len(items), self._features.directory)
        for first in range(0, len(items), _BLOCK):
            block = _unit(items[first : first + _BLOCK])
            self._graph.add(np.arange(first, first + len(block), dtype=np.uint64), block)
        log.info("The index was made in %.1f s.", time.perf_counter() - start)

    def _load(self, identity: dict[str, Any]) -> bool:
        """Loads the graph that is kept, and returns whether there is one of these features."""
        path = self._features.directory / _FILE
        if not (path.parent / _ABOUT).exists():
            return False
        try:
            about = json.loads((path.parent / _ABOUT).read_text())
            if about != {**identity, "bytes": path.stat().st_size}:
                log.info("%s is of other features, or of another version: it is made again.", path)
                return False
            self._graph.load(os.fspath(path))
            return True
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: usearch's own
            log.warning("%s cannot be used (%s) and is made again.", path, error)
            self._graph.reset()
            return False

    def _save(self, identity: dict[str, Any]) -> None:
        """Keeps the graph, as far as the storage lets it."""
        directory = self._features.directory
        temporary = directory / f".{_FILE}.{os.getpid()}.tmp"
        try:
            (directory / _ABOUT).unlink(missing_ok=True)
            self._graph.save(os.fspath(temporary))
            size = temporary.stat().st_size
            temporary.replace(directory / _FILE)
            (directory / _ABOUT).write_text(json.dumps({**identity, "bytes": size}, indent=1) + "\n")
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                pathlib.Path(temporary).unlink(missing_ok=True)
            log.warning(
                "The index cannot be kept in %s (%s): it will be made again at the next search.", directory, error
            )


def open_index(features: Features, approximate: bool | None = None) -> Index:
    """Returns the index to search with.

    Args:
        features: the items.
        approximate: whether it may miss some; None: if there are more than a million.

    Raises:
        ConfigError: if a library is missing.
    """
    if approximate is None:
        approximate = len(features) > APPROXIMATE_ABOVE
    return ApproximateIndex(features) if approximate else ExactIndex(features)
