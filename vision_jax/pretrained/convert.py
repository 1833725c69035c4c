"""Weights to and from torch: state dicts of timm, torchvision and the models' authors."""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax.errors import ConfigError, DataError
from vision_jax.models.registry import Entry, Shape, entry
from vision_jax.pretrained import files, methods, naming
from vision_jax.pretrained.adapt import adapt_classifier, adapt_input, class_axes, drop_class_token, unused_heads
from vision_jax.pretrained.classes import Classes, imagenet_classes
from vision_jax.pretrained.files import WeightFile
from vision_jax.pretrained.tensors import Tensor, assemble, model_tensors, namings, tensors_of, to_numpy

log = logging.getLogger(__name__)

# Parts of big_vision's names by which its files are recognised: of ViTs, ResNets and Mixers.
_BIG_VISION = ("encoderblock", "root_block", "MixerBlock")
_UNKNOWN = Classes()


def load(
    name: str,
    path: str | pathlib.Path | WeightFile,
    *,
    classifier_seed: int | None = 0,
    classes: Classes = _UNKNOWN,
    **options: Any,
) -> dict[str, Any]:
    """Reads a model's variables from a file.

    Of a self-supervised method's checkpoint, which its names tell, it is the backbone.

    Args:
        name: the model; see `vision_jax.list_models`.
        path: a safetensors file, or the index of several; a file of torch's, a state dict or a checkpoint that has one
            in it; an npz file, of tensors under torch's names or of big_vision's. Either a local one, or one on the
            Hugging Face hub, as hf://timm/resnet50.a1_in1k (its model.safetensors) or hf://OWNER/NAME/FILE. Or what
            `read` has read.
        classifier_seed: see `from_torch`.
        classes: see `from_torch`.
        **options: of the model, and requests to adapt the weights; see `from_torch`.

    Returns:
        see `from_torch`.

    Raises:
        DataError: if the file cannot be read, or is not of this model.
        ConfigError: for an unknown name or option.
    """
    known, file = entry(name), _read(name, path)
    try:
        return _convert(known, file, {**known.defaults, **options}, classifier_seed, classes)
    except DataError as error:
        raise DataError(f"{file.path}: {error}") from error


def from_torch(
    name: str,
    state_dict: Mapping[str, Any],
    *,
    classifier_seed: int | None = 0,
    classes: Classes = _UNKNOWN,
    **options: Any,
) -> dict[str, Any]:
    """Converts a state dict of timm, torchvision or a model's authors into variables; the names tell which it is.

    The weights may be inside of further dictionaries, and their names may have prefixes. Of several sets, as in a
    checkpoint with a moving average, one is taken, and a line of log says which; see `naming.find`. What trainings keep
    beside the weights is left out.

    Where `options` ask for it, the weights are adapted, and a line of log says how:
    - `num_classes`: rows of the classifier are taken over where `classes` tell which; another number of classes, or
      weights without a classifier, otherwise get a new one, randomly initialized. 0: none.
    - `in_channels`: kernels of the first layer are summed for one channel, else repeated, so that their sum is kept.
    - `img_size`: position embeddings and tables are interpolated. They are taken for those of a square grid, unless the
      file says that the images were not square: 36 positions could be of 4 x 9, and do not tell.
    - heads that only training uses are left out where the model is made without them, and so are the class token and
      its position where `class_token` is False.

    Args:
        name: the model; see `vision_jax.list_models`.
        state_dict: tensors by name, NumPy's or torch's, kernels as torch stores them.
        classifier_seed: decides a new classifier; None: where one would be needed is an error, as is right where
            nothing will be trained.
        classes: what the classes of the model and of the weights are called.
        **options: of the model.

    Returns:
        `params` and `batch_stats`, float32.

    Raises:
        DataError: if tensors are missing, left over or of another shape; it names some of them.
        ConfigError: for an unknown name or option.
    """
    known = entry(name)
    return _convert(known, files.from_content(state_dict), {**known.defaults, **options}, classifier_seed, classes)


