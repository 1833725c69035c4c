"""Reads what `torch.save` wrote (.pt, .pth, .bin, .ckpt, .pth.tar) without torch, and without running code of the file.

Such a file is a pickle in which each tensor refers to a storage, an array of bytes beside the pickle. A pickle can name
any function to be called. Here none is: what rebuilds tensors is done by the few functions below, plain containers are
Python's own, and an object of any other class, such as the `argparse.Namespace` with the options of a training, becomes
a `Foreign` that only keeps what the pickle says of it. So nothing has to be allowed or refused by name, and a whole
pickled module can be read too.

The formats: a zip archive (torch 1.6 and later) with `data.pkl` and a file `data/KEY` for each storage, or a sequence
of pickles followed by the storages. See `torch/serialization.py` and `torch/_utils.py`.
"""

import collections
import dataclasses
import functools
import io
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from vision_jax.errors import DataError, reason

_DTYPES: dict[str, Any] = {
    **{"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": jnp.bfloat16},
    **{"float8_e4m3fn": jnp.float8_e4m3fn, "float8_e5m2": jnp.float8_e5m2},
    **{"int64": np.int64, "int32": np.int32, "int16": np.int16, "int8": np.int8, "uint8": np.uint8, "bool": np.bool_},
    **{"complex64": np.complex64, "complex128": np.complex128},
}
_STORAGES = {
    **{"DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"},
    **{"LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8"},
    **{"ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8"},
    **{"ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128"},
}
_READABLE = frozenset(np.dtype(dtype) for dtype in _DTYPES.values())
# The first pickle of a file in the older format.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = pickle.dumps(_LEGACY_MAGIC, protocol=2)


class Foreign:
    """An object of a class that is not known here: what the pickle says of it.

    Attributes:
        class_name: with its module.
        state: what the object was to be given as its state, such as its attributes; None: nothing.
    """

    class_name = ""
    state: Any = None

    def __new__(cls, *args: Any, **options: Any) -> "Foreign":
        return super().__new__(cls)

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __call__(self, *args: Any, **options: Any) -> "Foreign":
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    # A pickle fills subclasses of lists and dictionaries by these.
    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


class _Unreadable(Foreign):
    """A tensor of a type that is not read here."""

    class_name = "tensors of an unknown type"


@dataclasses.dataclass(frozen=True)
class _Storage:
    """An array of bytes in the file; `offset`, in elements, is not 0 for a part of one in the older format."""

    read: Callable[[], np.ndarray]
    dtype: np.dtype
    offset: int = 0


@dataclasses.dataclass(frozen=True)
class TorchTensor:
    """A tensor of the file, whose values are not read yet.

    Attributes:
        storage: where they are.
        offset: of the first one, in elements.
        shape: of the tensor.
        strides: in elements.
        dtype: of the tensor.
    """

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    def numpy(self) -> np.ndarray:
        """Reads the values.

        Raises:
            DataError: if the file does not hold them all.
        """
        data = self.storage.read()
        count = len(data) // self.dtype.itemsize
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if min(self.offset, *self.shape, *self.strides, 0) < 0 or (0 not in self.shape and last >= count):
            raise DataError(f"A tensor of the shape {self.shape} reaches beyond its {count} stored values.")
        # As bytes, since NumPy's strided views know none of the dtypes that it does not have itself.
        size = self.dtype.itemsize
        values = data[: count * size].view(f"V{size}")
        strides = [stride * size for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, strides).copy().view(self.dtype)


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> "TorchTensor | Foreign":
    return _tensor(storage, offset, size, stride, storage.dtype if isinstance(storage, _Storage) else None)


def _rebuild_tensor_v3(
    storage: Any, offset: int, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, *_: Any
) -> "TorchTensor | Foreign":
    return _tensor(storage, offset, size, stride, dtype)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, dtype: Any) -> "TorchTensor | Foreign":
    # The file may name any dtype, and bytes must not be taken for pointers.
    if not isinstance(storage, _Storage) or not isinstance(dtype, np.dtype) or dtype not in _READABLE:
        return _Unreadable()
    return TorchTensor(storage, storage.offset + int(offset), _ints(size), _ints(stride), dtype)


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _first(value: Any, *_: Any) -> Any:
    return value


def _rebuild_from_type(function: Callable[..., Any], _: Any, args: Any, *__: Any) -> Any:
    return function(*args)


