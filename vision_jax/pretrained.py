"""Weights to and from torch: state dicts of timm and torchvision, safetensors, npz.

The tree of a model's variables is named as the state dict of timm is (of torchvision, for what timm has not), so what
is left to do here is the same for all models: `kernel` and `scale` are torch's `weight`, `mean` and `var` its running
statistics, and kernels are transposed. Numbers are never changed: what `to_torch` gives back is equal bit for bit.
"""

import dataclasses
import logging
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import ConfigError, DataError
from vision_jax.models import registry
from vision_jax.models.registry import Entry, Shape, create_model, entry

log = logging.getLogger(__name__)

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}
# Axes of ours that are torch's: (out, in, height, width) of (height, width, in, out), (out, in) of (in, out).
_KERNEL_AXES = {4: (3, 2, 0, 1), 3: (2, 1, 0), 2: (1, 0)}
# What torch stores beside weights: functions of the architecture, and a counter that nothing reads.
_NO_WEIGHTS = re.compile(r"(^|\.)(num_batches_tracked|relative_position_index|relative_coords_table|attn_mask)$")
# Parts of big_vision's names by which its files are recognised: of ViTs, ResNets and Mixers.
_BIG_VISION = ("encoderblock", "root_block", "MixerBlock")
# What torch's wrappers put before each name.
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """Where a tensor of a state dict is in the tree of variables.

    Attributes:
        name: in the state dict of the model's own library.
        path: collection, modules, leaf.
        index: along the first axis, for layers that are stacked by `nn.scan`; None: all of it.
        axes: of ours that are torch's; None: they are the same.
        shape: torch's.
    """

    name: str
    path: tuple[str, ...]
    index: int | None
    axes: tuple[int, ...] | None
    shape: Shape

    def to_torch(self, value: Any) -> np.ndarray:
        array = np.asarray(value if self.index is None else value[self.index])
        return np.ascontiguousarray(array if self.axes is None else array.transpose(self.axes))

    def from_torch(self, value: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(value if self.axes is None else value.transpose(np.argsort(self.axes)))


def load(
    name: str,
    path: str | pathlib.Path,
    *,
    allow_pickle: bool = False,
    classifier_seed: int | None = 0,
    **options: Any,
) -> dict[str, Any]:
    """Reads a model's variables from a file.

    Args:
        name: the model; see `vision_jax.list_models`.
        path: a safetensors file; an npz file, of tensors under torch's names or of big_vision's; or a file on the
            Hugging Face hub, as hf://timm/resnet50.a1_in1k (its model.safetensors) or hf://OWNER/NAME/FILE.
        allow_pickle: read torch's own files too (.pt, .pth, .bin), with `weights_only`; this needs torch.
        classifier_seed: see `from_torch`.
        **options: of the model, and requests to adapt the weights; see `from_torch`.

    Returns:
        see `from_torch`.

    Raises:
        DataError: if the file cannot be read, or is not of this model.
        ConfigError: for an unknown name or option.
    """
    known = entry(name)
    tensors = read_tensors(path, allow_pickle=allow_pickle)
    if known.big_vision is not None and any(part in key for key in tensors for part in _BIG_VISION):
        tensors = known.big_vision(tensors)
    try:
        return from_torch(name, tensors, classifier_seed=classifier_seed, **options)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_tensors(path: str | pathlib.Path, *, allow_pickle: bool = False) -> dict[str, np.ndarray]:
    """Reads all arrays of a file by their names; see `load`.

    Raises:
        DataError: if that is not possible.
    """
    if str(path).startswith("hf://"):
        path = _download(str(path).removeprefix("hf://"))
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    kind = path.suffix.lower()
    try:
        if kind == ".safetensors":
            return _read_safetensors(path)
        if kind == ".npz":
            with np.load(path) as file:
                return {key: file[key] for key in file.files}
    except Exception as error:  # the formats' readers raise most of Python's exceptions on damaged files
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if kind not in (".pt", ".pth", ".bin", ".tar"):
        raise DataError(f"{path} is neither .safetensors nor .npz, nor one of torch's .pt, .pth, .bin and .tar.")
    if not allow_pickle:
        raise DataError(f"{path} is a torch file, which is a pickle: pass allow_pickle=True to read its weights alone.")
    return _read_torch(path)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    from safetensors import safe_open

    with safe_open(path, framework="flax") as file:  # flax's has bfloat16, which NumPy's has not
        return {key: np.asarray(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118  it is no dict


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise DataError(f"Reading {path} needs torch: pip install torch, or save it as safetensors.") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's errors have no common class
        raise DataError(f"{path} cannot be read as weights alone: {error}") from error
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):  # as timm looks for them
        if isinstance(content.get(key), Mapping):
            log.info("%s: reading its %r.", path, key)
            content = content[key]
            break
    return {key: _to_numpy(value) for key, value in content.items() if hasattr(value, "shape")}


def _to_numpy(value: Any) -> np.ndarray:
    """Returns an array, or a torch tensor, as NumPy's; halves become float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    value = np.asarray(value)
    return value.astype(np.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value


def _download(where: str) -> str:
    """Returns the local path of a file on the Hugging Face hub, which is downloaded unless it is in the hub's cache."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise DataError(f"hf://{where} needs huggingface_hub: pip install huggingface_hub.") from error
    owner, _, rest = where.partition("/")
    repository, _, file = rest.partition("/")
    repository, _, revision = repository.partition("@")
    try:
        return huggingface_hub.hf_hub_download(
            f"{owner}/{repository}", file or "model.safetensors", revision=revision or None
        )
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise DataError(
            f"hf://{where} cannot be had: {error}\nIt has the form hf://OWNER/NAME[@REVISION][/FILE]; a file that was "
            "downloaded before is found without a network."
        ) from error


def from_torch(
    name: str, state_dict: Mapping[str, Any], *, classifier_seed: int | None = 0, **options: Any
) -> dict[str, Any]:
    """Converts a state dict of timm or torchvision into variables; the names tell which it is.

    Where `options` ask for it, the weights are adapted, and a line of log says how:
    - `num_classes`: another number than the state dict's gets a new, randomly initialized classifier; 0 none.
    - `in_channels`: kernels of the first layer are summed for one channel, else repeated, so that their sum is kept.
    - `img_size`: position embeddings and tables are interpolated.
    - heads that only training uses are left out where the model is made without them.

    Args:
        name: the model; see `vision_jax.list_models`.
        state_dict: tensors by name, NumPy's or torch's, kernels as torch stores them.
        classifier_seed: decides a new classifier; None: another number of classes is an error, as is right where
            nothing will be trained.
        **options: of the model.

    Returns:
        `params` and `batch_stats`, float32.

    Raises:
        DataError: if tensors are missing, left over or of another shape; it lists them all.
        ConfigError: for an unknown name or option.
    """
    known = entry(name)
    wanted = _tensors(known, options)
    given = _strip({key: value for key, value in state_dict.items() if not _NO_WEIGHTS.search(key)}, wanted)
    library = _guess_library(known, wanted, given)
    outside = {tensor.name: _names_outside(known, library, tensor) for tensor in wanted}
    values: dict[str, np.ndarray] = {}  # under the names of the model's own library
    for tensor in wanted:
        theirs, shape = outside[tensor.name]
        if theirs in given:
            value = _to_numpy(given[theirs])
            # Where the libraries store the same numbers in other shapes, it is the model's own shape that counts.
            values[tensor.name] = value.reshape(tensor.shape) if value.shape == shape != tensor.shape else value
    _adapt(known, wanted, values, options, classifier_seed=classifier_seed)
    missing = [outside[tensor.name] for tensor in wanted if tensor.name not in values]
    expected = {theirs for theirs, _ in outside.values()}
    left_over = _drop_unused_heads(known, library, [key for key in given if key not in expected], options)
    wrong = [
        f"{outside[tensor.name][0]}: {values[tensor.name].shape}, not {tensor.shape}"
        for tensor in wanted
        if tensor.name in values and values[tensor.name].shape != tensor.shape
    ]
    _raise_if_different(known, missing, left_over, wrong, {key: np.shape(given[key]) for key in left_over})
    return _assemble(wanted, values)


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
    if (library == "timm" and known.library != "timm") or (library == "torchvision" and not known.in_torchvision):
        raise ConfigError(f"{library} has no {name}.")
    state = {}
    for tensor in _tensors_of(variables):
        theirs, shape = _names_outside(known, library, tensor)
        leaf: Any = variables
        for key in tensor.path:
            leaf = leaf[key]
        state[theirs] = tensor.to_torch(leaf).reshape(shape)
    if library == "torchvision" and known.torchvision_buffers is not None:
        state |= known.torchvision_buffers(state)
    return state


def _tensors_of(variables: Mapping[str, Any]) -> list[_Tensor]:
    """Returns the tensors of a tree of variables, of arrays or of their shapes."""
    tensors = []
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables)):
        path = tuple(key.key for key in key_path)
        modules, last = path[1:-1], path[-1]
        # `nn.scan` stacks the layers of "blocks" along a first axis; otherwise each has a number for its name.
        stacked = modules[:1] == ("blocks",) and not modules[1].isdigit()
        shape = tuple(leaf.shape)[1 if stacked else 0 :]
        axes = _KERNEL_AXES.get(len(shape)) if last == "kernel" else None
        for index in range(leaf.shape[0]) if stacked else (None,):
            place = modules if index is None else ("blocks", str(index), *modules[1:])
            name = ".".join((*place, _LEAVES.get(last, last)))
            tensors.append(_Tensor(name, path, index, axes, shape if axes is None else tuple(shape[i] for i in axes)))
    return tensors


