"""The classes that a suite scores by: ImageNet's, whose logits are found by name, or a model's own."""

from collections.abc import Sequence

import numpy as np

from vision_jax import pretrained
from vision_jax.build import TrainedModel
from vision_jax.errors import ConfigError

_ANY_CLASSES = {"c", "adversarial"}  # sets that there are of other classes than ImageNet's


def class_columns(trained: TrainedModel) -> np.ndarray | None:
    """Returns which logit is that of each of ImageNet's classes, (1000,) int32; None: they are these, in their order.

    A model without names for its classes is taken to have them in their order if there are 1,000.

    Raises:
        ConfigError: if it has other classes.
    """
    classes, names = pretrained.imagenet_classes(), trained.class_names
    needed = f"the evaluation sets need ImageNet's {len(classes):,}"
    if not trained.num_classes:
        raise ConfigError(f"The model, {trained.name}, has no classifier: {needed} classes.")
    if not names:
        if trained.num_classes != len(classes):
            raise ConfigError(f"The model has {trained.num_classes} classes, of unknown names: {needed}.")
        return None
    columns = pretrained.map_classes(classes, names)
    if missing := int((columns < 0).sum()):
        raise ConfigError(
            f"The model has {trained.num_classes} classes, such as {names[0]!r}, and {missing:,} of ImageNet's are not "
            f"among them: {needed}, by their WordNet ids. --sets=c alone takes data of the model's own classes, and so "
            "does --sets=adversarial."
        )
    in_order = trained.num_classes == len(classes) and np.array_equal(columns, np.arange(len(classes)))
    return None if in_order else columns


def own_classes(trained: TrainedModel, wanted: Sequence[str], *, own_data: bool = False) -> Sequence[str] | None:
    """Returns the names of a model's own classes, where the images are of these; None: they are of ImageNet's.

    Args:
        trained: the model.
        wanted: the sets. Corruptions and attacks alone may be of other classes than ImageNet's.
        own_data: the images are a split of the data of the model's configuration.

    Raises:
        ConfigError: if the model has none.
    """
    names = trained.class_names
    if own_data:
        if not trained.num_classes:
            raise ConfigError(f"The model, {trained.name}, has no classifier: attacks need one.")
        return names or [str(number) for number in range(trained.num_classes)]
    if not set(wanted) <= _ANY_CLASSES or not names or set(names) >= set(pretrained.imagenet_classes()):
        return None
    return names
