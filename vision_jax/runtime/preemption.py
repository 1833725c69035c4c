"""Preemption: handling SIGTERM and Ctrl-C, so that a run saves its state before it is stopped."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

_SAVING = b"\nCtrl-C: saving at the end of this step; once more does not wait for that.\n"


class Preemption:
    """Turns SIGTERM into a flag that the training loop and evaluations poll.

    With a single process, this object handles the signal between `__enter__` and `__exit__`. With several, JAX's
    preemption notifier, which `jax.distributed` starts, does, and makes all processes agree on the step to stop at.

    Ctrl-C (SIGINT) sets the flag too while there is something to save, which `saving_on_interrupt` says; else it raises
    KeyboardInterrupt, as ever.

    Attributes:
        interrupted: Ctrl-C has set the flag.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._noticed = threading.Event()
        self._previous: Any = None
        self._questions = 0
        self._stopping = False  # several processes have agreed on it

    def __enter__(self) -> Self:
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread() and not _is_distributed():
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def hand_over(self) -> None:
        """Leaves the signal to JAX's notifier; call it once `jax.distributed` is initialized.

        A signal that arrived earlier is sent again, so that the other processes learn of it.
        """
        self._previous = None  # JAX has replaced our handler, and no other one is to be restored
        if self._noticed.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._noticed.set()

    @contextlib.contextmanager
    def saving_on_interrupt(self) -> Iterator[None]:
        """Lets Ctrl-C set the flag meanwhile; a second one raises KeyboardInterrupt.

        With several processes it is passed on as SIGTERM, so that all of them stop at the same step. A program that
        handles SIGINT in its own way, or ignores it as those that a shell starts in the background do, keeps that.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # of a second one
        with contextlib.suppress(OSError):  # stderr may be closed
            os.write(2, _SAVING)  # not `print`, which this may have interrupted
        if _is_distributed():
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.interrupted = True
        self._noticed.set()

    def noticed(self) -> bool:
        """Returns whether this process may stop right away; always False with several, which must agree on a step."""
        return self._noticed.is_set() and not _is_distributed()

    def should_stop(self) -> bool:
        """Returns whether to stop here, the same in all processes.

        Call this once per step and once per evaluation batch, in all processes alike; each call increments a counter.
        When the signal arrives, JAX stops every process at max(counter) + 1. A call takes about a microsecond.

        The answer stays True: if the state at that point cannot be saved because of a NaN or a spike, the run rewinds,
        and stops at the next call.
        """
        if not _is_distributed():
            return self._noticed.is_set()
        from jax.experimental import multihost_utils

        self._questions += 1
        self._stopping |= multihost_utils.reached_preemption_sync_point(self._questions)
        return self._stopping


def _is_distributed() -> bool:
    """Returns whether `jax.distributed` is initialized, without importing JAX: signals are handled before that."""
    jax = sys.modules.get("jax")
    return jax is not None and hasattr(jax, "distributed") and jax.distributed.is_initialized()
