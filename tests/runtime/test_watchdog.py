import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import REPOSITORY, Command

from vision_jax.data import order
from vision_jax.errors import STATUS_HANG, STATUS_PREEMPTED
from vision_jax.runtime.watchdog import Watchdog


class Alarm:
    """Notes what it is told instead of ending the process."""

    def __init__(self, descriptor: int):
        self.told: list[float | None] = []

    def set(self, seconds: float) -> None:
        self.told.append(seconds)

    def stop(self) -> None:
        self.told.append(None)


def test_what_counts_as_a_hang(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]):
    """With a clock that is set by hand; the thread looks every 10 ms."""
    now, alarm, ended = [0.0], Alarm(0), threading.Event()
    statuses: list[int] = []

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    def looked() -> None:
        count = len(alarm.told)
        while len(alarm.told) == count:
            time.sleep(0.001)

    watchdog = Watchdog(
        0.2, tmp_path / "stacks", process_index=3, clock=lambda: now[0], end=end, alarm=lambda descriptor: alarm
    )
    with watchdog:
        looked()
        for _ in range(5):  # every step is shorter than the limit
            now[0] += 0.15
            watchdog.beat()
            looked()
        assert alarm.told[-1] == pytest.approx(0.2 * 1.3)  # later than the thread acts
        with watchdog.suspended():
            assert alarm.told[-1] is None
            now[0] += 1000
            assert not ended.wait(0.05)
        now[0] += 0.19
        looked()
        assert not statuses
        now[0] += 0.02
        assert ended.wait(5)
    assert statuses == [STATUS_HANG]
    written = (tmp_path / "stacks" / "process_3.txt").read_text()
    assert "test_what_counts_as_a_hang" in written
    printed = capfd.readouterr().err
    assert "test_what_counts_as_a_hang" in printed
    assert "ended for 0.2 s: this process ends with status 79" in printed.splitlines()[-1]


def test_no_limit_and_nothing_left_behind(tmp_path: pathlib.Path):
    before = threading.active_count()
    with Watchdog(0, tmp_path / "stacks"):
        assert threading.active_count() == before
    with Watchdog(60, tmp_path / "stacks", alarm=Alarm):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    assert not list(tmp_path.iterdir())


HOLDS_THE_LOCK = """
import ctypes, pathlib, sys, time
from vision_jax.runtime.watchdog import Watchdog

def step_that_hangs():
    mutex = ctypes.create_string_buffer(256)  # of zeros, as PTHREAD_MUTEX_INITIALIZER
    for _ in range(2):  # the second time waits for ever, whatever signals arrive: a sleep would end
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)

with Watchdog(1.5, pathlib.Path(sys.argv[1])) as watchdog:
    for _ in range(10):
        time.sleep(0.3)
        watchdog.beat()
    with watchdog.suspended():
        ctypes.PyDLL(None).usleep(2_200_000)
    step_that_hangs()
"""


def test_a_hang_in_c_that_keeps_the_interpreters_lock(tmp_path: pathlib.Path):
    """No thread of Python can run any more; before it, twice the limit passes in steps, and as long while suspended."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HOLDS_THE_LOCK, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=30,
    )
    assert done.returncode == STATUS_HANG, done.stderr
    assert time.monotonic() - start > 5.2 + 1.5
    assert "in step_that_hangs" in (tmp_path / "process_0.txt").read_text()
    assert "in step_that_hangs" in done.stderr


@pytest.mark.slow
def test_a_file_system_that_does_not_answer(command: Command, tmp_path: pathlib.Path, image_folder: pathlib.Path):
    """A pipe in place of an image hangs whoever opens it. Left alone the run ends; when told to, it saves at once."""
    images = sorted((image_folder / "train").glob("*/*"))
    bad = images[order.permutation(0, 0, len(images))[18]]
    arguments = (
        "--config=configs/quickstart.py",
        "--config.data.source=folder",
        f"--config.data.dir={image_folder}",
        "--config.batch_size=2",
        "--config.total_steps=30",
        "--config.schedule.warmup_epochs=0",
        "--config.log.every_steps=1",
        "--config.log.tensorboard=False",
        f"--workdir={tmp_path / 'w'}",
    )
    hung = command.start(*arguments, "--config.watchdog_seconds=15", "--config.data.num_workers=1")
    told = command.start(*arguments[:-1], f"--workdir={tmp_path / 'told'}")
    # Not before the files are listed, since pipes are left out; the step is compiled before the first is read.
    while not all((tmp_path / name / "config.json").exists() for name in ("w", "told")):
        assert hung.poll() is told.poll() is None
        time.sleep(0.02)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe").replace(bad)
    metrics = tmp_path / "told" / "metrics.jsonl"
    # The tenth step has no data; of the ninth and the three before it the metrics are not looked at yet.
    while not metrics.exists() or '"step": 5,' not in metrics.read_text():
        assert told.poll() is None
        time.sleep(0.02)
    told.send_signal(signal.SIGTERM)
    printed = told.communicate(timeout=60)[1]
    assert told.returncode == STATUS_PREEMPTED, printed
    assert "step 9 is saved" in printed
    assert [path.name for path in (tmp_path / "told" / "checkpoints").iterdir()] == ["9"]

    printed = hung.communicate(timeout=60)[1]
    assert hung.returncode == STATUS_HANG, printed
    assert "in __getitem__" in printed  # where the process that loads hangs
    assert "in _loop" in (tmp_path / "w" / "stacks" / "process_0.txt").read_text()
