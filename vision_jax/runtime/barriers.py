"""What several processes agree on while they save: whether it went well in all, and not to wait for one that failed.

The threads of Orbax that save in the background wait for each other at barriers, for twenty minutes if one of them
has run into an error and does not come. A shorter limit would give up on slow storage too. Here they learn at once that
one has failed.
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
    """Returns whether it is True in any process. To be called by the main thread of every one."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


class Barriers:
    """The barriers of one `CheckpointManager`, in the place of Orbax's own (`AsyncOptions.barrier_sync_fn`).

    All processes come to the same barriers in the same order, but one that fails skips some: it comes to its next one
    while the others wait at another. So they meet by number, whatever the barrier is called, and then compare what
    they call it. If that differs, one has failed: this barrier and all that follow raise an error in all processes.
    It is used by one thread at a time.
    """

    _count = itertools.count()  # the same in all processes: they make their managers at the same time

    def __init__(self) -> None:
        self._prefix = f"vision_jax/save/{next(self._count)}"
        self._numbers = itertools.count()
        self._failed = False

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Waits until all processes are here.

        Raises:
            OtherProcessError: if one of them has failed, and is at another barrier.
        """
        if jax.process_count() == 1:
            return
        if self._failed:
            raise OtherProcessError("another process failed; its own messages say why")
        from jax._src import distributed  # where Orbax too takes it from: there is no public way

        client: Any = distributed.global_state.client
        number, process = next(self._numbers), jax.process_index()
        self._failed = True  # unless all of them come
        client.key_value_set(f"{self._prefix}/{number}/{process}", key)
        client.wait_at_barrier(f"{self._prefix}/{number}", timeout_ms)
        keys = {value for _, value in client.key_value_dir_get(f"{self._prefix}/{number}/")}
        if number:  # all that are here have read what was said at the barrier before
            client.key_value_delete(f"{self._prefix}/{number - 1}/{process}")
        if len(keys) > 1:
            raise OtherProcessError("another process failed; its own messages say why")
        self._failed = False

    def fail(self) -> None:
        """Tells the others, which may be waiting, that this process has failed before its threads could."""
        with contextlib.suppress(Exception):  # they have been told, or are gone: the failure itself is what matters
            self(key=_FAILED, timeout_ms=_SECONDS_TO_TELL * 1000)
        self._failed = True
