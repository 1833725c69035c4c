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
from vision_jax.data import decode, transforms

SIMULATED_CORES = 64
_SIMULATED_IMAGES = 256  # their decoded pixels are kept in memory

# The functions that make up the steps, where our transform looks them up.
_STEPS: tuple[tuple[str, Any, str], ...] = (
    ("header", transforms, "header_and_size"),
    ("crop choice", transforms, "choose_crops"),
    ("decode", transforms.TrainTransform, "_decode"),
    ("resize", transforms.cv2, "resize"),
)
# The calls of C that give Python's lock back for nearly all of their time.
_WITHOUT_LOCK: tuple[tuple[str, Any, str], ...] = (
    ("simplejpeg.decode_jpeg", decode.simplejpeg, "decode_jpeg"),
    ("cv2.resize", transforms.cv2, "resize"),
)


@dataclasses.dataclass(frozen=True)
class Budget:
    """Times in microseconds an image: CPU time, which other programs on the machine hardly change.

    Attributes:
        steps: each step, in one thread: read (the record's bytes), parse (tf.train.Example), header
            (width and height), crop choice, decode, resize, and rest, which is the loader's own Python.
        whole: their sum, measured as a whole.
        without_lock: the time in which it gives Python's lock back, by function: a part of decode and resize.
        threads: of what follows.
        cpu: of the process with all threads.
        busy: cores that were busy, on average, with all threads.
        simulated_rate: images/s of one process on a host with many cores; see `simulate_many_cores`.
    """

    steps: dict[str, float]
    whole: float
    without_lock: dict[str, float]
    threads: int
    cpu: float
    busy: float
    simulated_rate: float

    @property
    def lock(self) -> float:
        """The time for which an image occupies Python's lock, at most: reading gives it back for a part of its time."""
        return self.whole - sum(self.without_lock.values())

    @property
    def ceiling(self) -> float:
        """Images/s of one process on any number of cores, if its threads handed the lock to each other at no cost."""
        return 1e6 / self.lock


def measure(job: Job, seconds: float) -> Budget:
    """Measures the budget of our loader in this process.

    Args:
        job: the data and the size of the crops.
        seconds: for each of the three parts.
    """
    steps, whole, without_lock = _time_steps(dataclasses.replace(job, threads=1), seconds)
    cpu, busy, _ = _run(job, seconds)
    calls = {"simplejpeg.decode_jpeg": 1, "cv2.resize": len(job.dataset.crop_sizes)}
    waits = {call: microseconds / calls[call] for call, microseconds in without_lock.items()}
    simulated_rate = simulate_many_cores(job, waits, seconds)
    return Budget(steps, whole, without_lock, job.threads, cpu, busy, simulated_rate)


class _Clock:
    """Adds up the CPU time that threads spend in functions, by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)

    def timed(self, step: str, function: Callable) -> Callable:
        """Returns `function`, timed."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[step] += time.thread_time() - start

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


def _time_steps(job: Job, seconds: float) -> tuple[dict[str, float], float, dict[str, float]]:
    """Times the steps inside the running loader, one batch after the other: medians over the batches.

    Returns:
        microseconds an image by step, of the whole, and of the calls that give Python's lock back.
    """
    clock = _Clock()
    rows: list[dict[str, float]] = []
    with contextlib.ExitStack() as stack:
        loader = stack.enter_context(our_loader(job))
        records = loader.source._records
        timed_records = _Indexed(records, clock.timed("read", records.__getitem__))
        stack.enter_context(_replaced(loader.source, "_records", timed_records))
        loader.source = _Indexed(loader.source, clock.timed("read and parse", loader.source.__getitem__))
        for step, owner, name in (*_WITHOUT_LOCK, *_STEPS):
            stack.enter_context(_replaced(owner, name, clock.timed(step, getattr(owner, name))))
        loader.start(0)().release()  # a first batch is slower
        end = time.perf_counter() + seconds
        while not rows or time.perf_counter() < end:
            clock.seconds.clear()
            start = time.process_time()
            loader.start(len(rows) % loader.order.steps_per_epoch)().release()
            rows.append({"whole": time.process_time() - start, **clock.seconds})
    medians = {step: float(np.median([row[step] for row in rows])) * 1e6 / job.batch_size for step in rows[0]}
    whole = medians.pop("whole")
    without_lock = {call: medians.pop(call, 0.0) for call, _, _ in _WITHOUT_LOCK}
    read = medians.pop("read")
    steps = {"read": read, "parse": medians.pop("read and parse") - read, **medians}
    return {**steps, "rest": whole - sum(steps.values())}, whole, without_lock


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
            begun.popleft()().release()
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


def simulate_many_cores(job: Job, waits: dict[str, float], seconds: float) -> float:
    """Measures what one process would do on a host with SIMULATED_CORES cores.

    The calls that run without Python's lock are replaced by waits of the same duration: a wait needs neither the lock
    nor a core. All else runs as it is, on a thread for each simulated core, and the threads queue for the lock as they
    would there. Other programs on the machine slow this down, so the images by second of CPU time are returned where
    they are more.

    Args:
        job: the data; the first of its records are used.
        waits: microseconds of each call.
        seconds: how long to measure.

    Returns:
        images/s.
    """
    with contextlib.ExitStack() as stack:
        for call, owner, name in _WITHOUT_LOCK:
            wait = _waiting(getattr(owner, name), waits[call] / 1e6)
            stack.enter_context(_replaced(owner, name, wait))
        cpu, _, rate = _run(dataclasses.replace(job, threads=SIMULATED_CORES), seconds, _SIMULATED_IMAGES)
    return max(rate, 1e6 / cpu)


def _waiting(function: Callable, seconds: float) -> Callable:
    """Returns a function that waits, then returns or raises what `function` did at its first call with such data."""
    outcomes: dict[tuple, Any] = {}

    def call(data: Any, *args: Any, **kwargs: Any) -> Any:
        # Bytes are told apart by a few of them: all would take longer than what is to be measured. An array was decoded
        # from them; nothing reads the pixels that it would be resized into, but their number must be right.
        key = (data.shape, args[:1]) if isinstance(data, np.ndarray) else (len(data), bytes(data[::997]))
        if key not in outcomes:
            try:
                outcomes[key] = function(data, *args, **kwargs)
            except ValueError as error:  # which is how the decoder says that a file goes on
                outcomes[key] = error
        time.sleep(seconds)
        if isinstance(outcomes[key], ValueError):
            raise outcomes[key]
        return outcomes[key]

    return call
