"""Detecting hangs: if no step finishes for too long, the stacks of all threads are dumped and the process exits.

Every process of a run has a watchdog with the same limit. When one hangs in its input, the others wait for it in a
collective, so each of them notices by itself and dumps its own stacks; a frozen process is noticed by the others.

A Python thread checks periodically. It cannot run while a call into C holds the GIL, so at every check it sets an alarm
for slightly later than it would act itself: timers of the C library, which do not need the GIL, dump the stacks and end
the process. `faulthandler.dump_traceback_later(exit=True)` would be simpler, but it exits with status 1, as any error
does.
"""

import contextlib
import ctypes
import datetime
import faulthandler
import logging
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Protocol, Self

from vision_jax.data import workers
from vision_jax.errors import STATUS_HANG

log = logging.getLogger(__name__)

# Shares of the limit. The alarm must come after the thread would have acted, and ended the process.
_LOOKS = 0.05  # between two checks
_LINGERS = 0.1  # from the dump to the exit, so that the other processes dump theirs before they miss this one
_ALARM = 0.3  # from the limit to the alarm
_STDERR = 2


class Alarm(Protocol):
    """Goes off after some time, unless it is postponed or stopped before."""

    def set(self, seconds: float) -> None: ...

    def stop(self) -> None: ...


class Watchdog:
    """Ends the process with `STATUS_HANG` if `beat` is not called for `limit_seconds`.

    It is active between `__enter__` and `__exit__`, while SIGUSR2 dumps the stacks to stderr at any time.

    Args:
        limit_seconds: the limit; 0: never.
        directory: stacks are appended to `process_I.txt` in it, besides going to stderr. None: stderr only.
        process_index: of this process, the I above.
        clock: a monotonic clock, in seconds.
        end: ends the process with a status.
        alarm: creates what acts if no Python thread can; None: `CAlarm`.
    """

    def __init__(
        self,
        limit_seconds: float,
        directory: pathlib.Path | None = None,
        *,
        process_index: int = 0,
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[int], object] = os._exit,
        alarm: Callable[[int], Alarm] | None = None,
    ):
        self._limit, self._clock, self._end = limit_seconds, clock, end
        self._path = None if directory is None else directory / f"process_{process_index}.txt"
        self._make_alarm = alarm or CAlarm
        self._file: IO[str] | None = None
        self._alarm: Alarm | None = None
        self._lock = threading.Lock()  # of what follows, and of the alarm
        self._last, self._pauses = clock(), 0
        self._over, self._acts = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if not self._limit:
            return self
        self._file = self._open()
        faulthandler.register(signal.SIGUSR2, file=_STDERR, all_threads=True)
        self._alarm = self._make_alarm(self._file.fileno() if self._file else _STDERR)
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._alarm is None:
            return
        if self._acts.is_set():  # the error of a process that exited first must not change the status
            self._thread.join()
        self._over.set()
        self._thread.join()
        self._alarm.stop()
        faulthandler.unregister(signal.SIGUSR2)
        if self._file is not None and self._path is not None:
            self._file.close()
            with contextlib.suppress(OSError):  # there are stacks of another time or process
                if not self._path.stat().st_size:
                    self._path.unlink()
                self._path.parent.rmdir()

    def beat(self) -> None:
        """Reports progress: a step, or something else that takes no longer, has finished."""
        self._last = self._clock()

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Suspends the limit, for compilation and other work that may take longer than any step."""
        with self._lock:
            self._pauses += 1
            if self._alarm is not None:
                self._alarm.stop()
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                self.beat()
                self._put_off()

    def _run(self) -> None:
        while not self._over.wait(_LOOKS * self._limit):
            with self._lock:
                in_time = self._put_off()
            if not in_time:
                self._acts.set()
                return self._act()

    def _put_off(self) -> bool:
        """Postpones the alarm, unless the limit has passed; returns whether there is time left."""
        left = self._last + self._limit - self._clock()
        if left > 0 and not self._pauses and self._alarm is not None:
            self._alarm.set(left + _ALARM * self._limit)
        return left > 0 or self._pauses > 0

    def _act(self) -> None:
        """Dumps the stacks, first to stderr, which involves no file system, and ends the process.

        If this hangs too, the alarm goes off.
        """
        now = datetime.datetime.now().isoformat(" ", "seconds")
        problem = f"{now} No step and no batch of an evaluation has ended for {self._limit:g} s"
        os.write(_STDERR, f"{problem}. The stacks of all threads:\n".encode())
        faulthandler.dump_traceback(_STDERR)
        workers.dump_stacks()
        if self._file is not None:
            self._file.write(f"{problem}:\n")
            self._file.flush()
            faulthandler.dump_traceback(self._file)
        time.sleep(_LINGERS * self._limit)
        where = "" if self._path is None else f", with its stacks in {self._path}"
        os.write(_STDERR, f"error: {problem}: this process ends with status {STATUS_HANG}{where}.\n".encode())
        self._end(STATUS_HANG)

    def _open(self) -> IO[str] | None:
        """Opens the file for the stacks ahead of time: during a hang it may be too late."""
        if self._path is None:
            return None
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._path.open("a")
        except OSError as error:
            log.warning("If this run hangs, its stacks go to stderr only: %s", error)
            return None


class _Event(ctypes.Structure):
    """`struct sigevent` of Linux: what a timer does when it expires."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("rest", ctypes.c_char * 32),
    )


class _Times(ctypes.Structure):
    """`struct itimerspec`: the interval, and the time until the first expiration."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "seconds", "nanoseconds"))


_CLOCK_MONOTONIC = 1
_SIGEV_SIGNAL, _SIGEV_THREAD = 0, 2


class CAlarm:
    """Dumps the stacks of all threads to a file and to stderr and ends the process, without the GIL.

    A thread of `faulthandler` writes the file. A timer sends SIGUSR2, upon which `faulthandler` writes to stderr, and
    another calls `_exit(STATUS_HANG)` in a thread of the C library. On systems other than Linux it does nothing.

    Args:
        descriptor: of the file.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._timers: list[tuple[ctypes.c_void_p, float]] = []  # and their delay after the others, in seconds
        if sys.platform != "linux":
            return
        self._c = ctypes.CDLL(None, use_errno=True)
        if not hasattr(self._c, "timer_create"):
            self._c = ctypes.CDLL("librt.so.1", use_errno=True)  # before version 2.34 of glibc
        if descriptor != _STDERR:
            self._timers.append((self._timer(_Event(signal=signal.SIGUSR2, notify=_SIGEV_SIGNAL)), 0))
        function = ctypes.cast(ctypes.CDLL(None)._exit, ctypes.c_void_p)
        event = _Event(value=STATUS_HANG, notify=_SIGEV_THREAD, function=function)
        self._timers.append((self._timer(event), 1))

    def set(self, seconds: float) -> None:
        if self._timers:
            faulthandler.dump_traceback_later(seconds, file=self._descriptor)
        for timer, later in self._timers:
            self._set(timer, seconds + later)

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        for timer, _ in self._timers:
            self._set(timer, 0)

    def _timer(self, event: _Event) -> ctypes.c_void_p:
        timer = ctypes.c_void_p()
        if self._c.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
            raise OSError(ctypes.get_errno(), "timer_create failed")
        return timer

    def _set(self, timer: ctypes.c_void_p, seconds: float) -> None:
        times = _Times(0, 0, int(seconds), int(seconds % 1 * 1e9))
        if self._c.timer_settime(timer, 0, ctypes.byref(times), None):
            raise OSError(ctypes.get_errno(), "timer_settime failed")
