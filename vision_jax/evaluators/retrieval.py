"""Retrieval measures: does a query find the items that belong to it?

Similarities are inner products; for cosines, normalize the features first (`features.normalize`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Rankings:
    """How each query ranks the items that belong to it, its positives. Arrays are (queries,) float64.

    With n positives, and P(r) the share of positives among the first r items:

    Attributes:
        positives: n, integers.
        average_precision: the mean of P at the ranks of the positives ("rectangular").
        average_precision_trapezoid: the same with the mean of P before and at each positive, as in
            filipradenovic/revisitop; P before the first item is 1.
        map_at_r: the sum of P at the ranks of the positives up to rank n, divided by n (Musgrave et al. 2020,
            arXiv:2003.08505).
        r_precision: P(n).
        found: by k, the number of positives among the first k items.
    """

    positives: np.ndarray
    average_precision: np.ndarray
    average_precision_trapezoid: np.ndarray
    map_at_r: np.ndarray
    r_precision: np.ndarray
    found: Mapping[int, np.ndarray]

    def means(self) -> dict[str, float]:
        """Returns the means over the queries that have positives.

        Returns:
            map, map_trapezoid, map_at_r, r_precision: of the attributes of these names.
            recall@K: the share of queries with a positive among the first K (metric learning).
            share@K: the mean share of the positives that are among the first K.
            queries: the number of queries that have positives.

        Raises:
            DataError: if no query has any.
        """
        counted = self.positives > 0
        share = {k: found / np.maximum(self.positives, 1) for k, found in self.found.items()}
        if not counted.any():
            raise DataError(f"None of {len(counted)} queries has an item to be found: nothing is left to be measured.")
        return {
            "map": float(self.average_precision[counted].mean()),
            "map_trapezoid": float(self.average_precision_trapezoid[counted].mean()),
            "map_at_r": float(self.map_at_r[counted].mean()),
            "r_precision": float(self.r_precision[counted].mean()),
            **{f"recall@{k}": float((found[counted] > 0).mean()) for k, found in self.found.items()},
            **{f"share@{k}": float(values[counted].mean()) for k, values in share.items()},
            "queries": int(counted.sum()),
        }


@functools.partial(jax.jit, static_argnames="ks")
def _rank(
    similarities: jax.Array, positive: jax.Array, ignored: jax.Array, ks: tuple[int, ...]
) -> dict[str, jax.Array]:
    """Returns the attributes of `Rankings` for a block of queries.

    Args:
        similarities: (queries, items) float32.
        positive, ignored: (queries, items) bool; items that are ignored are removed from the ranking.
        ks: of `found`.
    """
    positive = positive & ~ignored
    # Ignored items come last, so that they change no rank; of equally similar items, the first is the better one.
    order = jnp.argsort(jnp.where(ignored, -jnp.inf, similarities), axis=-1, descending=True, stable=True)
    hits = jnp.take_along_axis(positive, order, -1)
    total = hits.sum(-1)
    so_far = jnp.cumsum(hits, -1)
    ranks = jnp.arange(1, hits.shape[-1] + 1)
    at = jnp.where(hits, so_far / ranks, 0.0)
    before = jnp.where(hits, jnp.where(ranks == 1, 1.0, (so_far - 1) / jnp.maximum(ranks - 1, 1)), 0.0)
    within = ranks <= total[:, None]
    divisor = jnp.maximum(total, 1)
    return {
        "positives": total,
        "average_precision": at.sum(-1) / divisor,
        "average_precision_trapezoid": (at + before).sum(-1) / (2 * divisor),
        "map_at_r": jnp.where(within, at, 0.0).sum(-1) / divisor,
        "r_precision": (hits & within).sum(-1) / divisor,
        **{f"found/{k}": hits[:, :k].sum(-1) for k in ks},
    }


def rank(
    queries: jax.Array,
    items: jax.Array,
    relations: Callable[[int, int], tuple[np.ndarray | jax.Array, np.ndarray | jax.Array]],
    *,
    ks: Sequence[int] = (1,),
    block: int = 256,
) -> Rankings:
    """Ranks all items for each query, a block of queries at a time, so that no array is queries * items.

    Args:
        queries: (queries, dim) float.
        items: (items, dim) float.
        relations: (start, stop) -> which items are positives of these queries, and which are ignored, each
            (stop - start, items) bool.
        ks: the ranks at which found positives are counted.
        block: queries per block.
    """
    items = jnp.asarray(items, jnp.float32)
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(queries), block):
        stop = min(start + block, len(queries))
        part = jnp.asarray(queries[start:stop], jnp.float32)
        similarities = jnp.matmul(part, items.T, precision="highest")
        for name, values in _rank(similarities, *relations(start, stop), ks=tuple(ks)).items():
            found.setdefault(name, []).append(np.asarray(values))
    arrays = {name: np.concatenate(values) for name, values in found.items()}
    at = {k: arrays.pop(f"found/{k}") for k in ks}
    positives = arrays.pop("positives")
    return Rankings(positives=positives, found=at, **{name: v.astype(np.float64) for name, v in arrays.items()})


def rank_by_class(features: jax.Array, labels: np.ndarray, *, ks: Sequence[int] = (1,), block: int = 256) -> Rankings:
    """Ranks all other examples for each example; those of its own class are its positives.

    Args:
        features: (examples, dim) float.
        labels: (examples,) integers.
        ks, block: see `rank`.
    """
    labels = np.asarray(labels)
    numbers = np.arange(len(labels))

    def relations(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return labels[start:stop, None] == labels, numbers[start:stop, None] == numbers

    return rank(features, features, relations, ks=ks, block=block)


# Which lists of the ground truth are positives, and which are ignored.
_REVISITED = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def rank_revisited(
    queries: jax.Array,
    items: jax.Array,
    ground_truth: Sequence[Mapping[str, Sequence[int]]],
    setting: str,
    *,
    ks: Sequence[int] = (1,),
    block: int = 256,
) -> Rankings:
    """Ranks the items by the protocol of revisited Oxford and Paris (Radenovic et al. 2018, arXiv:1803.11285).

    The published mAP is `map_trapezoid` of the result's means.

    Args:
        queries: (queries, dim) float.
        items: (items, dim) float.
        ground_truth: for each query, numbers of items under "easy", "hard" and "junk".
        setting: "easy": easy items are positives, and hard ones ignored; "medium": both are positives; "hard": hard
            items are positives, and easy ones ignored. Junk is ignored in each.
        ks, block: see `rank`.

    Raises:
        DataError: for another setting.
    """
    if setting not in _REVISITED:
        raise DataError(f"There is no setting {setting!r}: there are {', '.join(_REVISITED)}.")

    def marked(start: int, stop: int, names: Sequence[str]) -> np.ndarray:
        mask = np.zeros((stop - start, len(items)), bool)
        for row, lists in enumerate(ground_truth[start:stop]):
            for name in names:
                mask[row, np.asarray(lists[name], int)] = True
        return mask

    def relations(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        positives, ignored = _REVISITED[setting]
        return marked(start, stop, positives), marked(start, stop, ignored)

    return rank(queries, items, relations, ks=ks, block=block)
