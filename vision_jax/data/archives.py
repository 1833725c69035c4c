"""Images in tar and zip files, read in place at random, without unpacking them.

An image in an uncompressed tar file is a range of its bytes, which reading the headers once finds. A compressed tar
file has no such ranges, so it is decompressed once, to a temporary file without a name.
"""

import bz2
import contextlib
import gzip
import logging
import lzma
import os
import pathlib
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol

from vision_jax.errors import DataError, reason

log = logging.getLogger(__name__)

_BLOCK = 512  # of a tar file
_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Returns whether a file is called as an archive that can be read."""
    return os.fspath(path).lower().endswith(_SUFFIXES)


def without_suffix(name: str) -> str:
    """Returns the name of an archive without what says its kind; any other name as it is."""
    suffix = max((s for s in _SUFFIXES if name.lower().endswith(s)), key=len, default="")
    return name[: len(name) - len(suffix)]


class Archive(Protocol):
    """A file of files.

    Attributes:
        path: where it is.
        names: of the regular files in it, with / between folders, sorted.
    """

    path: pathlib.Path
    names: list[str]

    def read(self, name: str) -> bytes:
        """Returns the content of a file; thread-safe.

        Raises:
            ValueError: if it is damaged.
            OSError: if the storage fails.
        """
        ...


def open_archive(path: pathlib.Path) -> Archive:
    """Opens a tar file, compressed or not, or a zip file.

    Raises:
        DataError: if it cannot be read, is truncated, or encrypted.
    """
    try:
        if zipfile.is_zipfile(path):
            return ZipArchive(path)
        if os.fspath(path).lower().endswith(".zip"):
            raise DataError(f"{path} is no zip file, or is cut off. Copy or download it again.")
        return TarArchive(path)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {reason(error)}.") from error


class ZipArchive:
    """A zip file; see `Archive`."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise DataError(f"{path} is damaged or cut off: {error}. Copy or download it again.") from error
        members = self.members()
        if any(info.flag_bits & 1 for info in members):
            raise DataError(f"{path} is encrypted: unpack it with its password, and give the folder.")
        self.names = sorted(info.filename for info in members)

    def members(self) -> list[zipfile.ZipInfo]:
        """Returns what the zip file says of each file in it, in its order."""
        return [info for info in self._zip.infolist() if not info.is_dir()]

    def read(self, name: str) -> bytes:
        try:
            return self._zip.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise ValueError(str(error) or "it is damaged") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._zip = zipfile.ZipFile(self.path)


class TarArchive:
    """A tar file, compressed or not; see `Archive`. Links are left out, and of two files of a name the last counts."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._connect()
        self._places = {name: (start, size) for name, start, size in tar_members(self._part)}
        self.names = sorted(self._places)

    def _connect(self) -> None:
        self._file: IO[bytes] = _decompressed(self.path) if is_compressed(self.path) else self.path.open("rb")
        descriptor = self._file.fileno()
        self._part = Part(descriptor, 0, os.fstat(descriptor).st_size, str(self.path))

    def read(self, name: str) -> bytes:
        start, size = self._places[name]
        data = os.pread(self._file.fileno(), size, start)
        if len(data) != size:
            raise ValueError(f"{self.path} has become shorter than it was when it was indexed")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_file", "_part")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()


# How a compressed file begins, and what opens it.
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}


def _opener(start: bytes) -> Callable[[IO[bytes]], Any] | None:
    return next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)


def is_compressed(path: pathlib.Path) -> bool:
    """Returns whether a file is compressed by gzip, bzip2 or xz, whatever it is called."""
    with path.open("rb") as file:
        return _opener(file.read(6)) is not None


def decompress(source: IO[bytes], name: str, target: IO[bytes]) -> None:
    """Writes the content of a file, which may be compressed by gzip, bzip2 or xz, into another.

    Args:
        source: the file, which can be sought in.
        name: of it, for messages.
        target: what is written.

    Raises:
        DataError: if it is damaged or cut off.
        OSError: if the storage fails.
    """
    opener = _opener(source.read(6))
    source.seek(0)
    try:
        with contextlib.nullcontext(source) if opener is None else opener(source) as content:
            shutil.copyfileobj(content, target, 1 << 20)
        target.flush()
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"{name} is damaged or cut off: {error}. Copy or download it again.") from error


def _decompressed(path: pathlib.Path) -> IO[bytes]:
    """Returns a temporary file with the content of a compressed one; it is gone as soon as it is closed."""
    where = tempfile.gettempdir()
    log.info("Decompressing %s into %s, since no image has a place of its own in a compressed archive.", path, where)
    file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with path.open("rb") as source:
            decompress(source, str(path), file)
    except OSError as error:
        raise DataError(
            f"Cannot decompress {path} into {where}: {reason(error)}. Set TMPDIR to a folder with more space, or "
            "unpack the archive."
        ) from error
    return file


class Part:
    """A range of a file as a file of its own, for tarfile; parts share the descriptor, as none moves its position."""

    def __init__(self, descriptor: int, start: int, size: int, name: str):
        self.start, self.size, self.name = start, size, name
        self._descriptor = descriptor
        self._position = 0

    def read(self, size: int) -> bytes:
        size = max(0, min(size, self.size - self._position))
        data = os.pread(self._descriptor, size, self.start + self._position)
        self._position += len(data)
        return data

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def tell(self) -> int:
        return self._position


def tar_members(part: Part, pattern: re.Pattern[str] | None = None) -> Iterator[tuple[str, int, int]]:
    """Yields name, position in the file that `part` belongs to, and size of each regular file in a tar file.

    Args:
        part: the tar file.
        pattern: of the names of all members, each a regular file that comes once; None: there may be any members, of
            which those that are no regular files are left out.

    Raises:
        DataError: if the tar file is truncated or damaged, or has a member that is not as `pattern` asks.
    """
    seen: set[str] = set()
    end = 0
    try:
        with tarfile.open(fileobj=part, mode="r:") as tar:  # type: ignore[call-overload]
            for member in tar:
                if pattern is not None:
                    _check(part, member, pattern, seen)
                elif not member.isreg() or member.issparse():
                    end = tar.offset  # of the next header
                    continue
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if end > part.size:
                    raise DataError(f"{part.name} is truncated: {member.name} goes beyond the end, byte {part.size}.")
                yield member.name, part.start + member.offset_data, member.size
    except tarfile.TarError as error:
        raise DataError(f"{part.name} is truncated, or is no tar file: {error}.") from error
    # tarfile takes anything that is no header for the end, but the end is a block of zeros.
    part.seek(end)
    if part.read(_BLOCK) != bytes(_BLOCK):
        raise DataError(f"{part.name} is truncated or damaged at byte {end}: it has no end.")


def _check(part: Part, member: tarfile.TarInfo, pattern: re.Pattern[str], seen: set[str]) -> None:
    """Checks that a member is a regular file of an expected name, so no path that leads elsewhere, and comes once."""
    if not pattern.fullmatch(member.name):
        raise DataError(f"{part.name} has a member named {member.name!r}, which does not belong into it.")
    if not member.isreg() or member.issparse():
        raise DataError(f"{part.name}: {member.name} is not a regular file.")
    if member.name in seen:
        raise DataError(f"{part.name} has {member.name} twice.")
    seen.add(member.name)
