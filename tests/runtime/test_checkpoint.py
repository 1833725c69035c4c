import contextlib
import functools
import itertools
import json
import logging
import pathlib
import re
import resource
import shutil
import time
import types
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import vision_jax
from vision_jax import build, optim
from vision_jax import config as config_lib
from vision_jax.build import create_state
from vision_jax.devices import sharding
from vision_jax.errors import CheckpointError, DamagedError
from vision_jax.objectives import Classification, Ema, Setup
from vision_jax.runtime import checkpoint, digests
from vision_jax.runtime.checkpoint import Checkpointer, best_step, choose_checkpoints
from vision_jax.runtime.watchdog import Watchdog
from vision_jax.state import TrainState

ABOUT = {"config": {}, "num_classes": 5, "class_names": []}


def mesh_of(num_devices: int):
    return sharding.make_mesh(config_lib.default_config().mesh, jax.devices()[:num_devices])


def creator(num_classes: int = 5, ema: bool = True):
    model = vision_jax.create_model("lenet5", num_classes=num_classes)
    setup = Setup(model, (16, 16, 1), (0.5,), (0.5,), ema=Ema(0.9) if ema else None)
    optimizer = optim.create_optimizer("sgd", lambda step: 0.1, momentum=0.9)
    return functools.partial(create_state, Classification(setup=setup), optimizer, seed=0)


@functools.cache
def shapes(num_classes: int = 5, ema: bool = True) -> TrainState:
    return jax.eval_shape(creator(num_classes, ema))


def make_state(step: int, num_devices: int = 1, **options: object) -> TrainState:
    """A state with other numbers in every array and at every step."""
    random = np.random.RandomState(step)
    state = jax.tree.map(lambda x: np.asarray(random.standard_normal(x.shape) * 9, x.dtype), shapes(**options))
    state = state.replace(step=np.asarray(step, np.int32))
    return jax.device_put(state, sharding.replicated(mesh_of(num_devices)))


def abstract(num_devices: int = 1, **options: object) -> TrainState:
    return sharding.abstract(shapes(**options), sharding.replicated(mesh_of(num_devices)))


def save(
    directory: pathlib.Path, *steps: int, keep: int = 9, scores: dict[int, float] | None = None, **options: object
):
    with Checkpointer(directory, keep=keep, scores=scores) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step, **options), ABOUT)


def assert_equal(a: TrainState, b: TrainState) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_a_clock_that_jumps_ends_no_save(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    real, hours = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * next(hours))
    save(tmp_path, 1, 2)
    monkeypatch.undo()
    assert next(hours) > 2  # Orbax has asked for times
    with Checkpointer(tmp_path) as checkpointer:
        assert_equal(checkpointer.restore(2, abstract()), make_state(2))


@pytest.mark.parametrize("ema", [True, False])
def test_restores_bit_for_bit_onto_other_devices(tmp_path: pathlib.Path, ema: bool):
    save(tmp_path / "c", 3, ema=ema)
    for num_devices in (1, 8):
        with Checkpointer(tmp_path / "c") as checkpointer:
            state = checkpointer.restore_latest(abstract(num_devices, ema=ema))
        assert_equal(state, make_state(3, ema=ema))
        assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == num_devices


def test_saves_what_was_there_although_it_is_donated(tmp_path: pathlib.Path):
    """The save goes on in the background while the next step overwrites the state's memory."""
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    with Checkpointer(tmp_path / "c", keep=9) as checkpointer:
        for step in range(1, 6):
            state = make_state(step)
            checkpointer.save(step, state, ABOUT)
            overwrite(state)
    with Checkpointer(tmp_path / "c") as checkpointer:
        for step in range(1, 6):
            assert_equal(checkpointer.restore(step, abstract()), make_state(step))


def test_nothing_to_restore(tmp_path: pathlib.Path):
    with Checkpointer(tmp_path / "c") as checkpointer:
        assert checkpointer.restore_latest(abstract()) is None


def test_keeps_the_latest_and_the_best(tmp_path: pathlib.Path):
    with Checkpointer(tmp_path / "c", keep=2) as checkpointer:
        for step, score in ((1, 0.1), (2, 0.9), (3, 0.5), (4, 0.9), (5, 0.2), (6, 0.3)):
            checkpointer.save(step, make_state(step), ABOUT)
            checkpointer.record(step, score)
    assert checkpointer.steps() == [2, 5, 6]
    assert best_step(checkpointer.steps(), checkpointer.scores) == 2
    # A later run knows the scores from metrics.jsonl.
    save(tmp_path / "c", 7, keep=1, scores=checkpointer.scores)
    assert checkpointer.steps() == [2, 7]


