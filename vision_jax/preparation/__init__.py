"""The work of `python -m vision_jax prepare`: inputs, conversion, shards, manifest."""
