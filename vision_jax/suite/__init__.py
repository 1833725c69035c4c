"""The evaluation sets of ImageNet classifiers, measured one after another into one table: `python -m vision_jax suite`.

`find` looks for them, `images` labels what they hold, `sets` says how each is scored, `published` what others have
measured; `run` does it, and `results`, `corruptions` and `tables` keep and show what came out.
"""
