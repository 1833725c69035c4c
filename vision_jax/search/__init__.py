"""The most similar images, or those that fit words best, by the cosine of features: exactly, or by an index."""

from vision_jax.search.index import APPROXIMATE_ABOVE, ApproximateIndex, ExactIndex, Index, open_index
from vision_jax.search.page import make_page
from vision_jax.search.pictures import Pictures
from vision_jax.search.program import Found, Match, check_made_by, find, measure
from vision_jax.search.words import find_by_words

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
    "find_by_words",
    "make_page",
    "measure",
    "open_index",
]
