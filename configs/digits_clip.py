"""Handwritten digits from their names: a CLIP or SigLIP that two cores train, on "a photo of the number seven".

Result:   zero-shot top-1 on the held-out digits; see docs/zero_shot.md.
Source:   this project's; the losses are those of arXiv:2103.00020 and arXiv:2303.15343.
Command:  python -m vision_jax.main --config=configs/digits_clip.py:clip --workdir=runs/digits_clip
"""

from ml_collections import ConfigDict

from vision_jax import recipes

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a photo of the number {}.", "the digit {}.", "{} in handwriting.")
# Epochs: SigLIP's bias begins where almost no pair fits, and has a longer way to go in few steps.
VARIANTS = {"clip": 40.0, "siglip": 100.0}


def get_config(variant: str = "clip") -> ConfigDict:
    config = recipes.digits("lenet5")
    config.batch_size = 128
    config.epochs = recipes.choose(VARIANTS, variant)
    sizes = {"context_length": 32, "embed_dim": 32, "text_width": 48, "text_depth": 2, "text_heads": 4}
    config.objective = recipes.objective(variant, words=DIGITS, templates=TEMPLATES, **sizes)

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.003
    config.optimizer.weight_decay = 0.05
    config.schedule.warmup_epochs = 4.0
    config.checkpoint.best_metric = "val/top1"
    config.eval.every_epochs = 20.0
    with config.unlocked():
        config.evals = ConfigDict({"val": {"kind": "zero_shot"}})
    return config
