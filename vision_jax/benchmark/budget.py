"""Where our loader's time goes: each step of an image, Python's share, and what one process could do on more cores."""

import collections
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vision_jax.benchmark.loaders import Job, our_loader
from vision_jax.data import decode

SIMULATED_CORES = 64
_SIMULATED_IMAGES = 256  # their decoded pixels are kept in memory

# The functions that our transform calls, where it looks them up. What runs without Python's lock can wait for a core
# while the lock is free; it is what the simulation of many cores replaces.
_STEPS: tuple[tuple[str, Any, str], ...] = (
    ("header", decode, "image_size"),
    ("crop choice", decode.order, "random_uniform"),
    ("crop choice", decode, "random_crops"),
    ("decode", decode, "decode"),
    ("resize", decode.cv2, "resize"),
)


@dataclasses.dataclass(frozen=True)
class Budget:
    """Times in microseconds an image.

    Attributes:
        steps: wall-clock time of each step, in one thread: read (the record's bytes), parse (tf.train.Example), header
            (width and height), crop choice, decode, resize, and rest, which is the loader's own Python.
        whole: their sum, measured as a whole.
        threads: of the next two.
        cpu: CPU time of the process with all threads.
        busy: cores that were busy, on average, with all threads.
        lock: time for which an image occupies Python's lock; see `simulate_many_cores`.
    """

    steps: dict[str, float]
    whole: float
    threads: int
    cpu: float
    busy: float
    lock: float

    @property
    def ceiling(self) -> float:
        """Images/s that one process cannot exceed, however many cores it has."""
        return 1e6 / self.lock


def measure(job: Job, seconds: float) -> Budget:
    """Measures the budget of our loader in this process.

    Args:
        job: the data and the size of the crops.
        seconds: for each of the three parts.
    """
    steps, whole = _time_steps(dataclasses.replace(job, threads=1), seconds)
    cpu, busy, _ = _run(job, seconds)
    return Budget(steps, whole, job.threads, cpu, busy, simulate_many_cores(job, steps, seconds))


class _Clock:
    """Adds up the time spent in functions, by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)

    def timed(self, step: str, function: Callable) -> Callable:
        """Returns `function`, timed."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds[step] += time.perf_counter() - start
            return result

        return call


class _Indexed:
    """A sequence, or a source, of which only the access is another."""

    def __init__(self, sequence: Any, get: Callable[[int], Any]):
        self._sequence, self._get = sequence, get

    def __len__(self) -> int:
        return len(self._sequence)

    def __getitem__(self, index: int) -> Any:
        return self._get(index)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sequence, name)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _time_steps(job: Job, seconds: float) -> tuple[dict[str, float], float]:
    """Times the steps inside the running loader, one batch after the other: medians over the batches.

    Returns:
        microseconds an image by step, and of the whole.
    """
    clock = _Clock()
    rows: list[dict[str, float]] = []
    with contextlib.ExitStack() as stack:
        loader = stack.enter_context(our_loader(job))
        records = loader.source._records
        timed_records = _Indexed(records, clock.timed("read", records.__getitem__))
        stack.enter_context(_replaced(loader.source, "_records", timed_records))
        loader.source = _Indexed(loader.source, clock.timed("read and parse", loader.source.__getitem__))
        for step, owner, name in _STEPS:
            stack.enter_context(_replaced(owner, name, clock.timed(step, getattr(owner, name))))
        loader.start(0)()  # a first batch is slower
        end = time.perf_counter() + seconds
        while not rows or time.perf_counter() < end:
            clock.seconds.clear()
            start = time.perf_counter()
            loader.start(len(rows) % loader.order.steps_per_epoch)()
            rows.append({"whole": time.perf_counter() - start, **clock.seconds})
    medians = {step: float(np.median([row[step] for row in rows])) * 1e6 / job.batch_size for step in rows[0]}
    whole = medians.pop("whole")
    read = medians.pop("read")
    steps = {"read": read, "parse": medians.pop("read and parse") - read, **medians}
    return {**steps, "rest": whole - sum(steps.values())}, whole


def _run(job: Job, seconds: float, max_images: int | None = None) -> tuple[float, float, float]:
    """Runs the loader with all threads, after a first pass over its steps.

    Args:
        job: the data.
        seconds: how long to measure.
        max_images: use no more than the steps that these fill; None: all.

    Returns:
        CPU time an image in microseconds, busy cores, images/s.
    """
    with our_loader(job) as loader:
        num_steps = loader.order.steps_per_epoch
        if max_images is not None:
            num_steps = min(num_steps, max(1, max_images // job.batch_size))
        steps = itertools.cycle(range(num_steps))
        begun = collections.deque(loader.start(next(steps)) for _ in range(loader.lookahead + 1))

        def advance() -> None:
            begun.popleft()()
            begun.append(loader.start(next(steps)))

        for _ in range(num_steps):
            advance()
        batches, cpu, start = 0, time.process_time(), time.perf_counter()
        while not batches or time.perf_counter() - start < seconds:
            advance()
            batches += 1
        elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    images = batches * job.batch_size
    return cpu / images * 1e6, cpu / elapsed, images / elapsed


def simulate_many_cores(job: Job, steps: dict[str, float], seconds: float) -> float:
    """Measures for how long an image occupies Python's lock, by running the loader as if there were many cores.

    Decoding and resizing, which run in C without the lock, are replaced by waits of the same duration: a wait needs
    neither the lock nor a core. All else runs as it is, on as many threads as the simulated host has cores, and soon
    they queue for the lock. Each image then holds it for the time between two images, with the cost of handing it over
    between so many threads, and for no more than its CPU time, which other programs on the machine cannot lengthen.
    The lesser of the two is returned. It is an upper bound: what reading a record does without the lock counts, too.

    Args:
        job: the data; the first of its records are used.
        steps: microseconds an image of "decode" and "resize".
        seconds: how long to measure.

    Returns:
        microseconds an image.
    """
    decoded: dict[tuple, np.ndarray] = {}
    original = decode.decode

    def wait_for_decode(data: bytes, *args: Any, **kwargs: Any) -> np.ndarray:
        key = (len(data), data[::997])  # all of it would take longer than what is to be measured
        if key not in decoded:
            decoded[key] = original(data, *args, **kwargs)
        time.sleep(steps["decode"] / 1e6)
        return decoded[key]

    def wait_for_resize(*args: Any, **kwargs: Any) -> None:
        time.sleep(steps["resize"] / 1e6)

    job = dataclasses.replace(job, threads=SIMULATED_CORES)
    with _replaced(decode, "decode", wait_for_decode), _replaced(decode.cv2, "resize", wait_for_resize):
        cpu, _, rate = _run(job, seconds, _SIMULATED_IMAGES)
    return min(cpu, 1e6 / rate)
