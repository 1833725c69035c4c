"""Checkpoints: asynchronous, verified, and restored onto any topology.

An Orbax checkpoint holds three items: `model` (step, parameters, batch statistics, EMA, `extra`), `optimizer`, and
`about`, a JSON file with the configuration, the classes, the versions, and the shape, dtype and digest of every array.
It contains no code and no pickle. Digests are computed on the devices when the state is saved, and again when it is
restored: a checkpoint that is not restored bit for bit is refused.

Several processes act together. Only process 0 lists the checkpoints and reads their descriptions, and tells the others,
since a network file system may show them different states. Each process then reads its own shards, and they agree on
whether all succeeded before any collective computation, in which the others would wait for a process that failed.

Storage can be full, read-only, gone or slow. A save that fails in any process, at once or in the background, has failed
for all: they agree on it when they wait for the save. Orbax's manager is then recreated for the next save, and removes
temporary directories that are left over; complete checkpoints, even damaged ones, are left alone.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import logging
import math
import os
import pathlib
import platform
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import jax
import orbax.checkpoint as ocp

from vision_jax.devices import distributed
from vision_jax.errors import CheckpointError, DamagedError, one_line, reason
from vision_jax.runtime import digests, steady_clock, writers
from vision_jax.runtime.barriers import Barriers, OtherProcessError, any_process
from vision_jax.runtime.watchdog import Watchdog
from vision_jax.state import TrainState

log = logging.getLogger(__name__)

steady_clock.use_in_orbax()

_T = TypeVar("_T")
_PATIENCE = 5.0  # seconds that a run may wait for the previous save without a warning; or for threads of a failed one
_SECONDS_BETWEEN_WARNINGS = 60.0  # while storage does not respond
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def model_item(state: TrainState) -> dict[str, Any]:
    """Returns the part of a state that evaluation needs, as it is saved. Works on abstract states too."""
    item = {"step": state.step, "params": state.params, "batch_stats": state.batch_stats}
    if state.ema is not None:
        item["ema"] = state.ema
    if jax.tree.leaves(state.extra):
        item["extra"] = state.extra
    return item


def _first_line(error: BaseException) -> str:
    """Returns the first line of the root cause of an exception, of which Orbax and tensorstore write pages."""
    while (cause := error.__cause__ or error.__context__ if _is_echo(error) else error.__cause__) is not None:
        error = cause
    text = (str(error).splitlines() or [""])[0].partition(" [tensorstore_spec=")[0][:500]
    if isinstance(error, OSError | ValueError | OtherProcessError):  # their messages explain themselves
        return text or type(error).__name__
    return f"{type(error).__name__}: {text}"


def _was_interrupted(error: BaseException) -> bool:
    """Returns whether an exception was raised because of a KeyboardInterrupt."""
    return any(isinstance(cause, KeyboardInterrupt) for cause in _causes(error))


def _is_forbidden(error: BaseException) -> bool:
    """Returns whether an exception was raised because this user may not read a file; tensorstore only says so."""
    return any(isinstance(cause, PermissionError) or "PERMISSION_DENIED" in str(cause) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an exception and those that led to it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_echo(error: BaseException) -> bool:
    """Returns whether an error merely reports another process's failure; the one before it is then the cause."""
    return isinstance(error, OtherProcessError)


def _forbidden(path: pathlib.Path) -> str:
    return f"{path} cannot be read: permission denied. Nothing was changed; ask its owner for access."


def _checksum(about: Mapping[str, Any]) -> int:
    """Returns the CRC-32 of a JSON value, whatever its formatting."""
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **versions}


def _wait_for_writers() -> None:
    """Waits for Orbax's threads to end, up to a limit.

    When one of them fails, the error is known before the others end. Their output would interfere with the next save,
    which first removes unfinished directories.
    """
    end = time.monotonic() + _PATIENCE
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax.") or thread.name == "async_save":
            threading.Thread.join(thread, max(0.0, end - time.monotonic()))  # Orbax's own would raise its error


