import dataclasses
import errno
import gc
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import REPOSITORY, Pictures

from vision_jax.data import order, sources, workers
from vision_jax.data.loader import Loader, Prefetcher, batch_fields
from vision_jax.data.transforms import TrainTransform
from vision_jax.data.views import View
from vision_jax.data.workers import ProcessLoader, create_loader
from vision_jax.errors import DataError

TRANSFORM = TrainTransform(
    (View(size=16, scale=(0.3, 1.0)), View("local", size=8, count=3, geometry=True)),
    channels=3,
    seed=0,
    sizes=((0, 12), (2, 16)),
)
ROWS = np.arange(6, 26)


def source() -> Pictures:
    return Pictures([i % 4 for i in range(40)], size=40, num_classes=4)


def children() -> list[int]:
    """Processes that this one has started and that have not ended, but for multiprocessing's own, which stays."""
    pids = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = {int(pid): pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
    return [pid for pid, command in commands.items() if b"resource_tracker" not in command]


def shared_memory() -> set[str]:
    names = {path.name for path in pathlib.Path("/dev/shm").iterdir()}
    return {name for name in names if not name.startswith("sem.")}  # those are of other programs


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_batches_are_those_of_threads_and_nothing_is_left():
    before, files = shared_memory(), descriptors()
    train = order.TrainOrder(40, 26, seed=0)
    pictures = source()
    pictures.records[9] = (b"", 1)  # a damaged one
    bad = {"max_bad_records": 1}
    with (
        Loader(pictures, train, TRANSFORM, ROWS, 2, **bad) as threads,
        ProcessLoader(pictures, train, TRANSFORM, ROWS, num_workers=3, num_threads=4, **bad) as processes,
    ):
        assert len(children()) == 3
        for steps in ((0, 1), (2, 3), (17, 4)):
            waits = [processes.start(step) for step in steps]
            for step, wait in zip(steps, waits, strict=True):
                mine, theirs = wait(), threads.start(step)()
                assert list(mine.arrays) == ["image", "local", "local_box", "label", "mask", "replaced"]
                assert mine["image"].shape[1] == (12 if step < 2 else 16)
                for key, value in theirs.arrays.items():
                    np.testing.assert_array_equal(mine[key], value, err_msg=f"{key} of step {step}")
                mine.release()
        del mine
    assert not children()
    assert shared_memory() == before
    assert descriptors() == files


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_any_number_of_processes_loads_the_same(num_workers: int):
    train = order.TrainOrder(40, 26, seed=0)
    with (
        Loader(source(), train, TRANSFORM, ROWS, 1) as threads,
        ProcessLoader(source(), train, TRANSFORM, ROWS, num_workers=num_workers, num_threads=4) as processes,
    ):
        mine, theirs = processes.start(5)(), threads.start(5)()
        for key, value in theirs.arrays.items():
            np.testing.assert_array_equal(mine[key], value, err_msg=key)


def test_batches_stay_as_they_are_on_the_devices():
    """The memory of a batch is written again once it was placed; on CPUs JAX could have taken it as it is."""
    import jax

    from vision_jax import config
    from vision_jax.devices import sharding

    mesh = sharding.make_mesh(config.default_config().mesh, jax.devices()[:2])
    train, transform = order.TrainOrder(40, 20, seed=0), TrainTransform((View(size=16),), 3, 0)
    with (
        Loader(source(), train, transform, np.arange(20), 1) as threads,
        create_loader(source(), train, transform, np.arange(20), num_workers=2, num_threads=2) as loader,
        Prefetcher(loader, range(8), sharding.batch_placer(mesh, 20), 2) as batches,
    ):
        placed = list(batches)
        for step, batch in enumerate(placed):
            assert (np.asarray(batch["image"]) == threads.start(step)()["image"]).all()
    assert not children()


def test_errors_of_processes_reach_the_consumer():
    pictures = source()
    pictures.records[11] = (b"", 3)
    with (
        ProcessLoader(pictures, order.TrainOrder(40, 40, seed=0), TRANSFORM, np.arange(40), num_workers=2) as loader,
        pytest.raises(DataError, match="Cannot decode picture 11"),
    ):
        loader.start(0)()
    assert not children()


@pytest.mark.parametrize(("number", "why"), [("SIGKILL", "killed, perhaps"), ("SIGBUS", "shared memory ran out")])
def test_a_process_that_is_killed_is_named(number: str, why: str):
    with ProcessLoader(source(), order.TrainOrder(40, 40, seed=0), TRANSFORM, np.arange(40), num_workers=2) as loader:

        def load(num_steps: int) -> None:
            for step in range(num_steps):
                loader.start(step)().release()

        load(1)
        sent = signal.Signals[number]
        os.kill(children()[0], sent)
        with pytest.raises(DataError, match=rf"status -{sent.value} \(.*{why}"):
            load(3)
    assert not children()


def test_no_room_for_shared_memory_is_said(monkeypatch: pytest.MonkeyPatch):
    def refuse(descriptor: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "ftruncate", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(DataError, match=r"no room for [\d,]+ bytes of shared memory, .*num_workers=2.*: No space left"):
        ProcessLoader(source(), order.TrainOrder(40, 40, seed=0), TRANSFORM, np.arange(40), num_workers=2)
    assert not children()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_process_that_hangs_does_not_keep_the_main_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vision_jax.data.loader._SECONDS_TO_END", 0.2)
    monkeypatch.setattr("vision_jax.data.workers._SECONDS_TO_END", 0.2)
    with (
        ProcessLoader(source(), order.TrainOrder(40, 40, seed=0), TRANSFORM, np.arange(40), num_workers=2) as loader,
        Prefetcher(loader, range(1000), dict, 2) as batches,
    ):
        next(batches)
        os.kill(children()[0], signal.SIGSTOP)
        time.sleep(0.2)
    assert not children()


def test_what_cannot_be_sent_is_named():
    class Local(Pictures):
        pass

    with pytest.raises((DataError, AttributeError), match="Local"):
        ProcessLoader(
            Local([0], size=8, num_classes=1), order.TrainOrder(1, 1, seed=0), TRANSFORM, np.arange(1), num_workers=1
        )
    assert not children()


class Counting(Pictures):
    """Counts how often it is pickled, and keeps its labels in an array."""

    pickled = 0

    def __init__(self) -> None:
        super().__init__([0] * 40, size=40, num_classes=4)
        self.labels = np.arange(40) % 4

    def __getitem__(self, index: int) -> dict[str, object]:
        return {**super().__getitem__(index), "label": int(self.labels[index])}

    def __getstate__(self) -> dict[str, object]:
        Counting.pickled += 1
        return self.__dict__


def test_a_source_is_pickled_once_and_the_order_stays_here():
    class Here(order.TrainOrder):
        """Cannot be pickled, as a local class."""

    train = Here(40, 26, seed=0)
    with ProcessLoader(Counting(), train, TRANSFORM, ROWS, num_workers=3, num_threads=3) as loader:
        batch = loader.start(1)()
        assert batch["label"].tolist() == (train.records(1)[ROWS] % 4).tolist()
    assert Counting.pickled == 1


def test_paths_are_shared_and_not_sent(image_folder: pathlib.Path):
    folder = sources.FolderSource(image_folder, "train")
    names = np.concatenate([folder._images.names, [f"{i:0100d}.jpg".encode() for i in range(20_000)]])
    folder._images = dataclasses.replace(folder._images, names=names, labels=np.resize(folder.labels, len(names)))
    folder.labels = folder._images.labels
    sent, arrays = workers._pickle(
        workers._Job(folder, TRANSFORM, 1, 0, False, workers._Layout(4, batch_fields(TRANSFORM.largest())))
    )
    assert len(sent) < 10_000
    assert sum(array.nbytes for array in arrays) > 20_000 * 100
    train = order.TrainOrder(24, 24, seed=0)
    with ProcessLoader(folder, train, TRANSFORM, np.arange(24), num_workers=2, num_threads=2) as loader:
        batch = loader.start(0)()
        assert batch["label"].tolist() == folder.labels[train.records(0)].tolist()
        assert batch["image"].std() > 0


PROGRAM = """
import sys, time
sys.path[:0] = [{tests!r}]
import numpy as np
from test_workers import ROWS, TRANSFORM, source
from vision_jax.data import order
from vision_jax.data.workers import ProcessLoader
with ProcessLoader(source(), order.TrainOrder(40, 26, seed=0), TRANSFORM, ROWS, num_workers=2) as loader:
    loader.start(0)().release()
    print(*[worker._process.pid for worker in loader._workers], flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_main_one(number: signal.Signals):
    """Whether it is killed or interrupted with its whole group, as Ctrl-C does."""
    before = shared_memory()
    here = pathlib.Path(__file__).parent
    program = PROGRAM.format(tests=str(here)).replace("sys.path[:0] = [", f"sys.path[:0] = [{str(here.parent)!r}, ")
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.kill()
    _, errors = process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if pathlib.Path(f"/proc/{pid}").exists()]
    assert errors.count("Traceback") == (1 if number == signal.SIGINT else 0)  # the main process's own
    assert shared_memory() == before
