"""One tree of names of all that was downloaded of a data set, whether archives were unpacked or not.

An image in a zip file, or in a tar file that is not compressed, is read where it is. A compressed tar file has no place
of its own for an image, so it is decompressed once, into the folder of unfinished work, which goes when all is done.
"""

import bisect
import dataclasses
import functools
import io
import logging
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from typing import IO, NamedTuple, Protocol

import numpy as np

from vision_jax.data import archives, decode, listing, pillow
from vision_jax.errors import DataError, one_line, reason
from vision_jax.preparation.downloads import Download, Found, unpacked_files
from vision_jax.preparation.inputs import Original

log = logging.getLogger(__name__)

_LARGEST_METADATA = 4 << 30  # bytes of a file that is read as a whole; iNaturalist 2021 lists its images in 1 GB


class Pack(Protocol):
    """A folder or an archive; it can be sent to other processes."""

    def read(self, name: str, offset: int, size: int) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class FolderPack:
    """Files in a folder."""

    root: pathlib.Path

    def read(self, name: str, offset: int, size: int) -> bytes:
        del offset, size
        return (self.root / name).read_bytes()


@dataclasses.dataclass(frozen=True)
class TarPack:
    """A tar file that is not compressed; an offset is that of the first byte of a file."""

    path: pathlib.Path

    def read(self, name: str, offset: int, size: int) -> bytes:
        data = os.pread(_open(self.path), size, offset)
        if len(data) != size:
            raise DataError(f"{self.path} has become shorter than it was when it was indexed: {name} is cut off.")
        return data


@dataclasses.dataclass(frozen=True)
class ZipPack:
    """A zip file; an offset is that of the header of a file."""

    path: pathlib.Path

    def read(self, name: str, offset: int, size: int) -> bytes:
        archive, members = _open_zip(self.path)
        try:
            return archive.read(members[offset])
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise ValueError(f"{name} in {self.path} is damaged: {error}") from error


@functools.cache
def _open(path: pathlib.Path) -> int:
    """Opens a file for as long as the process lives."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


@functools.cache
def _open_zip(path: pathlib.Path) -> tuple[zipfile.ZipFile, dict[int, zipfile.ZipInfo]]:
    """Opens a zip file for as long as the process lives; the second value is what is in it, by offset."""
    archive = archives.ZipArchive(path).members()  # which checks it
    return zipfile.ZipFile(path), {info.header_offset: info for info in archive}


class _Entry(NamedTuple):
    pack: int
    offset: int
    size: int


class Tree:
    """The files of all downloads of a data set, by the names that they have below its folder when all is unpacked.

    Args:
        found: the downloads.
        tops: names of the folder of the data set, which are taken off.
        cache: where compressed archives are decompressed to.

    Raises:
        DataError: if an archive is damaged, or has a file twice.
    """

    def __init__(self, found: Sequence[Found], tops: Sequence[str], cache: pathlib.Path):
        self._tops = tuple(f"{top}/" for top in sorted(tops, key=len, reverse=True) if top)
        self.packs: list[Pack] = []
        self._entries: dict[str, _Entry] = {}
        self._roots: list[pathlib.Path] = []
        for item in found:
            if item.archive is None:
                self._add_unpacked(item)
            else:
                self._add_archive(item.archive, item.download, cache)
        self._sorted = sorted(self._entries)

    def _add_unpacked(self, found: Found) -> None:
        if found.root not in self._roots:
            self._roots.append(found.root)
        for name, size in unpacked_files(found):
            self._entries[name] = _Entry(len(self.packs), 0, size)
        self.packs.append(FolderPack(found.root))

    def _add_archive(self, path: pathlib.Path, download: Download, cache: pathlib.Path) -> None:
        log.info("Reading the headers of %s.", path)
        status = path.stat()
        plain = f"{path.name}.{status.st_size}.{status.st_mtime_ns}"
        if zipfile.is_zipfile(path) or path.name.lower().endswith(".zip"):
            members = {m.filename: (m.header_offset, m.file_size) for m in archives.ZipArchive(path).members()}
            if inner := next((m for m in members if pathlib.PurePath(m).name == download.within), None):
                with io.BytesIO(_read_member(path, inner, members[inner])) as file:
                    self._add_tar(_plain_tar(file, f"{inner} in {path}", cache / f"{plain}.{download.within}.tar"))
                return
            self._add(ZipPack(path), path, ((name, *place) for name, place in members.items()))
            return
        if not archives.is_compressed(path):
            self._add_tar(path)
            return
        with path.open("rb") as file:
            self._add_tar(_plain_tar(file, str(path), cache / f"{plain}.tar"))

    def _add_tar(self, path: pathlib.Path) -> None:
        with path.open("rb") as file:
            part = archives.Part(file.fileno(), 0, os.fstat(file.fileno()).st_size, str(path))
            self._add(TarPack(path), path, archives.tar_members(part))

    def _add(self, pack: Pack, path: pathlib.Path, members: Iterable[tuple[str, int, int]]) -> None:
        for member, offset, size in members:
            name = os.path.normpath(member).replace(os.sep, "/")
            if any(listing.is_hidden(part) for part in name.split("/")):
                continue  # what is `..` or hidden, such as the `._x.jpg` of macOS
            top = next((top for top in self._tops if name.startswith(top)), "")
            name = name.removeprefix(top)
            if name in self._entries:
                raise DataError(f"{path} has {one_line(name)} twice, or another archive has it too: download it again.")
            self._entries[name] = _Entry(len(self.packs), offset, size)
        self.packs.append(pack)

    def has(self, name: str) -> bool:
        """Returns whether there is a file."""
        return name in self._entries or any((root / name).is_file() for root in self._roots)

    def read(self, name: str) -> bytes:
        """Returns the content of a file that is not an image.

        Raises:
            DataError: if there is none, or it cannot be read.
        """
        try:
            if (entry := self._entries.get(name)) is not None:
                if entry.size > _LARGEST_METADATA:
                    raise DataError(f"{name} has {entry.size:,} bytes, which it never has: download it again.")
                return self.packs[entry.pack].read(name, entry.offset, entry.size)
            for root in self._roots:
                if (root / name).is_file():
                    return (root / name).read_bytes()
        except (OSError, ValueError) as error:
            raise DataError(f"{name} cannot be read: {reason(error)}.") from error
        raise DataError(f"There is no {name} in the archives, nor where they were unpacked: download them again.")

    def names(self, folder: str = "") -> list[str]:
        """Returns the names of files in archives, of downloads that are no archives, and of images in unpacked ones.

        Args:
            folder: to which they belong, at any depth; without a slash at the end.
        """
        if not folder:
            return self._sorted
        start = bisect.bisect_left(self._sorted, f"{folder}/")
        return self._sorted[start : bisect.bisect_left(self._sorted, f"{folder}0")]  # 0 is what comes after a slash

    def images(self, folder: str) -> list[str]:
        """Returns the names of the images in a folder, at any depth, sorted."""
        return [name for name in self.names(folder) if os.path.splitext(name)[1].lower() in listing.image_suffixes()]

    def locate(self, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Returns where files are.

        Returns:
            (n, 3) int64 rows of pack, offset and size, -1 for those that are not there; and these, by name.
        """
        places = np.full((len(names), 3), -1, np.int64)
        missing = []
        for row, name in enumerate(names):
            if (entry := self._entries.get(name)) is None:
                missing.append(name)
            else:
                places[row] = entry
        return places, missing