class _CheckpointManager(ocp.CheckpointManager):
    """Orbax's manager, but preemption is left to the training loop.

    Its background thread would ask JAX with the step that is being saved, which is older than the loop's: some of
    several processes could then miss the step at which all are to stop.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


@dataclasses.dataclass
class _KeepLatestAndBest:
    """Orbax's preservation policy: the latest `n`, and the one with the best known score."""

    n: int
    scores: Mapping[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.n :], best_step(steps, self.scores)}
        return [step in kept for step in steps]


def best_step(steps: Sequence[int], scores: Mapping[int, float]) -> int | None:
    """Returns the step with the highest score, the first one if tied; None if no step has a finite score."""
    scored = (step for step in sorted(steps) if math.isfinite(scores.get(step, math.nan)))
    return max(scored, key=lambda step: scores[step], default=None)


class Checkpointer:
    """The checkpoints of a run.

    Args:
        directory: with one folder per step; created by the first save.
        keep: number of latest checkpoints to keep, besides the best one.
        scores: of the evaluated steps, higher is better; `record` adds to them.
        on_error: what to do if a save fails: `stop` raises, `continue` warns, and the next save is another attempt.
        watchdog: suspended while waiting for storage, which may be slow; None: there is none.

    Attributes:
        failed_saves: number of failed saves.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep: int = 1,
        scores: Mapping[int, float] | None = None,
        on_error: str = "stop",
        watchdog: Watchdog | None = None,
    ):
        self.directory = directory
        self.scores = dict(scores or {})
        self._watchdog, self._is_patient = watchdog or Watchdog(0), False
        self.failed_saves = 0
        self._keep, self._on_error = keep, on_error
        self._saving: int | None = None  # the step being saved in the background
        self._failure: CheckpointError | None = None  # of the last save

    @functools.cached_property
    def _barriers(self) -> Barriers:
        return Barriers()

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            async_options=ocp.AsyncOptions(barrier_sync_fn=self._barriers),
            preservation_policy=_KeepLatestAndBest(self._keep, self.scores),
            cleanup_tmp_directories=True,  # left unfinished by a killed run
            enable_async_checkpointing=True,
        )
        # By default each replica writes a slice of each array, and slicing compiles a program for each shape, which
        # stalls the first save for seconds. Arrays with slices smaller than this are written whole by one replica.
        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=16 * 2**20)
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        handlers = {
            "about": ocp.JsonCheckpointHandler(),
            "model": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            "optimizer": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        }
        return _CheckpointManager(os.fspath(self.directory.absolute()), item_handlers=handlers, options=options)

    @contextlib.contextmanager
    def _patience(self, what: str) -> Iterator[None]:
        """Marks waiting for storage, or for processes that wait for it, as not a hang; warns about it periodically."""
        if self._is_patient:
            yield
            return
        over, start = threading.Event(), time.monotonic()

        def warn() -> None:
            while not over.wait(_SECONDS_BETWEEN_WARNINGS):
                log.warning(
                    "The run has been waiting for %.0f s for %s in %s: this storage is slow, or does not respond.",
                    *(time.monotonic() - start, what, self.directory),
                )

        thread = threading.Thread(target=warn, name="slow storage", daemon=True)
        thread.start()
        self._is_patient = True
        try:
            with self._watchdog.suspended():
                yield
        finally:
            self._is_patient = False
            over.set()
            thread.join()

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, sorted, as this process sees them."""
        try:
            if not self.directory.is_dir():
                return []
            return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit() and path.is_dir())
        except PermissionError as error:
            raise CheckpointError(_forbidden(self.directory)) from error

    def record(self, step: int, score: float) -> None:
        """Records the score of a step, by which the best is chosen; a score that is not finite is ignored."""
        if math.isfinite(score):
            self.scores[step] = score
        else:
            log.warning("The score of step %d is %s: it is ignored when the best is chosen.", step, score)

    def save(self, step: int, state: TrainState, about: Mapping[str, Any]) -> None:
        """Starts saving a state, which may be donated once this returns. A step that is already saved is left alone.

        Args:
            step: its number of updates.
            state: the state to save.
            about: JSON metadata to store besides versions and arrays: `config`, `num_classes`, `class_names`,
                `rewinds`.

        Raises:
            CheckpointError: with on_error=stop, if this save failed, or the previous one did in the background.
        """
        with self._patience(f"the checkpoint of step {step}"):
            self._save(step, state, about)

    def _save(self, step: int, state: TrainState, about: Mapping[str, Any]) -> None:
        start = time.monotonic()
        self.settle()
        if (waited := time.monotonic() - start) > _PATIENCE:
            log.warning(
                "The run waited %.0f s for the checkpoint before that of step %d: %s is slow. Save less often "
                "(checkpoint.every_steps, eval.every_epochs), or to faster storage.",
                *(waited, step, self.directory),
            )
        self._failure = None
        if any_process(step in self.steps()):  # a network file system may not show it to all of them yet
            return
        items = {"model": model_item(state), "optimizer": state.opt_state}
        about = {**about, "versions": _versions(), "digest": digests.VERSION, "arrays": digests.describe(items)}
        about["checksum"] = _checksum(about)
        saved = {name: ocp.args.PyTreeSave(item) for name, item in items.items()}
        # Storage that fails at once is detected here, when the others do not wait for the first process yet.
        if self._conclude(step, self._attempt(self._try_storage)):
            args = ocp.args.Composite(about=ocp.args.JsonSave(about), **saved)
            if (error := self._attempt(lambda: self._manager.save(step, args=args, force=True))) is not None:
                self._barriers.fail()
            if self._conclude(step, error):
                self._saving = step
        self.settle(wait=False)

    def _attempt(self, action: Callable[[], object]) -> Exception | None:
        """Tries an action on the storage, and returns its exception, if any."""
        try:
            action()
        except Exception as error:  # of any kind: the other processes must learn of it and not wait for this one
            log.debug("A save failed.", exc_info=True)
            return error
        return None

    def _try_storage(self) -> None:
        """Creates the directory and writes to it, in the first process."""
        if jax.process_index() == 0:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.directory / ".writable"
            probe.write_bytes(b"x")
            probe.unlink()

    def _conclude(self, step: int, error: Exception | None) -> bool:
        """Records whether a save, or its start, failed in any process; returns whether it succeeded."""
        if not any_process(error is not None):
            return True
        self._discard_manager()
        _wait_for_writers()
        self.failed_saves += 1
        good = self.steps()
        self._failure = CheckpointError(
            f"The checkpoint of step {step} could not be saved in {self.directory}: "
            f"{'another process failed' if error is None else _first_line(error)}. "
            + (f"The last good one is step {good[-1]}." if good else "There is none yet.")
        )
        self._failure.__cause__ = error
        if self._on_error == "continue":
            log.warning("%s\n*** CONTINUING WITHOUT IT: THE NEXT ONE IS TRIED WHEN IT IS DUE. ***", self._failure)
        return False

    def _discard_manager(self) -> None:
        """Ends the threads of Orbax's manager, which may be unusable now; the next save creates a new one."""
        if "_manager" in self.__dict__:
            try:
                self._manager.close()
            except Exception:  # it raises the known error again, before closing anything
                with contextlib.suppress(Exception):
                    self._manager.close()
            del self._manager
        self.__dict__.pop("_barriers", None)

    def settle(self, *, wait: bool = True) -> None:
        """Waits until the last save is complete on disk or has failed.

        Args:
            wait: False does not wait, and only reports what is known.

        Raises:
            CheckpointError: if the last save failed, with on_error=stop.
        """
        if wait and self._saving is not None:
            step, self._saving = self._saving, None
            with self._patience(f"the checkpoint of step {step}"):
                self._conclude(step, self._end_of_save())
        if self._failure is not None and self._on_error == "stop":
            raise self._failure

    def _end_of_save(self) -> Exception | None:
        """Waits for the save in the background, and returns its exception, if any."""
        try:
            with self._patience("the last checkpoint"):
                self._manager.wait_until_finished()
                self._manager.check_for_errors()
        except Exception as error:  # of any kind: the run must not end as if it had saved
            return error
        return None

    def wait(self) -> None:
        """Waits until the last save is complete on disk.

        Raises:
            CheckpointError: if it failed, whatever `on_error` is.
        """
        self.settle()
        if self._failure is not None:
            raise self._failure

    def about(self, step: int) -> dict[str, Any]:
        """Returns the JSON metadata of a checkpoint: the argument of `save`, `versions`, `digest` and `arrays`.

        Process 0 reads it and tells the others; every process must call it.

        Raises:
            DamagedError: if it is incomplete or altered.
        """
        with self._patience(f"the description of step {step}"):
            return distributed.from_first(lambda: read_about(self.directory / str(step)))

    def restore_item(self, step: int, name: str, abstract_item: Any) -> Any:
        """Restores an item, `model` or `optimizer`, onto the devices in the shardings of `abstract_item`.

        Every process must call it; an error in one of them is raised in all.

        Args:
            step: which checkpoint.
            name: which of its items.
            abstract_item: the pytree, with jax.ShapeDtypeStruct leaves that have shardings.

        Raises:
            DamagedError: if files are incomplete or altered.
            CheckpointError: if the checkpoint holds different arrays, such as those of another model.
        """
        path, about = self.directory / str(step), self.about(step)
        stored = _check_arrays(path, name, abstract_item, about)
        with self._patience(f"reading step {step}"):
            item: Any = None
            error: Exception | None = None
            try:
                item = _read_item(path / name, abstract_item)
            except Exception as caught:  # Orbax raises bare exceptions for files that are truncated or gone
                if _was_interrupted(caught):  # and one for Ctrl-C, which says nothing about the files
                    raise KeyboardInterrupt from caught
                error = caught
            _agree_on_reading(path, name, error)
            found = digests.describe({name: item}, about.get("digest", 1))
        if altered := [key for key, value in found.items() if value != stored[key]]:
            names = ", ".join(altered)
            raise _damaged(path, f"different from what was saved: {names}")
        if name == "model" and int(item["step"]) != step:
            raise _damaged(path, f"it holds step {int(item['step'])}")
        return item

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """Restores a whole state; see `restore_item`."""
        item = self.restore_item(step, "model", model_item(abstract_state))
        optimizer = self.restore_item(step, "optimizer", abstract_state.opt_state)
        return TrainState(
            step=item["step"],
            params=item["params"],
            batch_stats=item["batch_stats"],
            opt_state=optimizer,
            ema=item.get("ema"),
            extra=item.get("extra", abstract_state.extra),  # empty if the checkpoint has none
        )

    def restore_first(self, candidates: Sequence[int], restore: Callable[[int], _T]) -> tuple[int, _T]:
        """Restores the first undamaged checkpoint of several, with a warning for each damaged one before it.

        Args:
            candidates: steps, the same in all processes; at least one.
            restore: takes a step, and restores what is needed by `restore_item`.

        Returns:
            the step, and the result of `restore` for it.

        Raises:
            DamagedError: of the last one, if all are damaged.
        """
        for step in candidates[:-1]:
            try:
                return step, restore(step)
            except DamagedError as error:
                log.warning("%s\n*** GOING BACK TO THE CHECKPOINT BEFORE IT. ***", error)
        return candidates[-1], restore(candidates[-1])

    def restore_latest(self, abstract_state: TrainState) -> TrainState | None:
        """Restores the newest undamaged checkpoint; damaged ones are reported and moved aside, not deleted.

        Returns:
            the state, or None if there is no checkpoint.

        Raises:
            CheckpointError: if all checkpoints are damaged, or one is of another model.
        """
        with self._patience("a checkpoint to resume from"):
            steps = distributed.from_first(self.steps)
            if not steps:
                return None
            try:
                good, state = self.restore_first(steps[::-1], lambda step: self.restore(step, abstract_state))
            except DamagedError as error:
                raise CheckpointError(
                    f"All checkpoints in {self.directory} are damaged (steps {steps}). They are left as they are; pass "
                    f"another --workdir to start over. Error of the oldest: {error}"
                ) from error
            self._move_aside([step for step in steps if step > good])
        return state

    def _move_aside(self, steps: Sequence[int]) -> None:
        """Moves damaged checkpoints out of the way of those to come."""
        if not steps:
            return
        aside = self.directory.with_name(f"{self.directory.name}.damaged")

        def move() -> None:
            try:
                aside.mkdir(mode=0o700, exist_ok=True)
                for step in steps:
                    number = sum(path.name.partition("-")[0] == str(step) for path in aside.iterdir())
                    target = aside / (f"{step}-{number}" if number else str(step))
                    (self.directory / str(step)).rename(target)
                    log.warning("The damaged checkpoint of step %d is now %s.", step, target)
            except OSError as error:
                raise CheckpointError(
                    f"The damaged checkpoints cannot be moved to {aside}: {reason(error, path=True)}"
                ) from error

        self._discard_manager()  # it caches the list of checkpoints
        distributed.from_first(move)

    def close(self) -> None:
        """Waits for the last save and ends the threads.

        Raises:
            CheckpointError: if the save failed, whatever `on_error` is.
        """
        self.wait()
        if "_manager" in self.__dict__:
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            return self.close()
        # Without the other processes, which may not have this exception. A failed save is only logged besides it.
        if self._saving is not None and (error := self._end_of_save()) is not None:
            log.error("The checkpoint of step %d could not be saved: %s", self._saving, _first_line(error))
        self._discard_manager()


