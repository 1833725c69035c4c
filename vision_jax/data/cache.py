"""What took long to find out, kept in files; whatever goes wrong with them, it can be found out again."""

import contextlib
import logging
import os
import pathlib
import tempfile
import threading
import zipfile
from collections.abc import Callable

import numpy as np

from vision_jax.errors import DataError, reason

log = logging.getLogger(__name__)


def cache_dir() -> pathlib.Path:
    """Returns $XDG_CACHE_HOME/vision_jax, or ~/.cache/vision_jax; it is made on first use, private to the user.

    Raises:
        DataError: if it cannot be made.
    """
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        path = pathlib.Path(root).expanduser() / "vision_jax"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise DataError(
            f"Cannot make the cache {root}/vision_jax: {reason(error, path=True)}. Point XDG_CACHE_HOME at another "
            "folder."
        ) from error
    return path


def write_once(target: pathlib.Path, write: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Makes a folder that is complete as soon as it is there, unless it is; several processes may want it at once.

    Args:
        target: the folder.
        write: fills an empty folder of its name, with the same bytes in every process.

    Returns:
        `target`.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="incomplete.") as work:
        complete = pathlib.Path(work) / target.name
        complete.mkdir()
        write(complete)
        try:
            os.rename(complete, target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    return target


def optional_cache_dir() -> pathlib.Path | None:
    """Returns `cache_dir()`, or None after a warning if it cannot be made: for what is merely quicker with it."""
    try:
        return cache_dir()
    except DataError as error:
        log.warning("%s Until then, what would be kept there is made again at every start.", error)
        return None


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """Returns the arrays that `write_arrays` has written; None if there are none, or they are damaged."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:  # its checksums are verified
            return dict(arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s) and is made again.", path, reason(error))
        return None


def write_arrays(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes arrays, whole or not at all. If that fails (a full disk, a quota), it merely warns.

    Args:
        path: with the suffix `.npz`; several processes may write it at once.
        arrays: what to write.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        log.warning("%s cannot be written (%s): it will be made again at the next start.", path, reason(error))
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
