"""Weights of others, and for others: files of many kinds, timm's, torchvision's and the authors' names, and classes.

The tree of a model's variables is named as the state dict of timm is (of torchvision, for what timm has not), so what
is left to do here is the same for all models: `kernel` and `scale` are torch's `weight`, `mean` and `var` its running
statistics, and kernels are transposed. Numbers are never changed: what `to_torch` gives back is equal bit for bit.

`files` reads, on the host and without torch; `naming` finds a model's tensors in what was read; `classes` says which
class of the weights is which of the data; `adapt` makes them fit another number of classes, channels or pixels; and
`convert` does it all. `methods` tells which self-supervised method a checkpoint is of, and `heads` reads what that has
beside the model.
"""

from vision_jax.pretrained.adapt import adapt_variables
from vision_jax.pretrained.classes import (
    Classes,
    display_names,
    find_class,
    imagenet_classes,
    map_classes,
    read_class_names,
)
from vision_jax.pretrained.convert import classes_of, from_torch, has_model, load, to_torch
from vision_jax.pretrained.files import WeightFile, is_workdir, read
from vision_jax.pretrained.heads import Beside, OfficialNames, load_heads, networks

__all__ = [
    "Beside",
    "Classes",
    "OfficialNames",
    "WeightFile",
    "adapt_variables",
    "classes_of",
    "display_names",
    "find_class",
    "from_torch",
    "has_model",
    "imagenet_classes",
    "is_workdir",
    "load",
    "load_heads",
    "map_classes",
    "networks",
    "read",
    "read_class_names",
    "to_torch",
]
