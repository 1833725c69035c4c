"""Appending to files on storage that may fail, and records of TensorBoard event files."""

import collections
import contextlib
import logging
import os
import pathlib
import struct
import time
from collections.abc import Callable, Mapping

from vision_jax.errors import CheckpointError, reason

log = logging.getLogger(__name__)

_MAX_KEPT = 10_000  # entries kept in memory while they cannot be written


class Appender:
    """Appends entries to a file atomically: an entry that a full disk truncates is removed again.

    The file is opened for each entry, so that it is recreated if it has vanished.

    Args:
        path: of the file.
        lines: entries are lines, and if something else has cut the last one in the file, the next one is not joined to
            what is left of it.
        on_error: what to do if the storage fails: `stop` raises; `continue` warns once and keeps the latest 10,000
            entries until they can be written.
    """

    def __init__(self, path: pathlib.Path, *, on_error: str = "stop", lines: bool = False):
        self._path, self._on_error, self._are_lines = path, on_error, lines
        self._kept: collections.deque[bytes] = collections.deque()
        self._size: int | None = None  # of the file without a truncated entry, if that could not be removed

    def write(self, entry: bytes) -> None:
        """Adds an entry to those kept in memory, and tries to write them all.

        Raises:
            CheckpointError: with on_error=stop, if that fails.
        """
        first = not self._kept
        self._kept.append(entry)
        try:
            self._flush()
        except OSError as error:
            if self._on_error == "stop":
                raise self._error(error) from error
            if first:
                log.warning(
                    "Cannot write to %s: %s. Entries are kept in memory until it works.", self._path, reason(error)
                )
            if len(self._kept) > _MAX_KEPT:
                self._kept.popleft()
                log.warning("%s has not been writable for so long that its oldest entry is lost.", self._path)

    def retry(self) -> None:
        """Tries again to write the entries kept in memory."""
        if self._kept:
            with contextlib.suppress(OSError):  # a warning was logged
                self._flush()

    def _flush(self) -> None:
        """Writes the entries kept in memory, or leaves the file as it was and raises OSError."""
        if self._size is not None and self._path.exists():
            os.truncate(self._path, self._size)
        self._size = None
        with self._path.open("a+b", buffering=0) as file:
            size, data = file.tell(), b"".join(self._kept)
            if self._are_lines and size:
                file.seek(-1, os.SEEK_END)
                data = data if file.read() == b"\n" else b"\n" + data
            try:
                if (written := file.write(data)) != len(data):  # a disk that fills up takes part of it without an error
                    file.write(data[written:])  # raises the error, or succeeds
            except OSError:
                self._size = size
                os.truncate(self._path, size)
                self._size = None
                raise
        self._kept.clear()

    def _error(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"Cannot write to {self._path}: {reason(error)}. Fix the storage and run the same command again, or set "
            "checkpoint.on_error=continue to carry on without it for a while."
        )

    def forget(self, keep: Callable[[bytes], bool]) -> None:
        """Drops the entries in memory for which `keep` is False."""
        self._kept = collections.deque(entry for entry in self._kept if keep(entry))

    def close(self) -> None:
        """Writes the entries kept in memory.

        Raises:
            CheckpointError: if that fails, whatever `on_error` is.
        """
        try:
            if self._kept:
                self._flush()
        except OSError as error:
            raise self._error(error) from error


def png_shape(data: bytes) -> tuple[int, int, int]:
    """Returns (height, width, channels) of a PNG file, with 3 channels if it has a palette.

    Raises:
        ValueError: if it is none.
    """
    # The signature, then the first chunk: https://www.w3.org/TR/png/#11IHDR
    channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by color type
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 26 or data[25] not in channels:
        raise ValueError(f"is no PNG file: it begins with {data[:26]!r}")
    width, height = struct.unpack(">II", data[16:24])
    return height, width, channels[data[25]]


def event(
    step: int,
    values: Mapping[str, float] | None = None,
    *,
    images: Mapping[str, bytes] | None = None,
    file_version: str = "",
    session_log: bool = False,
) -> bytes:
    """Returns a record of a TensorBoard event file.

    TensorBoard's own writers have a thread that dies at the first OSError, after which a run would wait for it for
    ever.

    Args:
        step: of the values.
        values: scalars by name.
        images: PNG files by name.
        file_version: the first record of a file.
        session_log: make TensorBoard discard this step and those after it.
    """
    from tensorboardX.proto import event_pb2, summary_pb2
    from tensorboardX.record_writer import masked_crc32c

    record = event_pb2.Event(wall_time=time.time(), step=step)
    if file_version:
        record.file_version = file_version
    elif session_log:
        record.session_log.status = event_pb2.SessionLog.START
    else:
        Summary = summary_pb2.Summary
        items = [Summary.Value(tag=name, simple_value=value) for name, value in (values or {}).items()]
        for name, png in (images or {}).items():
            height, width, channels = png_shape(png)
            image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=png)
            items.append(Summary.Value(tag=name, image=image))
        record.summary.CopyFrom(Summary(value=items))
    data = record.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
