"""Decoding batches on threads, and keeping a few of them ahead on the devices.

There is no iterator state: batch `step` is a function of the step alone, so a loader starts anywhere at no cost.
"""

import collections
import concurrent.futures
import dataclasses
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from vision_jax.data.decode import DecodeError
from vision_jax.data.order import random_bits
from vision_jax.data.sources import Source
from vision_jax.errors import DataError, Interrupted

if TYPE_CHECKING:
    import jax  # for types alone: processes that only load do without it

    from vision_jax.data.workers import ProcessLoader

    Placer = Callable[[str, np.ndarray], jax.Array]

log = logging.getLogger(__name__)

# Rows that a thread takes at once: enough to share NumPy's cost for each call, few enough to keep all threads busy.
CHUNK = 32
_SECONDS_TO_END = 3.0  # of a batch that is waited for when nobody wants it any more
_SECONDS_TO_ASK = 0.2  # between questions whether to go on waiting
_DECODE, _PREFETCH = "decode", "prefetch"  # names of threads
_MAX_ATTEMPTS = 100  # to find a record that can stand for a damaged one
_REPLACEMENT_STREAM = 4  # tells the random numbers here from those of orders and crops


class Order(Protocol):
    """Says which records a step sees; see `vision_jax.data.order`."""

    def records(self, step: int) -> np.ndarray: ...

    def visits(self, step: int) -> np.ndarray: ...


class Transform(Protocol):
    """Decodes the images of some rows; see `vision_jax.data.decode`."""

    @property
    def size(self) -> int:
        """Height and width of what it makes."""
        ...

    @property
    def max_size(self) -> int:
        """The largest `size` at any step."""
        ...

    @property
    def channels(self) -> int: ...

    def at(self, step: int) -> "Transform":
        """Returns the transform of a step."""
        ...

    def __call__(self, images: Sequence[bytes], records: np.ndarray, visits: np.ndarray, out: np.ndarray) -> None: ...


def _nothing() -> None:
    pass


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """The rows of a global batch that one process holds.

    Attributes:
        image: (rows, size, size, channels) uint8; zeros where `mask` is 0.
        label: (rows,) int32.
        mask: (rows,) float32, 1 for examples and 0 for what fills up a last batch.
        replaced: (rows,) float32, 1 where another record stands for a damaged one; None if that is not allowed.
        release: to be called once the batch has been used, after which its memory may be written again.
    """

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray
    replaced: np.ndarray | None = None
    release: Callable[[], None] = _nothing

    def as_dict(self) -> dict[str, np.ndarray]:
        batch = {"image": self.image, "label": self.label, "mask": self.mask}
        return batch if self.replaced is None else {**batch, "replaced": self.replaced}


