"""Classes by their names, without training, by a model of images and words: `python -m vision_jax zero-shot`.

`classes` makes a classifier of sentences about the classes, `preprocessing` says which images a model
expects, and `program` does it all, of images and of labelled ones.
"""

from vision_jax.zero_shot.classes import WordClassifier, as_classifier, embed_classes
from vision_jax.zero_shot.preprocessing import preprocessing

__all__ = [
    "WordClassifier",
    "as_classifier",
    "embed_classes",
    "preprocessing",
]
