"""Describes a run without executing it: `--mode=dry_run`."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision_jax import build, optim, train
from vision_jax.data.loader import batch_fields
from vision_jax.data.sources import closing
from vision_jax.devices import compilation, cost, flops, partition, sharding
from vision_jax.devices import topology as topologies


@dataclasses.dataclass(frozen=True)
class Traced:
    """The training step of a configuration, traced but not compiled.

    Attributes:
        checked: the configuration, resolved, and what follows from it; its sources are closed.
        summary: of the run, as training logs it.
        mesh: of the devices that it is traced for.
        program: the pure functions of the run.
        batch: shapes, dtypes and layouts of a batch; of images that grow, of the largest ones.
        constants: the same of the objective's constants.
        step: (state, batch, constants) -> (state, metrics).
    """

    checked: train.Checked
    summary: str
    mesh: Mesh
    program: build.Program
    batch: dict[str, jax.ShapeDtypeStruct]
    constants: dict[str, Any]
    step: jax.stages.Traced

    def compile(self) -> jax.stages.Compiled:
        """Compiles the step for the devices of the mesh, here or not.

        Raises:
            ConfigError: if the compiler finds that it does not fit into a device's memory.
        """
        return compilation.compile_step(self.step, topologies.compiler_options(self.mesh))


def trace(config: ConfigDict, topology: str | None = None) -> Traced:
    """Checks the input of a run as training does, and traces its step. Nothing is put on the devices.

    Args:
        config: of the run.
        topology: TPU slices or GPUs that it would run on (`devices/topology.py`); None: the devices that there are.

    Raises:
        ConfigError, DataError: for input that cannot work.
    """
    devices = topologies.describe(topology) if topology else jax.devices()
    if topology and config.dtype == "auto":
        config = config.copy_and_resolve_references()
        config.dtype = "bfloat16"  # which `auto` is on TPUs and GPUs
    checked = train.check_input(config, len(devices))
    config, plan = checked.config, checked.plan
    with closing(checked.train_source, checked.val_source):
        summary = train.summarize(checked)
    mesh = sharding.make_mesh(config.mesh, devices)
    program = build.make_program(config, plan, checked.objective, mesh)
    fields = batch_fields(build.make_transform(config, plan, checked.objective.inputs()).largest())
    batch = sharding.abstract_batch(mesh, config.batch_size, fields)
    constants = build.abstract_constants(checked.objective, mesh)
    step = compilation.trace_step(mesh, program.train_step, program.abstract_state, batch, constants)
    return Traced(checked, summary, mesh, program, batch, constants, step)


def describe(config: ConfigDict, topology: str | None = None) -> tuple[str, cost.Cost | None]:
    """Returns the length of a run, its learning rates, the rules for each parameter, and the cost of a step.

    The input is checked as it is for training, and the step is compiled; nothing is trained or written.

    Args:
        config: of the run.
        topology: TPU slices or GPUs that it would run on (`devices/topology.py`); None: the devices that there are.

    Returns:
        a text, and the cost of a step where the compiler tells it.

    Raises:
        ConfigError, DataError: for input that cannot work.
    """
    traced = trace(config, topology)
    config, plan, mesh = traced.checked.config, traced.checked.plan, traced.mesh
    schedule = build.make_schedule(config, plan)
    last = plan.total_steps - 1
    rates = [f"  {step:>10}{float(schedule(step)):14.6g}" for step in sorted({0, plan.warmup_steps, last // 2, last})]
    state = traced.program.abstract_state
    params = jax.tree.leaves(state.params)
    layouts = {
        "layout": [partition.format_spec(x.sharding.spec, x.ndim) for x in params],
        "bytes per device": [f"{partition.bytes_per_device(x):,}" for x in params],
    }
    costs, step_cost = _costs(traced)
    kind = mesh.devices.flat[0].device_kind
    text = "\n".join(
        [
            *(traced.summary, f"  {'step':>10}{'learning rate':>14}", *rates, ""),
            *(optim.format_table(traced.program.rules.table(state.params), layouts), ""),
            f"Mesh: {', '.join(f'{name}={size}' for name, size in mesh.shape.items())}"
            + (f", of {topology} ({kind}), which is not here." if topology else "."),
            costs,
        ]
    )
    return text, step_cost


def _costs(traced: Traced) -> tuple[str, cost.Cost | None]:
    """Returns the memory of a step per device, what it computes and moves, how much an example adds; and its cost."""
    config, mesh, batch, state = traced.checked.config, traced.mesh, traced.batch, traced.program.abstract_state
    parts = {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "average": state.ema,
        "statistics": state.batch_stats,
        **({"extra": state.extra} if jax.tree.leaves(state.extra) else {}),
        **traced.constants,
        "batch": batch,
    }
    rows = [(name, partition.bytes_per_device(part)) for name, part in parts.items()]
    step_cost = cost.measure(traced.step, traced.compile(), mesh, config.batch_size)
    if step_cost is not None:
        rows.append(("compiled: state and batch", step_cost.argument_bytes))
        rows.append(("compiled: temporaries", step_cost.temp_bytes))
    lines = [f"  {'memory per device':28}{'MiB':>10}", *(f"  {name:28}{number / 2**20:10.2f}" for name, number in rows)]
    total = flops.count(traced.step.jaxpr) / 1e9
    lines.append(
        f"A step has {total:.4g} GFLOP, {total / mesh.size:.4g} per device (convention: vision_jax/devices/flops.py)."
    )
    if step_cost is None:
        return "\n".join([*lines, "The compiler for this device does not report the memory of a step."]), None
    lines += _time(step_cost, mesh, build.compute_dtype(config))
    examples = config.batch_size // sharding.batch_shards(mesh)
    example = (step_cost.temp_bytes + partition.bytes_per_device(batch)) / examples
    fixed = step_cost.argument_bytes - partition.bytes_per_device(batch)
    lines.append(
        f"The state takes {fixed / 2**20:.4g} MiB per device whatever the batch size, and each of a device's "
        f"{examples} examples about {example / 2**20:.4g} MiB."
    )
    if (limit := _memory_limit(mesh)) is not None:
        most = max(0, math.floor((limit - fixed) / example))
        lines.append(f"About {most} examples would fit into the {limit / 2**20:,.0f} MiB of a device.")
    return "\n".join(lines), step_cost


def _time(step_cost: cost.Cost, mesh: Mesh, dtype: jnp.dtype) -> list[str]:
    """Returns what a device moves in a step, and the time that it takes at least, as far as its peak rates are known.

    Of a CPU nothing is said: its compiler's account of bytes is not that of its caches.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return []
    moved = step_cost.bytes_accessed
    # cuDNN can be asked for its kernel of attention only where there is a GPU.
    whose = (
        "counted from the program, with attention as products" if device.platform == "gpu" else "as its compiler counts"
    )
    lines = [
        f"A device reads and writes {moved / 1e9:.4g} GB a step, {moved / step_cost.images / 1e6:.4g} MB an image "
        f"({whose}, the bodies of loops once)."
    ]
    received = ", ".join(f"{name} {size / 1e6:.4g} MB" for name, size in sorted(step_cost.collective_bytes.items()))
    lines.append(f"It receives from others: {received or 'nothing'}.")
    if (chip := flops.find_chip(device.device_kind)) is not None:
        seconds = cost.ideal_seconds(step_cost, chip, dtype)
        longest = max(seconds, key=lambda name: seconds[name])
        times = ", ".join(f"{name} {1e3 * value:.4g} ms" for name, value in seconds.items())
        lines.append(
            f"At the peak rates of this device ({device.device_kind}): {times}. The longest, {longest}, leaves at most "
            f"{step_cost.images / seconds[longest]:,.0f} images/s a device."
        )
    return lines


def _memory_limit(mesh: Mesh) -> float | None:
    """Returns the bytes that a device has; of one that is not here, all that its chip has."""
    device = mesh.devices.flat[0]
    if device in jax.devices():
        return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    chip = flops.find_chip(device.device_kind)
    return None if chip is None or chip.memory is None else chip.memory * 2**30
