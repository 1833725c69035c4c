"""Checkpoints: asynchronous, verified, and restored onto any topology.

A checkpoint of Orbax holds three items: `model` (step, parameters, batch statistics, averages), `optimizer`, and
`about`, a JSON with the configuration, the classes, the versions, and shape, dtype and digest of every array. There is
no code and no pickle in it. The digest is computed on the devices when the state is saved, and again when it is
restored: what is restored is what was saved, bit for bit, or it is refused.
"""

import dataclasses
import functools
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from vision_jax import sharding
from vision_jax.errors import CheckpointError
from vision_jax.state import TrainState

log = logging.getLogger(__name__)

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class DamagedError(CheckpointError):
    """The files of a checkpoint are incomplete or altered."""


def _digest(x: jax.Array) -> jax.Array:
    """Returns a () uint32 that depends on every bit and its place, and not on how the array is sharded.

    It is a sum modulo 2^32 of the elements' bits, each times an odd number that its position gives: a sum of integers
    is the same in any order.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits * ((position * jnp.uint32(2654435761)) | jnp.uint32(1)), dtype=jnp.uint32)


def _digests(leaves: Sequence[jax.Array]) -> np.ndarray:
    """Returns the digest of each array, (n,) uint32, the same in all processes whatever the layouts."""
    layout = leaves[0].sharding
    if isinstance(layout, NamedSharding):
        layout = NamedSharding(layout.mesh, PartitionSpec())
    return np.asarray(_digests_on(layout)(leaves))


@functools.cache
def _digests_on(layout: jax.sharding.Sharding) -> Callable[[Sequence[jax.Array]], jax.Array]:
    return jax.jit(lambda leaves: jnp.stack([_digest(leaf) for leaf in leaves]), out_shardings=layout)


def _named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree under names such as `model/params/conv1/kernel`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _describe(tree: Any) -> dict[str, list[Any]]:
    """Returns [shape, dtype, digest] of each array, by name."""
    leaves = _named_leaves(tree)
    digests = _digests(list(leaves.values()))
    return {
        name: [list(leaf.shape), str(leaf.dtype), int(digest)]
        for (name, leaf), digest in zip(leaves.items(), digests, strict=True)
    }


def model_item(state: TrainState) -> dict[str, Any]:
    """Returns what evaluation needs of a state, as it is saved; it works on abstract states too."""
    item = {"step": state.step, "params": state.params, "batch_stats": state.batch_stats}
    return item if state.ema is None else {**item, "ema": state.ema}


def _first_line(error: BaseException) -> str:
    """Returns the first line of what an exception says that began all: Orbax and tensorstore write pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0][:500]


def _checksum(about: Mapping[str, Any]) -> int:
    """Returns the CRC-32 of a JSON value, however it is written."""
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **versions}


class _CheckpointManager(ocp.CheckpointManager):
    """Orbax's manager, which leaves the question of preemption to the training loop.

    Its background thread would ask JAX with the step that is being saved, which is older than the loop's: of several
    processes some could then miss the step at which all are to stop.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


@dataclasses.dataclass
class _KeepLatestAndBest:
    """Orbax's preservation policy: the latest `n`, and the best one by the scores that are known."""

    n: int
    scores: Mapping[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.n :], best_step(steps, self.scores)}
        return [step in kept for step in steps]


def best_step(steps: Sequence[int], scores: Mapping[int, float]) -> int | None:
    """Returns the step with the highest score, the first of equals; None if no step has one."""
    return max((step for step in sorted(steps) if step in scores), key=lambda step: scores[step], default=None)


