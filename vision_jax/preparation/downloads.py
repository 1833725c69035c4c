"""The files of a data set as they were downloaded: which there are, and whether archives were unpacked or not."""

import collections
import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from vision_jax.data import listing
from vision_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Download:
    """A file as it is downloaded.

    Attributes:
        file: its name. An archive that has been decompressed, `x.tar` for `x.tar.gz`, will do as well.
        holds: of an archive, the folders and files in it that are needed, below the data set's own folder. Where all
            of them lie unpacked, the archive is not looked at.
        also: other names under which it is published, for other sizes of the images, or by others.
        within: an archive in this one that has the content.
        optional: the data set is whole without it.
    """

    file: str
    holds: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    within: str = ""
    optional: bool = False

    def describe(self) -> str:
        """Returns what to look for, in words."""
        names = " or ".join((self.file, *self.also))
        return f"{names} (nor, unpacked, {', '.join(self.holds)})" if self.holds else names


@dataclasses.dataclass(frozen=True)
class Found:
    """Where a download is.

    Attributes:
        download: which.
        archive: the archive; None: its content lies unpacked.
        root: what `paths` are relative to.
        paths: of an unpacked one, its folders and files.
        top: the folder of the data set that they were found in, if any.
    """

    download: Download
    archive: pathlib.Path | None
    root: pathlib.Path
    paths: tuple[str, ...] = ()
    top: str = ""


def find(directory: pathlib.Path, tops: Sequence[str], download: Download) -> Found | None:
    """Looks for a download in a folder, and in the folders `tops` in it, unpacked or as an archive.

    Raises:
        DataError: if it is there under several names.
    """
    roots = [(top, directory / top) for top in tops if top and (directory / top).is_dir()] + [("", directory)]
    for top, root in roots:
        paths = [_first_path(root, name) for name in download.holds or (download.file,)]
        if all(path is not None for path in paths):
            return Found(download, None, root, tuple(path for path in paths if path is not None), top)
    if not download.holds:
        return None
    names = [name for file in (download.file, *download.also) for name in (file, _without_compression(file))]
    there = [root / name for _, root in roots for name in dict.fromkeys(names) if (root / name).is_file()]
    if len(there) > 1:
        raise DataError(
            f"{directory} has both {there[0].name} and {there[1].name}: keep one of them, and move the other away."
        )
    return Found(download, there[0], there[0].parent) if there else None


def _without_compression(name: str) -> str:
    return re.sub(r"\.(tgz|tar\.(gz|bz2|xz))$", ".tar", name)


def _first_path(root: pathlib.Path, name: str) -> str | None:
    """Returns how a file or folder is called: as published, decompressed, or with the dot of some IDX files."""
    dotted = re.sub(r"-(idx\d-)", r".\1", name)
    spellings = (name, name.removesuffix(".gz"), dotted, dotted.removesuffix(".gz"))
    there = [spelling for spelling in dict.fromkeys(spellings) if (root / spelling).exists()]
    if len(there) > 1:
        raise DataError(f"{root} has both {there[0]} and {there[1]}: remove one of them.")
    return there[0] if there else None


def unpacked_files(found: Found) -> Iterator[tuple[str, int]]:
    """Yields name and size of the images of a download that lies unpacked, and of the other files that it must have."""
    for path in found.paths:
        where = found.root / path
        if where.is_dir():
            for name in listing.list_images(where)[0]:
                yield f"{path}/{name}", (where / name).stat().st_size
        else:
            yield path, where.stat().st_size


def identity(found: Sequence[Found]) -> dict[str, Any]:
    """Returns JSON that differs for different downloads, with no time and no path; no image is read.

    Archives are told by their sizes, folders by the names and sizes of their images, other files by their content.
    """
    files: dict[str, Any] = {}
    for item in found:
        if item.archive is not None:
            files[item.archive.name] = item.archive.stat().st_size
            continue
        groups: collections.defaultdict[str, list[tuple[str, int]]] = collections.defaultdict(list)
        for name, size in unpacked_files(item):
            groups[next(p for p in item.paths if name == p or name.startswith(f"{p}/"))].append((name, size))
        for path, members in groups.items():
            if (item.root / path).is_file():
                with (item.root / path).open("rb") as file:
                    files[path] = hashlib.file_digest(file, "sha256").hexdigest()
            else:
                digest = hashlib.sha256(
                    "\0".join(f"{name}\0{size}" for name, size in members).encode("utf-8", "surrogateescape")
                )
                files[f"{path}/"] = f"{len(members)} images, sha256 of names and sizes {digest.hexdigest()}"
    return files
