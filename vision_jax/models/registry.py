"""Names of models, how one is made from its name, and what is known of its published weights."""

import dataclasses
import fnmatch
import functools
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import ConfigError, suggest

Shape = tuple[int, ...]
# From a tensor's name and shape in the tree of variables, in torch's layout, to those in another library's state dict.
Naming = Callable[[str, Shape], tuple[str, Shape]]
Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """The images that a model's published weights expect.

    Attributes:
        size: height and width.
        mean, std: normalization, in units where a pixel is between 0 and 1.
        interpolation: "bilinear" or "bicubic", with which evaluation images are resized.
        crop_pct: share of the resized shorter side that is cropped.
        channels: 3: RGB, 1: grayscale.
    """

    size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    channels: int = 3


# Where pixels between 0 and 1 become -1 to 1, as for weights that were trained by TensorFlow.
HALVES = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model that is known by its name.

    Attributes:
        name: timm's, or torchvision's for what timm has not.
        create: makes the module from its options.
        input: of the weights that timm (or torchvision) loads by default.
        library: "timm" or "torchvision", after whose state dict the tree of variables is named; "": neither has it.
        torchvision: from these names to torchvision's; None: it has no such model, or the same names.
        authors: from these names to those in the checkpoints of the model's authors; None: they are timm's, or
            torchvision's.
        in_torchvision: torchvision has the model.
        torchvision_buffers: from the tensors of torchvision's state dict to what it stores beside them, and misses when
            it loads strictly; None: nothing.
        big_vision: from the arrays of an `.npz` file as google-research/big_vision writes them to the state dict of
            `library`; None: it has no such model.
        resample: from a tensor's name, its value and the shape that it should have, to the value for another image
            size; None: no tensor depends on it.
        defaults: options that the model has by this name, unless they are given.
    """

    name: str
    create: Callable[..., nn.Module]
    input: InputSpec
    library: str
    torchvision: Naming | None
    authors: Naming | None
    in_torchvision: bool
    torchvision_buffers: Callable[[Tensors], dict[str, np.ndarray]] | None
    big_vision: Callable[[Tensors], dict[str, np.ndarray]] | None
    resample: Callable[[str, np.ndarray, Shape], np.ndarray] | None
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_MODELS: dict[str, Entry] = {}
# By another name: that of the model, the input of the weights of that name, and options that the model has by it.
_ALIASES: dict[str, tuple[str, InputSpec, Mapping[str, Any]]] = {}


def register(
    name: str,
    create: Callable[..., nn.Module],
    input: InputSpec = InputSpec(),
    *,
    library: str = "timm",
    torchvision: Naming | None = None,
    authors: Naming | None = None,
    in_torchvision: bool = False,
    torchvision_buffers: Callable[[Tensors], dict[str, np.ndarray]] | None = None,
    big_vision: Callable[[Tensors], dict[str, np.ndarray]] | None = None,
    resample: Callable[[str, np.ndarray, Shape], np.ndarray] | None = None,
    aliases: Sequence[str] | Mapping[str, InputSpec] = (),
    backbones: Mapping[str, InputSpec] | None = None,
) -> None:
    """Makes `create(**options)` known as `name`; arguments as the attributes of `Entry`.

    A config file or a notebook may register its model again, as when it is read twice.

    Args:
        aliases: other libraries' names of the same function, with the input of their weights where it is another.
        backbones: tags that timm puts behind the name for weights without a classifier, such as "dino", with the input
            of these weights. By such a name, the model has no classifier.
    """
    in_torchvision = in_torchvision or torchvision is not None or library == "torchvision"
    others: dict[str, tuple[str, InputSpec, Mapping[str, Any]]] = {
        alias: (name, aliases[alias] if isinstance(aliases, Mapping) else input, {}) for alias in aliases
    }
    others |= {f"{name}.{tag}": (name, spec, {"num_classes": 0}) for tag, spec in (backbones or {}).items()}
    if name in _MODELS and _is_own(create) and _module(create) == _module(_MODELS[name].create):
        del _MODELS[name]
        for alias in [alias for alias, (model, *_) in _ALIASES.items() if model == name]:
            del _ALIASES[alias]
    for known in (name, *others):
        if known in _MODELS or known in _ALIASES:
            raise ConfigError(f"There is a model {known!r} already: register yours by another name.")
    _ALIASES.update(others)
    _MODELS[name] = Entry(
        name, create, input, library, torchvision, authors, in_torchvision, torchvision_buffers, big_vision, resample
    )


def _module(create: Callable[..., nn.Module]) -> str:
    """Returns the name of the module that something which makes models is from."""
    while isinstance(create, functools.partial):
        create = create.func
    return create.__module__


def _is_own(create: Callable[..., nn.Module]) -> bool:
    """Returns whether it is from outside of this package, where each name is registered once."""
    return not _module(create).startswith("vision_jax.")


def list_models(pattern: str = "*") -> list[str]:
    """Returns the sorted names that match a pattern of `fnmatch`, such as `resnet*`; no aliases."""
    return sorted(fnmatch.filter(_MODELS, pattern))


def aliases() -> dict[str, str]:
    """Returns the other names that models are known by: alias to name."""
    return {alias: name for alias, (name, *_) in _ALIASES.items()}


def entry(name: str) -> Entry:
    """Returns what is known of a model by its name or an alias; `input` and `defaults` may be the alias's own.

    Raises:
        ConfigError: if there is none.
    """
    if name in _ALIASES:
        model, input, defaults = _ALIASES[name]
        return dataclasses.replace(_MODELS[model], input=input, defaults=defaults)
    if name not in _MODELS:
        listed_by = "python -m vision_jax models"
        hint = suggest(name, [*_MODELS, *_ALIASES], listed_by)
        if hint.startswith(listed_by):  # it is like none of ours
            hint += " If a config file registers it, pass --config=FILE."
        raise ConfigError(f"There is no model {name!r}: {hint}")
    return _MODELS[name]


def option_names(name: str) -> list[str]:
    """Returns the names of the options that `create_model` takes for a model.

    Raises:
        ConfigError: if there is no such model.
    """
    return [field.name for field in dataclasses.fields(entry(name).create()) if field.name not in ("parent", "name")]


def input_of(model: nn.Module) -> InputSpec:
    """Returns the images that the published weights of a module's architecture expect; its options do not matter.

    Raises:
        ConfigError: if it was made by no name, or by one of several whose weights expect different images.
    """
    inputs: dict[InputSpec, list[str]] = {}
    for name in list_models():
        plain = _MODELS[name].create()
        if type(plain) is type(model):
            options = {key: getattr(model, key) for key in _OPTIONS if hasattr(model, key)}
            if plain.clone(**options) == model.clone(parent=None, name=None):
                inputs.setdefault(_MODELS[name].input, []).append(name)
    if len(inputs) > 1 and hasattr(model, "img_size"):
        inputs = {spec: names for spec, names in inputs.items() if spec.size == model.img_size} or inputs
    if len(inputs) == 1:
        return next(iter(inputs))
    names = ", ".join(name for names in inputs.values() for name in names)
    raise ConfigError(
        f"The model is {f'one of {names}' if names else f'a {type(model).__name__} of its own'}, so what images it "
        "expects is not known: say so."
    )


# Options of models that do not make them another architecture.
_OPTIONS = (
    *("num_classes", "in_channels", "dtype", "drop_rate", "drop_path_rate", "proj_drop_rate", "drop_path_uniform"),
    *("bn_group_size", "img_size", "zero_init_last", "head_bias", "head_std", "weight_init", "interpolate_positions"),
    *("scan_blocks", "remat", "aux_logits", "feature_blocks", "norm_before_head"),
    *("output_stride", "norm_epsilon"),
)


def create_model(name: str, *, dtype: Any = jnp.float32, **options: Any) -> nn.Module:
    """Returns a model: a module to be called as `module.apply(variables, images, train=False)`.

    Images are (batch, height, width, channels), normalized; logits are (batch, num_classes) float32. The method
    "features" gives the pooled representation, (batch, features) float32, and "feature_maps" what was before, by
    stride.
    In training, what drops units needs a key: `rngs={"dropout": key}`.

    Args:
        name: one of `list_models()`, or an alias.
        dtype: what it computes in; parameters and batch statistics are float32.
        **options: fields of the module, such as `num_classes`, `in_channels`, `drop_rate` and `drop_path_rate`.

    Raises:
        ConfigError: for an unknown name or option, or an option that the model cannot have.
    """
    known = entry(name)
    options = {**known.defaults, **options}
    fields = option_names(name)
    if unknown := sorted(options.keys() - set(fields)):
        raise ConfigError(f"{name} has no option {unknown[0]!r}: {suggest(unknown[0], fields)}")
    classes = options.get("num_classes", 0)
    if isinstance(classes, bool) or not isinstance(classes, numbers.Integral) or classes < 0:
        raise ConfigError(f"num_classes is {classes!r}: give a whole number, or 0 for no classifier.")
    for key, rate in options.items():
        if key.endswith("_rate") and not 0 <= rate <= 1:
            raise ConfigError(f"{key} is {rate!r}: it is a probability, between 0 and 1.")
    try:
        dtype = jnp.dtype(dtype)
    except TypeError as error:
        raise ConfigError(f"dtype is {dtype!r}: give float32, bfloat16 or float16.") from error
    model = known.create(dtype=dtype, **options)
    if options.get("drop_path_rate") and not getattr(model, "residual", True):
        raise ConfigError(f"{name} has no residual branches to drop: leave drop_path_rate at 0.")
    return model
