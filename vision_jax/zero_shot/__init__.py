"""Classes by their names, without training, by a model of images and words: `python -m vision_jax zero-shot`.

`prompts` puts names into sentences, `classes` makes a classifier of these, `preprocessing` says which images a model
expects, and `program` does it all, of images and of labelled ones.
"""

from vision_jax.zero_shot.classes import WordClassifier, as_classifier, class_weights, embed_classes
from vision_jax.zero_shot.preprocessing import preprocessing
from vision_jax.zero_shot.prompts import read_classes, read_templates

__all__ = [
    "WordClassifier",
    "as_classifier",
    "class_weights",
    "embed_classes",
    "preprocessing",
    "read_classes",
    "read_templates",
]
