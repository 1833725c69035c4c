"""Decoding batches on threads, and prefetching a few of them onto the devices.

There is no iterator state: batch `step` is a function of the step alone, so a loader can start anywhere at no cost.
"""

import collections
import concurrent.futures
import dataclasses
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from vision_jax.data.decode import DecodeError
from vision_jax.data.order import random_bits
from vision_jax.data.sources import Record, Source, check_record
from vision_jax.data.views import Field
from vision_jax.errors import DataError, Interrupted, one_line, printable, reason

if TYPE_CHECKING:
    import jax  # for types alone: processes that only load do without it

    Placer = Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]]

log = logging.getLogger(__name__)

# Rows per task of a thread: enough to amortize NumPy's overhead per call, few enough to keep all threads busy.
CHUNK = 32
_SECONDS_TO_END = 3.0  # how long to wait for batches that are not needed any more
_SECONDS_TO_ASK = 0.2  # between checks whether to keep waiting
_DECODE, _PREFETCH = "decode", "prefetch"  # names of threads
_MAX_ATTEMPTS = 100  # to find a record that can replace a damaged one
_REPLACEMENT_STREAM = 4  # separates the random numbers here from those of orders and crops


class Order(Protocol):
    """Determines the records of a step; see `vision_jax.data.order`."""

    def records(self, step: int) -> np.ndarray: ...

    def visits(self, step: int) -> np.ndarray: ...


class Transform(Protocol):
    """Turns records into rows of a batch; see `vision_jax.data.transforms`."""

    def at(self, step: int) -> "Transform":
        """Returns the transform of a step."""
        ...

    def largest(self) -> "Transform":
        """Returns the transform of the step whose fields take the most memory."""
        ...

    def fields(self) -> dict[str, Field]:
        """Returns the fields of the batch that it writes."""
        ...

    def __call__(
        self, records: Sequence[Record], numbers: np.ndarray, visits: np.ndarray, out: Mapping[str, np.ndarray]
    ) -> None:
        """Writes n records into n rows, given their numbers in the source and their visits.

        Raises:
            DecodeError: for a record that is damaged.
        """
        ...


def _nothing() -> None:
    pass


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """The rows of a global batch in one process.

    Attributes:
        arrays: by name, with the rows as first axis; see `batch_fields`.
        release: call it once the batch has been used; its memory may then be overwritten.
    """

    arrays: dict[str, np.ndarray]
    release: Callable[[], None] = _nothing

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]


def batch_fields(transform: Transform, *, replaces: bool = False) -> dict[str, Field]:
    """Returns all fields of a batch: those of the transform, and those that the loader adds.

    These are `mask`, float32, 1 for examples and 0 for padding, where all other fields are 0 too; and, if damaged
    records may be replaced, `replaced`, float32, 1 for the rows in which that happened.
    """
    number = Field((), np.dtype(np.float32))
    fields = transform.fields() | {"mask": number}
    return fields | {"replaced": number} if replaces else fields