def _read_member(path: pathlib.Path, name: str, place: tuple[int, int]) -> bytes:
    try:
        return ZipPack(path).read(name, *place)
    except ValueError as error:
        raise DataError(f"{error}. Copy or download it again.") from error


def _plain_tar(source: IO[bytes], name: str, target: pathlib.Path) -> pathlib.Path:
    """Decompresses a tar file, unless that has been done, and returns where it is.

    Raises:
        DataError: if it is damaged, or there is no room.
    """
    if target.exists():
        return target
    log.info("Decompressing %s into %s, where it stays until all is done.", name, target.parent)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            archives.decompress(source, name, file)
        temporary.replace(target)
    except OSError as error:
        raise DataError(
            f"Cannot decompress {name} into {target.parent}: {reason(error)}. Give an OUTPUT with more space, or "
            "unpack the archive where it is."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


@dataclasses.dataclass(frozen=True)
class TreeReader:
    """Reads images of a tree; `file` is the number of the pack.

    Attributes:
        packs: of the tree.
        damaged: names of images that are published with damage, which most programs do not notice. They are taken as
            these see them.
    """

    packs: tuple[Pack, ...]
    damaged: frozenset[str] = frozenset()

    def read(self, record: np.void) -> Original:
        name = os.fsdecode(bytes(record["name"]))
        data = self.packs[record["file"]].read(name, int(record["offset"]), int(record["size"]))
        if name in self.damaged:
            data = _mended(data)
        return Original(bytes(record["name"]), int(record["label"]), data)


def _mended(data: bytes) -> bytes:
    """Returns a PNG of what Pillow, which says nothing of warnings, sees in an image that `decode` refuses."""
    try:
        decode.decode(data, 3)
    except ValueError:
        buffer = io.BytesIO()
        with pillow.open_image(data, pillow.MAX_PIXELS) as image:
            image.convert("RGB").save(buffer, "PNG")
        return buffer.getvalue()
    return data
