"""Which records a step sees, and the random numbers of the host: pure functions of (seed, epoch, record).

Both come from one counter-based generator, the finalizer of SplitMix64 (Steele, Lea and Flood 2014, with Stafford's
constants «Mix13») applied to each word of the key in turn. It is written out here so that an order never changes with
a version of NumPy, and so that the numbers of a whole batch are made at once.
"""

import dataclasses
import functools

import numpy as np

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
    """Returns float64 in [0, 1) for the keys, of which `random_bits` tells the form."""
    return (random_bits(*key) >> np.uint64(11)) * 2.0**-53


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num_records: int) -> np.ndarray:
    """Returns the order in which an epoch visits the records.

    Returns:
        (num_records,) int64, read-only. The last few are cached: 1.3 million take about a tenth of a second.
    """
    # The first word tells these numbers from those of the crops.
    order = np.argsort(random_bits(0, seed, epoch, np.arange(num_records)), kind="stable")
    order.flags.writeable = False
    return order


@dataclasses.dataclass(frozen=True)
class TrainOrder:
    """The training order: step s takes a slice of its epoch's permutation; a last, partial slice is left out.

    Attributes:
        num_records: records in the data set.
        batch_size: records a step, over all processes.
        seed: decides every permutation.
    """

    num_records: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return self.num_records // self.batch_size

    def epoch(self, step: int) -> int:
        """Returns the epoch that a step (counted from 0) belongs to."""
        return step // self.steps_per_epoch

    def records(self, step: int) -> np.ndarray:
        """Returns the records of a step: (batch_size,) int64."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = permutation(self.seed, epoch, self.num_records)
        return order[position * self.batch_size : (position + 1) * self.batch_size]


@dataclasses.dataclass(frozen=True)
class EvalOrder:
    """The order of evaluation: each record once, as stored; the last batch is filled up with -1.

    Attributes:
        num_records: records in the data set.
        batch_size: rows a batch, over all processes.
    """

    num_records: int
    batch_size: int

    @property
    def num_batches(self) -> int:
        return -(-self.num_records // self.batch_size)

    def epoch(self, step: int) -> int:
        return 0

    def records(self, step: int) -> np.ndarray:
        """Returns the records of a batch: (batch_size,) int64, -1 where there is none left."""
        records = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return np.where(records < self.num_records, records, -1)
