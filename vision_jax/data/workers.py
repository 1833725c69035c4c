"""Loading in worker processes, for hosts with more cores than one process can keep busy.

Because of the GIL, a few threads are enough to saturate one process. Here each worker loads some of the rows of every
batch, directly into shared memory. The main process tells the workers which records go where, and they report when
their rows are done. The memory has no name in the file system, and a worker ends when its connection does, so nothing
is left behind however the main process ends.

The source is pickled once for all workers, with its arrays (the paths of a million files) in the shared memory.
"""

import collections
import contextlib
import dataclasses
import faulthandler
import functools
import json
import math
import mmap
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Self

import numpy as np

from vision_jax.data.loader import (
    CHUNK,
    HostBatch,
    Loader,
    Order,
    RecordLoader,
    Transform,
    batch_fields,
    usable_cores,
)
from vision_jax.data.sources import Source
from vision_jax.data.views import Field
from vision_jax.errors import ConfigError, DataError, reason

_SECONDS_TO_END = 10
_ALIGNMENT = 64  # of arrays in the shared memory, in bytes
# The program of a worker. It sets sys.path first, so that it finds the same modules as this process.
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
    leave_out: bool = False,
) -> "Loader | ProcessLoader":
    """Returns a loader on threads of this process, or in `num_workers` workers; see `Loader` for the arguments."""
    if not num_workers:
        return Loader(source, order, transform, rows, num_threads, max_bad_records=max_bad_records, leave_out=leave_out)
    return ProcessLoader(
        source,
        order,
        transform,
        rows,
        num_workers=num_workers,
        num_threads=num_threads,
        max_bad_records=max_bad_records,
        leave_out=leave_out,
    )


class ProcessLoader:
    """Like `Loader`, with the same batches, but loaded by worker processes. Used by one thread at a time.

    Args:
        source, order, transform: see `Loader`; source and transform must be picklable.
        rows: see `Loader`.
        num_workers: number of worker processes.
        num_threads: decoding threads in all workers together; None: one per core that this process may use.
        max_bad_records, leave_out: see `RecordLoader`; for each worker.

    Raises:
        ConfigError: if the system has no anonymous shared memory (it is not Linux).
        DataError: if source or transform cannot be pickled.
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
        leave_out: bool = False,
    ):
        if not hasattr(os, "memfd_create"):
            raise ConfigError(f"data.num_workers is {num_workers}, which needs Linux: set it to 0.")
        num_workers = max(1, min(num_workers, len(rows)))
        threads = -(-(num_threads or usable_cores()) // num_workers)
        self.order, self.transform, self.rows = order, transform, rows
        self.lookahead = 2 + threads * num_workers * CHUNK // max(1, len(rows))
        replaces = max_bad_records > 0 and not leave_out
        self._layout = _Layout(len(rows), batch_fields(transform.largest(), replaces=replaces))
        self._free = collections.deque(range(self.lookahead))
        self._workers: list[_Worker] = []
        self._memory: mmap.mmap | None = None
        job, arrays = _pickle(_Job(source, transform, threads, max_bad_records, leave_out, self._layout))
        spans = _spans(self._layout.num_bytes * self.lookahead, arrays)
        num_bytes = spans[-1].stop if spans else self._layout.num_bytes * self.lookahead
        descriptor, self._memory = _shared_memory(num_bytes, num_workers)
        try:
            for span, array in zip(spans, arrays, strict=True):
                self._memory[span] = array
            self._workers += [_Worker(descriptor) for _ in range(num_workers)]
            self._parts = [
                slice(int(part[0]), int(part[-1]) + 1) for part in np.array_split(np.arange(len(rows)), num_workers)
            ]
            for worker, here in zip(self._workers, self._parts, strict=True):
                worker.send((job, spans, here))
        except BaseException:
            self.close()
            raise
        finally:
            os.close(descriptor)

    def start(self, step: int) -> Callable[[], HostBatch]:
        """Starts a batch in the background; see `Loader.start`. At most `lookahead` can be started and not released."""
        if not self._free:
            raise RuntimeError(f"{self.lookahead} batches have been started, and none of them released.")
        slot = self._free.popleft()
        numbers = np.asarray(self.order.records(step))[self.rows]
        visits = np.asarray(self.order.visits(step))[self.rows]
        for worker, here in zip(self._workers, self._parts, strict=True):
            worker.send((step, slot, numbers[here], visits[here]))

        def wait() -> HostBatch:
            for worker in self._workers:
                worker.wait_for(step)
            if self._memory is None:
                raise RuntimeError("The loader is closed.")
            batch = self._layout.batch(self._memory, slot, self.transform.at(step))
            return dataclasses.replace(batch, release=functools.partial(self._free.append, slot))

        return wait

    def cancel(self) -> None:
        """Cancels pending batches, from any thread: whoever waits for one gets an error."""
        for worker in self._workers:
            worker.cancel()

    def close(self) -> None:
        """Cancels pending batches and ends the workers."""
        for worker in self._workers:
            worker.disconnect()
        for worker in self._workers:
            worker.end()
        self._workers = []
        self._memory = None  # freed when the last batch in it is garbage-collected

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where the arrays of a batch are in the shared memory, a sequence of slots.

    Attributes:
        num_rows: of a batch.
        largest: the fields of the step that needs the most memory. Fields of all steps start at the same offsets.
    """

    num_rows: int
    largest: dict[str, Field]

    def _num_bytes(self, field: Field) -> int:
        return _aligned(self.num_rows * field.num_bytes)

    @property
    def num_bytes(self) -> int:
        """Bytes of a slot."""
        return sum(self._num_bytes(field) for field in self.largest.values())

    def batch(self, memory: mmap.mmap, slot: int, transform: Transform) -> HostBatch:
        """Returns the batch of a slot, as the transform of a step writes it; nothing is copied."""
        fields = batch_fields(transform, replaces="replaced" in self.largest)
        offset = slot * self.num_bytes
        arrays = {}
        for name, largest in self.largest.items():
            shape, dtype = (self.num_rows, *fields[name].shape), fields[name].dtype
            arrays[name] = np.frombuffer(memory, dtype, math.prod(shape), offset).reshape(shape)
            offset += self._num_bytes(largest)
        return HostBatch(arrays)


