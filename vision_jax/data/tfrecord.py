"""Records of existing TFRecord files at random, without TensorFlow.

A TFRecord file is a chain: each record has its length (8 bytes), a checksum of the length (4), the data, and a checksum
of the data (4); https://www.tensorflow.org/tutorials/load_data/tfrecord. There is no index, so one is made by following
the lengths through every file once, which reads a few bytes a record, and is kept in a cache.
"""

import concurrent.futures
import hashlib
import os
import pathlib
import resource
import struct
import threading
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from vision_jax.data.cache import read_arrays, write_arrays
from vision_jax.errors import DataError, reason

_HEADER = struct.Struct("<QI")  # the length and its checksum
_FOOTER = 4  # the checksum of the data; it is not verified: reading would cost twice as much
_INDEXING_THREADS = 32
_SPARE_DESCRIPTORS = 512  # left to the rest of the program


def _crc32c_table() -> np.ndarray:
    """The checksums of single bytes, for the reflected Castagnoli polynomial."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table


_CRC32C_TABLE = _crc32c_table()


def masked_crc32c(data: np.ndarray) -> np.ndarray:
    """Returns the checksums that TFRecord files hold: CRC-32C, rotated by 15 bits, plus a constant.

    Args:
        data: (n, length) uint8.

    Returns:
        (n,) uint32, one per row.
    """
    crc = np.full(len(data), 0xFFFFFFFF, np.uint32)
    for column in data.T:
        crc = _CRC32C_TABLE[(crc ^ column) & 0xFF] ^ (crc >> 8)
    crc = ~crc
    return ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)  # modulo 2^32


def index_file(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Finds the records of one TFRecord file.

    Returns:
        offset and length of each record's data in bytes, both (n,) int64.

    Raises:
        DataError: if the file is truncated or a length is damaged; it names the file and the offset.
    """
    headers = []
    offsets = [0]
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        while (position := offsets[-1]) < size:
            header = os.pread(descriptor, _HEADER.size, position)
            if len(header) < _HEADER.size:
                break
            headers.append(header)
            offsets.append(position + _HEADER.size + _HEADER.unpack(header)[0] + _FOOTER)
    # A length that is wrong leads astray, but the first wrong one is found by its checksum all the same.
    table = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, _HEADER.size)
    wrong = np.flatnonzero(masked_crc32c(table[:, :8]) != np.ascontiguousarray(table[:, 8:]).view("<u4")[:, 0])
    if len(wrong):
        raise DataError(
            f"{path} is damaged, or is no TFRecord file: the length at byte {offsets[wrong[0]]} does not match its "
            "checksum. Prepare or copy it again."
        )
    if offsets[-1] != size:
        last = offsets[-2] if offsets[-1] > size else offsets[-1]
        raise DataError(
            f"{path} is truncated: the record at byte {last} goes beyond the end, byte {size}. "
            "Prepare or copy it again."
        )
    starts = np.asarray(offsets, np.int64)
    return starts[:-1] + _HEADER.size, np.diff(starts) - _HEADER.size - _FOOTER


class TfRecordFiles:
    """The records of several TFRecord files one after the other, as `files[i] -> bytes`; safe from many threads.

    Args:
        paths: the files, in order.
        cache: a folder in which the index is kept, by the files' paths, sizes and times; None: it is not kept.

    Attributes:
        paths: the files.
        lengths: how many records each file has.
        files, offsets, sizes: for each record, the number of its file, and where in it how many bytes of data are.

    Raises:
        DataError: if a file is missing, truncated or damaged.
    """

    def __init__(self, paths: Sequence[pathlib.Path], cache: pathlib.Path | None):
        self.paths = list(paths)
        counts, self.offsets, self.sizes = _load_or_make_index(self.paths, cache)
        self.lengths: list[int] = counts.tolist()
        self.files = np.repeat(np.arange(len(self.paths), dtype=np.int32), counts)
        self._max_open = _allow_descriptors(len(self.paths))
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> bytes:
        file, size, offset = int(self.files[index]), int(self.sizes[index]), int(self.offsets[index])
        descriptor = self._descriptors.get(file)
        if descriptor is None:
            descriptor = self._open(file)
        if descriptor is not None:
            data = os.pread(descriptor, size, offset)
        else:
            with self.paths[file].open("rb", buffering=0) as opened:
                data = os.pread(opened.fileno(), size, offset)
        if len(data) != size:
            raise DataError(f"{self.paths[file]} has become shorter than it was when it was indexed.")
        return data

    def _open(self, file: int) -> int | None:
        """Opens a file to stay open; None if there are too many already."""
        with self._lock:
            if file not in self._descriptors:
                if len(self._descriptors) >= self._max_open:
                    return None
                self._descriptors[file] = os.open(self.paths[file], os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[file]

    def close(self) -> None:
        """Closes the files. No other thread may be reading."""
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_descriptors", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._descriptors, self._lock = {}, threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _allow_descriptors(count: int) -> int:
    """Raises this process's limit of open files for `count` more, as far as it may; returns how many it may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return count
    if soft < count + _SPARE_DESCRIPTORS:
        wanted = count + _SPARE_DESCRIPTORS
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(0, soft - _SPARE_DESCRIPTORS)


def _load_or_make_index(
    paths: list[pathlib.Path], cache: pathlib.Path | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the records in each file, and offset and length of each record, from the cache if it has them."""
    key = hashlib.sha256()
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"Cannot read {path}: {reason(error)}.") from error
        key.update(f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    cached = None if cache is None else cache / f"tfrecord-index-{key.hexdigest()[:32]}.npz"
    if cached is not None and (arrays := read_arrays(cached)) is not None:
        return arrays["counts"], arrays["offsets"], arrays["sizes"]
    with concurrent.futures.ThreadPoolExecutor(min(_INDEXING_THREADS, max(1, len(paths)))) as pool:
        found = list(pool.map(index_file, paths))
    counts = np.asarray([len(offsets) for offsets, _ in found], np.int64)
    empty = [np.zeros(0, np.int64)]
    offsets = np.concatenate([*empty, *(offsets for offsets, _ in found)])
    sizes = np.concatenate([*empty, *(sizes for _, sizes in found)])
    if cached is not None:
        write_arrays(cached, counts=counts, offsets=offsets, sizes=sizes)
    return counts, offsets, sizes
