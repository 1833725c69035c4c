"""Changes weights to another number of classes, channels or pixels, where a model's options ask for it."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from vision_jax.errors import DataError
from vision_jax.models import registry
from vision_jax.models.registry import Entry
from vision_jax.pretrained.classes import Classes
from vision_jax.pretrained.tensors import Tensor, init_function, model_tensors

log = logging.getLogger(__name__)

# Modules that begin anew with the classifier where weights have neither: the norm of averaged features, for which
# masked autoencoders have one before the average, which their fine-tuning leaves out.
_NEW_WITH_CLASSIFIER = ("fc_norm.",)


def adapt_classifier(
    known: Entry,
    wanted: list[Tensor],
    values: dict[str, np.ndarray],
    options: Mapping[str, Any],
    *,
    seed: int | None,
    classes: Classes,
    in_file: Sequence[str] = (),
) -> bool:
    """Makes a classifier for `options["num_classes"]` of the one in `values`, or a new one.

    Rows are taken over where `classes` tell which of the weights' classes each of the model's is. Otherwise the
    classifier is new.

    Args:
        known: the model.
        wanted: its tensors.
        values: by name; changed.
        options: of the model.
        seed: of a new classifier; None: one that would have to be new is an error.
        classes: what they are called.
        in_file: names of the weights' classes, as the file has them.

    Returns:
        whether it is new.

    Raises:
        DataError: if it would have to be new.
    """
    num_classes = options.get("num_classes")
    if not num_classes:
        return False
    axes = class_axes(known, wanted, options)
    if not axes.keys() & values.keys():
        if seed is None:
            raise DataError(
                f"These weights have no classifier ({', '.join(sorted(axes))}), so that there is nothing to evaluate: "
                "train one by beginning a training from them."
            )
        log.info("%s: the weights have no classifier; it is new, for %d classes.", known.name, num_classes)
        _initialize(known, wanted, values, options, _new_names(wanted, values, axes), seed)
        return True
    if any(values[key].ndim <= axis for key, axis in axes.items() if key in values):
        return False  # of another shape, which is told with all others
    count = next(values[key].shape[axis] for key, axis in axes.items() if key in values)
    rows = classes.rows(count, num_classes, in_file)
    shapes = {tensor.name: tensor.shape for tensor in wanted}
    fits = all(
        (*values[key].shape[:axis], num_classes, *values[key].shape[axis + 1 :]) == shapes[key]
        for key, axis in axes.items()
        if key in values
    )
    if rows is not None and fits:
        if not (count == num_classes and np.array_equal(rows, np.arange(count))):
            log.info(
                "%s: of the classifier's %d classes, %d are taken over by name.", known.name, count, len(set(rows))
            )
            for key, axis in axes.items():
                if key in values:
                    values[key] = values[key].take(rows, axis)
        return False
    reason = classes.difference(count, num_classes, in_file)
    if seed is None:
        if rows is not None:
            return False
        raise DataError(
            f"The classes of these weights are not those of the model: {reason}. Set model.pretrained_classes to "
            "imagenet, or to a file with the names of the weights' classes, one per line."
        )
    changes = ", ".join(f"{key} {values[key].shape} -> {shapes[key]}" for key in sorted(axes.keys() & values.keys()))
    log.info("%s: the classifier is new, for %d classes (%s), since %s.", known.name, num_classes, changes, reason)
    _initialize(known, wanted, values, options, _siblings(wanted, axes), seed)
    return True


def class_axes(known: Entry, wanted: Sequence[Tensor], options: Mapping[str, Any]) -> dict[str, int]:
    """Returns the tensors that depend on the number of classes, and the axis that is so long."""
    more = {t.name: t.shape for t in model_tensors(known, {**options, "num_classes": options["num_classes"] + 1})}
    return {
        tensor.name: next(i for i, (a, b) in enumerate(zip(tensor.shape, more[tensor.name], strict=True)) if a != b)
        for tensor in wanted
        if more[tensor.name] != tensor.shape
    }


def _siblings(wanted: Sequence[Tensor], names: Mapping[str, int]) -> set[str]:
    """Returns all weights and biases of the modules that some tensors are of."""
    modules = {name.rpartition(".")[0] for name in names}
    return {tensor.name for tensor in wanted if tensor.name.rpartition(".")[0] in modules}


def _new_names(wanted: Sequence[Tensor], values: Mapping[str, Any], axes: Mapping[str, int]) -> set[str]:
    """Returns what is new where there is no classifier: also a norm that belongs to it, if that is missing."""
    roots = tuple(f"{name.split('.')[0]}." for name in axes) + _NEW_WITH_CLASSIFIER
    missing = {tensor.name for tensor in wanted if tensor.name.startswith(roots) and tensor.name not in values}
    return _siblings(wanted, axes) | missing


def _initialize(
    known: Entry,
    wanted: Sequence[Tensor],
    values: dict[str, np.ndarray],
    options: Mapping[str, Any],
    names: set[str],
    seed: int,
) -> None:
    init = init_function(known, options)
    new = [tensor for tensor in wanted if tensor.name in names]
    # Compiled, only what is asked for is computed.
    leaves = jax.jit(lambda key: [_leaf(init(key), tensor.path) for tensor in new])(jax.random.key(seed))
    for tensor, leaf in zip(new, leaves, strict=True):
        values[tensor.name] = tensor.to_torch(leaf)


def _leaf(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def drop_class_token(
    known: Entry, values: dict[str, np.ndarray], left_over: list[str], options: Mapping[str, Any]
) -> list[str]:
    """Returns what is left over of weights without the class token of a transformer that is made without one.

    Its position, the first of `pos_embed` in `values`, is left out too.
    """
    tokens = {"cls_token", "class_token"} & set(left_over)
    if options.get("class_token", True) or not tokens:
        return left_over
    positions = values.get("pos_embed")
    if positions is not None and math.isqrt(positions.shape[1] - 1) ** 2 == positions.shape[1] - 1:
        values["pos_embed"] = positions[:, 1:]
    log.info("%s: the class token is left out, as the model has none.", known.name)
    return [name for name in left_over if name not in tokens]


def adapt_input(
    known: Entry, wanted: Sequence[Tensor], values: dict[str, np.ndarray], options: Mapping[str, Any]
) -> None:
    """Changes `values`, by name, to another number of channels and another image size.

    Raises:
        DataError: if the positions that the weights have are not those of a square grid.
    """
    shapes = {tensor.name: tensor.shape for tensor in wanted}

    def different(option: str, other: Any) -> list[str]:
        """The tensors whose shapes depend on an option, and are not as they should be."""
        changed = {tensor.name: tensor.shape for tensor in model_tensors(known, {**options, option: other})}
        return [
            key
            for key, shape in shapes.items()
            if changed.get(key) != shape and key in values and values[key].shape != shape
        ]

    if "in_channels" in options:
        for key in different("in_channels", options["in_channels"] + 1):
            log.info("%s: %s is adapted to %d channels.", known.name, key, options["in_channels"])
            values[key] = change_channels(values[key], options["in_channels"])
    if known.resample is None:
        return
    # Whatever tensors depend on these, since they have other shapes with another value.
    others = {"img_size": size * 2} if (size := options.get("img_size")) else {}
    if "window_size" in registry.option_names(known.name):
        others["window_size"] = 1
    for key in {key: None for name, other in others.items() for key in different(name, other)}:
        old = values[key]
        if old.ndim != len(shapes[key]) or old.shape[-1] != shapes[key][-1]:
            continue  # not the positions alone are others, which is told with all that does not fit
        values[key] = known.resample(key, old, shapes[key])
        log.info("%s: %s is interpolated, %s -> %s.", known.name, key, old.shape, shapes[key])


def adapt_variables(name: str, variables: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Changes the variables of another run to another number of channels and another image size, as those of a file.

    Args:
        name: the model; see `vision_jax.list_models`.
        variables: `params` and `batch_stats` of a model of this name, with anything beside it. What the model does not
            have, or what differs in more than channels and positions, stays as it is.
        options: of the model that they are for.

    Returns:
        the variables, of which only those that change are copied.

    Raises:
        DataError: if the positions are not those of a square grid.
    """
    known = registry.entry(name)
    options = {**known.defaults, **options}
    flat = {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables))}
    # Layers that `nn.scan` stacks have no tensors that depend on the input.
    wanted = [x for x in model_tensors(known, options) if x.index is None and x.path in flat]
    wanted = [x for x in wanted if x.axes is None or len(x.axes) == flat[x.path].ndim]
    changed = [x for x in wanted if x.shape != x.torch_shape(flat[x.path].shape)]
    values = {x.name: x.to_torch(flat[x.path]) for x in changed}
    before = dict(values)
    adapt_input(known, wanted, values, options)
    for tensor in changed:
        if values[tensor.name] is not before[tensor.name]:
            flat[tensor.path] = tensor.from_torch(values[tensor.name])
    return {"params": {}, "batch_stats": {}, **traverse_util.unflatten_dict(flat)}


def change_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Returns a kernel, (out, in, height, width), for another number of input channels.

    Grey images get the sum. Otherwise kernels are repeated in turn and scaled so that their sum has the same size, as
    timm does it.
    """
    if channels == 1:
        return kernel.sum(1, keepdims=True)
    old = kernel.shape[1]
    repeated = np.concatenate([kernel] * math.ceil(channels / old), 1)[:, :channels]
    return repeated * np.float32(old / channels)


def unused_heads(known: Entry, options: Mapping[str, Any]) -> list[Tensor]:
    """Returns the tensors of heads that the model could have, and is made without."""
    tensors = []
    rest = {key: value for key, value in options.items() if options.get("num_classes") or key != "num_classes"}
    if options.get("num_classes") == 0:
        tensors += model_tensors(known, rest)
    if "aux_logits" in registry.option_names(known.name) and not options.get("aux_logits"):
        tensors += model_tensors(known, {**rest, "aux_logits": True})
    return tensors
