"""Measuring loaders side by side: each in processes of its own, one at a time, in rounds.

Machines are noisy, and a loader that is idle still fills its buffers. So every loader is started and warmed up once,
then frozen (SIGSTOP) with all its processes except while it is measured, and what is compared is the ratio within a
round.
"""

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import time
import traceback
from typing import Any, Self

import numpy as np

from vision_jax.benchmark.loaders import LOADERS, Batches, Job

CHECKED = 64  # images of which the error is taken
_SECONDS_TO_END = (
    5.0  # before a process is killed; torch's and TensorFlow's leave no semaphores behind if they have time
)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One loader in one round.

    Attributes:
        images: delivered.
        seconds: of wall-clock time.
        cpu_seconds: of CPU time of all its processes.
    """

    images: int
    seconds: float
    cpu_seconds: float


class LoaderFailed(Exception):
    """A loader raised an exception, or its process died; the message is its own."""


def measure(batches: Batches, seconds: float) -> tuple[int, float]:
    """Counts the images that arrive in `seconds`, or with the first batch after.

    Returns:
        images and the seconds that they took.
    """
    images, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        images += len(next(batches)[0])
    return images, elapsed


class Worker:
    """A loader in a process of its own, frozen except while it is measured.

    Args:
        name: of `LOADERS`.
        job: what it is given.

    Attributes:
        records, crops: the first CHECKED of what it delivers: (n,), and for each crop (n, size, size, 3) uint8.

    Raises:
        LoaderFailed: if it does not deliver a first batch.
    """

    def __init__(self, name: str, job: Job):
        self._log = job.dataset.directory / f"{name}.log"
        context = multiprocessing.get_context("spawn")  # TensorFlow and torch start from a clean process
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._log, name, job), daemon=False)
        self._process.start()
        theirs.close()
        assert self._process.pid is not None  # it is started
        self._group = self._process.pid  # which it will lead
        try:
            self.records, self.crops = self._receive()
            self._freeze()
        except BaseException:
            self.close()
            raise

    def measure(self, seconds: float) -> Measurement:
        """Lets it run for so long.

        Raises:
            LoaderFailed: if it raises, or dies.
        """
        before = _cpu_seconds(self._group)
        os.killpg(self._group, signal.SIGCONT)
        self._connection.send(seconds)
        images, elapsed = self._receive()
        self._freeze()
        return Measurement(images, elapsed, _cpu_seconds(self._group) - before)

    def _receive(self) -> tuple[Any, Any]:
        ready = multiprocessing.connection.wait([self._connection, self._process.sentinel])
        try:
            if self._connection in ready:
                error, first, second = self._connection.recv()
                if error is None:
                    return first, second
                raise LoaderFailed(error)
        except EOFError:
            pass  # it died
        self._process.join()
        lines = self._log.read_text(errors="replace").strip().splitlines()
        raise LoaderFailed(f"its process ended with status {self._process.exitcode}: {' '.join(lines[-2:])}")

    def _freeze(self) -> None:
        os.killpg(self._group, signal.SIGSTOP)

    def close(self) -> None:
        """Ends the process and its children."""
        with contextlib.suppress(OSError):  # it may be gone, or not lead its group yet
            self._connection.send(None)
            os.killpg(self._group, signal.SIGCONT)
            self._process.join(_SECONDS_TO_END)
        with contextlib.suppress(OSError):
            os.killpg(self._group, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(connection: Any, log: pathlib.Path, name: str, job: Job) -> None:
    """The process of a `Worker`: sends (error or None, ...) for a first batch, then for each duration it receives."""
    # A group of its own, so that its children can be frozen with it. If our process dies, the kernel ends the group.
    os.setpgid(0, 0)
    with log.open("w") as file:  # the libraries' messages would tear the table
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        batches = LOADERS[name].open(job)
        records, crops = next(batches)
        connection.send((None, np.array(records[:CHECKED]), [np.array(crop[:CHECKED]) for crop in crops]))
        while (seconds := connection.recv()) is not None:
            connection.send((None, *measure(batches, seconds)))
    except Exception as error:  # whatever a library raises is shown in the table
        traceback.print_exc()
        connection.send(("".join(traceback.format_exception_only(error)).strip().splitlines()[0], None, None))


def _cpu_seconds(group: int) -> float:
    """Returns the CPU time that the processes of a group have used so far."""
    ticks = 0
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a process that ends meanwhile
            fields = (
                path.read_text().rpartition(")")[2].split()
            )  # from the third of proc(5) on: the name may have spaces
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