def _tensors(known: Entry, options: Mapping[str, Any]) -> list[_Tensor]:
    return _tensors_of(_init_shapes(known, options))


def _init_shapes(known: Entry, options: Mapping[str, Any]) -> Any:
    return jax.eval_shape(_init(known, options), jax.random.key(0))


def _init(known: Entry, options: Mapping[str, Any]) -> Callable[[jax.Array], Any]:
    """Returns what makes the initial variables of a key."""
    model = create_model(known.name, **options)
    size = getattr(model, "img_size", None) or known.input.size
    images = jnp.zeros((1, size, size, model.in_channels))
    return lambda key: dict(model.init(key, images, train=False))


def _names_outside(known: Entry, library: str, tensor: _Tensor) -> tuple[str, Shape]:
    if library == "torchvision" and known.torchvision is not None:
        return known.torchvision(tensor.name, tensor.shape)
    return tensor.name, tensor.shape


def _strip(given: Mapping[str, Any], wanted: Iterable[_Tensor]) -> dict[str, Any]:
    """Removes what torch's wrappers put before all names."""
    given = dict(given)
    own = {tensor.name for tensor in wanted}
    for prefix in _PREFIXES:
        if given and all(key.startswith(prefix) for key in given) and not own & given.keys():
            given = {key.removeprefix(prefix): value for key, value in given.items()}
    return given


