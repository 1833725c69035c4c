"""Weights of detectors and segmenters: torchvision's state dicts, and those of backbones alone.

torchvision's RetinaNet, FCOS, FCN and DeepLabV3 have its names here; networks that it does not have are called after
the same scheme. Numbers are never changed: what `to_torch` gives back is equal bit for bit.
"""

import logging
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import pretrained
from vision_jax.dense.compose import PARTS, Network, backbone_variables
from vision_jax.errors import ConfigError, DataError
from vision_jax.models import registry
from vision_jax.pretrained import files, naming
from vision_jax.pretrained.files import WeightFile
from vision_jax.pretrained.tensors import Tensor, assemble, tensors_of, to_numpy

log = logging.getLogger(__name__)

_Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]

_PYRAMID: _Rules = (
    (r"^neck\.(inner_blocks|layer_blocks)_(\d+)\.", r"backbone.fpn.\1.\2.0."),
    (r"^neck\.", "backbone.fpn."),
)
_RETINANET: _Rules = (
    (r"^head\.(\w+)\.conv\.conv_(\d+)\.", r"head.\1.conv.\2.0."),
    (r"^head\.(\w+)\.conv\.norm_(\d+)\.", r"head.\1.conv.\2.1."),
    *_PYRAMID,
)
# A sequence of convolutions, norms and activations in torchvision.
_FCOS: _Rules = (
    *((rf"^head\.(\w+)\.conv\.conv_{i}\.", rf"head.\1.conv.{3 * i}.") for i in range(4)),
    *((rf"^head\.(\w+)\.conv\.norm_{i}\.", rf"head.\1.conv.{3 * i + 1}.") for i in range(4)),
    *_PYRAMID,
)
_FCN: _Rules = (
    (r"^(head|aux_head)\.block\.conv\.", r"\1.0."),
    (r"^(head|aux_head)\.block\.norm\.", r"\1.1."),
    (r"^(head|aux_head)\.classifier\.conv\.", r"\1.4."),
    (r"^head\.", "classifier."),
    (r"^aux_head\.", "aux_classifier."),
)
_DEEPLAB: _Rules = (
    (r"^head\.aspp\.convs_4\.conv\.", "classifier.0.convs.4.1."),  # behind the average
    (r"^head\.aspp\.convs_4\.norm\.", "classifier.0.convs.4.2."),
    (r"^head\.aspp\.convs_(\d+)\.conv\.", r"classifier.0.convs.\1.0."),
    (r"^head\.aspp\.convs_(\d+)\.norm\.", r"classifier.0.convs.\1.1."),
    (r"^head\.aspp\.project\.conv\.", "classifier.0.project.0."),
    (r"^head\.aspp\.project\.norm\.", "classifier.0.project.1."),
    (r"^head\.block\.conv\.", "classifier.1."),
    (r"^head\.block\.norm\.", "classifier.2."),
    *_FCN,
)
_RULES: Mapping[str, _Rules] = {
    "retinanet": _RETINANET,
    "retinanet_v2": _RETINANET,
    "fcos": _FCOS,
    "fcn": _FCN,
    "deeplabv3": _DEEPLAB,
}
_DETECTION = ("retinanet", "retinanet_v2", "fcos")
# Before its version 2, torchvision's pyramids and RetinaNet heads had no name for a convolution with what is behind it.
_OLD: _Rules = (
    (r"(inner_blocks|layer_blocks)\.(\d+)\.0\.", r"\1.\2."),
    (r"^(head\.\w+\.conv)\.(\d+)\.0\.", lambda found: f"{found[1]}.{2 * int(found[2])}."),
)
_CLASSIFIERS = (".cls_logits.", ".classifier.conv.")


def torchvision_name(network: Network, name: str) -> str:
    """Returns torchvision's name of a tensor of a network; backbones have timm's names within it."""
    if name.split(".")[0] not in PARTS:
        return f"backbone.{'body.' if network.kind in _DETECTION else ''}{name}"
    return _renamed(name, _RULES.get(network.kind, ()))


def is_whole(file: WeightFile) -> bool:
    """Returns whether a file has the tensors of a detector or segmenter, and not of a backbone alone."""
    names = [name.removeprefix("module.") for name in file.tensors]
    return any(name.startswith("backbone.") for name in names) and any(
        name.startswith(("head.", "classifier.")) for name in names
    )


def is_old(file: WeightFile) -> bool:
    """Returns whether a file has the names that torchvision's first published detectors have."""
    return any(re.search(r"fpn\.(inner|layer)_blocks\.\d+\.weight$", name) for name in file.tensors)