def test_a_score_that_is_not_finite_is_never_the_best(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    nan, inf = float("nan"), float("inf")
    with Checkpointer(tmp_path / "w" / "checkpoints", scores={1: nan}) as checkpointer:
        for step, score in ((1, nan), (2, 0.9), (3, inf), (4, 0.2), (5, nan)):
            checkpointer.save(step, make_state(step), {"config": {"checkpoint": {"best_metric": "val/loss"}}})
            checkpointer.record(step, score)
    assert checkpointer.steps() == [2, 5]
    assert "The score of step 3 is inf: it is ignored" in caplog.text
    assert best_step([1, 2, 3], {1: nan, 2: -0.5, 3: -0.4}) == 3
    assert best_step([1], {1: nan}) is None

    def choose() -> list[int]:
        return choose_checkpoints(checkpointer, tmp_path / "w", "best")

    metrics = tmp_path / "w" / "metrics.jsonl"
    metrics.write_text('{"step": 5, "val/loss": null}\n')
    with pytest.raises(CheckpointError, match=r"None .* \[2, 5\], has a finite val/loss .*: choose"):
        choose()
    metrics.write_text('{"step": 2, "val/loss": 7.0}\n{"step": 5, "val/loss": null}\n')
    assert choose() == [2]


def files(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)


def truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


# Orbax closes its event loop after the first array that cannot be read; the others complain.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("first", [0, 1])
def test_a_damaged_checkpoint_is_passed_over_and_kept(tmp_path: pathlib.Path, caplog, first: int):
    """Each file in turn, damaged in one way or another: what comes back is always a state that was saved."""
    save(tmp_path / "whole", 1, 2)
    passed_over = 0
    for i, file in enumerate(files(tmp_path / "whole" / "2"), first):
        name = file.relative_to(tmp_path / "whole")
        shutil.copytree(tmp_path / "whole", tmp_path / "c")
        (truncate, flip, pathlib.Path.unlink)[i % 3](tmp_path / "c" / name)
        caplog.clear()
        with Checkpointer(tmp_path / "c", keep=9) as checkpointer, caplog.at_level(logging.WARNING):
            state = checkpointer.restore_latest(abstract())
            step = int(state.step)
            assert_equal(state, make_state(step))
            if step == 1:
                passed_over += 1
                assert "GOING BACK" in caplog.text
                assert files(tmp_path / "c.damaged" / "2")  # moved, not deleted
                checkpointer.save(2, make_state(2), ABOUT)  # and its place is free
        assert checkpointer.steps() == [1, 2]
        shutil.rmtree(tmp_path / "c")
        shutil.rmtree(tmp_path / "c.damaged", ignore_errors=True)
    assert passed_over >= 6


def raise_because_of(cause: BaseException) -> Callable[..., None]:
    """Returns what fails as Orbax does, with a bare exception."""

    def fail(*_: object) -> None:
        try:
            raise cause
        except BaseException as error:
            raise Exception("Orbax") from error

    return fail


def test_ctrl_c_while_restoring_is_no_damage(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path / "c", 1, 2)
    monkeypatch.setattr(checkpoint, "_read_item", raise_because_of(KeyboardInterrupt()))
    with Checkpointer(tmp_path / "c", keep=9) as checkpointer, pytest.raises(KeyboardInterrupt):
        checkpointer.restore_latest(abstract())
    assert not (tmp_path / "c.damaged").exists()


@pytest.mark.parametrize("cause", [PermissionError(13, "Permission denied"), ValueError("PERMISSION_DENIED: Error")])
def test_files_that_may_not_be_read_are_not_damaged(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, cause: Exception
):
    save(tmp_path / "c", 1, 2)
    monkeypatch.setattr(checkpoint, "_read_item", raise_because_of(cause))
    message = "c/2 cannot be read: permission denied. Nothing was changed"
    with Checkpointer(tmp_path / "c", keep=9) as checkpointer, pytest.raises(CheckpointError, match=message):
        checkpointer.restore_latest(abstract())
    assert not (tmp_path / "c.damaged").exists()


def test_a_folder_that_may_not_be_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path / "c", 1)
    with Checkpointer(tmp_path / "c", keep=9) as checkpointer:
        monkeypatch.setattr(pathlib.Path, "is_dir", denied)
        with pytest.raises(CheckpointError, match="c cannot be read: permission denied"):
            checkpointer.steps()
        monkeypatch.undo()


