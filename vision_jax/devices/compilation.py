"""Ahead-of-time tracing and compilation of the training step, and its ideal duration at the devices' peak."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vision_jax.devices import flops, sharding
from vision_jax.errors import ConfigError

log = logging.getLogger(__name__)


def trace_step(mesh: Mesh, step: Callable[..., Any], abstract_state: Any, *arguments: Any) -> jax.stages.Traced:
    """Traces a training step for a state and other arguments with shardings, with `mesh` as the current mesh.

    The state is donated: the new one reuses its memory.

    Args:
        mesh: of the shardings.
        step: (state, *arguments) -> (new state, metrics).
        abstract_state: shapes, dtypes and shardings of the state.
        *arguments: the same for a batch and the other arguments of the step, or arrays.
    """
    layouts = jax.tree.map(lambda x: x.sharding, abstract_state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(layouts, sharding.replicated(mesh)))
    with jax.set_mesh(mesh):
        return jitted.trace(abstract_state, *arguments)


def compile_step(traced: jax.stages.Traced, options: Mapping[str, bool] | None = None) -> jax.stages.Compiled:
    """Compiles the training step ahead of time, and logs the time that took, and the step's FLOPs and memory.

    It is compiled for the devices of the shardings that it was traced with, also if those are not here (`topology.py`).

    Args:
        traced: by `trace_step`.
        options: of XLA, by name, for this program.

    Raises:
        ConfigError: if the compiler finds that it does not fit into a device's memory.
    """
    start = time.perf_counter()
    with out_of_memory_explained():
        compiled = traced.lower().compile(dict(options) if options else None)
    parts = [f"The training step was compiled in {time.perf_counter() - start:.1f} s"]
    parts.append(f"{flops.count(traced.jaxpr) / 1e9:.4g} GFLOP per step")
    if (memory := compiled.memory_analysis()) is not None:
        arguments, temporaries = memory.argument_size_in_bytes / 2**20, memory.temp_size_in_bytes / 2**20
        parts.append(f"{arguments:.4g} MiB of state and batch and {temporaries:.4g} MiB of temporaries per device")
    log.info("%s.", ", ".join(parts))
    return compiled


@contextlib.contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Says what to do if the training step does not fit into the memory of a device.

    Raises:
        ConfigError: in place of JAX's error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        _, found, said = str(error).strip().partition("RESOURCE_EXHAUSTED: ")
        if not found:
            raise
        raise ConfigError(
            f"The training step does not fit into the memory of a device: {said.splitlines()[0].rstrip('.')}. Decrease "
            "batch_size or set optimizer.accumulate, model.remat or mesh.fsdp."
        ) from error


def make_ideal_step_seconds(
    traced: Mapping[tuple[int, ...], jax.stages.Traced],
    shape_at: Callable[[int], tuple[int, ...]],
    mesh: Mesh,
    dtype: jnp.dtype,
) -> Callable[[int], float] | None:
    """Returns a function from the number of a step, from 1, to its duration in seconds at the devices' peak.

    MFU is this divided by the actual duration: see `vision_jax.devices.flops`. None if the peak is not known.

    Args:
        traced: the step for each shape of an image.
        shape_at: returns that of a step, from 0.
        mesh: of all devices.
        dtype: the compute dtype.
    """
    device = mesh.devices.flat[0]
    if (chip := flops.find_chip(device.device_kind)) is None:
        log.info("train/mfu is not reported: vision_jax/devices/flops.py has no peak for a %s.", device.device_kind)
        return None
    peak = chip.peak(dtype) * mesh.size
    seconds = {shape: flops.count(step.jaxpr) / peak for shape, step in traced.items()}
    return lambda step: seconds[shape_at(step - 1)]
