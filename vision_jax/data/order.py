"""Which records a step sees, and the random numbers of the host: pure functions of (seed, epoch, record).

Both come from one counter-based generator, the finalizer of SplitMix64 (Steele, Lea and Flood 2014, with Stafford's
constants "Mix13") applied to each word of the key in turn. It is written out here so that an order never changes with
a version of NumPy, and so that the numbers of a whole batch are computed in one call.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

# With at least this many records, the order of an epoch is computed ahead of time, on a thread.
_MANY = 100_000
# The first word of a key says what the numbers are for; crops have 1, synthetic images 2, replacements 4, dense ones 5.
_ORDER_STREAM, _SUBSET_STREAM, _BATCH_STREAM = 0, 3, 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The bijection of SplitMix64 on uint64, elementwise."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_bits(*key: int | np.ndarray) -> np.ndarray:
    """Returns independent uint64 for different keys.

    Args:
        *key: the words of the key, integers or integer arrays that broadcast against each other.
    """
    state = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        for word in key:
            state = _mix(state * _GOLDEN + _GOLDEN + np.asarray(word).astype(np.uint64))
        return _mix(state + _GOLDEN)


def random_uniform(*key: int | np.ndarray) -> np.ndarray:
    """Returns float64 in [0, 1) for keys as `random_bits` takes them."""
    return (random_bits(*key) >> np.uint64(11)) * 2.0**-53


@functools.lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, num_records: int) -> np.ndarray:
    """Returns the order in which an epoch visits the records.

    Returns:
        (num_records,) int32, read-only. The last two are cached: 1.3 million records take about 0.1 s.
    """
    order = np.argsort(random_bits(_ORDER_STREAM, seed, epoch, np.arange(num_records)), kind="stable")
    order = order.astype(np.int32)
    order.flags.writeable = False
    return order


def _prepare(function: Callable[..., Any], *arguments: Any) -> None:
    """Calls a cached function on another thread, so that its result is ready when it is needed."""
    threading.Thread(target=function, args=arguments, name="order", daemon=True).start()


@dataclasses.dataclass(frozen=True)
class TrainOrder:
    """The training order: step s takes a slice of its epoch's permutation; a last, partial slice is dropped.

    With `repeats` above 1, a batch has that many copies of each of its records, cropped and augmented independently,
    and an epoch, of the same number of steps, visits only part of the records (Hoffer et al. 2020; DeiT's repeated
    augmentation). The copies are far apart in the batch, so that they go to different devices and batch norm groups.

    Attributes:
        num_records: records in the data set.
        batch_size: records per step, over all processes.
        seed: of all permutations.
        repeats: copies of each record.
    """

    num_records: int
    batch_size: int
    seed: int
    repeats: int = 1

    @property
    def steps_per_epoch(self) -> int:
        return self.num_records // self.batch_size

    def _places(self, step: int) -> tuple[int, np.ndarray]:
        """Returns the epoch, and the positions of the step's rows in its order, in which copies are adjacent."""
        epoch, position = divmod(step, self.steps_per_epoch)
        places = np.arange(position * self.batch_size, (position + 1) * self.batch_size)
        return epoch, places[np.argsort(places % self.repeats, kind="stable")]

    def records(self, step: int) -> np.ndarray:
        """Returns the records of a step: (batch_size,) int32."""
        epoch, places = self._places(step)
        if self.num_records >= _MANY and step % self.steps_per_epoch == self.steps_per_epoch // 2:
            _prepare(permutation, self.seed, epoch + 1, self.num_records)
        return permutation(self.seed, epoch, self.num_records)[places // self.repeats]

    def visits(self, step: int) -> np.ndarray:
        """Returns, for each record, how many times it may have been visited before: (batch_size,) int64."""
        epoch, places = self._places(step)
        return epoch * self.repeats + places % self.repeats


@dataclasses.dataclass(frozen=True, eq=False)
class BalancedOrder:
    """A training order that sees every class equally often, so the records of small classes more often than others.

    An epoch has as many positions as there are records; they are dealt to the classes in turn, and shuffled. Within a
    class, no record is repeated before every other one has been seen.

    Attributes:
        labels: (records,) integers.
        num_classes: labels are 0 to num_classes - 1. A class without records gets no positions.
        batch_size: records per step, over all processes.
        seed: of all permutations.
    """

    labels: np.ndarray
    num_classes: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return len(self.labels) // self.batch_size

    @functools.cached_property
    def _members(self) -> list[np.ndarray]:
        """The records of each class that has any."""
        by_class = np.argsort(self.labels, kind="stable")
        ends = np.cumsum(np.bincount(self.labels, minlength=self.num_classes))[:-1]
        return [members for members in np.split(by_class, ends) if len(members)]

    @functools.lru_cache(maxsize=2)  # noqa: B019 a run has one order
    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the records and visits of an epoch, in order."""
        size = len(self.labels)
        records, visits = np.empty((2, size), np.int32)
        for number, members in enumerate(self._members):
            places = np.arange(number, size, len(self._members))
            visit, index = np.divmod(epoch * len(places) + np.arange(len(places)), len(members))
            for one in np.unique(visit):
                key = random_bits(_ORDER_STREAM, self.seed, one, members)
                chosen = members[np.argsort(key, kind="stable")]
                records[places[visit == one]] = chosen[index[visit == one]]
            visits[places] = visit
        shuffled = permutation(self.seed, epoch, size)
        return records[shuffled], visits[shuffled]

    def _rows(self, step: int) -> tuple[int, slice]:
        epoch, position = divmod(step, self.steps_per_epoch)
        return epoch, slice(position * self.batch_size, (position + 1) * self.batch_size)

    def records(self, step: int) -> np.ndarray:
        """Returns the records of a step: (batch_size,) int32."""
        epoch, rows = self._rows(step)
        if len(self.labels) >= _MANY and step % self.steps_per_epoch == self.steps_per_epoch // 2:
            _prepare(self._epoch, epoch + 1)
        return self._epoch(epoch)[0][rows]

    def visits(self, step: int) -> np.ndarray:
        """Returns, for each record, how many times it has been visited before: (batch_size,) int32."""
        epoch, rows = self._rows(step)
        return self._epoch(epoch)[1][rows]


@dataclasses.dataclass(frozen=True, eq=False)
class BucketOrder:
    """A training order in which the images of a batch share a canvas, so that little of it is padding.

    An epoch visits the records in the order of `TrainOrder`. Each bucket gives as many full batches as it has; of what
    is left over of all of them together, batches are made whose canvas holds every image. The batches of an epoch are
    shuffled. There are floor(records / batch_size), and the last, partial one is dropped.

    Attributes:
        buckets: (records,) integers, the number of each one's canvas.
        canvases: (height, width) of each bucket.
        batch_size: records per step, over all processes.
        seed: of all permutations.
    """

    buckets: np.ndarray
    canvases: tuple[tuple[int, int], ...]
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return len(self.buckets) // self.batch_size

    @functools.lru_cache(maxsize=2)  # noqa: B019 a run has one order
    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the records of each step of an epoch, (steps, batch_size) int32, and its bucket, -1: mixed."""
        order = permutation(self.seed, epoch, len(self.buckets))
        of, left = self.buckets[order], np.zeros(len(order), bool)
        batches, numbers = [], []
        for number in [*range(len(self.canvases)), -1]:
            places = np.flatnonzero(left) if number < 0 else np.flatnonzero(of == number)
            whole = len(places) // self.batch_size * self.batch_size
            batches.append(order[places[:whole]].reshape(-1, self.batch_size))
            numbers.append(np.full(len(batches[-1]), number))
            left[places[whole:]] = True
        shuffled = np.argsort(
            random_bits(_BATCH_STREAM, self.seed, epoch, np.arange(self.steps_per_epoch)), kind="stable"
        )
        return np.concatenate(batches)[shuffled], np.concatenate(numbers)[shuffled]

    def records(self, step: int) -> np.ndarray:
        """Returns the records of a step: (batch_size,) int32."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if len(self.buckets) >= _MANY and position == self.steps_per_epoch // 2:
            _prepare(self._epoch, epoch + 1)
        return self._epoch(epoch)[0][position]

    def visits(self, step: int) -> np.ndarray:
        """Returns, for each record, how many times it may have been visited before: (batch_size,) int64."""
        return np.full(self.batch_size, step // self.steps_per_epoch)

    def canvas(self, step: int) -> tuple[int, int]:
        """Returns height and width of the canvas of a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        number = self._epoch(epoch)[1][position]
        if number >= 0:
            return self.canvases[number]
        return max(height for height, _ in self.canvases), max(width for _, width in self.canvases)


@dataclasses.dataclass(frozen=True)
class ReplayOrder:
    """An order in which each batch is seen in several steps, one after another.

    Attributes:
        order: which order.
        replays: steps that see the same batch.
    """

    order: TrainOrder | BalancedOrder | BucketOrder
    replays: int

    def records(self, step: int) -> np.ndarray:
        """Returns the records of a step: (batch_size,) int32."""
        return self.order.records(step // self.replays)

    def visits(self, step: int) -> np.ndarray:
        """Returns, for each record, how many batches may have had it before: (batch_size,) int64."""
        return self.order.visits(step // self.replays)

    def canvas(self, step: int) -> tuple[int, int]:
        """Returns height and width of the canvas of a step, of an order that has canvases."""
        return self.order.canvas(step // self.replays)  # type: ignore[union-attr]


@dataclasses.dataclass(frozen=True)
class OffsetOrder:
    """An order shifted by some batches: a step sees the batch of a later step, and those in between are skipped.

    Attributes:
        order: which order.
        offset: number of batches.
    """

    order: TrainOrder | BalancedOrder | BucketOrder | ReplayOrder
    offset: int

    def records(self, step: int) -> np.ndarray:
        """Returns the records of a step: (batch_size,) int32."""
        return self.order.records(step + self.offset)

    def visits(self, step: int) -> np.ndarray:
        """Returns, for each record, how many times it may have been visited before: (batch_size,) int64."""
        return self.order.visits(step + self.offset)

    def canvas(self, step: int) -> tuple[int, int]:
        """Returns height and width of the canvas of a step, of an order that has canvases."""
        return self.order.canvas(step + self.offset)  # type: ignore[union-attr]


@dataclasses.dataclass(frozen=True)
class EvalOrder:
    """The order of evaluation: each record once, in stored order; the last batch is padded with -1.

    Attributes:
        num_records: records in the data set.
        batch_size: rows per batch, over all processes.
    """

    num_records: int
    batch_size: int

    @property
    def num_batches(self) -> int:
        return -(-self.num_records // self.batch_size)

    def records(self, step: int) -> np.ndarray:
        """Returns the records of a batch: (batch_size,) int64, -1 for padding."""
        records = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return np.where(records < self.num_records, records, -1)

    def visits(self, step: int) -> np.ndarray:
        """Returns zeros: (batch_size,) int64."""
        return np.zeros(self.batch_size, np.int64)


def subset(num_records: int, num_wanted: int) -> np.ndarray:
    """Returns a random subset of the records that is the same for every seed, and contains every smaller subset.

    Returns:
        (num_wanted,) int64, ascending.
    """
    return np.sort(_in_subset_order(num_records)[:num_wanted])


def subset_of_each(labels: np.ndarray, num_wanted: int) -> np.ndarray:
    """Returns a random subset of so many records of each label, as `subset` does; of labels that have fewer, all.

    Returns:
        (n,) int64, ascending.
    """
    return first_of_each(_in_subset_order(len(labels)), labels, num_wanted)


def _in_subset_order(num_records: int) -> np.ndarray:
    """Returns all records in the order in which subsets take them, (num_records,) int64."""
    return np.argsort(random_bits(_SUBSET_STREAM, np.arange(num_records)), kind="stable")


def first_of_each(numbers: np.ndarray, labels: np.ndarray, num_wanted: int) -> np.ndarray:
    """Returns the first records of each label.

    Args:
        numbers: (n,) integers, of records, in some order.
        labels: of all records.
        num_wanted: records of each label; of labels that have fewer, all.

    Returns:
        integers as `numbers`, ascending.
    """
    numbers = numbers[np.argsort(labels[numbers], kind="stable")]  # by label, and in each in the order given
    first = np.searchsorted(labels[numbers], labels[numbers])
    return np.sort(numbers[np.arange(len(numbers)) - first < num_wanted])
