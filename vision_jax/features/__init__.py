"""Features of images in files: written once, measured and searched often.

`extract` writes what a model says of each image of a split before its classifier, in shards; a run that is killed goes
on where it was. `read` opens them, `measure` evaluates them with simple classifiers.
"""

from vision_jax.features.extraction import Extracted, Extractor, Images, Options, extract
from vision_jax.features.files import About, Features, Rows, Shard, ShardWriter, read
from vision_jax.features.measures import (
    MEASURES,
    Protocols,
    check_kinds,
    check_same_classes,
    check_same_model,
    measure,
)

__all__ = [
    "MEASURES",
    "About",
    "Extracted",
    "Extractor",
    "Features",
    "Images",
    "Options",
    "Protocols",
    "Rows",
    "Shard",
    "ShardWriter",
    "check_kinds",
    "check_same_classes",
    "check_same_model",
    "extract",
    "measure",
    "read",
]
