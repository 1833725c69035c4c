"""Learning in time that this run is about to be stopped."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class Preemption:
    """Turns SIGTERM into a question that the training loop asks between steps.

    In a single process this object handles the signal, from `__enter__` to `__exit__`. With several, the notifier that
    `jax.distributed` starts does, and makes all processes agree on one step.
    """

    def __init__(self) -> None:
        self._noticed = threading.Event()
        self._previous: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._noticed.set()

    @property
    def noticed(self) -> bool:
        """Whether this process has been told to stop."""
        return self._noticed.is_set()

    def stops_at(self, step: int) -> bool:
        """Returns whether all processes are to save `step` and stop. To be asked at every step, by every process."""
        import jax  # here, so that the signal is handled while JAX is being imported

        if jax.process_count() == 1:
            return self.noticed
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
