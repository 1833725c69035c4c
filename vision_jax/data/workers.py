"""Loading in several processes, for hosts with more cores than one process can keep busy.

Python runs one thread at a time, and every image needs its turn, so a few threads are enough to fill one process. Here
each process loads some of the rows of every batch, straight into memory that all of them share. A batch is a function
of its step, so nothing needs to be agreed upon: the main process says which step goes where, and the others say when
their rows are there. The memory has no name in the file system, and a process ends when its connection does, so nothing
is left behind however the main process ends.
"""

import collections
import contextlib
import dataclasses
import faulthandler
import functools
import json
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self

import numpy as np

from vision_jax.data.loader import CHUNK, HostBatch, Loader, Order, Transform, usable_cores
from vision_jax.data.sources import Source
from vision_jax.errors import ConfigError, DataError

_SECONDS_TO_END = 10
_ALIGNMENT = 64  # of arrays in the shared memory, in bytes
# What a process runs: the paths first, so that it finds what this one has.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from vision_jax.data import workers; workers.serve(int(sys.argv[2]), int(sys.argv[3]))"
)


def create_loader(
    source: Source,
    order: Order,
    transform: Transform,
    rows: np.ndarray,
    *,
    num_workers: int = 0,
    num_threads: int | None = None,
    max_bad_records: int = 0,
) -> "Loader | ProcessLoader":
    """Returns a loader on threads of this process, or in `num_workers` others; see `Loader` for the arguments."""
    if not num_workers:
        return Loader(source, order, transform, rows, num_threads, max_bad_records=max_bad_records)
    return ProcessLoader(
        source,
        order,
        transform,
        rows,
        num_workers=num_workers,
        num_threads=num_threads,
        max_bad_records=max_bad_records,
    )


