"""Learning in time that this run is about to be stopped."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Self


class Preemption:
    """Turns SIGTERM into a question that the training loop and evaluations ask.

    In a single process this object handles the signal, from `__enter__` to `__exit__`. With several, the notifier that
    `jax.distributed` starts does, and makes all processes agree on one place to stop at.
    """

    def __init__(self) -> None:
        self._noticed = threading.Event()
        self._previous: Any = None
        self._questions = 0
        self._stopping = False  # several processes have agreed on it

    def __enter__(self) -> Self:
        # Python allows handlers in the main thread alone.
        if threading.current_thread() is threading.main_thread() and not _is_distributed():
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def hand_over(self) -> None:
        """Leaves the signal to JAX's notifier; to be called once `jax.distributed` has started it.

        A signal that came before is sent again, so that the other processes learn of it.
        """
        self._previous = None  # JAX has set its own handler: ours is gone, and none is to be put back
        if self._noticed.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._noticed.set()

    def noticed(self) -> bool:
        """Returns whether this process may stop at once. Several may not: they agree on a place, and it is False."""
        return self._noticed.is_set() and not _is_distributed()

    def should_stop(self) -> bool:
        """Returns whether to stop here, the same in all processes.

        All of them must ask at the same places, which are counted: before every step and every batch of an evaluation.
        JAX takes the counts that the processes have come to when the signal arrives, and stops all of them at the next
        after the highest, so every question counts by one. To ask costs about a microsecond.

        Once it is True it stays so: if the state at that place cannot be saved since its numbers are bad, the run goes
        back, and stops at the next place.
        """
        if not _is_distributed():
            return self._noticed.is_set()
        from jax.experimental import multihost_utils

        self._questions += 1
        self._stopping |= multihost_utils.reached_preemption_sync_point(self._questions)
        return self._stopping


def _is_distributed() -> bool:
    """Returns whether `jax.distributed` runs; it does not import JAX, since signals are to be handled before that."""
    jax = sys.modules.get("jax")
    return jax is not None and hasattr(jax, "distributed") and jax.distributed.is_initialized()
