"""The most similar images, by the cosine of their features: exactly, or by an index of neighbors among very many."""

from vision_jax.search.index import APPROXIMATE_ABOVE, ApproximateIndex, ExactIndex, Index, open_index
from vision_jax.search.page import make_page
from vision_jax.search.pictures import Pictures
from vision_jax.search.program import Found, Match, check_made_by, find, measure

__all__ = [
    "APPROXIMATE_ABOVE",
    "ApproximateIndex",
    "ExactIndex",
    "Found",
    "Index",
    "Match",
    "Pictures",
    "check_made_by",
    "find",
    "make_page",
    "measure",
    "open_index",
]