def count_logits(file: WeightFile) -> int:
    """Returns how many logits there are at each position of a detector's maps, or of each pixel.

    Raises:
        DataError: if a file is not of torchvision's detectors and segmenters.
    """
    for name, tensor in file.tensors.items():
        if name.endswith(("cls_logits.weight", "classifier.4.weight")) and "aux_classifier" not in name:
            return int(tensor.shape[0])
    raise DataError(f"{file.path} has no whole network of a detector or segmenter under torchvision's names.")


def load(network: Network, path: str | pathlib.Path | WeightFile, *, new_seed: int | None = None) -> dict[str, Any]:
    """Reads the variables of a network from a file; see `from_torch`.

    Args:
        network: see `create_detector` and `create_segmenter`.
        path: as for `vision_jax.pretrained.load`.
        new_seed: see `from_torch`.

    Raises:
        DataError: if the file cannot be read, or is not of this network.
    """
    file = files.read(path)
    try:
        return _convert(network, file, new_seed)
    except DataError as error:
        raise DataError(f"{file.path}: {error}") from error


def from_torch(network: Network, state_dict: Mapping[str, Any], *, new_seed: int | None = None) -> dict[str, Any]:
    """Converts a state dict of torchvision into variables.

    It may be inside of further dictionaries, and its names may have prefixes. The names of published V1 weights, which
    torchvision changes when it loads them, are known too. What the file has of an auxiliary head that the network lacks
    is left out.

    Args:
        network: see `create_detector` and `create_segmenter`.
        state_dict: tensors by name, NumPy's or torch's.
        new_seed: decides a new classifier where the weights have another number of classes, and a new auxiliary head
            where they have none; None: either is an error.

    Returns:
        `params` and `batch_stats`, float32.

    Raises:
        DataError: if tensors are missing, left over or of another shape; it names some of them.
    """
    return _convert(network, files.from_content(state_dict), new_seed)


