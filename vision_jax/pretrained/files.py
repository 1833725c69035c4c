"""Reads files of weights, onto the host: safetensors, whole or in shards, npz, and torch's own.

What kind a file is, its first bytes tell, whatever it is called.
"""

import dataclasses
import json
import logging
import math
import pathlib
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vision_jax.errors import DataError, one_line, reason
from vision_jax.pretrained import torch_files

log = logging.getLogger(__name__)

HUB = "hf://"
_KINDS = "safetensors, *.safetensors.index.json, npz and torch's own files are read"
# https://github.com/huggingface/safetensors#format
_SAFETENSORS_DTYPES: dict[str, Any] = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16},
    **{"F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_},
}
_MAX_HEADER = 100_000_000  # bytes; safetensors' own limit


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        path: of the file.
        tensors: by name, those of nested dictionaries with the names of all of these, joined by dots. Arrays, or what
            has a `shape` and gives one by `numpy()`.
        others: names on the uppermost level of what are no tensors.
        unreadable: of tensors of types that are not read, and what they are.
        class_names: of the classes that the weights tell apart, if the file says so; empty: it does not.
        image_size: (height, width) of the images that they were trained on, if the file says so.
    """

    path: str
    tensors: Mapping[str, Any]
    others: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None

    def __str__(self) -> str:
        return self.path

    def renamed(self, rename: Callable[[str], str | None]) -> "WeightFile":
        """Returns the file with other names for its tensors, and without those whose name becomes None."""
        names = {name: new for name in self.tensors if (new := rename(name)) is not None}
        return dataclasses.replace(self, tensors={new: self.tensors[name] for name, new in names.items()})


def is_workdir(path: str | pathlib.Path) -> bool:
    """Returns whether a path is the workdir of a run, with its checkpoints."""
    return (pathlib.Path(path).expanduser() / "checkpoints").is_dir()


def read(path: str | pathlib.Path | WeightFile) -> WeightFile:
    """Reads a file of weights.

    Args:
        path: a local file, or hf://OWNER/NAME[@REVISION][/FILE] on the Hugging Face hub, whose FILE is
            model.safetensors unless given; or a file that has been read, which is returned.

    Raises:
        DataError: if that is not possible.
    """
    if isinstance(path, WeightFile):
        return path
    name = str(path)
    local = pathlib.Path(_download(name.removeprefix(HUB)) if name.startswith(HUB) else path).expanduser()
    if is_workdir(local):
        raise DataError(
            f"{path} is the workdir of a run: write its weights to a file by `python -m vision_jax export`."
        )
    if local.is_dir():
        raise DataError(
            f"{path} is a folder: give a file of weights, or the workdir of a run, which holds checkpoints/."
        )
    if not local.is_file():
        raise DataError(f"There is no file {path}: give a file of weights, or hf://OWNER/NAME of the Hugging Face hub.")
    try:
        return _read(local, name)
    except DataError:
        raise
    except Exception as error:  # the formats' readers raise most of Python's exceptions on damaged files
        raise DataError(
            f"{path} cannot be read: {type(error).__name__}: {one_line(reason(error))}. Copy or download it again."
        ) from error


def _read(path: pathlib.Path, name: str) -> WeightFile:
    with path.open("rb") as file:
        start = file.read(64)
    if start[:1] == b"{":
        return _read_shards(path, name)
    if start[8:9] == b"{":
        tensors, metadata = _read_safetensors(path)
        names = json.loads(metadata.get("class_names", "[]"))
        return WeightFile(name, tensors, class_names=tuple(str(class_name) for class_name in names))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
        if members and all(member.endswith(".npy") for member in members):
            return WeightFile(name, _read_npz(path))
        if any(member.endswith("data.pkl") for member in members):
            return _torch_file(name, torch_files.read_archive(path))
    if start.startswith(torch_files.LEGACY_START):
        return _torch_file(name, torch_files.read_legacy(path))
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{name} is a pointer of Git LFS in place of the file: get it by `git lfs pull`.")
    if start[:1] == b"\x80":
        raise DataError(f"{name} is a pickle that torch.save did not write: save its weights as safetensors or npz.")
    raise DataError(f"{name} is of an unknown kind, or damaged: {_KINDS}.")


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        try:
            arrays = {key: file[key] for key in file.files}
        except ValueError as error:
            raise DataError(f"{path} holds Python objects, which are not read, or is damaged.") from error
    # NumPy's files have no bfloat16: they hold its bytes.
    halves = np.dtype("V2")
    return {key: value.view(jnp.bfloat16) if value.dtype == halves else value for key, value in arrays.items()}


def _read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the tensors of a file, as a map of its memory, and its metadata."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size - 8, _MAX_HEADER):
            raise DataError(f"{path} is damaged: its header claims {length} bytes. Copy or download it again.")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    data = np.memmap(path, np.uint8, "r")[8 + length :] if size > 8 + length else np.empty(0, np.uint8)
    tensors = {}
    for key, about in header.items():
        first, last = about["data_offsets"]
        if about["dtype"] not in _SAFETENSORS_DTYPES:
            raise DataError(f"{path}: {key} has the dtype {about['dtype']}, which is not read: save it as F32 or BF16.")
        dtype = np.dtype(_SAFETENSORS_DTYPES[about["dtype"]])
        if not (0 <= first <= last <= len(data) and last - first == math.prod(about["shape"]) * dtype.itemsize):
            raise DataError(f"{path} is damaged or cut off at {key}: copy or download it again.")
        tensors[key] = np.frombuffer(data[first:last], dtype).reshape(about["shape"])
    return tensors, metadata


def _read_shards(path: pathlib.Path, name: str) -> WeightFile:
    """Reads the files that an index names, as the Hugging Face hub has large models."""
    places = json.loads(path.read_bytes()).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise DataError(f"{name} is no index of shards: it has no weight_map. ({_KINDS[0].upper()}{_KINDS[1:]}.)")
    shards: dict[str, Mapping[str, Any]] = {}
    for shard in sorted(set(places.values())):
        if pathlib.PurePath(shard).name != shard:
            raise DataError(f"{name} names the shard {shard!r}, which is not in its folder.")
        if name.startswith(HUB):
            where = pathlib.Path(_download(f"{name.removeprefix(HUB).rpartition('/')[0]}/{shard}"))
        else:
            where = path.with_name(shard)
        if not where.is_file():
            raise DataError(
                f"{name} names {len(set(places.values()))} shards, and {shard} is missing beside it: put it there."
            )
        shards[shard] = _read(where, str(where)).tensors
    if lost := [key for key, shard in places.items() if key not in shards[shard]]:
        raise DataError(f"{name} says that {lost[0]} is in {places[lost[0]]}, where it is not: download both again.")
    return WeightFile(name, {key: shards[shard][key] for key, shard in places.items()})


def _torch_file(name: str, content: Any) -> WeightFile:
    """Describes what torch saved."""
    read = from_content(content, name)
    if not read.tensors:
        what = next(iter(read.unreadable.values()), f"an object of the class {type(content).__name__}")
        if isinstance(content, torch_files.Foreign):
            what = f"an object of the class {content.class_name}"
        raise DataError(
            f"{name} holds no tensors by name, but {what}: write it by torch.save(model.state_dict(), FILE)."
        )
    arguments: Any = content.get("args") if isinstance(content, Mapping) else None
    arguments = arguments.state if isinstance(arguments, torch_files.Foreign) else arguments
    return dataclasses.replace(read, image_size=_image_size(arguments))


def _image_size(arguments: Any) -> tuple[int, int] | None:
    """Returns the size of images among the options of a training, as timm and others call and write it."""
    for key in ("input_size", "img_size", "image_size"):
        size = arguments.get(key) if isinstance(arguments, Mapping) else None
        if isinstance(size, list | tuple) and len(size) in (2, 3) and all(isinstance(n, int) for n in size):
            return size[-2], size[-1]  # (channels, height, width), or without channels
        if isinstance(size, int) and size:
            return size, size
    return None


def from_content(content: Any, name: str = "") -> WeightFile:
    """Describes a state dict, or dictionaries of them within each other."""
    tensors: dict[str, Any] = {}
    others: dict[str, None] = {}
    unreadable: dict[str, str] = {}
    for key, value in _flatten(content, ()):
        if torch_files.is_unreadable(value):
            unreadable[".".join(key)] = value.class_name
        elif key and hasattr(value, "shape") and hasattr(value, "dtype"):
            tensors[".".join(key)] = value
        elif key:
            others[key[0]] = None
    return WeightFile(name, tensors, tuple(others), unreadable)


def _flatten(value: Any, key: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Gives all that is in dictionaries, lists and pickled modules, with the names that lead there."""
    if torch_files.is_module(value):
        value = torch_files.module_entries(value)
    if isinstance(value, Mapping):
        items = [(str(name), item) for name, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(i), item) for i, item in enumerate(value)]
    else:
        yield key, value
        return
    for name, item in items:
        if item is not None:
            yield from _flatten(item, (*key, name))


def find_beside(path: str | pathlib.Path, names: Sequence[str]) -> pathlib.Path | None:
    """Returns the first of some files that is there beside a file of weights, in its folder or its repository.

    Args:
        path: of the weights; see `read`.
        names: of the files.

    Raises:
        DataError: if the Hugging Face hub cannot be asked.
    """
    if not str(path).startswith(HUB):
        folder = pathlib.Path(path).expanduser().parent
        return next((folder / name for name in names if (folder / name).is_file()), None)
    owner, repository, *inner = str(path).removeprefix(HUB).split("/")
    for name in names:
        try:
            return pathlib.Path(_download("/".join((owner, repository, *inner[:-1], name))))
        except DataError as error:
            if not type(error.__cause__).__name__.endswith("EntryNotFoundError"):
                raise
    return None


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
            f"hf://{where} could not be downloaded: {one_line(reason(error, path=True)).rstrip('.')}. It has the "
            "form hf://OWNER/NAME[@REVISION][/FILE]; a file that was downloaded before is found without a network."
        ) from error