def _damaged(path: pathlib.Path, what: str) -> DamagedError:
    """Returns the error of a checkpoint that is incomplete or altered."""
    return DamagedError(
        f"The checkpoint {path} is damaged: {one_line(what).rstrip('.')}. Get it again from a copy, or use another."
    )


def read_about(path: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON metadata of the checkpoint at `path`, as this process sees them; see `Checkpointer.about`.

    Raises:
        DamagedError: if they are incomplete or altered.
        CheckpointError: if they may not be read.
    """
    try:
        about = json.loads((path / "about" / "metadata").read_text())
        if about.pop("checksum", None) != _checksum(about):
            raise ValueError("its description is not what was saved")
        return about
    except PermissionError as error:
        raise CheckpointError(_forbidden(path)) from error
    except (OSError, ValueError, AttributeError) as error:
        raise _damaged(path, reason(error)) from error


def _check_arrays(path: pathlib.Path, name: str, abstract_item: Any, about: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns the stored [shape, dtype, digest] of each array of an item, if they are the expected arrays.

    Raises:
        CheckpointError: if not, or if this version cannot verify them.
    """
    if about.get("digest", 1) not in digests.DIGESTS:
        raise CheckpointError(
            f"The checkpoint {path} has digests of version {about['digest']}, and this version of vision_jax knows "
            f"only those up to {digests.VERSION}: a later version wrote it, so use that."
        )
    stored = {key: value for key, value in about["arrays"].items() if key.startswith(f"{name}/")}
    expected = {key: [list(x.shape), str(x.dtype)] for key, x in digests.named_leaves({name: abstract_item}).items()}
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
    return stored


def _read_item(path: pathlib.Path, abstract_item: Any) -> Any:
    """Reads this process's shards of an item, without waiting for the other processes."""
    # `ocp.StandardCheckpointer` ends with a barrier, which a process that could not read never reaches.
    handler = ocp.StandardCheckpointHandler()
    try:
        return handler.restore(path.absolute(), args=ocp.args.StandardRestore(abstract_item))
    finally:
        handler.close()


def _agree_on_reading(path: pathlib.Path, name: str, error: Exception | None) -> None:
    """Raises, in all processes, any error that occurred in one of them while reading an item of a checkpoint.

    Args:
        path: of the checkpoint.
        name: of the item.
        error: of this process; None: it has read its shards.

    Raises:
        DamagedError: if files could not be read.
        CheckpointError: if something else failed, such as the memory of the devices. The process in which it failed
            raises the error itself.
    """
    if error is not None and _is_forbidden(error):
        error = CheckpointError(_forbidden(path))
    is_damage = not isinstance(error, jax.errors.JaxRuntimeError | CheckpointError)
    told = distributed.gather([f"{path.name}/{name}", None if error is None else _first_line(error), is_damage])
    if len(items := {item for item, _, _ in told}) > 1:
        raise AssertionError(f"The processes restore different parts of checkpoints: {sorted(items)}.")
    if error is not None and not is_damage:
        raise error
    failed = sorted((is_damage, process, text) for process, (_, text, is_damage) in enumerate(told) if text is not None)
    for is_damage, process, text in failed:
        where = "" if len(told) == 1 else f" (process {process})"
        if is_damage:
            raise _damaged(path, f"{text}{where}") from error
        raise CheckpointError(f"The checkpoint {path} cannot be restored: {text}{where}") from error


def choose_checkpoints(checkpointer: Checkpointer, workdir: pathlib.Path, wanted: int | str | None) -> list[int]:
    """Returns the steps that may be used, in order of preference.

    Process 0 looks them up and tells the others; every process must call it.

    Args:
        checkpointer: of the workdir.
        workdir: of the run.
        wanted: a step or "best"; None: the latest, or if that is damaged, an earlier one.

    Raises:
        CheckpointError: if there is none.
    """
    return distributed.from_first(lambda: _choose(checkpointer, workdir, wanted))


def _choose(checkpointer: Checkpointer, workdir: pathlib.Path, wanted: int | str | None) -> list[int]:
    """Does the work of `choose_checkpoints`, in this process."""
    there = checkpointer.steps()
    if not there:
        raise CheckpointError(f"There is no checkpoint in {checkpointer.directory}: check --workdir.")
    if wanted is None:
        return there[::-1]
    if wanted == "best":
        best = BestMetric.of(read_about(checkpointer.directory / str(there[-1])))
        wanted = best_step(there, best.scores(writers.training_records(workdir)))
        if wanted is None:
            raise CheckpointError(
                f"None of the checkpoints in {checkpointer.directory}, of steps {there}, has a finite {best.name} from "
                "an evaluation: choose one by its number."
            )
    if int(wanted) not in there:
        raise CheckpointError(
            f"There is no checkpoint of step {wanted} in {checkpointer.directory}: the steps there are {there}."
        )
    return [int(wanted)]


@dataclasses.dataclass(frozen=True)
class BestMetric:
    """The metric by which the best checkpoint is chosen.

    Attributes:
        name: of the metric, such as val/top1.
        high: whether a higher value is better.
    """

    name: str
    high: bool

    def score(self, results: Mapping[str, Any]) -> float | None:
        """Returns the score of results, where higher is better; None if they lack the metric."""
        value = results.get(self.name)
        return value if value is None or self.high else -value

    def scores(self, records: Sequence[Mapping[str, Any]]) -> dict[int, float]:
        """Returns the scores in lines of metrics.jsonl, by step."""
        return {record["step"]: value for record in records if (value := self.score(record)) is not None}

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Self:
        """Returns that of a run, from what a checkpoint says of it."""
        name = about["config"]["checkpoint"]["best_metric"]
        # Before this was stored there were only accuracies and losses.
        return cls(name, about.get("best_is_high", not name.endswith("loss")))