class ProcessLoader:
    """As `Loader`, with the same batches, loaded by other processes. It is used by one thread at a time.

    Args:
        source, order, transform: see `Loader`; they must be picklable.
        rows: see `Loader`.
        num_workers: processes.
        num_threads: threads that decode, in all of them together; None: one a core that this process may use.
        max_bad_records: see `Loader`; of each process.

    Raises:
        ConfigError: if the system has no memory without a name (it is not Linux).
    """

    def __init__(
        self,
        source: Source,
        order: Order,
        transform: Transform,
        rows: np.ndarray,
        *,
        num_workers: int,
        num_threads: int | None = None,
        max_bad_records: int = 0,
    ):
        if not hasattr(os, "memfd_create"):
            raise ConfigError(f"data.num_workers is {num_workers}, which needs Linux: set it to 0.")
        num_workers = max(1, min(num_workers, len(rows)))
        threads = -(-(num_threads or usable_cores()) // num_workers)
        self.transform = transform
        self.lookahead = 2 + threads * num_workers * CHUNK // max(1, len(rows))
        self._layout = _Layout(len(rows), transform.max_size, transform.channels, replaces=max_bad_records > 0)
        self._free = collections.deque(range(self.lookahead))
        self._workers: list[_Worker] = []
        self._memory: mmap.mmap | None = None
        num_bytes = self._layout.num_bytes * self.lookahead
        descriptor = os.memfd_create("vision_jax", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, num_bytes)
            self._memory = mmap.mmap(descriptor, num_bytes)
            self._workers += [_Worker(descriptor) for _ in range(num_workers)]
            for worker, part in zip(self._workers, np.array_split(np.arange(len(rows)), num_workers), strict=True):
                here = slice(int(part[0]), int(part[-1]) + 1)
                worker.send(_Job(source, order, transform, rows[here], here, threads, max_bad_records, self._layout))
        except BaseException:
            self.close()
            raise
        finally:
            os.close(descriptor)

    def start(self, step: int) -> Callable[[], HostBatch]:
        """Begins a batch in the background; see `Loader.start`. At most `lookahead` can be begun and not released."""
        if not self._free:
            raise RuntimeError(f"{self.lookahead} batches have been begun, and none of them released.")
        slot = self._free.popleft()
        for worker in self._workers:
            worker.send((step, slot))

        def wait() -> HostBatch:
            for worker in self._workers:
                worker.wait_for(step)
            if self._memory is None:
                raise RuntimeError("The loader is closed.")
            batch = self._layout.batch(self._memory, slot, self.transform.at(step).size)
            return dataclasses.replace(batch, release=functools.partial(self._free.append, slot))

        return wait

    def cancel(self) -> None:
        """Gives up the batches that are waiting, from any thread: whoever waits for one gets an error."""
        for worker in self._workers:
            worker.cancel()

    def close(self) -> None:
        """Ends the processes; batches that are waiting are given up."""
        for worker in self._workers:
            worker.disconnect()
        for worker in self._workers:
            worker.end()
        self._workers = []
        self._memory = None  # it is given back when the last batch in it is forgotten

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where the arrays of a batch are in the shared memory, which has a number of slots one after the other.

    Attributes:
        num_rows: of a batch.
        max_size: the largest height and width of its images.
        channels: of its images.
        replaces: whether it has `replaced`.
    """

    num_rows: int
    max_size: int
    channels: int
    replaces: bool

    @property
    def _column(self) -> int:
        """Bytes that one value of four bytes a row takes."""
        return -(-4 * self.num_rows // _ALIGNMENT) * _ALIGNMENT

    @property
    def num_bytes(self) -> int:
        """Bytes of a slot."""
        images = self.num_rows * self.max_size**2 * self.channels
        return 3 * self._column + -(-images // _ALIGNMENT) * _ALIGNMENT

    def batch(self, memory: mmap.mmap, slot: int, size: int) -> HostBatch:
        """Returns the batch of a slot, with images of the given height and width; nothing is copied."""
        offset = slot * self.num_bytes
        label = np.frombuffer(memory, np.int32, self.num_rows, offset)
        mask = np.frombuffer(memory, np.float32, self.num_rows, offset + self._column)
        replaced = np.frombuffer(memory, np.float32, self.num_rows, offset + 2 * self._column)
        shape = (self.num_rows, size, size, self.channels)
        image = np.frombuffer(memory, np.uint8, int(np.prod(shape)), offset + 3 * self._column).reshape(shape)
        return HostBatch(image, label, mask, replaced if self.replaces else None)


@dataclasses.dataclass(frozen=True)
class _Job:
    """What a process is told at its start: the arguments of its loader, and which rows of a batch are its own."""

    source: Source
    order: Order
    transform: Transform
    rows: np.ndarray
    here: slice
    num_threads: int
    max_bad_records: int
    layout: _Layout


_running: "set[subprocess.Popen[bytes]]" = set()


def dump_stacks() -> None:
    """Lets all processes that load for this one write the stacks of their threads to stderr."""
    for process in list(_running):
        process.send_signal(signal.SIGUSR2)


class _Worker:
    """A process that loads, as the main process sees it.

    Args:
        memory: descriptor of the shared memory.
    """

    def __init__(self, memory: int):
        mine, other = socket.socketpair()
        arguments = [json.dumps(sys.path), str(other.fileno()), str(memory)]
        # The process inherits that these are blocked: the main one gets them too, and decides when to end;
        # SIGUSR1, which asks for a profile there, would end this one.
        blocked = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *arguments],
                pass_fds=(other.fileno(), memory),
                stdin=subprocess.DEVNULL,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            other.close()
        _running.add(self._process)
        self._connection, self._socket = Connection(mine.dup().detach()), mine
        self._finished: dict[int, Exception | None] = {}

    def send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise self._death() from error

    def wait_for(self, step: int) -> None:
        """Waits until its rows of a step are there.

        Raises:
            DataError: as `Loader.start` says, or if the process has ended.
        """
        while step not in self._finished:
            try:
                finished, error = self._connection.recv()
            except (EOFError, OSError) as end:
                raise self._death() from end
            if finished is None:
                raise error
            self._finished[finished] = error
        if (error := self._finished.pop(step)) is not None:
            raise error

    def _death(self) -> DataError:
        """Returns the error that tells how the process ended."""
        try:
            status: object = self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            status = "unknown"
        reason = " (killed, perhaps for want of memory)" if status == -signal.SIGKILL else ""
        return DataError(
            f"A process that loads data has ended with status {status}{reason}; if it said why, it is above. Lower "
            "data.num_workers or data.prefetch if memory is short."
        )

    def cancel(self) -> None:
        """Cuts the connection, so that nobody waits for what comes over it any more."""
        with contextlib.suppress(OSError):  # the process has cut it already
            self._socket.shutdown(socket.SHUT_RDWR)

    def disconnect(self) -> None:
        """Tells the process to end."""
        self._connection.close()
        self._socket.close()

    def end(self) -> None:
        """Waits until the process has ended."""
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in a file, where nothing can end it
                self._process.wait(_SECONDS_TO_END)
        _running.discard(self._process)


def serve(connection_descriptor: int, memory_descriptor: int) -> None:
    """What a process does: it loads what it is told to until its connection ends.

    Args:
        connection_descriptor: of a socket. First comes a `_Job`, then (step, slot) for each batch; back go (step, None
            or an exception), or (None, an exception) if it cannot even begin.
        memory_descriptor: of the shared memory.
    """
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    connection = Connection(connection_descriptor)
    try:
        job: _Job = connection.recv()
    except EOFError:
        return
    except Exception as error:
        message = f"What loads the data cannot be sent to another process: {error!r}. Set data.num_workers to 0."
        connection.send((None, DataError(message)))
        return
    memory = mmap.mmap(memory_descriptor, 0)
    begun: queue.Queue[tuple[int, Callable[[], HostBatch]]] = queue.Queue()
    with Loader(
        job.source, job.order, job.transform, job.rows, job.num_threads, max_bad_records=job.max_bad_records
    ) as loader:

        def begin(step: int, slot: int) -> Callable[[], HostBatch]:
            whole = job.layout.batch(memory, slot, job.transform.at(step).size)
            replaced = None if whole.replaced is None else whole.replaced[job.here]
            mine = HostBatch(whole.image[job.here], whole.label[job.here], whole.mask[job.here], replaced)
            return loader.start(step, mine)

        def receive() -> None:
            try:
                while True:
                    step, slot = connection.recv()
                    try:
                        begun.put((step, begin(step, slot)))
                    except Exception as error:
                        begun.put((step, functools.partial(_raise, error)))
            except (EOFError, OSError):  # the main process has closed the connection, or is no more
                os._exit(0)  # an orderly end would wait for ever for a thread that hangs in a file

        threading.Thread(target=receive, name="receive", daemon=True).start()
        while True:
            step, wait = begun.get()
            try:
                connection.send((step, _outcome(wait)))
            except OSError:
                return


def _raise(error: Exception) -> HostBatch:
    raise error


def _outcome(wait: Callable[[], HostBatch]) -> Exception | None:
    """Waits for a batch, and returns what went wrong, as something that can be sent."""
    try:
        wait()
    except DataError as error:
        return DataError(str(error))
    except Exception:
        return RuntimeError(f"Loading failed:\n{traceback.format_exc()}")
    return None
