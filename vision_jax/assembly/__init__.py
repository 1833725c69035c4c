"""The parts of `vision_jax.build`: what a configuration describes, made."""