def usable_cores() -> int:
    """Returns the number of cores that this process may use, which in a container can be fewer than exist."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class RecordLoader:
    """Reads and decodes given records on a pool of threads, straight into the rows of a batch.

    Args:
        source: of the records.
        num_threads: None: one per core that this process may use.
        max_bad_records: number of damaged records that are tolerated; one more is an error.
        leave_out: turn damaged records into rows that do not count (`mask` is 0), as in evaluation; False: replace
            them by others, chosen by the record and its visit alone.

    Attributes:
        problems: what is wrong with each damaged record that was met, by its number.
    """

    def __init__(
        self, source: Source, num_threads: int | None = None, *, max_bad_records: int = 0, leave_out: bool = False
    ):
        self.source = source
        self.max_bad_records = max_bad_records
        self.leave_out = leave_out
        self.problems: dict[int, str] = {}
        self._lock = threading.Lock()  # of `problems`
        self._num_threads = num_threads or usable_cores()
        self._pool = concurrent.futures.ThreadPoolExecutor(self._num_threads, thread_name_prefix=_DECODE)
        self._unfinished: set[concurrent.futures.Future[None]] = set()

    def load(
        self, transform: Transform, numbers: np.ndarray, visits: np.ndarray, batch: HostBatch
    ) -> Callable[[], HostBatch]:
        """Starts loading a batch in the background.

        Args:
            transform: of the step.
            numbers: (rows,) integers, the records' numbers in the source; -1 for padding, at the end.
            visits: (rows,) integers, number of times each was seen before.
            batch: where to write it.

        Returns:
            a function that waits for the batch and returns it.

        Raises (by that function):
            DataError: if a record cannot be decoded or has a label out of range; the message names the record.
        """
        chunks = [slice(i, i + CHUNK) for i in range(0, len(numbers), CHUNK)]
        futures = [
            self._pool.submit(
                self._fill,
                transform,
                numbers[chunk],
                visits[chunk],
                {name: rows[chunk] for name, rows in batch.arrays.items()},
            )
            for chunk in chunks
        ]
        self._unfinished.update(futures)
        for future in futures:
            future.add_done_callback(self._unfinished.discard)

        def wait() -> HostBatch:
            try:
                for future in futures:
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
            return batch

        return wait

    def _fill(self, transform: Transform, numbers: np.ndarray, visits: np.ndarray, out: dict[str, np.ndarray]) -> None:
        """Fills some rows of a batch."""
        valid = int(np.count_nonzero(numbers >= 0))  # padding comes last
        for rows in out.values():
            rows[valid:] = 0
        out["mask"][:valid] = 1
        wanted, numbers, visits = numbers[:valid], numbers[:valid].copy(), visits[:valid]
        attempts = [0] * valid
        left_out: set[int] = set()

        def replace(row: int, failed: str, problem: str) -> None:
            self._tolerate(int(numbers[row]), failed, problem)
            if self.leave_out:
                left_out.add(row)
                return
            attempts[row] += 1
            if attempts[row] > _MAX_ATTEMPTS:
                name = self.source.describe(int(wanted[row]))
                raise DataError(f"{name} is damaged, and so are {_MAX_ATTEMPTS} others that were to stand for it.")
            bits = random_bits(_REPLACEMENT_STREAM, int(wanted[row]), int(visits[row]), attempts[row])
            numbers[row] = int(bits[0] % np.uint64(len(self.source)))

        def read(row: int) -> Record | None:
            while row not in left_out:
                try:
                    return self._read(int(numbers[row]))
                except _UnreadableError as error:
                    replace(row, "read", str(error))
            return None

        records = [read(row) for row in range(valid)]
        written = {name: out[name][:valid] for name in transform.fields()}
        while len(left_out) < valid:
            # A record that is left out still has a row, for which any other record will do.
            other, any_record = next((row, record) for row, record in enumerate(records) if record is not None)
            try:
                transform([any_record if r is None else r for r in records], numbers, visits, written)
                break
            except DecodeError as error:
                row = other if error.row in left_out else error.row
                replace(row, "decode", str(error))
                records[row] = read(row)
        for rows in out.values():
            rows[sorted(left_out)] = 0
        if "replaced" in out:
            out["replaced"][:valid] = numbers != wanted

    def _read(self, number: int) -> Record:
        """Returns a record.

        Raises:
            DataError: if the storage fails, or the label is out of range: replacing the record would not help.
            _UnreadableError: if the record is damaged.
        """
        try:
            record = self.source[number]
        except DataError:
            raise
        except OSError as error:
            raise DataError(f"Cannot read {self.source.describe(number)}: {reason(error)}") from error
        except Exception as error:  # whatever a format's reader raises
            raise _UnreadableError(reason(error)) from error
        check_record(self.source, number, record)
        return record

    def _tolerate(self, number: int, failed: str, problem: str) -> None:
        """Records a damaged record.

        Args:
            number: its number.
            failed: "read" or "decode".
            problem: what is wrong.

        Raises:
            DataError: if there are more than `max_bad_records`.
        """
        with self._lock:
            if number in self.problems:
                return
            self.problems[number] = problem
            found = len(self.problems)
        message = printable(f"Cannot {failed} {one_line(self.source.describe(number))}: {problem}")
        what = "It is left out" if self.leave_out else "Others stand for it from now on"
        if found <= self.max_bad_records:
            log.warning("%s. %s (%d of at most %d).", message, what, found, self.max_bad_records)
            return
        field = "data.max_bad_eval_records" if self.leave_out else "data.max_bad_records"
        limit = f" That is more than {field}={self.max_bad_records}." if self.max_bad_records else ""
        advice = f"Repair or remove it, or raise {field}"
        if self.leave_out:
            advice += " to leave such images out of the count; data.check_val_images finds all of them before training"
        raise DataError(f"{message}. {advice}.{limit}")

    def cancel(self) -> None:
        """Cancels pending batches; records that a thread has started to read or decode are still finished."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Cancels pending batches and ends the threads. A thread that hangs in a read is left behind."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        hanging = concurrent.futures.wait(list(self._unfinished), _SECONDS_TO_END).not_done
        self._pool.shutdown(wait=not hanging)
        if hanging:
            log.warning("A read has not finished within %.0f s, so its thread cannot be ended.", _SECONDS_TO_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Loader(RecordLoader):
    """Loads the batches of the steps on a pool of threads.

    Args:
        source: the records.
        order: determines the records of each step.
        transform: turns them into rows of a batch.
        rows: the positions in the global batch that this process loads, (n,) integers.
        num_threads, max_bad_records, leave_out: see `RecordLoader`.

    Attributes:
        lookahead: number of batches to start ahead, so that no thread idles while a batch's last rows finish.
    """

    def __init__(
        self,
        source: Source,
        order: Order,
        transform: Transform,
        rows: np.ndarray,
        num_threads: int | None = None,
        *,
        max_bad_records: int = 0,
        leave_out: bool = False,
    ):
        super().__init__(source, num_threads, max_bad_records=max_bad_records, leave_out=leave_out)
        self.order = order
        self.transform = transform
        self.rows = rows
        self._spare: list[HostBatch] = []
        self.lookahead = 1 + -(-self._num_threads * CHUNK // max(1, len(rows)))

    def start(self, step: int) -> Callable[[], HostBatch]:
        """Starts loading the batch of a step in the background; see `RecordLoader.load`.

        It is written into the memory of a released batch, or into newly allocated memory.
        """
        numbers, visits = np.asarray(self.order.records(step)), np.asarray(self.order.visits(step))
        transform = self.transform.at(step)
        return self.load(transform, numbers[self.rows], visits[self.rows], self._memory(transform))

    def _memory(self, transform: Transform) -> HostBatch:
        """Returns memory for a batch, reused if possible: the system clears new memory page by page."""
        fields = batch_fields(transform, replaces=self.max_bad_records > 0 and not self.leave_out)
        self._spare = [batch for batch in self._spare if _fits(batch, fields)]
        if self._spare:
            return self._spare.pop()
        num_rows = len(self.rows)
        arrays = {name: np.empty((num_rows, *field.shape), field.dtype) for name, field in fields.items()}
        batch = HostBatch(arrays, release=lambda: self._spare.append(batch))
        return batch


def _fits(batch: HostBatch, fields: Mapping[str, Field]) -> bool:
    """Returns whether the arrays of a batch are those of the fields."""
    return {name: Field(rows.shape[1:], rows.dtype) for name, rows in batch.arrays.items()} == fields


def hanging_threads() -> list[str]:
    """Returns the names of threads that outlived their loader because a read hangs; all loaders must be closed."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith((_DECODE, _PREFETCH))]


class _UnreadableError(Exception):
    """A record is damaged."""


class BatchLoader(Protocol):
    """Loads batches by their steps: a `Loader`, or a `workers.ProcessLoader`."""

    @property
    def lookahead(self) -> int:
        """Number of batches to start ahead."""
        ...

    def start(self, step: int) -> Callable[[], HostBatch]:
        """Starts loading a batch, and returns a function that waits for it."""
        ...

    def cancel(self) -> None:
        """Cancels pending batches."""
        ...


class Prefetcher:
    """Iterates over batches on the devices, a few of which a thread keeps ready.

    Args:
        loader: decodes the rows of this process, on threads or in processes. It is not closed.
        steps: of the batches.
        place: turns the rows of this process into global arrays on the devices, by name. When it returns, the rows
            must have been copied: the loader will overwrite them.
        depth: number of batches kept ready on the devices.
        give_up: polled while the consumer waits: whether to stop waiting.

    Attributes:
        seconds_waited: total time that the consumer has waited.
    """

    def __init__(
        self,
        loader: BatchLoader,
        steps: range,
        place: "Placer",
        depth: int,
        give_up: Callable[[], bool] = lambda: False,
    ):
        self.seconds_waited = 0.0
        self._give_up = give_up
        self._given_up = False
        self._loader = loader
        self._ready: queue.Queue[dict[str, jax.Array] | BaseException | None] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(loader, steps, place), name=_PREFETCH, daemon=True)
        self._thread.start()

    def _run(self, loader: BatchLoader, steps: range, place: "Placer") -> None:
        last: BaseException | None = None  # what ends the consumer's iteration
        try:
            begun: collections.deque[Callable[[], HostBatch]] = collections.deque()
            remaining = iter(steps)
            while not self._stop.is_set():
                while len(begun) < loader.lookahead and (step := next(remaining, None)) is not None:
                    begun.append(loader.start(step))
                if not begun:
                    break
                batch = begun.popleft()()
                arrays = place(batch.arrays)
                batch.release()
                self._put(arrays)
        except BaseException as error:
            last = error  # raised again in the consumer
        self._put(last)

    def _put(self, item: "dict[str, jax.Array] | BaseException | None") -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def __iter__(self) -> "Iterator[dict[str, jax.Array]]":
        return self

    def __next__(self) -> "dict[str, jax.Array]":
        item = self._wait()
        if isinstance(item, dict):
            return item
        self._ready.put(item)  # so that asking again says the same
        if item is None:
            raise StopIteration
        raise item

    def _wait(self) -> "dict[str, jax.Array] | BaseException | None":
        start = time.perf_counter()
        try:
            while True:
                try:
                    return self._ready.get(timeout=_SECONDS_TO_ASK)
                except queue.Empty:
                    if self._give_up():
                        self._given_up = True
                        raise Interrupted from None
        finally:
            self.seconds_waited += time.perf_counter() - start

    def close(self) -> None:
        """Ends the thread and drops the batches that were ready."""
        self._stop.set()
        self._thread.join(0 if self._given_up else _SECONDS_TO_END)
        if self._thread.is_alive():  # it waits for a batch that never arrives
            self._loader.cancel()
            self._thread.join(_SECONDS_TO_END)
        with self._ready.mutex:
            self._ready.queue.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