def denied(*_: object) -> bool:
    raise PermissionError(13, "Permission denied")


def test_altered_values_are_noticed(tmp_path: pathlib.Path):
    """Files that can be read but hold other numbers than those that were saved."""
    save(tmp_path / "c", 1, 2)
    shutil.rmtree(tmp_path / "c" / "2" / "model")
    shutil.copytree(tmp_path / "c" / "1" / "model", tmp_path / "c" / "2" / "model")
    with Checkpointer(tmp_path / "c") as checkpointer:
        with pytest.raises(CheckpointError, match=r"different from what was saved: .*model/params/conv1/kernel"):
            checkpointer.restore(2, abstract())
        assert int(checkpointer.restore_latest(abstract()).step) == 1


def test_all_damaged(tmp_path: pathlib.Path):
    save(tmp_path / "c", 1, 2)
    for step in (1, 2):
        shutil.rmtree(tmp_path / "c" / str(step) / "model")
    with (
        Checkpointer(tmp_path / "c") as checkpointer,
        pytest.raises(CheckpointError, match=r"All checkpoints .* are damaged"),
    ):
        checkpointer.restore_latest(abstract())
    assert checkpointer.steps() == [1, 2]


def test_another_model_is_no_damage(tmp_path: pathlib.Path):
    save(tmp_path / "c", 1, 2)
    with Checkpointer(tmp_path / "c") as checkpointer:
        with pytest.raises(CheckpointError, match="another model") as caught:
            checkpointer.restore_latest(abstract(num_classes=7))
        assert "model/params/fc3/bias: [[5], 'float32'] in the checkpoint, [[7], 'float32'] here" in str(caught.value)
        with pytest.raises(CheckpointError, match="model/ema/params/conv1/bias: only in the checkpoint"):
            checkpointer.restore_latest(abstract(ema=False))
    assert checkpointer.steps() == [1, 2]


def test_a_checkpoint_of_another_step_is_damaged(tmp_path: pathlib.Path):
    save(tmp_path / "c", 1)
    (tmp_path / "c" / "1").rename(tmp_path / "c" / "2")
    with Checkpointer(tmp_path / "c") as checkpointer, pytest.raises(DamagedError, match="it holds step 1"):
        checkpointer.restore(2, abstract())


def multiply_digest(x: np.ndarray) -> int:
    """The digest of earlier versions, in NumPy: the sum of bits times an odd number."""
    bits = np.atleast_1d(x).reshape(-1).view(np.uint32).astype(np.uint64)
    factors = (np.arange(bits.size, dtype=np.uint64) * 2654435761 % 2**32) | 1
    return int((bits * factors % 2**32).sum() % 2**32)


def test_checkpoints_of_earlier_versions_are_verified_by_their_digest(tmp_path: pathlib.Path):
    save(tmp_path / "c", 1, 2)
    state = make_state(2)
    leaves = digests.named_leaves({"model": checkpoint.model_item(state), "optimizer": state.opt_state})
    path = tmp_path / "c" / "2" / "about" / "metadata"

    def rewrite(version: int | None, **arrays: int) -> None:
        about = json.loads(path.read_text())
        about.pop("checksum")
        about.pop("digest", None)
        if version is not None:
            about["digest"] = version
        for name, digest in arrays.items():
            about["arrays"][name][2] = digest
        about["checksum"] = zlib.crc32(json.dumps(about, sort_keys=True).encode())
        path.write_text(json.dumps(about))

    with Checkpointer(tmp_path / "c") as checkpointer:
        rewrite(None)
        with pytest.raises(DamagedError, match="different from what was saved"):
            checkpointer.restore(2, abstract())
        old = {name: multiply_digest(np.asarray(leaf)) for name, leaf in leaves.items()}
        rewrite(None, **old)
        assert_equal(checkpointer.restore(2, abstract()), state)
        rewrite(None, **{**old, "model/params/fc1/bias": 1})
        with pytest.raises(DamagedError, match=r"different from what was saved: model/params/fc1/bias\."):
            checkpointer.restore(2, abstract())
        rewrite(3)
        with pytest.raises(CheckpointError, match=r"digests of version 3, .* those up to 2: a later version wrote it"):
            checkpointer.restore_latest(abstract())
    assert checkpointer.steps() == [1, 2]


