"""Sources, and what makes batches of their records."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision_jax import pretrained
from vision_jax.assembly.dense_inputs import create_dense_source, dense_transform, embedded
from vision_jax.config.plan import Plan, eval_resize, eval_size, objective_name, steps_per_batch
from vision_jax.data import check, digits, order, subsets
from vision_jax.data.boxes import DenseSource
from vision_jax.data.dense import DenseTransform
from vision_jax.data.loader import Loader
from vision_jax.data.order import BalancedOrder, BucketOrder, OffsetOrder, ReplayOrder, TrainOrder
from vision_jax.data.pairs import CaptionTokens, LabelTokens, PairsSource
from vision_jax.data.sources import (
    OWN_SOURCES,
    FolderSource,
    RelabeledSource,
    Source,
    SubsetSource,
    SyntheticSource,
    TfdsSource,
    folder_class_names,
    read_labels,
)
from vision_jax.data.transforms import LABEL, Copied, EvalTransform, Preprocessing, SquareTransform, TrainTransform
from vision_jax.data.views import Field, View, parse_views
from vision_jax.data.workers import ProcessLoader, create_loader
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError, DataError
from vision_jax.objectives import OBJECTIVES, Pairs
from vision_jax.runtime import writers
from vision_jax.text import prompts

log = logging.getLogger(__name__)

Order = TrainOrder | BalancedOrder | BucketOrder | ReplayOrder


def create_source(config: ConfigDict, *, train: bool, class_names: Sequence[str] = ()) -> Source:
    """Returns the training or validation source that `config.data` names.

    Where the model has more classes than the data, and starts from weights with classes of known names, its labels are
    the numbers of these.

    Args:
        config: the configuration.
        train: whether it is the training source.
        class_names: that number the labels of a validation source of folders; (): those of the training split, if
            that is there.

    Raises:
        DataError: if it is missing, empty or malformed.
    """
    data = config.data
    if dense := OBJECTIVES[objective_name(config)].dense:
        return create_dense_source(config, train=train, masks=dense == "masks")
    source = _create_source(config, train, class_names)
    if train and data.train_examples is not None:
        if data.train_examples > len(source):
            raise DataError(
                f"data.train_examples is {data.train_examples}, more than the {len(source)} of the split "
                f"{data.train_split!r}: lower it, or leave it unset."
            )
        source = SubsetSource(source, order.subset(len(source), data.train_examples))
    elif train and data.train_per_class is not None:
        source = SubsetSource(source, subsets.per_class(source, data.train_per_class, data.num_threads))
    elif train and data.train_list is not None:
        path = pathlib.Path(data.train_list).expanduser()
        source = SubsetSource(source, subsets.listed(source, path, data.num_threads))
    return _with_tokens(config, _relabel(config, source))


def _with_tokens(config: ConfigDict, source: Source) -> Source:
    """Adds the tokens of texts to the records, for an objective that learns from these.

    Raises:
        ConfigError: if the classes have no names, or the tokenizer does not fit.
        DataError: if the tokenizer cannot be read.
    """
    if (objective := _pairs(config)) is None:
        return source
    tokenizer = objective.open_tokenizer()
    if config.data.source == "pairs":
        return CaptionTokens(source, tokenizer)
    words = objective.class_words(tuple(source.class_names))
    return LabelTokens(source, prompts.table(tokenizer, words, objective.templates))


def _pairs(config: ConfigDict) -> Pairs | None:
    """Returns the options of an objective that learns from pairs of images and texts; None: it is another one."""
    kind = OBJECTIVES[objective_name(config)]
    if not issubclass(kind, Pairs):
        return None
    setup: Any = None  # on which options do not depend
    return kind(setup=setup, **{name: value for name, value in config.objective.items() if name != "name"})


def _copied(config: ConfigDict) -> Copied:
    """Returns what of a record is a field of the batch as it is."""
    objective = _pairs(config)
    return LABEL if objective is None else (*LABEL, ("tokens", Field((objective.context_length,), np.dtype(np.int32))))


def _create_source(config: ConfigDict, train: bool, class_names: Sequence[str]) -> Source:
    """Returns the whole of a split."""
    data = config.data
    split = data.train_split if train else data.val_split
    if data.source in OWN_SOURCES:
        return OWN_SOURCES[data.source](data.dir, split)
    match data.source:
        case "pairs":
            return PairsSource(pathlib.Path(data.dir).expanduser(), split)
        case "synthetic":
            examples = data.synthetic_train_examples if train else data.synthetic_val_examples
            size = data.image_size if train else data.eval_resize
            return SyntheticSource(examples, config.model.num_classes or 1000, size, seed=config.seed)
        case "folder":
            directory = pathlib.Path(data.dir).expanduser()
            if train:
                return FolderSource(directory, split, labels=data.train_labels)
            names = class_names or folder_class_names(directory, data.train_split, data.train_labels)
            return FolderSource(
                directory, split, labels=data.val_labels, class_names=names, labels_option="data.val_labels"
            )
        case "tfds":
            return TfdsSource(pathlib.Path(data.dir).expanduser(), split, data.label)
        case "digits":
            return TfdsSource(embedded(config, digits.prepare), split)
    raise DataError(f"data.source is {data.source!r}, which is unknown.")


def _relabel(config: ConfigDict, source: Source) -> Source:
    """Numbers the labels of a source as the weights number their classes, if the model has as many as these."""
    model = config.model
    if model.pretrained is None or model.num_classes is None or model.num_classes <= source.num_classes:
        return source
    given = pretrained.read_class_names(model.pretrained_classes)
    names = pretrained.Classes(source.class_names, given).weight_names(model.num_classes)
    if not names or not source.class_names:
        return source
    labels = pretrained.map_classes(source.class_names, names)
    if (labels < 0).any():
        lacking = [name for name, label in zip(source.class_names, labels, strict=True) if label < 0]
        raise DataError(
            f"The data has {len(lacking)} classes that are none of model.pretrained_classes, such as {lacking[0]!r}: "
            "leave model.num_classes unset, for a classifier of the data's own classes."
        )
    log.info("Labels are the numbers that %d of the weights' %d classes have, by name.", len(labels), len(names))
    return RelabeledSource(source, labels, names)


def check_images(config: ConfigDict, source: Source) -> None:
    """Decodes all images of the validation source.

    Raises:
        DataError: if more of them are damaged than an evaluation may leave out; it names the first ones.
    """
    data = config.data
    log.info("Checking the %d images of the split %r.", len(source), data.val_split)
    with writers.Progress(len(source), description="check", enabled=jax.process_index() == 0) as bar:

        def progress(count: int) -> None:
            for _ in range(count):
                bar.update({})

        damaged = check.find_damaged(
            source,
            channels=data.channels,
            max_pixels=data.max_pixels,
            num_threads=data.num_threads,
            progress=progress,
        )
    check.refuse_damaged(damaged, len(source), data.max_bad_eval_records, data.val_split)


def make_views(config: ConfigDict) -> tuple[View, ...]:
    """Returns what `data.views` says is cut out of each training image: by default one view, `image`."""
    data = config.data
    scale, ratio = tuple(data.crop_scale), tuple(data.crop_ratio)
    if data.views:
        return parse_views(data.views, scale, ratio)
    return (View("image", size=data.image_size, scale=scale, ratio=ratio),)


def make_transform(
    config: ConfigDict, plan: Plan, views: Sequence[View] | None = None
) -> TrainTransform | DenseTransform:
    """Returns what makes a training batch of records; `views` are those of `make_views` unless given.

    That of records with boxes or masks has the canvas of each step once it follows an order
    (`DenseTransform.following`).
    """
    data = config.data
    if (dense := dense_transform(config, train=True)) is not None:
        return dense
    return TrainTransform(
        views=make_views(config) if views is None else tuple(views),
        channels=data.channels,
        seed=config.seed,
        filter=data.train_filter,
        scaled_decoding=data.scaled_decoding,
        fast_dct=data.fast_dct,
        fast_upsampling=data.fast_upsampling,
        sizes=plan.train_sizes,
        copied=_copied(config),
        max_pixels=data.max_pixels,
    )


def make_eval_transform(config: ConfigDict) -> EvalTransform | DenseTransform:
    """Returns what makes a batch of records for evaluation and prediction: the preprocessing of a checkpoint.

    That of records with boxes or masks is for a canvas that holds all images; `DenseTransform.on` is for another, and
    `resizing.bucket_indices` says which records have which.
    """
    data = config.data
    if (dense := dense_transform(config, train=False)) is not None:
        return dense
    kind = SquareTransform if data.eval_square else EvalTransform
    sizes = eval_size(config), eval_resize(config), data.channels
    return kind(*sizes, data.eval_filter, copied=_copied(config), max_pixels=data.max_pixels)


def make_preprocessing(config: ConfigDict) -> Preprocessing:
    """Returns what is done with an image alone, without a label, before a model sees it in evaluation.

    Raises:
        ConfigError: if the model is of boxes or masks, whose images have no size of their own.
    """
    transform = make_eval_transform(config)
    if isinstance(transform, DenseTransform):
        raise ConfigError(
            f"{objective_name(config)} is not for whole images: its images are laid into canvases, see data.dense."
        )
    transform = dataclasses.replace(transform, copied=())
    return Preprocessing(transform, tuple(config.data.mean), tuple(config.data.std))


def make_order(config: ConfigDict, source: Source) -> Order:
    """Returns the order of the training's batches. For `data.balanced` this may read the whole data set, once."""
    data = config.data
    order: TrainOrder | BalancedOrder | BucketOrder
    dense = dense_transform(config, train=True)
    if dense is not None and len(dense.canvases) > 1:
        numbers = dense.resizing.canvases_of(cast(DenseSource, source).sizes, dense.canvases)
        order = BucketOrder(numbers, dense.canvases, config.batch_size, config.seed)
    elif data.balanced:
        labels = read_labels(source, data.num_threads)
        order = BalancedOrder(labels, source.num_classes, config.batch_size, config.seed)
    else:
        order = TrainOrder(len(source), config.batch_size, config.seed, data.repeats)
    replays = steps_per_batch(config)
    return ReplayOrder(order, replays) if replays > 1 else order


