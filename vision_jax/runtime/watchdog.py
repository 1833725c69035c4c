"""Finding hangs: when nothing ends for too long, the stacks of all threads are written and the process ends.

Every process of a run has a watchdog with the same limit. When one hangs in its input, the others wait for it in a
collective, so all of them find out by themselves, and each writes its own stacks; that one of them is frozen is found
by the others.

A thread of Python looks now and then. It cannot look while a call into C keeps the interpreter's lock, so at every look
it sets an alarm for a little later than it would act itself: timers of the C library, which need no lock, write the
stacks and end the process. `faulthandler.dump_traceback_later(exit=True)` would be simpler, but it ends a process with
status 1, as any error does.
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
_LOOKS = 0.05  # between two looks
_LINGERS = 0.1  # from writing the stacks to the end, so that the other processes write theirs before they miss this one
_ALARM = 0.3  # from the limit to the alarm
_STDERR = 2


class Alarm(Protocol):
    """Acts after some time, unless it is put off or stopped before."""

    def set(self, seconds: float) -> None: ...

    def stop(self) -> None: ...


class Watchdog:
    """Ends this process with `STATUS_HANG` if it is told for `limit_seconds` that nothing has ended.

    It works between `__enter__` and `__exit__`; until then SIGUSR2 writes the stacks to stderr at any time.

    Args:
        limit_seconds: 0: never.
        directory: the stacks are added to `process_I.txt` in it, besides being written to stderr. None: stderr alone.
        process_index: of this process, the I above.
        clock: seconds from any start.
        end: ends the process with a status.
        alarm: makes what acts if no thread of Python can; None: `CAlarm`.
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
        if self._acts.is_set():  # an error of another process that has ended before: the status is to be the same
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
        """Says that a step has ended, or what else takes no longer than that."""
        self._last = self._clock()

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Nothing needs to end here: for compiling, which can take longer than any step."""
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
        """Sets the alarm anew, unless the limit has passed, and returns whether it has not."""
        left = self._last + self._limit - self._clock()
        if left > 0 and not self._pauses and self._alarm is not None:
            self._alarm.set(left + _ALARM * self._limit)
        return left > 0 or self._pauses > 0

    def _act(self) -> None:
        """Writes the stacks, first where no file system is in the way, and ends the process.

        If this hangs too, the alarm comes.
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
        """Opens the file for the stacks: when they are to be written it may be too late."""
        if self._path is None:
            return None
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._path.open("a")
        except OSError as error:
            log.warning("Should this run hang, its stacks will be on stderr alone: %s", error)
            return None


class _Event(ctypes.Structure):
    """`struct sigevent` of Linux: what a timer does when it has run down."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("rest", ctypes.c_char * 32),
    )


class _Times(ctypes.Structure):
    """`struct itimerspec`: between two times, and until the first."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "seconds", "nanoseconds"))


_CLOCK_MONOTONIC = 1
_SIGEV_SIGNAL, _SIGEV_THREAD = 0, 2


class CAlarm:
    """Writes the stacks of all threads to a file and to stderr and ends the process, without the interpreter's lock.

    A thread of `faulthandler` writes the file. A timer sends SIGUSR2, for which `faulthandler` writes to stderr, and
    another calls `_exit(STATUS_HANG)` in a thread of the C library. On systems other than Linux it does nothing.

    Args:
        descriptor: of the file.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._timers: list[tuple[ctypes.c_void_p, float]] = []  # and how much later than the others they act
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
