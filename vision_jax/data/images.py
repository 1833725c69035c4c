"""Images of one's own, without labels: single files, all that is in folders, and archives."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence

from vision_jax.data import archives, listing
from vision_jax.data.archives import Archive, open_archive
from vision_jax.data.pillow import image_suffixes
from vision_jax.data.sources import Record, digest_of
from vision_jax.errors import DataError, reason

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Records with `image` alone; see `vision_jax.data.sources`.

    An image that cannot be read is a damaged record, not an error of the storage: among many files of one's own, one
    that is gone or may not be read should not end the others.

    Attributes:
        items: (archive, name) each: the name of a member, or where the archive is None, the path of a file.
    """

    items: Sequence[tuple[Archive | None, str]]

    num_classes = 0
    class_names: Sequence[str] = ()

    @classmethod
    def find(cls, paths: Sequence[str | os.PathLike[str]]) -> "ImageSource":
        """Returns the images that paths lead to, in their order; those of a folder or an archive are sorted.

        Args:
            paths: of image files, whatever they are called; of folders, of which everything below counts; and of
                archives (tar, compressed or not, and zip). `vision_jax.data.listing` says what is an image there.

        Raises:
            DataError: if one is empty, does not exist or cannot be listed, or a folder or archive holds no image.
        """
        items: list[tuple[Archive | None, str]] = []
        for given in paths:
            if not os.fspath(given):  # as of an unset variable of a shell; pathlib takes it for the current folder
                raise DataError("One of the names of images is empty: give image files, folders or archives.")
            path = pathlib.Path(given)
            if path.is_dir():
                names, left_out = listing.list_images(path)
                listing.log_left_out(path, left_out)
                found: list[tuple[Archive | None, str]] = [(None, os.path.join(path, name)) for name in names]
            elif not path.exists():
                raise DataError(f"There is no {path}: give image files, folders or archives.")
            elif archives.is_archive(path):
                archive = open_archive(path)
                found = [(archive, name) for name in image_members(archive)]
            else:
                found = [(None, os.fspath(path))]
            if not found:
                raise DataError(f"{path} holds no image: give image files, folders or archives with some.")
            items += found
        return cls(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Record:
        archive, name = self.items[index]
        try:
            if archive is not None:
                return {"image": archive.read(name)}
            with open(name, "rb") as file:
                return {"image": file.read()}
        except OSError as error:
            raise ValueError(reason(error)) from error

    def describe(self, index: int) -> str:
        """Returns the path of an image; within an archive, ARCHIVE/MEMBER."""
        archive, name = self.items[index]
        return name if archive is None else f"{archive.path}/{name}"

    def fingerprint(self) -> str:
        return digest_of("images", [self.describe(index) for index in range(len(self))])


def image_members(archive: Archive) -> list[str]:
    """Returns the names of the images in an archive, by the rule for folders; what is left out is counted and said."""
    names = []
    left_out = 0
    for name in archive.names:
        hidden = any(map(listing.is_hidden, name.removeprefix("./").split("/")))
        if not hidden and os.path.splitext(name)[1].lower() in image_suffixes():
            names.append(name)
        else:
            left_out += 1
    if left_out:
        log.info("Left out in %s: %d files that are hidden, or no images.", archive.path, left_out)
    return names