def _convert(
    known: Entry, file: WeightFile, options: Mapping[str, Any], classifier_seed: int | None, classes: Classes
) -> dict[str, Any]:
    """Does what `from_torch` says with what a file holds."""
    size = file.image_size
    if known.resample is not None and size is not None and size[0] != size[1]:
        raise DataError(f"These weights are for images of {size[0]} x {size[1]} pixels: only square ones can be used.")
    wanted = model_tensors(known, options)
    matched = _match(known, file, wanted)
    own, values = matched.expected, matched.values
    naming.report(known.name, matched.place, [*matched.beside, *file.others], own)
    if method := methods.method_of(file.tensors):
        log.info("%s: the file is a checkpoint of %s, of which this is the backbone.", known.name, method.title)
    before = set(values)
    adapt_classifier(known, wanted, values, options, seed=classifier_seed, classes=classes, in_file=file.class_names)
    left_over = [key for key in matched.found if key not in own]
    if "fc_norm.weight" in values.keys() - before:
        left_over = [key for key in left_over if not key.startswith("norm.")]
    left_over = _drop_unused_heads(known, matched.place.library, left_over, options)
    left_over = drop_class_token(known, values, left_over, options)
    if not left_over and all(tensor.name in values for tensor in wanted):
        adapt_input(known, wanted, values, options)
    shapes = {key: tuple(file.tensors[matched.found[key]].shape) for key in left_over}
    _raise_if_different(known, matched.names, wanted, values, shapes, file)
    return assemble(wanted, values)


@dataclasses.dataclass(frozen=True)
class _Matched:
    """The tensors of a model in a file.

    Attributes:
        place: where they are.
        names: by the model's own name, the name and shape in the library whose names the file has.
        found: names there that are the model's or are left over, to those in the file.
        beside: names of what the file has besides.
        values: under the names of the model's own library, in the shapes of the file.
    """

    place: naming.Place
    names: dict[str, tuple[str, Shape]]
    found: dict[str, str]
    beside: list[str]
    values: dict[str, np.ndarray]

    @property
    def expected(self) -> list[str]:
        """All names that the model has in that library."""
        return [name for name, _ in self.names.values()]


def _match(known: Entry, file: WeightFile, wanted: Sequence[Tensor]) -> _Matched:
    """Finds the tensors of a model in a file.

    Raises:
        DataError: if there is none.
    """
    outside = {
        library: {tensor.name: theirs(tensor.name, tensor.shape) for tensor in wanted}
        for library, theirs in namings(known).items()
    }
    expected = {library: [name for name, _ in names.values()] for library, names in outside.items()}
    given = [key for key in file.tensors if not naming.NO_WEIGHTS.search(key)]
    place = naming.find(given, expected)
    if not place.matches:
        raise DataError(
            f"None of the names in these weights is one of {known.name}: they are {naming.some(given)}, and the "
            f"model's {naming.some(expected[place.library])}. Is it the right model?"
        )
    found, beside = naming.relative_names(given, place, expected[place.library])
    if (method := methods.method_of(given)) and method.projector:
        # In the place of the classifier it has its projector, which may even have a classifier's names.
        projector = [rest for rest in found if rest.startswith(method.projector)]
        beside += [found.pop(rest) for rest in projector]
    values: dict[str, np.ndarray] = {}
    for tensor in wanted:
        theirs, shape = outside[place.library][tensor.name]
        if theirs in found:
            value = to_numpy(file.tensors[found[theirs]])
            # Where the libraries store the same numbers in other shapes, it is the model's own shape that counts.
            values[tensor.name] = value.reshape(tensor.shape) if value.shape == shape != tensor.shape else value
    return _Matched(place, outside[place.library], found, beside, values)


def classes_of(name: str, path: str | pathlib.Path | WeightFile, **options: Any) -> tuple[int, tuple[str, ...]]:
    """Returns how many classes the weights of a model tell apart, and their names as far as the file has them.

    Args:
        name: the model; see `vision_jax.list_models`.
        path: of the weights; see `load`.
        **options: of the model.

    Raises:
        DataError: if the file cannot be read, has other tensors, or no classifier.
        ConfigError: for an unknown name or option.
    """
    known, file = entry(name), _read(name, path)
    options = {"num_classes": len(imagenet_classes()), **options}
    wanted = model_tensors(known, options)
    try:
        values = _match(known, file, wanted).values
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    for key, axis in class_axes(known, wanted, options).items():
        if key in values and values[key].ndim > axis:
            count = values[key].shape[axis]
            return count, file.class_names if len(file.class_names) == count else ()
    raise DataError(f"{path} has no classifier of {name}: it cannot tell classes apart.")


