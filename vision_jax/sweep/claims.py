"""Locks of files, by which processes on one or several machines share a search.

The system releases a lock when the process that has it ends, in whatever way: no heartbeat has to be waited for. The
file system must have locks, as SQLite needs them, too.
"""

import contextlib
import fcntl
import os
import pathlib
import time
from collections.abc import Iterator

from vision_jax.errors import CheckpointError, reason

_POLL_SECONDS = 0.02


def try_lock(path: pathlib.Path) -> int | None:
    """Locks a file, which is made if there is none, or a folder.

    Returns:
        a descriptor, whose closing unlocks it; None: another process has locked it.

    Raises:
        CheckpointError: if it cannot be locked.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise CheckpointError(f"Cannot lock {path}: {reason(error)}. Give another --workdir.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise CheckpointError(
            f"Cannot lock {path}: {reason(error)}. A search needs a file system with locks: give another --workdir."
        ) from error
    return descriptor


@contextlib.contextmanager
def exclusive(path: pathlib.Path) -> Iterator[None]:
    """Locks a file as long as the context lasts, after waiting for others that have done so.

    Raises:
        CheckpointError: if it cannot be locked.
    """
    while (descriptor := try_lock(path)) is None:
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        os.close(descriptor)


def is_locked(path: pathlib.Path) -> bool:
    """Returns whether another process has locked a file or folder; one that is not there is not locked.

    Raises:
        CheckpointError: if that cannot be told.
    """
    if not path.exists():
        return False
    if (descriptor := try_lock(path)) is None:
        return True
    os.close(descriptor)
    return False
