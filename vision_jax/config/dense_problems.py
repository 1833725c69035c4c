"""The checks of a configuration for detection and segmentation: what it sets must have an effect on boxes or masks."""

from collections.abc import Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict

from vision_jax.config.fields import default_config
from vision_jax.config.plan import dense_resizing, objective_name
from vision_jax.config.store import flatten
from vision_jax.errors import ConfigError
from vision_jax.objectives import OBJECTIVES

# Sources of dense records, and others that may hold some.
_DENSE_SOURCES = ("coco", "voc", "masks", "scenes")
_DENSE_OR_NOT = ("tfds", "synthetic")

# Fields of `data.dense` that are of some sources.
_SOURCE_FIELDS = {
    "categories": ("coco", "voc", "masks"),
    "category_ids": ("coco", "voc"),
    "reduce_zero_label": ("masks",),
    "skip_bad": ("coco", "voc", "masks"),
}

# Fields of crops, of batches of one label each, and of classifiers: all must have their defaults.
_NOT_DENSE = (
    *("data.views", "data.repeats", "data.balanced", "data.train_per_class", "data.train_list", "data.train_labels"),
    *("data.val_labels", "data.label", "data.progressive_epochs", "data.progressive_sizes"),
    *("data.crop_scale", "data.crop_ratio", "data.train_filter", "data.scaled_decoding", "data.fast_dct"),
    *("data.fast_upsampling", "data.eval_size", "data.eval_resize", "data.eval_square"),
    *("label_smoothing", "augment.mixup", "augment.cutmix", "augment.col_out"),
    *(f"loss.{name}" for name in ("name", "threshold", "sum_classes", "class_weights", "auxiliary_weight")),
    *(f"distill.{name}" for name in ("teacher", "pretrained", "model_input", "kind", "temperature", "weight")),
    *(f"augment.{name}" for name in ("policy", "erase", "erase_mode", "erase_count", "cutout", "shift", "shift_mode")),
    *(f"augment.{name}" for name in ("crops", "mix_prob", "mix_switch_prob", "mix_mode", "mix_group")),
    *(f"model.{name}" for name in ("drop_rate", "head_bias", "head_std", "norm_before_head", "aux_logits")),
    "model.feature_blocks",
)
# The same, but for `data.model_input`, which sets them.
_OF_MODEL_INPUT = ("data.eval_crop", "data.eval_filter")

# Fields that a backbone does not use whose norms are frozen, as it runs as in evaluation.
_DROPS = ("model.drop_path_rate", "model.proj_drop_rate")


def changed(config: ConfigDict, paths: Iterable[str]) -> Iterator[tuple[str, Any, Any]]:
    """Yields path, value and default of those fields that do not have their defaults."""
    values, defaults = dict(flatten(config)), dict(flatten(default_config()))
    for path in paths:
        if values[path] != defaults[path]:
            yield path, values[path], defaults[path]


def dense_problems(config: ConfigDict) -> Iterator[str]:
    """Yields a line for each problem of source and objective, of which both or none have to do with boxes or masks.

    Where they do, `config.data.dense` is checked, and that nothing is set that they would not use.
    """
    name, source = objective_name(config), config.data.source
    dense = OBJECTIVES[name].dense
    try:
        dense_resizing(config, train=True)
        dense_resizing(config, train=False)
    except ConfigError as error:
        yield str(error)
    if not dense:
        if source in _DENSE_SOURCES:
            yield f"data.source is {source!r}, which has boxes or masks, and {name} learns from neither."
        return
    if source not in (*_DENSE_SOURCES, *_DENSE_OR_NOT):
        choices = ", ".join((*_DENSE_SOURCES, *_DENSE_OR_NOT))
        yield f"data.source is {source!r}, and {name} learns from {dense}: it takes one of {choices}."
    if source == "masks" and dense == "boxes":
        yield f"data.source is 'masks', which has no boxes, from which {name} learns."
    yield from _without_effect(config, dense)
    if config.eval.flip:
        instead = "" if dense == "boxes" else ", and set evals.val.flip"
        yield f"eval.flip is set, which is for classifiers, and {name} learns from {dense}: leave it unset{instead}."


def _without_effect(config: ConfigDict, dense: str) -> Iterator[str]:
    """Yields a line for each field that is set, and that nothing uses."""
    for path, _, _ in changed(config, (f"data.dense.{field}" for field in _SOURCE_FIELDS)):
        sources = _SOURCE_FIELDS[path.rpartition(".")[2]]
        if config.data.source not in (*sources, "synthetic"):
            yield f"{path} is set, which is for data.source={' or '.join(sources)}: leave it unset."
    if (resize := config.data.dense.resize) != "jitter":
        for path, value, _ in changed(config, ("data.dense.jitter",)):
            yield f"{path} is {value!r}, and data.dense.resize is {resize!r}: set that to 'jitter', or leave it unset."
    for path, value, _ in changed(config, (*_NOT_DENSE, *(() if config.data.model_input else _OF_MODEL_INPUT))):
        yield f"{path} is {value!r}, which is not for {dense}: leave it unset."
    if config.objective.get("frozen_norms", False):
        of_norms = ("model.bn_group_size",) if dense == "boxes" else ()  # segmenters have such norms in their heads
        for path, value, _ in changed(config, (*of_norms, *_DROPS)):
            if value:
                yield f"{path} is {value!r}, which objective.frozen_norms leaves without effect: unset one of them."