def _read(name: str, path: str | pathlib.Path | WeightFile) -> WeightFile:
    """Reads a file for a model; of big_vision's names it makes torch's."""
    known, file = entry(name), files.read(path)
    if known.big_vision is not None and any(part in key for key in file.tensors for part in _BIG_VISION):
        arrays = {key: to_numpy(value) for key, value in file.tensors.items()}
        return dataclasses.replace(file, tensors=known.big_vision(arrays))
    return file


def _drop_unused_heads(known: Entry, library: str, left_over: list[str], options: Mapping[str, Any]) -> list[str]:
    """Returns the names that are left over, without those of heads that the model is made without."""
    if not left_over:
        return []
    theirs = namings(known)[library]
    unused = {theirs(tensor.name, tensor.shape)[0] for tensor in unused_heads(known, options)}
    if dropped := [key for key in left_over if key in unused]:
        log.info("%s: left out, because the model has no such head: %s.", known.name, ", ".join(sorted(dropped)))
    return [key for key in left_over if key not in unused]


def _raise_if_different(
    known: Entry,
    names: Mapping[str, tuple[str, Shape]],
    wanted: list[Tensor],
    values: Mapping[str, np.ndarray],
    left_over: Mapping[str, Shape],
    file: WeightFile,
) -> None:
    missing = [f"{names[t.name][0]} {names[t.name][1]}" for t in wanted if t.name not in values]
    wrong = [
        f"{names[t.name][0]} {values[t.name].shape}, not {t.shape}"
        for t in wanted
        if t.name in values and values[t.name].shape != t.shape
    ]
    over = [f"{name} {shape}" for name, shape in left_over.items()]
    parts = naming.differences(missing, over, wrong)
    if not parts:
        return
    if file.unreadable:
        types = [f"{name}: {type_}" for name, type_ in file.unreadable.items()]
        parts.append(f"{len(types)} of types that are not read ({naming.some(types)})")
    raise DataError(
        f"These weights do not fit {known.name}: {', '.join(parts)}. Is it the right model? Another number of classes "
        "or channels, or another image size, is adapted where num_classes, in_channels or img_size ask for it."
    )


def has_model(known: Entry, library: str) -> bool:
    """Returns whether "timm" or "torchvision" has a model."""
    return known.library == "timm" if library == "timm" else known.in_torchvision


def to_torch(name: str, variables: Mapping[str, Any], library: str | None = None) -> dict[str, np.ndarray]:
    """Converts variables into a state dict.

    Args:
        name: the model; see `vision_jax.list_models`.
        variables: `params` and `batch_stats`, if it has any.
        library: "timm" or "torchvision": whose names; None: timm's, or torchvision's for what timm has not.

    Returns:
        NumPy arrays by name, kernels as torch stores them. The counters of batch norms are left out: torch does not
        ask for them.

    Raises:
        ConfigError: if the library does not have the model.
    """
    known = entry(name)
    library = library or known.library
    if library not in ("timm", "torchvision", ""):
        raise ConfigError(f"library is {library!r}: there are timm and torchvision.")
    if library and not has_model(known, library):
        raise ConfigError(f"{library} has no {name}: --format=onnx and stablehlo are for any model.")
    theirs = namings(known).get(library, namings(known)[known.library])
    state = {}
    for tensor in tensors_of(variables):
        key, shape = theirs(tensor.name, tensor.shape)
        leaf: Any = variables
        for part in tensor.path:
            leaf = leaf[part]
        state[key] = tensor.to_torch(leaf).reshape(shape)
    if library == "torchvision" and known.torchvision_buffers is not None:
        state |= known.torchvision_buffers(state)
    return state