def _follow(transform: TrainTransform | DenseTransform, order: Any) -> TrainTransform | DenseTransform:
    """Returns the transform that has at each step the canvas of the order, where there are several."""
    if isinstance(transform, DenseTransform) and len(transform.canvases) > 1:
        return transform.following(order)
    return transform


def image_shapes(
    config: ConfigDict, plan: Plan, order: Order, views: Sequence[View] | None = None
) -> Callable[[int], tuple[int, ...]]:
    """Returns a function from the number of a step, from 0, to the shape of the image that is called `image` in it."""
    transform = _follow(make_transform(config, plan, views), order)
    return lambda step: transform.at(step).fields()["image"].shape


def make_train_loader(
    config: ConfigDict,
    plan: Plan,
    mesh: Mesh,
    source: Source,
    rewinds: Sequence[tuple[int, int]] = (),
    *,
    order: Order | None = None,
    views: Sequence[View] | None = None,
) -> Loader | ProcessLoader:
    """Returns the loader of the training's batches.

    Args:
        config, plan, mesh, source: of the run.
        rewinds: each left some batches out.
        order: that of `make_order`, for a caller who makes several loaders; None: it is made here.
        views: what is cut out of each image; None: what `make_views` says.
    """
    data = config.data
    order = make_order(config, source) if order is None else order
    # The size of the images is that of the step, whatever batch it sees.
    # Of batches that are seen in several steps, whole ones are left out.
    skipped, replays = sum(bad - good for bad, good in rewinds), steps_per_batch(config)
    batches = OffsetOrder(order, -(-skipped // replays) * replays) if rewinds else order
    return create_loader(
        source,
        batches,
        _follow(make_transform(config, plan, views), batches),
        sharding.local_rows(mesh, config.batch_size),
        num_workers=data.num_workers,
        num_threads=data.num_threads,
        max_bad_records=data.max_bad_records,
    )
