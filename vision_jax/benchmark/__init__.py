"""Measurements that print a table: `python -m vision_jax benchmark input` and `benchmark step`."""