def _guess_library(known: Entry, wanted: Iterable[_Tensor], given: Mapping[str, Any]) -> str:
    """Returns the library whose names the state dict has, more of them than of the other's."""
    libraries = [known.library] + (["torchvision"] if known.torchvision is not None else [])
    matches = {
        library: sum(_names_outside(known, library, tensor)[0] in given for tensor in wanted) for library in libraries
    }
    return max(libraries, key=lambda library: matches[library])


def _adapt(
    known: Entry,
    wanted: list[_Tensor],
    values: dict[str, np.ndarray],
    options: Mapping[str, Any],
    *,
    classifier_seed: int | None,
) -> None:
    """Changes `values`, by name, to what `options` ask for."""
    shapes = {tensor.name: tensor.shape for tensor in wanted}

    def different(option: str, other: Any) -> list[str]:
        """The tensors whose shapes depend on an option, and are not as they should be."""
        if option not in options:
            return []
        changed = {tensor.name: tensor.shape for tensor in _tensors(known, {**options, option: other})}
        return [
            key
            for key, shape in shapes.items()
            if changed.get(key) != shape and key in values and values[key].shape != shape
        ]

    if (
        classifier_seed is not None
        and options.get("num_classes")
        and (head := different("num_classes", options["num_classes"] + 1))
    ):
        names = set(head) | {
            key
            for key in shapes
            if key.rpartition(".")[0] in {h.rpartition(".")[0] for h in head} and key.endswith(("weight", "bias"))
        }
        log.info(
            "%s: the classifier is new, for %d classes (%s).",
            known.name,
            options["num_classes"],
            ", ".join(f"{key} {values[key].shape} -> {shapes[key]}" for key in sorted(names & values.keys())),
        )
        init = _init(known, options)
        new = [tensor for tensor in wanted if tensor.name in names]
        # Compiled, only what is asked for is computed.
        leaves = jax.jit(lambda key: [_leaf(init(key), tensor.path) for tensor in new])(jax.random.key(classifier_seed))
        for tensor, leaf in zip(new, leaves, strict=True):
            values[tensor.name] = tensor.to_torch(leaf)
    if "in_channels" in options:
        for key in different("in_channels", options["in_channels"] + 1):
            log.info("%s: %s is adapted to %d channels.", known.name, key, options["in_channels"])
            values[key] = _change_channels(values[key], options["in_channels"])
    size = options.get("img_size")
    if size and known.resample is not None:
        for key in different("img_size", size * 2):
            log.info("%s: %s is interpolated, %s -> %s.", known.name, key, values[key].shape, shapes[key])
            values[key] = known.resample(key, values[key], shapes[key])


