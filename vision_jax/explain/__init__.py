"""Explanations of classifiers: which pixels speak for a class, as maps of the image's size.

    method = parse_method("gradcam")
    explain = jax.jit(make_explainer(model, method, mean=mean, std=std))
    maps = explain(variables, images, targets, key)

`methods` has them by name; each concept is a file of pure functions, for whoever needs what a map is made of.
"""

from vision_jax.explain.base import Network, check_targets
from vision_jax.explain.curves import Curve, deletion, insertion
from vision_jax.explain.methods import METHODS, Explainer, Method, check, make_explainer, parse_method

__all__ = [
    "METHODS",
    "Curve",
    "Explainer",
    "Method",
    "Network",
    "check",
    "check_targets",
    "deletion",
    "insertion",
    "make_explainer",
    "parse_method",
]
