"""Smaller models, and what that costs: float16, int8 weights, int8 arithmetic; see `python -m vision_jax compress`.

`quantize` makes a file of another, `measure` has accuracy and latency, and `program` puts them side by side.
"""

METHODS = ("float16", "weights8", "int8")
CALIBRATIONS = ("percentile", "entropy", "minmax")  # how the ranges of int8 are found