def test_a_run_that_starts_from_anothers_damaged_checkpoint_takes_the_one_before(tmp_path: pathlib.Path, caplog):
    save(tmp_path / "c", 1, 2)
    (tmp_path / "c" / "2" / "about" / "metadata").unlink()
    step, variables = build.restore_any(Checkpointer(tmp_path / "c"), mesh_of(2))
    assert step == 1
    jax.tree.map(np.testing.assert_array_equal, variables["params"], make_state(1).ema["params"])
    assert "GOING BACK" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]  # what is of another run stays as it is
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*/nowhere: check model\.pretrained"):
        build.restore_any(Checkpointer(tmp_path / "nowhere"), mesh_of(2))


def test_unfinished_saves_are_cleaned_up(tmp_path: pathlib.Path):
    save(tmp_path / "c", 1)
    shutil.copytree(tmp_path / "c" / "1", tmp_path / "c" / "2.orbax-checkpoint-tmp-1")
    with Checkpointer(tmp_path / "c") as checkpointer:
        assert int(checkpointer.restore_latest(abstract()).step) == 1
        checkpointer.save(3, make_state(3), ABOUT)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["3"]


@contextlib.contextmanager
def full_disk(limit: int = 100) -> Iterator[None]:
    """No file can become larger than this, in this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def file_in_the_way(directory: pathlib.Path) -> Iterator[None]:
    """A file is where the checkpoints were."""
    directory.rename(directory.with_name("away"))
    directory.write_text("")
    try:
        yield
    finally:
        directory.unlink()
        directory.with_name("away").rename(directory)


@pytest.mark.parametrize("problem", [lambda directory: full_disk(), file_in_the_way], ids=["full", "no directory"])
def test_failing_storage(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, problem):
    """It stops the run, or costs just the checkpoints that are due while it lasts."""
    directory = tmp_path / "c"
    with Checkpointer(directory, keep=9, on_error="continue") as checkpointer:
        checkpointer.save(1, make_state(1), ABOUT)
        checkpointer.wait()
        with problem(directory):
            for step in (2, 3):
                checkpointer.save(step, make_state(step), ABOUT)
                checkpointer.settle()
            with pytest.raises(CheckpointError, match="checkpoint of step 3 could not be saved"):
                checkpointer.wait()  # the last checkpoint is not to be done without
            assert checkpointer.failed_saves == 2
            assert caplog.text.count("CONTINUING WITHOUT IT") == 2
        checkpointer.save(4, make_state(4), ABOUT)
    assert sorted(path.name for path in directory.iterdir()) == ["1", "4"]  # nothing unfinished is left
    with Checkpointer(directory, on_error="stop") as checkpointer:
        assert_equal(checkpointer.restore_latest(abstract()), make_state(4))

    def save_and_go_on() -> None:
        with Checkpointer(directory, on_error="stop") as checkpointer, problem(directory):
            checkpointer.save(5, make_state(5), ABOUT)
            checkpointer.settle()
            pytest.fail("the run goes on")

    with pytest.raises(CheckpointError, match=r"step 5 could not be saved in .*/c: "):
        save_and_go_on()
    assert checkpointer.steps() == [1, 4]


def test_checkpoints_that_vanish(tmp_path: pathlib.Path):
    """The directory is deleted while the run goes on: before a save, and during one."""
    with Checkpointer(tmp_path / "w" / "c", keep=2, on_error="continue") as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, make_state(step), ABOUT)
        checkpointer.wait()
        shutil.rmtree(tmp_path / "w")
        for step in (4, 5):
            checkpointer.save(step, make_state(step), ABOUT)
            checkpointer.settle()
        checkpointer.save(6, make_state(6), ABOUT)
        shutil.rmtree(tmp_path / "w", ignore_errors=True)
        checkpointer.settle()
        checkpointer.save(7, make_state(7), ABOUT)
    assert_equal(checkpointer.restore(7, abstract()), make_state(7))


def test_a_slow_save_is_told(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch):
    monkeypatch.setattr("vision_jax.runtime.checkpoint._PATIENCE", 0.2)
    finalize = ocp.JsonCheckpointHandler.finalize
    monkeypatch.setattr(
        ocp.JsonCheckpointHandler, "finalize", lambda *arguments: (time.sleep(0.4), finalize(*arguments))[1]
    )
    save(tmp_path / "c", 1, 2)
    assert re.search(r"waited \d+ s for the checkpoint before that of step 2: .* is slow", caplog.text)
    assert "before that of step 1" not in caplog.text


def test_slow_storage_is_no_hang(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch):
    """Reading, and waiting for what is written, take more than twice what a step may.

    Time passes for the watchdog while storage is slow, and stands still otherwise, however busy the machine is.
    """
    seconds = 0.0
    statuses: list[int] = []
    alarm = types.SimpleNamespace(set=lambda seconds: None, stop=lambda: None)
    watchdog = Watchdog(0.4, end=statuses.append, alarm=lambda descriptor: alarm, clock=lambda: seconds)

    def slowly(function: Callable[..., Any]) -> Callable[..., Any]:
        def function_of_slow_storage(*arguments: Any, **options: Any) -> Any:
            nonlocal seconds
            deadline = time.monotonic() + 5
            # What is written begins before it is waited for.
            while not watchdog._pauses and time.monotonic() < deadline:
                time.sleep(0.01)
            for _ in range(30):
                time.sleep(0.03)
                seconds += 0.03
            return function(*arguments, **options)

        return function_of_slow_storage

    monkeypatch.setattr(checkpoint, "_SECONDS_BETWEEN_WARNINGS", 0.5)
    monkeypatch.setattr(ocp.JsonCheckpointHandler, "finalize", slowly(ocp.JsonCheckpointHandler.finalize))
    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", slowly(ocp.StandardCheckpointHandler.restore))
    state = make_state(1)
    with watchdog:
        with watchdog.suspended():  # programs are compiled
            digests.describe({"model": checkpoint.model_item(state), "optimizer": state.opt_state})
            digests.describe({"model": checkpoint.model_item(state)})
            digests.describe({"optimizer": state.opt_state})
        with Checkpointer(tmp_path / "c", keep=2, watchdog=watchdog) as checkpointer:
            for step in (1, 2):  # the second waits for the first
                checkpointer.save(step, state.replace(step=jnp.int32(step)), ABOUT)
            checkpointer.wait()
            assert int(checkpointer.restore_latest(abstract()).step) == 2
    assert not statuses
    assert re.search(r"The run has been waiting for [01] s for the checkpoint of step 2 in .*/c: .* slow", caplog.text)
    assert "for a checkpoint to resume from in" in caplog.text


def test_any_error_of_a_save_is_told_to_the_other_processes(tmp_path: pathlib.Path, monkeypatch, caplog):
    """Orbax raises more than OSError before its threads begin; the others ask the same questions in the same order."""
    asked: list[bool] = []
    monkeypatch.setattr(checkpoint, "any_process", lambda flag: asked.append(flag) or flag)
    save, fails = ocp.CheckpointManager.save, [False, True]

    def save_or_fail(*arguments: Any, **options: Any) -> object:
        if fails.pop(0):
            raise RuntimeError("the executor is shut down")
        return save(*arguments, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save_or_fail)
    with Checkpointer(tmp_path / "c", on_error="continue") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, make_state(step), ABOUT)
            checkpointer.settle()
        with pytest.raises(
            CheckpointError, match=r"step 2 could not be saved in .*: RuntimeError: the executor is shut"
        ):
            checkpointer.wait()
        assert checkpointer.failed_saves == 1
        checkpointer._failure = None  # the run ends well
    # Is it there? Does the storage work? Has it begun? Is it complete?
    assert asked == [False, False, False, False, False, False, True]
    assert "the executor is shut down" in caplog.text


def test_errors_of_the_background_save_surface(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    def fail(self: object, directory: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "finalize", fail)
    checkpointer = Checkpointer(tmp_path / "c")
    checkpointer.save(1, make_state(1), ABOUT)
    with pytest.raises(CheckpointError, match="no space left on device"):
        checkpointer.wait()
    assert checkpointer.steps() == []


def test_every_flipped_bit_of_the_description_is_noticed(tmp_path: pathlib.Path):
    save(tmp_path / "c", 1)
    path = tmp_path / "c" / "1" / "about" / "metadata"
    data = path.read_bytes()
    checkpointer = Checkpointer(tmp_path / "c")
    about = checkpointer.about(1)
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            assert checkpointer.about(1) == about  # white space, say
        except DamagedError:
            continue


def test_about_holds_configuration_and_versions_as_json(tmp_path: pathlib.Path):
    config = config_lib.default_config()
    with Checkpointer(tmp_path / "c") as checkpointer:
        checkpointer.save(1, make_state(1), {**ABOUT, "config": json.loads(config_lib.to_json(config))})
    about = checkpointer.about(1)
    assert config_lib.from_dict(about["config"]).to_dict() == config.to_dict()
    assert about["versions"]["jax"] == jax.__version__
    assert about["arrays"]["model/params/conv1/kernel"][:2] == [[5, 5, 1, 6], "float32"]
