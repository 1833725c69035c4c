"""A step of an attack on the model of a configuration: its gradient for the images, and a move along it."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import attacks
from vision_jax.attacks import base
from vision_jax.attacks.losses import LOSSES
from vision_jax.benchmark import train_step
from vision_jax.benchmark.train_step import Estimate, Job
from vision_jax.devices import compilation, flops, sharding, topology
from vision_jax.errors import ConfigError

STEPS = 10  # of an attack in one call, by which its time is divided
_EPS = 4 / 255


def check(job: Job) -> None:
    """Checks that there are logits to attack.

    Raises:
        ConfigError: if the model has no classifier.
    """
    checked = job.traced.checked
    model: Any = checked.objective.setup.model
    if not model.num_classes:
        name = checked.config.model.name
        raise ConfigError(f"The model, {name}, has no classifier that could be attacked: leave --attack out.")


def _abstract(job: Job) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
    """Returns shapes and shardings of a model's variables, and of images and labels."""
    traced, setup = job.traced, job.traced.checked.objective.setup
    layout, state = sharding.along_batch(traced.mesh), traced.program.abstract_state
    rows = {
        "image": jax.ShapeDtypeStruct((job.batch_size, *setup.image_shape), np.uint8, sharding=layout),
        "label": jax.ShapeDtypeStruct((job.batch_size,), np.int32, sharding=layout),
    }
    return {"params": state.params, "batch_stats": state.batch_stats}, rows


def _attacked(job: Job, variables: Any) -> attacks.Apply:
    setup = job.traced.checked.objective.setup
    return attacks.classifier(setup.model, variables, setup.mean, setup.std)


def _trace(job: Job, function: Any) -> jax.stages.Traced:
    """Traces a function of (variables, rows) that returns images."""
    mesh = job.traced.mesh
    with jax.set_mesh(mesh):
        return jax.jit(function, out_shardings=sharding.along_batch(mesh)).trace(*_abstract(job))


def trace_one(job: Job) -> jax.stages.Traced:
    """Traces one step of PGD, outside of the loop that attacks run it in, whose length is not known to compilers."""

    def step(variables: Any, rows: Mapping[str, jax.Array]) -> jax.Array:
        images, apply = rows["image"].astype(jnp.float32) / 255, _attacked(job, variables)

        def loss(perturbed: jax.Array) -> jax.Array:
            return LOSSES["ce"](apply(perturbed).astype(jnp.float32), rows["label"], rows["label"]).sum()

        moved = images + _EPS / 4 * base.ascent(jax.grad(loss)(images), "linf")
        return base.project(images, moved, _EPS, "linf")

    return _trace(job, step)


class AttackStep:
    """A compiled attack of `STEPS` steps on random images, with the weights that a training begins with.

    Args:
        job: whose model is attacked.
        kind: pgd, of which each step takes one gradient, or apgd, which keeps more beside it.

    Attributes:
        flops: operations of a step (`flops.py`): those of one gradient.
        compile_seconds: to trace the attack and compile it.

    Raises:
        ConfigError: if the attack does not fit into the memory of a device.
    """

    def __init__(self, job: Job, kind: str):

        def attack(variables: Any, rows: Mapping[str, jax.Array]) -> jax.Array:
            images, apply = rows["image"].astype(jnp.float32) / 255, _attacked(job, variables)
            run: Any = {"pgd": attacks.pgd, "apgd": attacks.apgd}[kind]
            return run(apply, images, rows["label"], jax.random.key(0), eps=_EPS, steps=STEPS).images

        self.flops = flops.count(trace_one(job).jaxpr)
        traced, mesh = job.traced, job.traced.mesh
        _, shapes = _abstract(job)
        rows = train_step.random_rows(shapes, traced.checked.objective.setup.model.num_classes)
        start = time.perf_counter()
        with compilation.out_of_memory_explained():
            self._compiled = _trace(job, attack).lower().compile()
            self.compile_seconds = time.perf_counter() - start
            state = traced.program.initialize()
            self._variables = {"params": state.params, "batch_stats": state.batch_stats}
            place = sharding.batch_placer(mesh, job.batch_size)
            local = sharding.local_rows(mesh, job.batch_size)
            self._rows = place({name: values[local] for name, values in rows.items()})

    def run(self, calls: int) -> float:
        """Attacks so often, and returns the seconds that each step took, the last forward pass of a call included."""
        start = time.perf_counter()
        with compilation.out_of_memory_explained():
            for _ in range(calls):
                found = self._compiled(self._variables, self._rows)
            jax.block_until_ready(found)
        return (time.perf_counter() - start) / (calls * STEPS)


def estimate(job: Job) -> Estimate:
    """Compiles one step of PGD for devices that are not here; errors as for `train_step.estimate`."""
    start = time.perf_counter()
    traced = trace_one(job)
    with compilation.out_of_memory_explained():
        compiled = traced.lower().compile(topology.compiler_options(job.traced.mesh))
    return train_step.estimate_program(job, traced, compiled, time.perf_counter() - start)