class Checkpointer:
    """The checkpoints of a run.

    Args:
        directory: where they are, one folder a step; it is made when the first is saved.
        keep: how many of the latest are kept, besides the best.
        scores: higher is better, by step, of those that were evaluated; `record` adds to them.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int = 1, scores: Mapping[int, float] | None = None):
        self.directory = directory
        self.scores = dict(scores or {})
        self._keep = keep

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_KeepLatestAndBest(self._keep, self.scores),
            cleanup_tmp_directories=True,  # what a killed run left unfinished
            enable_async_checkpointing=True,
        )
        # By default each replica writes a slice of each array, and a program is compiled for each shape to cut it: that
        # stalls the first save for seconds. Arrays of which a slice is smaller than this are written whole by one.
        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=16 * 2**20)
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        handlers = {
            "about": ocp.JsonCheckpointHandler(),
            "model": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            "optimizer": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        }
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _CheckpointManager(os.fspath(self.directory.absolute()), item_handlers=handlers, options=options)

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, sorted."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit() and path.is_dir())

    def record(self, step: int, score: float) -> None:
        """Notes how good a step is, for choosing the best."""
        self.scores[step] = score

    def save(self, step: int, state: TrainState, about: Mapping[str, Any]) -> None:
        """Begins to save a state; it may be donated once this returns. A step that is saved already is left alone.

        Args:
            step: its number of updates.
            state: what is saved.
            about: what is said of it besides versions and arrays, as JSON: `config`, `num_classes`, `class_names`.

        Raises:
            CheckpointError: if the save before this one failed in the background.
        """
        self.wait()
        if step in self.steps():
            return
        items = {"model": model_item(state), "optimizer": state.opt_state}
        about = {**about, "versions": _versions(), "arrays": _describe(items)}
        about["checksum"] = _checksum(about)
        saved = {name: ocp.args.PyTreeSave(item) for name, item in items.items()}
        try:
            self._manager.save(step, args=ocp.args.Composite(about=ocp.args.JsonSave(about), **saved), force=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"Cannot save step {step} in {self.directory}: {_first_line(error)}") from error

    def wait(self) -> None:
        """Waits until what was saved is complete on disk.

        Raises:
            CheckpointError: if that failed.
        """
        if "_manager" not in self.__dict__:
            return
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:  # the background may raise anything, and the run must not end as if it had saved
            raise CheckpointError(
                f"A checkpoint in {self.directory} could not be saved: {_first_line(error)}"
            ) from error

    def about(self, step: int) -> dict[str, Any]:
        """Returns the JSON of a checkpoint: `config`, `num_classes`, `class_names`, `versions`, `arrays`.

        Raises:
            DamagedError: if it is incomplete or altered.
        """
        try:
            about = json.loads((self.directory / str(step) / "about" / "metadata").read_text())
            if about.pop("checksum", None) != _checksum(about):
                raise ValueError("its description is not what was saved")
            return about
        except (OSError, ValueError, AttributeError) as error:
            raise DamagedError(f"The checkpoint {self.directory / str(step)} is damaged: {error}") from error

    def restore_item(self, step: int, name: str, abstract_item: Any) -> Any:
        """Restores an item, `model` or `optimizer`, onto the devices that `abstract_item` names.

        Args:
            step: which checkpoint.
            name: which item of it.
            abstract_item: the pytree with jax.ShapeDtypeStruct leaves that have shardings.

        Raises:
            DamagedError: if files are incomplete or altered.
            CheckpointError: if the checkpoint holds other arrays, of another model say.
        """
        path = self.directory / str(step)
        arrays = self.about(step)["arrays"]
        stored = {key: value for key, value in arrays.items() if key.startswith(f"{name}/")}
        expected = {key: [list(x.shape), str(x.dtype)] for key, x in _named_leaves({name: abstract_item}).items()}
        problems = [f"{key}: not in the checkpoint" for key in expected.keys() - stored.keys()]
        problems += [f"{key}: only in the checkpoint" for key in stored.keys() - expected.keys()]
        problems += [
            f"{key}: {stored[key][:2]} in the checkpoint, {expected[key]} here"
            for key in expected.keys() & stored.keys()
            if stored[key][:2] != expected[key]
        ]
        if problems:
            lines = "\n".join(f"  - {p}" for p in sorted(problems))
            raise CheckpointError(f"The checkpoint {path} is of another model or optimizer:\n{lines}")
        try:
            with ocp.StandardCheckpointer() as reader:
                item = reader.restore((path / name).absolute(), abstract_item)
        except jax.errors.JaxRuntimeError:  # the devices, their memory say, and not the files
            raise
        except Exception as error:  # Orbax raises bare exceptions for files that are truncated or gone
            raise DamagedError(f"The checkpoint {path} is damaged: {_first_line(error)}") from error
        altered = [key for key, value in _describe({name: item}).items() if value != stored[key]]
        if altered:
            raise DamagedError(f"The checkpoint {path} is damaged: not what was saved are {', '.join(altered)}.")
        return item

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """Restores a whole state; see `restore_item`."""
        item = self.restore_item(step, "model", model_item(abstract_state))
        optimizer = self.restore_item(step, "optimizer", abstract_state.opt_state)
        return TrainState(item["step"], item["params"], item["batch_stats"], optimizer, item.get("ema"))

    def restore_latest(self, abstract_state: TrainState) -> TrainState | None:
        """Restores the newest checkpoint that is whole; damaged ones are warned of and moved aside, not deleted.

        Returns:
            the state, or None if there is no checkpoint at all.

        Raises:
            CheckpointError: if there are some but all are damaged, or one is of another model.
        """
        steps = self.steps()
        damaged = []
        for step in reversed(steps):
            try:
                state = self.restore(step, abstract_state)
            except DamagedError as error:
                log.warning("%s\n*** GOING BACK TO THE CHECKPOINT BEFORE IT. ***", error)
                damaged.append(step)
                continue
            self._move_aside(damaged)
            return state
        if steps:
            raise CheckpointError(
                f"All checkpoints in {self.directory} are damaged (steps {steps}). They are left as they are; give "
                "another --workdir to start anew."
            )
        return None

    def _move_aside(self, steps: Sequence[int]) -> None:
        """Moves damaged checkpoints out of the way of those to come."""
        if not steps:
            return
        aside = self.directory.with_name(f"{self.directory.name}.damaged")
        if jax.process_index() == 0:
            aside.mkdir(mode=0o700, exist_ok=True)
            for step in steps:
                number = sum(path.name.partition("-")[0] == str(step) for path in aside.iterdir())
                target = aside / (f"{step}-{number}" if number else str(step))
                (self.directory / str(step)).rename(target)
                log.warning("The damaged checkpoint of step %d is now %s.", step, target)
        sharding.wait_for_all("damaged checkpoints are aside")

    def close(self) -> None:
        """Waits for the last save and ends the threads.

        Raises:
            CheckpointError: if the save failed.
        """
        self.wait()
        if "_manager" in self.__dict__:
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            return self.close()
        try:
            self.close()
        except CheckpointError as error:  # the error under way is the one to show; this one comes beside it
            log.error("%s", error)