def _leaf(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _change_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Returns a kernel, (out, in, height, width), for another number of input channels.

    Grey images get the sum. Otherwise kernels are repeated in turn and scaled so that their sum has the same size, as
    timm does it.
    """
    if channels == 1:
        return kernel.sum(1, keepdims=True)
    old = kernel.shape[1]
    repeated = np.concatenate([kernel] * math.ceil(channels / old), 1)[:, :channels]
    return repeated * np.float32(old / channels)


def _drop_unused_heads(known: Entry, library: str, left_over: list[str], options: Mapping[str, Any]) -> list[str]:
    """Returns the names that are left over, without those of heads that the model is made without."""
    unused: set[str] = set()
    rest = {key: value for key, value in options.items() if options.get("num_classes") or key != "num_classes"}
    if options.get("num_classes") == 0:
        unused |= {_names_outside(known, library, tensor)[0] for tensor in _tensors(known, rest)}
    if "aux_logits" in registry.option_names(known.name) and not options.get("aux_logits"):
        with_heads = _tensors(known, {**rest, "aux_logits": True})
        unused |= {_names_outside(known, library, tensor)[0] for tensor in with_heads}
    if dropped := [key for key in left_over if key in unused]:
        log.info("%s: left out, because the model has no such head: %s.", known.name, ", ".join(sorted(dropped)))
    return [key for key in left_over if key not in unused]


def _raise_if_different(
    known: Entry,
    missing: list[tuple[str, Shape]],
    left_over: list[str],
    wrong: list[str],
    shapes: Mapping[str, Shape],
) -> None:
    if not (missing or left_over or wrong):
        return
    lines = [f"These weights do not fit {known.name}."]
    for title, items in (
        ("missing", [f"{name}: {shape}" for name, shape in missing]),
        ("left over", [f"{name}: {shapes[name]}" for name in left_over]),
        ("of another shape", wrong),
    ):
        if items:
            lines.append(f"{title}, {len(items)}:" + "".join(f"\n  - {item}" for item in sorted(items)))
    lines.append(
        "Is it the right model? Another number of classes or channels, or another image size, is adapted where "
        "num_classes, in_channels or img_size ask for it."
    )
    raise DataError("\n".join(lines))


def _assemble(wanted: list[_Tensor], values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Builds the tree of variables."""
    parts: dict[tuple[str, ...], list[np.ndarray]] = {}
    stacked = set()
    for tensor in wanted:  # in the order of their indices
        parts.setdefault(tensor.path, []).append(tensor.from_torch(values[tensor.name]))
        if tensor.index is not None:
            stacked.add(tensor.path)
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for path, arrays in parts.items():
        node = variables
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = np.stack(arrays) if path in stacked else arrays[0]
    return variables
