"""The base of evaluators: one pass over a split that adds up sums on the devices, or brings rows to the host.

An evaluator is called with the objective and all variables, by prefix ("" for the weights, "ema_" for their EMA), and
returns numbers and tables. Each one checks whether to stop, and calls the watchdog, at every batch. Each example counts
once, on any number of hosts: padding in the last batch is excluded by `mask`.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh

from vision_jax.data.loader import Prefetcher, Transform, batch_fields
from vision_jax.data.order import EvalOrder
from vision_jax.data.sources import Source
from vision_jax.data.workers import create_loader
from vision_jax.devices import sharding
from vision_jax.errors import DataError, Interrupted
from vision_jax.objectives.base import Objective, Variables
from vision_jax.runtime import writers
from vision_jax.runtime.preemption import Preemption
from vision_jax.runtime.watchdog import Watchdog

log = logging.getLogger(__name__)

_AHEAD = 4  # batches that may be in flight on the devices

Prefixed = Mapping[str, Variables]
Table = dict[str, Any]  # what JSON can express: lists of a number for each class, and the like
Step = Callable[[Any, Any], Any]


class Bank:
    """The training split, for evaluators that learn from its features; and what they have collected for each other.

    Args:
        source: the training split.
        max_bad_records: number of damaged records that each process may leave out.
    """

    def __init__(self, source: Source, max_bad_records: int = 0):
        self.source, self.max_bad_records = source, max_bad_records
        self._of: list[Any] = []
        self._kept: dict[Any, Any] = {}

    def keep(self, key: Any, variables: Any, make: Callable[[], Any]) -> Any:
        """Returns what `make` returns, which is kept under a key for as long as the variables are the same arrays."""
        leaves = jax.tree.leaves(variables)
        if len(leaves) != len(self._of) or any(a is not b for a, b in zip(leaves, self._of, strict=True)):
            self.clear()
            self._of = leaves
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def clear(self) -> None:
        """Frees what is kept."""
        self._of, self._kept = [], {}


@dataclasses.dataclass(frozen=True)
class Context:
    """What every evaluator gets besides its own options.

    Attributes:
        mesh: of all devices.
        source: the split.
        transform: from its records to fields of a batch.
        batch_size: examples per batch, over all processes.
        mean, std: normalization of images; see `augment.normalize`.
        seed: of random numbers in an evaluation.
        constants: values of the objective's constants, on the devices.
        train: the training split, for evaluators that learn from it; None: no evaluator does.
        num_workers, num_threads, prefetch: of the loader.
        max_bad_records: number of damaged records that each process may leave out.
        preemption: checked before each batch, and while waiting for one; None: there is none.
        watchdog: called at each batch.
    """

    mesh: Mesh
    source: Source
    transform: Transform
    batch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int = 0
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    train: Bank | None = None
    num_workers: int = 0
    num_threads: int | None = None
    prefetch: int = 2
    max_bad_records: int = 0
    preemption: Preemption | None = None
    watchdog: Watchdog = dataclasses.field(default_factory=lambda: Watchdog(0))

    @property
    def bank(self) -> Bank:
        """The training split, for an evaluator that learns from it."""
        assert self.train is not None  # whoever makes such an evaluator opens it
        return self.train

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes, dtypes and shardings of a batch."""
        return sharding.abstract_batch(self.mesh, self.batch_size, batch_fields(self.transform))

    def compile(self, step: Step, variables: Any) -> Step:
        """Compiles (variables, batch) -> pytree for this split, with replicated results.

        Args:
            step: the function.
            variables: arrays, or their shapes and shardings.
        """
        start = time.perf_counter()
        jitted = jax.jit(step, out_shardings=sharding.replicated(self.mesh))
        with self.watchdog.suspended():
            compiled = sharding.compile_on(self.mesh, jitted, variables, self.abstract_batch())
        log.info("The evaluation step was compiled in %.1f s.", time.perf_counter() - start)
        return compiled

    def batches(self, description: str) -> Iterator[dict[str, jax.Array]]:
        """Yields the batches of the split, on the devices.

        Raises:
            Interrupted: once `preemption` said so.
            DataError: for a record that cannot be read.
        """
        order = EvalOrder(len(self.source), self.batch_size)
        give_up = _never if self.preemption is None else self.preemption.noticed
        with (
            create_loader(
                self.source,
                order,
                self.transform,
                sharding.local_rows(self.mesh, self.batch_size),
                num_workers=self.num_workers,
                num_threads=self.num_threads,
                max_bad_records=self.max_bad_records,
                leave_out=True,
            ) as loader,
            Prefetcher(
                loader,
                range(order.num_batches),
                sharding.batch_placer(self.mesh, self.batch_size),
                self.prefetch,
                give_up,
            ) as prefetcher,
            writers.Progress(
                order.num_batches, description=description, leave=False, enabled=jax.process_index() == 0
            ) as progress,
        ):
            for batch in prefetcher:
                if self.preemption is not None and self.preemption.should_stop():
                    raise Interrupted
                yield batch
                progress.update({})

    def check_count(self, count: int) -> int:
        """Returns the number of examples counted, after checking it; warns if damaged records were left out."""
        there = len(self.source)
        if not 0 <= there - count <= self.max_bad_records * jax.process_count():
            raise AssertionError(f"{count} examples were counted, and there are {there}.")
        if not count:
            raise DataError(f"All {there} examples are damaged: nothing is left to be measured.")
        if count < there:
            log.warning("%d of %d examples are damaged and left out: means are over the others.", there - count, there)
        return count


