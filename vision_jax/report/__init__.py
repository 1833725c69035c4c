"""What `python -m vision_jax report` does: shows runs, and what their checkpoints predict, in one HTML file."""