def _shared_memory(num_bytes: int, num_workers: int) -> tuple[int, mmap.mmap]:
    """Returns the descriptor of new shared memory, and the memory.

    Raises:
        DataError: if there is no room for it.
    """
    descriptor = None
    try:
        descriptor = os.memfd_create("vision_jax", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, num_bytes)
        return descriptor, mmap.mmap(descriptor, num_bytes)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        raise DataError(
            f"There is no room for {num_bytes:,} bytes of shared memory, which data.num_workers={num_workers} needs: "
            f"{reason(error)}. Lower data.prefetch or batch_size, or set data.num_workers to 0."
        ) from error


def _aligned(num_bytes: int) -> int:
    """Rounds up to an aligned offset."""
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


@dataclasses.dataclass(frozen=True)
class _Job:
    """What a worker gets at its start, the same for all."""

    source: Source
    transform: Transform
    num_threads: int
    max_bad_records: int
    leave_out: bool
    layout: _Layout


def _pickle(job: _Job) -> tuple[bytes, list[memoryview]]:
    """Pickles a job, except for the bytes of its arrays.

    Raises:
        DataError: if it cannot be.
    """
    arrays: list[pickle.PickleBuffer] = []
    try:
        data = pickle.dumps(job, protocol=5, buffer_callback=arrays.append)
    except Exception as error:  # whatever the parts of a source raise
        raise DataError(
            f"The loader cannot be sent to another process: {error!r}. Set data.num_workers to 0."
        ) from error
    return data, [array.raw() for array in arrays]


def _spans(start: int, arrays: Sequence[memoryview]) -> list[slice]:
    """Returns where arrays are in the shared memory, from `start` on."""
    spans = []
    for array in arrays:
        spans.append(slice(start, start + array.nbytes))
        start = _aligned(start + array.nbytes)
    return spans


