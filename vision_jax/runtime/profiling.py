"""Profiling a few steps on demand: a range from the configuration, or the next ten after SIGUSR1.

A profile is a trace for TensorBoard's xprof plugin. It is written to files; no port is opened.
"""

import contextlib
import logging
import pathlib
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Self

import jax

log = logging.getLogger(__name__)

_STEPS_AFTER_SIGNAL = 10


class Profiler:
    """Starts and stops JAX's profiler between steps. Each process handles its own signals.

    Steps are numbered from 1, as in metrics.jsonl. A signal during a profile is ignored. The signal is handled between
    `__enter__` and `__exit__`, in the main thread only, as Python requires.

    Args:
        directory: for the traces; created, private to the user, when the first one is started. If there are several
            processes, which may be on one machine, each has its own folder in it.
        steps: (first, last) step to profile; (): none. A run that resumes within the range profiles the rest of it.
    """

    def __init__(self, directory: pathlib.Path, steps: Sequence[int] = ()):
        self._directory = directory
        self._range = tuple(steps)
        self._last: int | None = None  # of the steps that are being profiled
        self._requested = threading.Event()
        self._previous: Any = None

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Wraps fetching the batch of a step and dispatching the step, which it names in the trace."""
        if self._last is None:
            if self._range and self._range[0] <= step <= (last := self._range[1]):
                self._start(step, last)
            elif self._requested.is_set():
                self._start(step, step + _STEPS_AFTER_SIGNAL - 1)
        self._requested.clear()
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def after_step(self, step: int, result: Any) -> None:
        """Ends the profile after its last step, once the devices have finished it, that is, `result` is ready."""
        if self._last is not None and step >= self._last:
            jax.block_until_ready(result)
            self._stop()

    def _start(self, step: int, last: int) -> None:
        self._range = ()  # only once, even if the run rewinds to before it
        directory = self._directory
        if jax.process_count() > 1:
            directory = directory / f"process_{jax.process_index()}"
        try:
            for path in (self._directory, directory):  # mkdir does not apply the mode to parents
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            jax.profiler.start_trace(directory)
        except (OSError, RuntimeError) as error:
            log.warning("Steps %d to %d cannot be profiled: %s", step, last, error)
            return
        self._last = last
        log.info("Profiling steps %d to %d.", step, last)

    def _stop(self) -> None:
        self._last = None
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:  # such as a full disk, which is no reason to end the run here
            log.warning("The profile cannot be written to %s: %s", self._directory, error)
        else:
            log.info("The profile is in %s.", self._directory)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._requested.set()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGUSR1, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._last is not None:  # the training ends within the range
            self._stop()
        if self._previous is not None:
            signal.signal(signal.SIGUSR1, self._previous)
            self._previous = None
