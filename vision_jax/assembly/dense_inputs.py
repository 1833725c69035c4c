"""Images with boxes or masks: their sources, and what makes batches of them."""

import logging
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vision_jax.config.plan import dense_resizing, objective_name
from vision_jax.data import order, scenes
from vision_jax.data.boxes import DenseSubset, with_objects
from vision_jax.data.cache import cache_dir
from vision_jax.data.coco import CocoSource
from vision_jax.data.dense import DenseTransform
from vision_jax.data.made_up import MadeUpSource
from vision_jax.data.mask_check import check_masks
from vision_jax.data.masks import MasksSource
from vision_jax.data.prepared import PreparedSource
from vision_jax.data.sources import Source
from vision_jax.data.voc import VocSource
from vision_jax.errors import DataError, reason
from vision_jax.objectives import OBJECTIVES

log = logging.getLogger(__name__)


def embedded(config: ConfigDict, prepare: Callable[[pathlib.Path], pathlib.Path]) -> pathlib.Path:
    """Returns the folder of a data set that is written on first use, in `data.dir` or the cache.

    Raises:
        DataError: if it cannot be written.
    """
    data = config.data
    try:
        root = pathlib.Path(data.dir).expanduser() if data.dir else cache_dir()
    except DataError as error:
        raise DataError(f"{error} Or set data.dir to a folder for the {data.source}.") from error
    try:
        return prepare(root)
    except OSError as error:
        raise DataError(
            f"Cannot write the {data.source} to {root}: {reason(error, path=True)}. Set data.dir to another folder."
        ) from error


def create_dense_source(config: ConfigDict, *, train: bool, masks: bool) -> Source:
    """Returns a split of images with boxes, or with masks.

    Raises:
        DataError: if it is missing or malformed, or has a mask that is wrong, or an image with more than
            `data.dense.max_boxes` boxes.
    """
    data, dense = config.data, config.data.dense
    source: Any = _open_dense(config, train, masks)
    if masks and isinstance(source, MasksSource | VocSource) and not dense.skip_bad:  # which has checked them
        check_masks(
            source.pairs(),
            source.num_classes,
            reduce_zero_label=dense.reduce_zero_label,
            num_threads=data.num_threads,
        )
    made_up = isinstance(source, MadeUpSource)  # which may be long, and needs no checks
    if train and dense.drop_empty and not made_up:
        chosen = with_objects(source, masks=masks)
        log.info("Left out of training: %d of %d images without objects.", len(source) - len(chosen), len(source))
        source = DenseSubset(source, chosen)
    if train and data.train_examples is not None:
        if data.train_examples > len(source):
            raise DataError(
                f"data.train_examples is {data.train_examples}, more than the {len(source)} of the split "
                f"{data.train_split!r}: lower it, or leave it unset."
            )
        source = DenseSubset(source, order.subset(len(source), data.train_examples))
    if not masks and not made_up:
        counts = [int((~source.annotations(index)["crowd"]).sum()) for index in range(len(source))]
        if train and not any(counts):
            raise DataError(
                f"No image of the split {data.train_split!r} of {data.dir} has a box to learn from: correct its "
                "annotations, or name another split by data.train_split."
            )
        if counts and max(counts) > dense.max_boxes:
            raise DataError(
                f"{source.describe(int(np.argmax(counts)))} has {max(counts)} boxes, more than "
                f"data.dense.max_boxes={dense.max_boxes}: raise that."
            )
    return source


def _open_dense(config: ConfigDict, train: bool, masks: bool) -> Source:
    data, dense = config.data, config.data.dense
    split = data.train_split if train else data.val_split
    categories = tuple(dense.categories)
    directory = pathlib.Path(data.dir).expanduser() if data.dir else pathlib.Path()
    chosen = {"category_ids": dense.category_ids, "skip_bad": dense.skip_bad}
    match data.source:
        case "coco":
            return CocoSource(directory, split, masks=masks, categories=categories, **chosen)
        case "voc":
            return VocSource(directory, split, masks=masks, classes=categories, **chosen)
        case "masks":
            return MasksSource(
                directory,
                split,
                class_names=categories,
                num_classes=config.model.num_classes,
                reduce_zero_label=dense.reduce_zero_label,
                skip_bad=dense.skip_bad,
            )
        case "synthetic":
            examples = data.synthetic_train_examples if train else data.synthetic_val_examples
            classes = config.model.num_classes or (91 if dense.category_ids else 21 if masks else 80)
            return MadeUpSource(examples, classes, config.seed, masks)
        case "scenes":
            return PreparedSource(embedded(config, scenes.prepare), split, masks=masks)
        case "tfds":
            return PreparedSource(directory, split, masks=masks)
    raise DataError(f"data.source is {data.source!r}, which has neither boxes nor masks.")


def dense_transform(config: ConfigDict, *, train: bool) -> DenseTransform | None:
    """Returns what makes a batch of records with boxes or masks; None: the objective learns from whole images."""
    dense = OBJECTIVES[objective_name(config)].dense
    if not dense:
        return None
    how, canvases = dense_resizing(config, train=train)
    return DenseTransform(
        how,
        canvases,
        channels=config.data.channels,
        seed=config.seed,
        boxes=dense == "boxes",
        masks=dense == "masks",
        max_boxes=config.data.dense.max_boxes,
        max_pixels=config.data.max_pixels,
    )
