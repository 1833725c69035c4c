"""Agreement between processes during a save: whether it succeeded in all, without waiting for one that failed.

Orbax's background threads wait for each other at barriers, for twenty minutes if one of them never arrives because of
an error. A shorter timeout would give up on slow storage too. Here they learn at once that one has failed.
"""

import contextlib
import itertools
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vision_jax.errors import VisionJaxError

_FAILED = "failed"
_SECONDS_TO_TELL = 60


class OtherProcessError(VisionJaxError):
    """Another process could not save its part."""


def any_process(flag: bool) -> bool:
    """Returns whether `flag` is True in any process. The main thread of every process must call it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


class Barriers:
    """The barriers of one `CheckpointManager`, in place of Orbax's own (`AsyncOptions.barrier_sync_fn`).

    All processes reach the same barriers in the same order, except that one that fails skips some, and reaches its next
    one while the others wait at another. So barriers are matched by sequence number; names are then compared, and a
    mismatch means that a process has skipped one, that is, failed. Then this barrier and all later ones raise an error
    in all processes. Used by one thread at a time.
    """

    _count = itertools.count()  # the same in all processes: they create their managers at the same time

    def __init__(self) -> None:
        self._prefix = f"vision_jax/save/{next(self._count)}"
        self._numbers = itertools.count()
        self._failed = False

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Waits until all processes have arrived.

        Raises:
            OtherProcessError: if one of them has failed, and is at another barrier.
        """
        if jax.process_count() == 1:
            return
        if self._failed:
            raise OtherProcessError("another process failed; its own messages say why")
        from jax._src import distributed  # as Orbax does: there is no public API

        client: Any = distributed.global_state.client
        number, process = next(self._numbers), jax.process_index()
        self._failed = True  # unless all of them arrive
        client.key_value_set(f"{self._prefix}/{number}/{process}", key)
        client.wait_at_barrier(f"{self._prefix}/{number}", timeout_ms)
        keys = {value for _, value in client.key_value_dir_get(f"{self._prefix}/{number}/")}
        if number:  # all that have arrived here have read the names at the barrier before
            client.key_value_delete(f"{self._prefix}/{number - 1}/{process}")
        if len(keys) > 1:
            raise OtherProcessError("another process failed; its own messages say why")
        self._failed = False

    def fail(self) -> None:
        """Tells the others, which may be waiting, that this process failed before its threads reached a barrier."""
        with contextlib.suppress(Exception):  # they know already, or are gone: the failure itself is what matters
            self(key=_FAILED, timeout_ms=_SECONDS_TO_TELL * 1000)
        self._failed = True