def _never() -> bool:
    return False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evaluator:
    """Measures variables on a split. Each subclass has its own file; its fields besides `context` are its options.

    Attributes:
        context: see there.
    """

    # The metrics that it returns for each prefix, and whether higher is better.
    metrics: ClassVar[Mapping[str, bool]] = {}

    context: Context

    @functools.cached_property
    def _programs(self) -> dict[int, tuple[Objective, Step]]:
        return {}

    def compiled(self, objective: Objective, make: Callable[[Objective], Step], variables: Any) -> Step:
        """Returns the step that `make` returns for an objective, compiled once."""
        if id(objective) not in self._programs:
            self._programs[id(objective)] = (objective, self.context.compile(make(objective), variables))
        return self._programs[id(objective)][1]

    def check_count(self, count: int) -> int:
        """Returns the number of examples counted; see `Context.check_count`."""
        return self.context.check_count(count)

    def __call__(self, objective: Objective, variables: Prefixed) -> Mapping[str, float | Table]:
        """Returns the metrics and tables, under prefix + name, and `count`, the examples that were counted.

        Args:
            objective: whose variables they are.
            variables: by prefix; all of them, including those of heads.

        Raises:
            Interrupted: once `context.preemption` said so.
            DataError: for a record that cannot be read.
        """
        raise NotImplementedError


def run_pass(context: Context, compiled: Step, variables: Any, *, description: str = "evaluate") -> Any:
    """Adds up the results of a step for each batch of a split, on the devices.

    Args:
        context: has the split.
        compiled: (variables, batch) -> pytree of sums, the same in every process; see `Context.compile`.
        variables: its first argument.
        description: shown in the progress.

    Returns:
        the sums, on the host.

    Raises:
        Interrupted, DataError: as `Context.batches`.
    """
    totals: Any = None
    pending: list[Any] = []
    for batch in context.batches(description):
        sums = compiled(variables, batch)
        totals = sums if totals is None else _add(totals, sums)
        pending.append(totals)
        if len(pending) > _AHEAD:
            jax.block_until_ready(pending.pop(0))
            context.watchdog.beat()
    return jax.device_get(totals)


@jax.jit
def _add(totals: Any, sums: Any) -> Any:
    return jax.tree.map(lambda a, b: a + b, totals, sums)


@functools.lru_cache(maxsize=4)
def _replication(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that brings an array to every device; always the same one, so that it is compiled once."""
    return jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))


def collect(
    context: Context, compiled: Step, variables: Any, *, everywhere: bool = False, description: str = "collect"
) -> dict[str, np.ndarray] | None:
    """Returns the results of a step for each example of a split, once, in the order of the split.

    Args:
        context: has the split.
        compiled: (variables, batch) -> dict of arrays with the example as first axis; see `Context.compile`.
        variables: its first argument.
        everywhere: return the rows in every process; False: only in process 0, and None in the others.
        description: shown in the progress.

    Raises:
        Interrupted, DataError: as `Context.batches`.
    """
    keep = everywhere or jax.process_index() == 0
    kept: list[dict[str, np.ndarray]] = []
    pending: list[tuple[Any, Any]] = []

    def take(rows: Any, mask: Any) -> None:
        rows, mask = jax.device_get((rows, mask))
        if keep:
            kept.append({name: values[mask > 0] for name, values in rows.items()})
        context.watchdog.beat()

    replicate = _replication(context.mesh)
    for batch in context.batches(description):
        pending.append((compiled(variables, batch), replicate(batch["mask"])))
        if len(pending) > _AHEAD:
            take(*pending.pop(0))
    for rows, mask in pending:
        take(rows, mask)
    if not keep:
        return None
    # Parts are dropped as they are joined, since features of a large split may fill much of the memory.
    return {name: np.concatenate([rows.pop(name) for rows in kept]) for name in list(kept[0])}