_running: "set[subprocess.Popen[bytes]]" = set()


def dump_stacks() -> None:
    """Makes all workers of this process write the stacks of their threads to stderr."""
    for process in list(_running):
        process.send_signal(signal.SIGUSR2)


class _Worker:
    """A worker, from the main process's side.

    Args:
        memory: descriptor of the shared memory.
    """

    def __init__(self, memory: int):
        mine, other = socket.socketpair()
        arguments = [json.dumps(sys.path), str(other.fileno()), str(memory)]
        # The worker inherits the blocked signals: the main process gets them too, and decides when to end; SIGUSR1,
        # which requests a profile there, would end the worker.
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
        """Waits until its rows of a step are done.

        Raises:
            DataError: as in `Loader.start`, or if the worker has ended.
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
        """Returns an error that says how the worker ended."""
        try:
            status: int | str = self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            status = "unknown"
        reasons = {
            -signal.SIGKILL: " (killed, perhaps because memory ran out)",
            -signal.SIGBUS: " (a bus error: perhaps shared memory ran out, or a file that it reads was cut)",
        }
        reason = reasons.get(status, "") if isinstance(status, int) else ""
        return DataError(
            f"A process that loads data has ended with status {status}{reason}; see its output above, if any. Lower "
            "data.num_workers or data.prefetch if memory is short."
        )

    def cancel(self) -> None:
        """Shuts the connection down, so that nobody waits for it any more."""
        with contextlib.suppress(OSError):  # the worker has closed it already
            self._socket.shutdown(socket.SHUT_RDWR)

    def disconnect(self) -> None:
        """Tells the worker to end."""
        self._connection.close()
        self._socket.close()

    def end(self) -> None:
        """Waits until the worker has ended."""
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in a read, which nothing can interrupt
                self._process.wait(_SECONDS_TO_END)
        _running.discard(self._process)


def serve(connection_descriptor: int, memory_descriptor: int) -> None:
    """The main function of a worker: loads rows on request until its connection is closed.

    Args:
        connection_descriptor: of a socket. It receives a pickled `_Job`, with the positions of its arrays in the memory
            and this worker's rows of a batch; then (step, slot, records, visits) for each batch. It sends (step, None
            or an exception), or (None, an exception) if it cannot start.
        memory_descriptor: of the shared memory.
    """
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    connection = Connection(connection_descriptor)
    memory = mmap.mmap(memory_descriptor, 0)
    try:
        data, spans, here = connection.recv()
        arrays = memoryview(memory).toreadonly()
        job: _Job = pickle.loads(data, buffers=[arrays[span] for span in spans])
    except EOFError:
        return
    except Exception as error:  # such as modules or files that this process does not find
        message = f"The loader cannot be restored in another process: {error!r}. Set data.num_workers to 0."
        connection.send((None, DataError(message)))
        return
    begun: queue.Queue[tuple[int, Callable[[], HostBatch]]] = queue.Queue()
    with RecordLoader(
        job.source, job.num_threads, max_bad_records=job.max_bad_records, leave_out=job.leave_out
    ) as loader:

        def begin(step: int, slot: int, numbers: np.ndarray, visits: np.ndarray) -> Callable[[], HostBatch]:
            transform = job.transform.at(step)
            whole = job.layout.batch(memory, slot, transform)
            mine = HostBatch({name: rows[here] for name, rows in whole.arrays.items()})
            return loader.load(transform, numbers, visits, mine)

        def receive() -> None:
            try:
                while True:
                    step, *rest = connection.recv()
                    try:
                        begun.put((step, begin(step, *rest)))
                    except Exception as error:
                        begun.put((step, functools.partial(_raise, error)))
            except (EOFError, OSError):  # the main process has closed the connection, or is gone
                os._exit(0)  # an orderly exit would wait for ever for a thread that hangs in a read

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
    """Waits for a batch, and returns its exception, if any, in a form that can be sent."""
    try:
        wait()
    except DataError as error:
        return DataError(str(error))
    except Exception:
        return RuntimeError(f"Loading failed:\n{traceback.format_exc()}")
    return None
