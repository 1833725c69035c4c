"""Which known data set lies in a folder, as far as the names of its files tell."""

import pathlib

from vision_jax.errors import DataError
from vision_jax.preparation import known, pixels
from vision_jax.preparation.description import Known
from vision_jax.preparation.downloads import find


def recognize(directory: pathlib.Path) -> Known | None:
    """Returns the data set whose downloads lie in a folder, if their names tell it.

    Raises:
        DataError: if there are several.
    """
    found = [item for item in known.KNOWN.values() if _is_there(directory, item)]
    if len(found) > 1:
        raise DataError(
            f"{directory} has the files of {' and '.join(item.title for item in found)}: say which by --dataset="
            f"{' or --dataset='.join(item.name for item in found)}."
        )
    return found[0] if found else None


def _is_there(directory: pathlib.Path, item: Known) -> bool:
    """Returns whether the downloads are there, under names that no other data is likely to have."""
    if item.name.startswith("emnist"):
        return False  # they share an archive
    archives = 0
    for download in item.downloads:
        if download.optional:
            continue
        if (found := find(directory, item.tops, download)) is None:
            return False
        archives += found.archive is not None or bool(found.top)
    return item.telling or archives > 0


def idx_files(directory: pathlib.Path) -> Known | None:
    """Returns a description of the IDX files in a folder, if there are any; nobody knows of which data set."""
    files = pixels.idx_files(directory)
    return Known("idx", "IDX files", "", "", files, pixels.idx, small=True) if files else None
