"""Features of images in files: written once, measured and searched often.

`extract` writes what a model says of each image of a split before its classifier, in shards; a run that is killed goes
on where it was. `read` opens them, `measure` evaluates them with simple classifiers.
"""

from vision_jax.features.extraction import Extracted, Extractor, Options, extract, split_source
from vision_jax.features.files import About, Features, Rows, Shard, ShardWriter, read
from vision_jax.features.measures import MEASURES, Protocols, check_same_model, measure

__all__ = [
    "MEASURES",
    "About",
    "Extracted",
    "Extractor",
    "Features",
    "Options",
    "Protocols",
    "Rows",
    "Shard",
    "ShardWriter",
    "check_same_model",
    "extract",
    "measure",
    "read",
    "split_source",
]
