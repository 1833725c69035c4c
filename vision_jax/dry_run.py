"""Describes a run without executing it: `--mode=dry_run`."""

import math

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vision_jax import build, optim, train
from vision_jax.config import Plan
from vision_jax.data.loader import batch_fields
from vision_jax.data.sources import closing
from vision_jax.devices import compilation, flops, partition, sharding


def describe(config: ConfigDict) -> str:
    """Returns the length of a run, its learning rates, the rules for each parameter, and the cost of a step.

    The input is checked as it is for training, and the step is compiled; nothing is trained or written.

    Raises:
        ConfigError, DataError: for input that cannot work.
    """
    checked = train.check_input(config)
    config, plan = checked.config, checked.plan
    with closing(checked.train_source, checked.val_source):
        summary = train.summarize(checked)
    schedule = build.make_schedule(config, plan)
    last = plan.total_steps - 1
    rates = [f"  {step:>10}{float(schedule(step)):14.6g}" for step in sorted({0, plan.warmup_steps, last // 2, last})]
    mesh = sharding.make_mesh(config.mesh)
    program = build.make_program(config, plan, checked.objective, mesh)
    state = program.abstract_state
    params = jax.tree.leaves(state.params)
    layouts = {
        "layout": [partition.format_spec(x.sharding.spec, x.ndim) for x in params],
        "bytes per device": [f"{partition.bytes_per_device(x):,}" for x in params],
    }
    return "\n".join(
        [
            *(summary, f"  {'step':>10}{'learning rate':>14}", *rates, ""),
            *(optim.format_table(build.make_rules(config).table(state.params), layouts), ""),
            f"Mesh: {', '.join(f'{name}={size}' for name, size in mesh.shape.items())}.",
            _memory(config, plan, mesh, program),
        ]
    )


def _memory(config: ConfigDict, plan: Plan, mesh: Mesh, program: build.Program) -> str:
    """Returns the memory of a step per device, by the shardings and as compiled, and how much an example adds."""
    state, objective = program.abstract_state, program.objective
    constants = build.abstract_constants(objective, mesh)
    fields = batch_fields(build.make_transform(config, plan, objective.inputs()).largest())
    batch = sharding.abstract_batch(mesh, config.batch_size, fields)
    parts = {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "average": state.ema,
        "statistics": state.batch_stats,
        **({"extra": state.extra} if jax.tree.leaves(state.extra) else {}),
        **constants,
        "batch": batch,
    }
    rows = [(name, partition.bytes_per_device(part)) for name, part in parts.items()]
    traced = compilation.trace_step(mesh, program.train_step, state, batch, constants)
    memory = compilation.compile_step(traced).memory_analysis()
    if memory is not None:
        rows.append(("compiled: state and batch", memory.argument_size_in_bytes))
        rows.append(("compiled: temporaries", memory.temp_size_in_bytes))
    lines = [f"  {'memory per device':28}{'MiB':>10}", *(f"  {name:28}{number / 2**20:10.2f}" for name, number in rows)]
    total = flops.count(traced.jaxpr) / 1e9
    lines.append(
        f"A step has {total:.4g} GFLOP, {total / mesh.size:.4g} per device (convention: vision_jax/devices/flops.py)."
    )
    if memory is None:
        return "\n".join([*lines, "The compiler for this device does not report the memory of a step."])
    examples = config.batch_size // sharding.batch_shards(mesh)
    example = (memory.temp_size_in_bytes + partition.bytes_per_device(batch)) / examples
    fixed = memory.argument_size_in_bytes - partition.bytes_per_device(batch)
    lines.append(
        f"The state takes {fixed / 2**20:.4g} MiB per device whatever the batch size, and each of a device's "
        f"{examples} examples about {example / 2**20:.4g} MiB."
    )
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is not None:
        most = max(0, math.floor((limit - fixed) / example))
        lines.append(f"About {most} examples would fit into the {limit / 2**20:,.0f} MiB of a device.")
    return "\n".join(lines)