def to_torch(network: Network, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts variables into a state dict with torchvision's names, without the counters of batch norms.

    Args:
        network: whose they are.
        variables: `params` and `batch_stats`.

    Returns:
        NumPy arrays by name, kernels as torch stores them.
    """
    state = {}
    for tensor in tensors_of(variables):
        leaf: Any = variables
        for part in tensor.path:
            leaf = leaf[part]
        state[torchvision_name(network, tensor.name)] = tensor.to_torch(leaf)
    return state


def load_backbone(
    network: Network, path: str | pathlib.Path | WeightFile, *, name: str | None = None
) -> dict[str, Any]:
    """Reads the backbone of a network from a file of an image model, such as one trained on ImageNet.

    Args:
        network: see `create_detector` and `create_segmenter`.
        path: as for `vision_jax.pretrained.load`, which adapts the weights to the backbone's channels and image size.
        name: of the backbone, where the network was made from a module.

    Returns:
        `params` and `batch_stats`, float32, of the backbone alone: what stands at the root of the network's.

    Raises:
        DataError: if the file cannot be read, or is not of this model.
        ConfigError: if the backbone has no name.
    """
    name = name or network.backbone_name
    if not name:
        raise ConfigError("The backbone was given as a module, so that its name is not known: give name too.")
    plain = registry.entry(name).create()
    options = {
        field: getattr(network.backbone, field)
        for field in registry.option_names(name)
        if field != "dtype" and getattr(network.backbone, field) != getattr(plain, field)
    }
    variables = pretrained.load(name, path, **{**options, "num_classes": 0})
    return _taken(variables, backbone_variables(_shapes(network)))


def _taken(variables: Any, wanted: Any) -> Any:
    """Returns of variables what is wanted: norms behind the last map, for example, are not."""
    if not isinstance(wanted, Mapping):
        return variables
    return {key: _taken(variables[key], tree) for key, tree in wanted.items()}


def _shapes(network: Network) -> dict[str, Any]:
    size = getattr(network.backbone, "img_size", None) or 64
    images = jnp.zeros((1, size, size, network.backbone.in_channels))
    return jax.eval_shape(lambda key: network.init(key, images), jax.random.key(0))


def _convert(network: Network, file: WeightFile, new_seed: int | None) -> dict[str, Any]:
    wanted = tensors_of(_shapes(network))
    names = {tensor.name: torchvision_name(network, tensor.name) for tensor in wanted}
    expected = {"torchvision": list(names.values()), "old": [_renamed(name, _OLD) for name in names.values()]}
    given = [name for name in file.tensors if not naming.NO_WEIGHTS.search(name)]
    place = naming.find(given, expected)
    if not place.matches:
        raise DataError(
            f"None of the names in these weights is one of {network.kind}: they are {naming.some(given)}, and the "
            f"network's {naming.some(expected['torchvision'])}. Is it the right network?"
        )
    if place.library == "old":
        names = {own: _renamed(name, _OLD) for own, name in names.items()}
        _warn_of_epsilon(network)
    found, beside = naming.relative_names(given, place, list(names.values()))
    naming.report(network.kind, place, [*beside, *file.others], set(names.values()))
    values = {own: to_numpy(file.tensors[found[name]]) for own, name in names.items() if name in found}
    left_over = [name for name in found if name not in set(names.values())]
    if network.parts().get("aux_head") is None:
        left_over = _without_auxiliary(left_over)
    values |= _new_values(network, wanted, values, new_seed)
    shapes = {name: tuple(file.tensors[found[name]].shape) for name in left_over}
    _raise_if_different(network, wanted, values, names, shapes)
    return assemble(wanted, values)


def _warn_of_epsilon(network: Network) -> None:
    """Warns where norms would not be those that torchvision computes with published weights."""
    epsilon = getattr(network.backbone, "norm_epsilon", None)
    if network.kind == "retinanet" and epsilon:
        log.warning(
            "These weights have the names of torchvision's COCO_V1, which is to be used with norm_epsilon=0.0, and the "
            "backbone's is %g: if it is that file, set norm_epsilon to 0.",
            epsilon,
        )


def _without_auxiliary(names: Sequence[str]) -> list[str]:
    if dropped := [name for name in names if name.startswith("aux_classifier.")]:
        log.info("Left out, because the network has no auxiliary head: %s.", naming.some(dropped))
    return [name for name in names if name not in dropped]


def _new_values(
    network: Network, wanted: Sequence[Tensor], values: Mapping[str, np.ndarray], seed: int | None
) -> dict[str, np.ndarray]:
    """Returns new values for a classifier of another number of classes, and an auxiliary head that is not there.

    Raises:
        DataError: if there is no seed for them.
    """
    shapes = {tensor.name: tensor.shape for tensor in wanted}
    classes = {
        name
        for name, shape in shapes.items()
        if any(part in name for part in _CLASSIFIERS)
        and name in values
        and values[name].shape != shape
        and values[name].shape[1:] == shape[1:]
    }
    auxiliary = {name for name in shapes if name.startswith("aux_head.")}
    if auxiliary & values.keys():
        auxiliary = set()
    if classes and seed is None:
        name = min(classes)
        ours, theirs = shapes[name][0], len(values[name])
        per_class = ours // network.num_classes
        raise DataError(
            f"These weights tell {theirs // per_class} classes apart, and the network {network.num_classes}: set "
            f"num_classes to {theirs // per_class}, or give a seed for a new classifier (new_seed)."
        )
    if auxiliary and seed is None:
        raise DataError(
            "These weights have no auxiliary head: make the network without one (aux=False), or give a seed for a new "
            "one (new_seed)."
        )
    new = [tensor for tensor in wanted if tensor.name in classes | auxiliary]
    if seed is None or not new:
        return {}
    what = [*(["the classifier"] if classes else []), *(["the auxiliary head"] if auxiliary else [])]
    log.info("%s: %s is new, for %d classes.", network.kind, " and ".join(what), network.num_classes)
    size = getattr(network.backbone, "img_size", None) or 64
    images = jnp.zeros((1, size, size, network.backbone.in_channels))
    # Compiled, only what is asked for is computed.
    leaves = jax.jit(lambda key: [_leaf(network.init(key, images), tensor.path) for tensor in new])(
        jax.random.key(seed)
    )
    return {tensor.name: tensor.to_torch(leaf) for tensor, leaf in zip(new, leaves, strict=True)}


def _leaf(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _raise_if_different(
    network: Network,
    wanted: Sequence[Tensor],
    values: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    left_over: Mapping[str, tuple[int, ...]],
) -> None:
    missing = [f"{names[t.name]} {t.shape}" for t in wanted if t.name not in values]
    wrong = [
        f"{names[t.name]} {values[t.name].shape}, not {t.shape}"
        for t in wanted
        if t.name in values and values[t.name].shape != t.shape
    ]
    over = [f"{name} {shape}" for name, shape in left_over.items()]
    parts = naming.differences(missing, over, wrong)
    if parts:
        raise DataError(f"These weights do not fit {network.kind}: {', '.join(parts)}. Is it the right network?")


def _renamed(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