def _encode(text: str, *_: Any) -> bytes:
    """The bytes that older protocols of pickle write as text."""
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Size"): tuple,
    ("_codecs", "encode"): _encode,
    **{("torch", name): np.dtype(dtype) for name, dtype in _DTYPES.items()},
    **{
        (module, name): np.dtype(_DTYPES[dtype])
        for module in ("torch", "torch.storage", "torch.cuda")
        for name, dtype in _STORAGES.items()
    },
    **{(m, t.__name__): t for m in ("builtins", "__builtin__") for t in (set, frozenset, bytearray, complex, slice)},
    **{("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype},
    **{
        (f"numpy.{core}.multiarray", name): value.__reduce__()[0]
        for core in ("core", "_core")
        for name, value in (("_reconstruct", np.zeros(0)), ("scalar", np.float32(0)))
    },
}


class _Unpickler(pickle.Unpickler):
    """Makes the objects of a pickle as described above.

    Args:
        file: the pickle.
        read: gives the bytes of the storage of a key; called when a tensor's values are.
    """

    def __init__(self, file: Any, read: Callable[[str], np.ndarray]):
        super().__init__(file, encoding="latin1")
        self._read = read
        self._foreign: dict[str, type[Foreign]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        # One class a file and name: what a pickle does to it ends with the file.
        full = f"{module}.{name}"
        return self._foreign.setdefault(full, type(name, (Foreign,), {"class_name": full}))

    def persistent_load(self, pid: Any) -> Any:
        kind, *rest = pid
        if kind in ("module", b"module"):  # the source code of a class, in the older format
            return rest[0]
        if kind not in ("storage", b"storage"):
            raise pickle.UnpicklingError(f"a reference of the unknown kind {kind!r}")
        dtype, key = rest[0], str(rest[1])
        offset = int(rest[4][1]) if len(rest) > 4 and rest[4] is not None else 0
        if not isinstance(dtype, np.dtype):
            return _Unreadable()  # such as a quantized tensor
        return _Storage(functools.partial(self._read, key), dtype, offset)


def read_archive(path: pathlib.Path) -> Any:
    """Returns what was saved in a zip archive; tensors as `TorchTensor`.

    Raises:
        pickle.UnpicklingError and others: if the file is damaged.
    """
    archive = zipfile.ZipFile(path)  # closed with the last tensor
    names = archive.namelist()
    root = next(name for name in names if name.endswith("data.pkl")).removesuffix("data.pkl")
    if f"{root}constants.pkl" in names:
        raise DataError(f"{path} is a TorchScript program: save its weights by torch.save(module.state_dict(), FILE).")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise DataError(f"{path} was written on a big-endian machine: load and save it on a little-endian one.")

    @functools.lru_cache(maxsize=1)  # tensors that share a storage mostly follow one another
    def read(key: str) -> np.ndarray:
        try:
            return np.frombuffer(archive.read(f"{root}data/{key}"), np.uint8)
        except (KeyError, zipfile.BadZipFile, OSError, EOFError) as error:
            raise DataError(f"{path} is damaged: {reason(error)}. Copy or download it again.") from error

    return _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), read).load()


def read_legacy(path: pathlib.Path) -> Any:
    """Returns what was saved in a sequence of pickles; tensors as `TorchTensor`.

    Raises:
        pickle.UnpicklingError and others: if the file is damaged.
    """
    places: dict[str, tuple[int, int]] = {}  # first byte and number of bytes of each storage
    dtypes: dict[str, np.dtype] = {}

    class Unpickler(_Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            storage = super().persistent_load(pid)
            if isinstance(storage, _Storage):
                dtypes[str(pid[2])] = storage.dtype
            return storage

    @functools.lru_cache(maxsize=1)
    def read(key: str) -> np.ndarray:
        first, count = places[key]
        return np.fromfile(path, np.uint8, count, offset=first)

    with path.open("rb") as file:
        for _ in range(3):  # the magic number, the version of the protocol, facts of the machine
            _Unpickler(file, read).load()
        content = Unpickler(file, read).load()
        for key in _Unpickler(file, read).load():
            if str(key) not in dtypes:
                raise DataError(f"{path} holds tensors of a type that is not read: save them as float32.")
            count = int.from_bytes(file.read(8), "little") * dtypes[str(key)].itemsize
            places[str(key)] = (file.tell(), count)
            file.seek(count, io.SEEK_CUR)
        if file.tell() > path.stat().st_size:
            raise DataError(f"{path} is cut off: copy or download it again.")
    return content


def is_unreadable(value: Any) -> bool:
    """Returns whether an object is a tensor of a type that is not read here, such as a sparse or a quantized one."""
    return isinstance(value, Foreign) and value.class_name.startswith(
        ("torch._utils._rebuild_", _Unreadable.class_name)
    )


def is_module(value: Any) -> bool:
    """Returns whether an object is a pickled `torch.nn.Module`."""
    return isinstance(value, Foreign) and isinstance(value.state, Mapping) and "_parameters" in value.state


def module_entries(module: Foreign) -> dict[str, Any]:
    """Returns what a pickled module would put into its state dict: parameters, buffers, and the modules within."""
    state = module.state
    temporary = state.get("_non_persistent_buffers_set") or ()
    buffers = {name: value for name, value in (state.get("_buffers") or {}).items() if name not in temporary}
    return {**(state.get("_parameters") or {}), **buffers, **(state.get("_modules") or {})}
