"""The training step traced and compiled ahead of time, and how long it would take at the peak of the devices."""

import bisect
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vision_jax.devices import flops, sharding

log = logging.getLogger(__name__)


def trace_step(mesh: Mesh, step: Callable[..., Any], abstract_state: Any, *arguments: Any) -> jax.stages.Traced:
    """Traces a training step for a state and further arguments with layouts, with `mesh` as the mesh in use.

    The state is donated: the new one takes its memory.

    Args:
        mesh: what the arguments are laid out on.
        step: (state, *arguments) -> (new state, metrics).
        abstract_state: shapes, dtypes and layouts of the state.
        *arguments: the same of a batch and what else the step takes; arrays will do.
    """
    layouts = jax.tree.map(lambda x: x.sharding, abstract_state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(layouts, sharding.replicated(mesh)))
    with jax.set_mesh(mesh):
        return jitted.trace(abstract_state, *arguments)


def compile_step(traced: jax.stages.Traced) -> jax.stages.Compiled:
    """Compiles the training step ahead of time, and logs what that took and what the step will take."""
    start = time.perf_counter()
    compiled = traced.lower().compile()
    parts = [f"The training step was compiled in {time.perf_counter() - start:.1f} s"]
    parts.append(f"{flops.count(traced.jaxpr) / 1e9:.4g} GFLOP a step")
    if (memory := compiled.memory_analysis()) is not None:
        arguments, temporaries = memory.argument_size_in_bytes / 2**20, memory.temp_size_in_bytes / 2**20
        parts.append(f"{arguments:.4g} MiB of state and batch and {temporaries:.4g} MiB of temporaries a device")
    log.info("%s.", ", ".join(parts))
    return compiled


def make_ideal_step_seconds(
    traced: Mapping[int, jax.stages.Traced], sizes: Sequence[tuple[int, int]], mesh: Mesh, dtype: jnp.dtype
) -> Callable[[int], float] | None:
    """Returns how long a step, by its number from 1, would take if all devices did its products at their peak.

    In seconds. Divided by how long it takes, that is the MFU: see `vision_jax.devices.flops`. None if the peak is not
    known.

    Args:
        traced: the step for each size of images.
        sizes: (first step, size), ascending, beginning with step 0.
        mesh: of all devices.
        dtype: what the model computes in.
    """
    device = mesh.devices.flat[0]
    if (chip := flops.find_chip(device.device_kind)) is None:
        log.info(
            "There is no train/mfu: vision_jax/devices/flops.py does not know the peak of a %s.", device.device_kind
        )
        return None
    peak = chip.peak(dtype) * mesh.size
    seconds = {size: flops.count(step.jaxpr) / peak for size, step in traced.items()}
    starts = [start for start, _ in sizes]
    return lambda step: seconds[sizes[bisect.bisect_right(starts, step - 1) - 1][1]]
