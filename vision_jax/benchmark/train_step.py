"""Our training step: run on random images on the devices that there are, or compiled for TPUs that are not here."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vision_jax import build, dry_run, steps
from vision_jax.devices import compilation, cost, flops, sharding
from vision_jax.errors import ConfigError

# Of a step, in the order in which they happen; then what the compiler has added, and what belongs to none of them.
PARTS = (steps.AUGMENTATION, "forward", "backward", steps.OPTIMIZER, "copies", "other")


@dataclasses.dataclass(frozen=True)
class Job:
    """A configuration whose step is traced.

    Attributes:
        name: the config file, and its variant.
        traced: its step.
        trace_seconds: how long checking the configuration and tracing took.
        topology: the TPU slices or GPUs that it is for; None: the devices that there are.
    """

    name: str
    traced: dry_run.Traced
    trace_seconds: float
    topology: str | None

    @property
    def batch_size(self) -> int:
        """Of the global batch."""
        return self.traced.checked.config.batch_size

    @property
    def dtype(self) -> jnp.dtype:
        """What the model computes in."""
        return build.compute_dtype(self.traced.checked.config)

    @property
    def flops(self) -> int:
        """Operations of a step (`flops.py`)."""
        return flops.count(self.traced.step.jaxpr)

    @property
    def peak_flops(self) -> float | None:
        """Operations per second of all devices at their peak; None if it is not known (`flops.py`)."""
        chip = flops.find_chip(self.traced.mesh.devices.flat[0].device_kind)
        return None if chip is None else chip.peak(self.dtype) * self.traced.mesh.size

    def describe(self) -> dict[str, Any]:
        """Returns what is measured, for JSON."""
        return {
            "config": self.name,
            "model": self.traced.checked.config.model.name,
            "dtype": self.dtype.name,
            "batch_size": self.batch_size,
            "devices": self.traced.mesh.size,
            "flops": self.flops,
        }


def trace(name: str, config: ConfigDict, topology: str | None) -> Job:
    """Traces the step of a configuration.

    Args:
        name: of the config file.
        config: what it describes.
        topology: see `dry_run.trace`.

    Raises:
        ConfigError, DataError: for input that cannot work.
    """
    start = time.perf_counter()
    traced = dry_run.trace(config, topology)
    return Job(name, traced, time.perf_counter() - start, topology)


class TrainStep:
    """A compiled training step with a state and a batch, which runs as often as one likes.

    The parameters are random, also those that a run would load (`model.pretrained`), and so are images and labels; a
    teacher's weights are zeros.

    Args:
        job: what is run.

    Attributes:
        compile_seconds: to trace the step and compile it.

    Raises:
        ConfigError: if the step does not fit into the memory of a device.
    """

    def __init__(self, job: Job):
        traced = job.traced
        self._device = traced.mesh.devices.flat[0]
        self._earlier_peak = self._allocator_peak()
        start = time.perf_counter()
        self._compiled = traced.compile()
        self.compile_seconds = job.trace_seconds + time.perf_counter() - start
        rows = random_rows(traced.batch, traced.checked.train_source.num_classes)
        with compilation.out_of_memory_explained():
            self._batch = sharding.batch_placer(traced.mesh, job.batch_size)(rows)
            self._constants = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), dict(traced.constants)
            )
            self._state = jax.block_until_ready(traced.program.initialize())

    def run(self, number: int) -> float:
        """Does so many steps, and returns the seconds that they took, once the devices are done."""
        start = time.perf_counter()
        with compilation.out_of_memory_explained():
            for _ in range(number):
                self._state, metrics = self._compiled(self._state, self._batch, self._constants)
            jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - start

    def peak_bytes(self) -> tuple[int | None, str]:
        """Returns the most memory that a device has used, and whose account that is.

        "allocator": measured. Its peak is that of the whole process; so after a configuration that took more, and on
        devices that do not measure it, "compiler": what it plans for state, batch, and temporaries. None, if neither
        says.
        """
        peak = self._allocator_peak()
        if peak is not None and (self._earlier_peak is None or peak > self._earlier_peak):
            return peak, "allocator"
        if (memory := self._compiled.memory_analysis()) is None:
            return None, "compiler"
        new = memory.output_size_in_bytes - memory.alias_size_in_bytes
        return memory.argument_size_in_bytes + new + memory.temp_size_in_bytes, "compiler"

    def _allocator_peak(self) -> int | None:
        return (self._device.memory_stats() or {}).get("peak_bytes_in_use")


def random_rows(batch: Mapping[str, jax.ShapeDtypeStruct], num_classes: int) -> dict[str, np.ndarray]:
    """Returns a batch of random pixels and labels; of other fields, the mask is 1 and the rest 0.

    Args:
        batch: shapes and dtypes of its fields: pixels are uint8, labels another type of integer.
        num_classes: of the labels.
    """
    random = np.random.default_rng(0)
    rows: dict[str, np.ndarray] = {}
    for name, field in batch.items():
        if name == "mask":
            rows[name] = np.ones(field.shape, field.dtype)
        elif np.issubdtype(field.dtype, np.integer):
            high = 256 if field.dtype == np.uint8 else num_classes
            rows[name] = random.integers(0, high, field.shape, field.dtype)
        else:
            rows[name] = np.zeros(field.shape, field.dtype)
    return rows


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the compiler says of a step on devices that are not here.

    Attributes:
        cost: of a device.
        seconds: at the chip's peak rates: products, memory, and where it is known, interconnect.
        shares: of the bytes that are read and written, by `PARTS`; they add up to 1.
        compile_seconds: to trace the step and compile it.
    """

    cost: cost.Cost
    seconds: Mapping[str, float]
    shares: Mapping[str, float]
    compile_seconds: float


def estimate(job: Job) -> Estimate:
    """Compiles a step for devices that are not here.

    Raises:
        ConfigError: if the step does not fit into their memory, or they are of a kind of which too little is known.
    """
    start = time.perf_counter()
    compiled = job.traced.compile()
    return estimate_program(job, job.traced.step, compiled, job.trace_seconds + time.perf_counter() - start)


def estimate_program(job: Job, traced: jax.stages.Traced, compiled: jax.stages.Compiled, seconds: float) -> Estimate:
    """Returns what the compiler says of a program for the devices of a job.

    Args:
        job: of the configuration.
        traced, compiled: the program.
        seconds: what it took to make it.

    Raises:
        ConfigError: if the devices are of a kind of which too little is known.
    """
    found = cost.measure(traced, compiled, job.traced.mesh, job.batch_size)
    kind = job.traced.mesh.devices.flat[0].device_kind
    chip = flops.find_chip(kind)
    if found is None or chip is None:
        lacking = "the cost of a step by its compiler" if found is None else "a peak in vision_jax/devices/flops.py"
        raise ConfigError(f"For a {kind} (--topology={job.topology}) there is not {lacking}: choose another.")
    moved = cost.bytes_by_part(compiled.as_text() or "", (steps.AUGMENTATION, steps.OPTIMIZER))
    shares = {part: moved[part] / sum(moved.values()) for part in PARTS}
    return Estimate(found, cost.ideal_seconds(found, chip, job.dtype), shares, seconds)