def usable_cores() -> int:
    """Returns how many cores this process may use, which in a container can be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Loader:
    """Reads and decodes batches on a pool of threads, straight into the rows of the batch.

    Args:
        source: the records.
        order: which of them each step sees.
        transform: how they are decoded, cropped and resized.
        rows: the positions in the global batch that this process loads, (n,) integers.
        num_threads: None is one a core that this process may use.
        max_bad_records: so many damaged records may be replaced by others before it is an error. Which others depends
            on the record and its visit alone.

    Attributes:
        lookahead: so many batches are to be begun that the threads find work while the last rows of one are finished.
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
    ):
        self.source = source
        self.order = order
        self.transform = transform
        self.rows = rows
        self.max_bad_records = max_bad_records
        self._bad: set[int] = set()
        self._spare: list[HostBatch] = []
        num_threads = num_threads or usable_cores()
        self._pool = concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix=_DECODE)
        self._unfinished: set[concurrent.futures.Future[None]] = set()
        self.lookahead = 1 + -(-num_threads * CHUNK // max(1, len(rows)))

    def start(self, step: int, batch: HostBatch | None = None) -> Callable[[], HostBatch]:
        """Begins a batch in the background.

        Args:
            step: which one.
            batch: where it is written; None: memory of a batch that was released, or new one.

        Returns:
            a function that waits for the batch and returns it.

        Raises (by that function):
            DataError: if a record cannot be decoded or has a label out of range; it names the record.
        """
        records = np.asarray(self.order.records(step))[self.rows]
        visits = np.asarray(self.order.visits(step))[self.rows]
        transform = self.transform.at(step)
        if batch is None:
            batch = self._memory(transform)
        batch.mask[:] = records >= 0
        chunks = [slice(i, i + CHUNK) for i in range(0, len(records), CHUNK)]
        futures = [
            self._pool.submit(self._fill, batch, chunk, records[chunk], visits[chunk], transform) for chunk in chunks
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

    def _memory(self, transform: Transform) -> HostBatch:
        """Returns memory for a batch. That of another one is better: the system clears new memory page by page."""
        self._spare = [batch for batch in self._spare if batch.image.shape[1] == transform.size]
        if self._spare:
            return self._spare.pop()
        batch = empty_batch(len(self.rows), transform, replaces=self.max_bad_records > 0)
        batch = dataclasses.replace(batch, release=lambda: self._spare.append(batch))
        return batch

    def _fill(
        self, batch: HostBatch, chunk: slice, records: np.ndarray, visits: np.ndarray, transform: Transform
    ) -> None:
        """Fills the rows `chunk` of a batch."""
        valid = int(np.count_nonzero(records >= 0))  # what fills a batch up comes last
        first, out = chunk.start, batch.image[chunk]
        out[valid:] = 0
        batch.label[first + valid : chunk.stop] = 0
        wanted, records, visits = records[:valid], records[:valid].copy(), visits[:valid]
        attempts = [0] * valid

        def replace(row: int, problem: str) -> None:
            self._tolerate(int(records[row]), problem)
            attempts[row] += 1
            if attempts[row] > _MAX_ATTEMPTS:
                name = self.source.describe(int(wanted[row]))
                raise DataError(f"{name} is damaged, and so are {_MAX_ATTEMPTS} others that were to stand for it.")
            bits = random_bits(_REPLACEMENT_STREAM, int(wanted[row]), int(visits[row]), attempts[row])
            records[row] = int(bits[0] % np.uint64(len(self.source)))

        def read(row: int) -> bytes:
            while True:
                try:
                    image, batch.label[first + row] = self._read(int(records[row]))
                    return image
                except _UnreadableError as error:
                    replace(row, f"Cannot read {{}}: {error}")

        images = [read(row) for row in range(valid)]
        while images:
            try:
                transform(images, records, visits, out[:valid])
                break
            except DecodeError as error:
                replace(error.row, f"Cannot decode {{}}: {error}")
                images[error.row] = read(error.row)
        if batch.replaced is not None:
            batch.replaced[first : chunk.stop] = 0
            batch.replaced[first : first + valid] = records != wanted

    def _read(self, record: int) -> tuple[bytes, int]:
        """Returns an encoded image and its label.

        Raises:
            DataError: if the storage fails, or the label is out of range: another record would be no better.
            _UnreadableError: if the record is damaged.
        """
        try:
            image, label = self.source[record]
        except DataError:
            raise
        except OSError as error:
            raise DataError(f"Cannot read {self.source.describe(record)}: {error}") from error
        except Exception as error:  # whatever a format's reader raises
            raise _UnreadableError(str(error)) from error
        if not 0 <= label < self.source.num_classes:
            raise DataError(
                f"{self.source.describe(record)} has the label {label}, but there are {self.source.num_classes} "
                f"classes, 0 to {self.source.num_classes - 1}. Correct or remove it."
            )
        return image, label

    def _tolerate(self, record: int, problem: str) -> None:
        """Notes a damaged record.

        Args:
            record: its number.
            problem: what is wrong, with {} for its name.

        Raises:
            DataError: if it is one too many.
        """
        new = record not in self._bad
        self._bad.add(record)
        if not new:
            return
        message = problem.replace("{}", self.source.describe(record), 1)
        if len(self._bad) <= self.max_bad_records:
            log.warning(
                "%s. Others stand for it from now on (%d of at most %d).", message, len(self._bad), self.max_bad_records
            )
            return
        limit = f" That is more than data.max_bad_records={self.max_bad_records}." if self.max_bad_records else ""
        raise DataError(f"{message}. Repair or remove it, or raise data.max_bad_records.{limit}")

    def cancel(self) -> None:
        """Gives up the batches that are waiting; what a thread has begun to read or decode it still finishes."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Ends the threads; batches that are waiting are given up. A thread that hangs in its file is left behind."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        hanging = concurrent.futures.wait(list(self._unfinished), _SECONDS_TO_END).not_done
        self._pool.shutdown(wait=not hanging)
        if hanging:
            log.warning("A read has not ended in %.0f s: its thread cannot be ended either.", _SECONDS_TO_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def hanging_threads() -> list[str]:
    """Returns the names of threads that outlived their loader, as they hang in a file; all loaders must be closed."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith((_DECODE, _PREFETCH))]


class _UnreadableError(Exception):
    """A record is damaged."""


def empty_batch(num_rows: int, transform: Transform, *, replaces: bool) -> HostBatch:
    """Returns memory for a batch: what is in it is not defined."""
    return HostBatch(
        image=np.empty((num_rows, transform.size, transform.size, transform.channels), np.uint8),
        label=np.empty(num_rows, np.int32),
        mask=np.empty(num_rows, np.float32),
        replaced=np.empty(num_rows, np.float32) if replaces else None,
    )


class Prefetcher:
    """Iterates over batches on the devices, a few of which are kept ready by a thread.

    Args:
        loader: decodes the rows of this process, on threads or in processes. It is not closed.
        steps: which batches.
        place: makes a global array on the devices of (key, rows of this process). When it returns, the rows must have
            been copied: the loader will write to them again.
        depth: batches kept ready on the devices.
        give_up: asked now and then while the consumer waits: whether it is to stop waiting.

    Attributes:
        seconds_waited: how long the consumer has waited in total.
    """

    def __init__(
        self,
        loader: "Loader | ProcessLoader",
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

    def _run(self, loader: "Loader | ProcessLoader", steps: range, place: "Placer") -> None:
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
                arrays = {key: place(key, rows) for key, rows in batch.as_dict().items()}
                batch.release()
                self._put(arrays)
        except BaseException as error:
            last = error  # raised again where the consumer sees it
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
        """Ends the thread and lets go of the batches that were ready."""
        self._stop.set()
        self._thread.join(0 if self._given_up else _SECONDS_TO_END)
        if self._thread.is_alive():  # it waits for a batch that does not come
            self._loader.cancel()
            self._thread.join(_SECONDS_TO_END)
        with self._ready.mutex:
            self._ready.queue.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
