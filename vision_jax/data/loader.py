"""Decoding batches on threads, and keeping a few of them ahead on the devices.

There is no iterator state: batch `step` is a function of the step alone, so a loader starts anywhere at no cost.
"""

import collections
import concurrent.futures
import dataclasses
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, Self

import jax
import numpy as np

from vision_jax.data.decode import DecodeError
from vision_jax.data.sources import Source
from vision_jax.errors import DataError

# Rows that a thread takes at once: enough to share NumPy's cost for each call, few enough to keep all threads busy.
CHUNK = 16


class Order(Protocol):
    """Says which records a step sees; see `vision_jax.data.order`."""

    def epoch(self, step: int) -> int: ...

    def records(self, step: int) -> np.ndarray: ...


class Transform(Protocol):
    """Decodes the images of some rows; see `vision_jax.data.decode`."""

    @property
    def size(self) -> int:
        """Height and width of what it makes."""
        ...

    @property
    def channels(self) -> int: ...

    def __call__(self, images: Sequence[bytes], records: np.ndarray, epoch: int, out: np.ndarray) -> None: ...


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """The rows of a global batch that one process holds.

    Attributes:
        image: (rows, size, size, channels) uint8; zeros where `mask` is 0.
        label: (rows,) int32.
        mask: (rows,) float32, 1 for examples and 0 for what fills up a last batch.
    """

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray

    def as_dict(self) -> dict[str, np.ndarray]:
        return {"image": self.image, "label": self.label, "mask": self.mask}


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
    """

    def __init__(
        self, source: Source, order: Order, transform: Transform, rows: np.ndarray, num_threads: int | None = None
    ):
        self.source = source
        self.order = order
        self.transform = transform
        self.rows = rows
        num_threads = num_threads or usable_cores()
        self._pool = concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
        # So many batches are begun that the threads find work while the last rows of one are being finished.
        self.lookahead = 1 + -(-num_threads * CHUNK // max(1, len(rows)))

    def start(self, step: int) -> Callable[[], HostBatch]:
        """Begins a batch in the background.

        Returns:
            a function that waits for the batch and returns it.

        Raises (by that function):
            DataError: if a record cannot be decoded or has a label out of range; it names the record.
        """
        records = np.asarray(self.order.records(step))[self.rows]
        epoch = self.order.epoch(step)
        transform = self.transform
        shape = (len(records), transform.size, transform.size, transform.channels)
        batch = HostBatch(
            np.empty(shape, np.uint8), np.zeros(len(records), np.int32), (records >= 0).astype(np.float32)
        )
        chunks = [slice(i, i + CHUNK) for i in range(0, len(records), CHUNK)]
        futures = [self._pool.submit(self._fill, batch, chunk, records[chunk], epoch) for chunk in chunks]

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

    def _fill(self, batch: HostBatch, chunk: slice, records: np.ndarray, epoch: int) -> None:
        """Fills the rows `chunk` of a batch."""
        valid = int(np.count_nonzero(records >= 0))  # what fills a batch up comes last
        out = batch.image[chunk]
        out[valid:] = 0
        images = []
        for row, record in enumerate(records[:valid].tolist()):
            image, label = self._read(record)
            images.append(image)
            batch.label[chunk.start + row] = label
        if images:
            try:
                self.transform(images, records[:valid], epoch, out[:valid])
            except DecodeError as error:
                name = self.source.describe(int(records[error.row]))
                raise DataError(f"Cannot decode {name}: {error}. Repair or remove it.") from error

    def _read(self, record: int) -> tuple[bytes, int]:
        try:
            image, label = self.source[record]
        except Exception as error:
            # Whatever the file system or a format's reader raises, the user needs to know where.
            raise DataError(f"Cannot read {self.source.describe(record)}: {error}") from error
        if not 0 <= label < self.source.num_classes:
            raise DataError(
                f"{self.source.describe(record)} has the label {label}, but there are {self.source.num_classes} "
                f"classes, 0 to {self.source.num_classes - 1}. Correct or remove it."
            )
        return image, label

    def close(self) -> None:
        """Ends the threads; batches that are waiting are given up."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Prefetcher:
    """Iterates over batches on the devices, a few of which are kept ready by a thread.

    Args:
        loader: decodes the rows of this process. It is not closed.
        steps: which batches.
        place: makes a global array on the devices of (key, rows of this process); it may return before the copy ends.
        depth: batches kept ready on the devices.

    Attributes:
        seconds_waited: how long the consumer has waited in total.
    """

    def __init__(self, loader: Loader, steps: range, place: Callable[[str, np.ndarray], jax.Array], depth: int):
        self.seconds_waited = 0.0
        self._ready: queue.Queue[dict[str, jax.Array] | BaseException | None] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(loader, steps, place), name="prefetch", daemon=True)
        self._thread.start()

    def _run(self, loader: Loader, steps: range, place: Callable[[str, np.ndarray], jax.Array]) -> None:
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
                self._put({key: place(key, rows) for key, rows in batch.as_dict().items()})
        except BaseException as error:
            last = error  # raised again where the consumer sees it
        self._put(last)

    def _put(self, item: dict[str, jax.Array] | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        return self

    def __next__(self) -> dict[str, jax.Array]:
        start = time.perf_counter()
        item = self._ready.get()
        self.seconds_waited += time.perf_counter() - start
        if isinstance(item, dict):
            return item
        self._ready.put(item)  # so that asking again says the same
        if item is None:
            raise StopIteration
        raise item

    def close(self) -> None:
        """Ends the thread and lets go of the batches that were ready."""
        self._stop.set()
        self._thread.join()
        with self._ready.mutex:
            self._ready.queue.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
