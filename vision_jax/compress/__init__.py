"""Smaller models, and what that costs: float16, int8 weights, int8 arithmetic; see `python -m vision_jax compress`.

`quantize` makes a file of another, `measure` has accuracy and latency, and `program` puts them side by side.
"""
