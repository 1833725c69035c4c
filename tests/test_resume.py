"""Real processes, killed and told to stop at random points, end as if nothing had happened."""

import functools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from chaos import TIMINGS
from conftest import LONG_EVALUATION, REPOSITORY, Command, records, wait_for_handler

pytestmark = pytest.mark.slow

# Sixty steps of each.
TINY = (
    "--config=configs/quickstart.py",
    "--config.total_steps=60",
    "--config.schedule.warmup_epochs=1",
    "--config.eval.every_steps=20",
    "--config.checkpoint.every_steps=7",
    "--config.log.every_steps=5",
    "--config.log.tensorboard=False",
)
EVERYTHING = ("--config=tests/everything.py",)


def outcome(workdir: pathlib.Path) -> tuple[dict[str, list], list[dict]]:
    """Returns digests of every array of the last state, and all metrics but the timings."""
    about = json.loads((workdir / "checkpoints" / "60" / "about" / "metadata").read_text())
    lines = records(workdir)
    return about["arrays"], [{k: v for k, v in line.items() if not k.startswith(TIMINGS)} for line in lines]


@pytest.fixture(scope="session")
def uninterrupted(cache: pathlib.Path, tmp_path_factory: pytest.TempPathFactory):
    """Returns what becomes of a run that nothing disturbs, given its arguments."""

    @functools.cache
    def run(arguments: tuple[str, ...]) -> tuple[dict[str, list], list[dict]]:
        workdir = tmp_path_factory.mktemp("uninterrupted")
        Command(cache)(*arguments, f"--workdir={workdir}")
        arrays, lines = outcome(workdir)
        assert len(lines) == 12 + 3
        return arrays, lines

    return run


def signal_after_step(
    process: subprocess.Popen, workdir: pathlib.Path, step: int, number: int, *, group: bool = False
) -> None:
    """Sends a signal once metrics.jsonl has a line of the step, or does nothing if the process ends before."""
    while process.poll() is None:
        path = workdir / "metrics.jsonl"
        if path.exists() and any(f'"step": {n},' in path.read_text() for n in range(step, 61)):
            time.sleep(random.uniform(0, 0.05))
            if group:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            return
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("number", "arguments", "moments"),
    [
        (signal.SIGKILL, TINY, (25,)),
        (signal.SIGTERM, TINY, (5, 40)),
        pytest.param(signal.SIGKILL, EVERYTHING, (25,), marks=pytest.mark.exhaustive),
    ],
    ids=["SIGKILL", "SIGTERM", "everything"],
)
def test_interrupted_runs_end_bitwise_the_same(
    command: Command, tmp_path: pathlib.Path, uninterrupted, number: int, arguments: tuple[str, ...], moments: tuple
):
    statuses = []
    for step in moments:
        process = command.start(*arguments, f"--workdir={tmp_path}")
        signal_after_step(process, tmp_path, step, number)
        process.communicate(timeout=120)
        statuses.append(process.returncode)
    command(*arguments, f"--workdir={tmp_path}")
    allowed = {-signal.SIGKILL} if number == signal.SIGKILL else {75}
    assert set(statuses) <= allowed | {0}
    assert statuses[0] in allowed
    assert outcome(tmp_path) == uninterrupted(arguments)


def test_other_processes_load_the_same_batches(command: Command, tmp_path: pathlib.Path, uninterrupted):
    """As threads do, with a SIGTERM to all of them in between, which is how SLURM sends it."""
    arguments = (*TINY, f"--workdir={tmp_path}", "--config.data.num_workers=2", "--config.data.num_threads=3")
    process = command.start(*arguments, start_new_session=True)
    signal_after_step(process, tmp_path, 20, signal.SIGTERM, group=True)
    process.communicate(timeout=120)
    assert process.returncode in (75, 0)
    command(*arguments)
    assert outcome(tmp_path) == uninterrupted(TINY)


def test_sigterm_in_an_evaluation(command: Command, tmp_path: pathlib.Path):
    """The state is saved, the exit status 75, and the run begins again with the evaluation."""
    arguments = ("--config=configs/quickstart.py", *LONG_EVALUATION, f"--workdir={tmp_path}")
    process = command.start(*arguments)
    while not (tmp_path / "checkpoints" / "2").exists() and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None
    time.sleep(1)  # the evaluation of half a million examples is compiled, or under way
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=20)
    assert process.returncode == 75, printed
    assert "step 2 is saved" in printed
    assert not any("val/top1" in line for line in (tmp_path / "metrics.jsonl").read_text().splitlines())

    going_on = False
    other = command.start("--mode=eval", f"--workdir={tmp_path}")
    process = command.start(*arguments)
    for line in process.stderr:
        if "The evaluation step was compiled" in line:
            break
        going_on |= "Going on from step 2" in line
    for one in (other, process):
        one.send_signal(signal.SIGTERM)
        _, printed = one.communicate(timeout=20)
        assert one.returncode == 75, printed
    assert going_on
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_sigterm_before_the_first_step(command: Command, tmp_path: pathlib.Path):
    """Also while JAX is imported and the step compiled: the status is 75 and the run can go on.

    SIGUSR1, which asks for a profile, is ignored so early.
    """
    for delay in (0.0, 1.5):
        process = command.start(*TINY, f"--workdir={tmp_path}")
        wait_for_handler(process)
        process.send_signal(signal.SIGUSR1)
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 75
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert steps
    assert steps[-1] < 60


def test_ctrl_c_saves_what_was_trained_and_says_where_it_goes_on(command: Command, tmp_path: pathlib.Path):
    arguments = (*TINY, "--config.checkpoint.every_steps=100000", "--config.eval.every_steps=100000")
    arguments = (*arguments, f"--workdir={tmp_path}", "--config.total_steps=100000", "--config.data.num_workers=1")
    checkpoints = tmp_path / "checkpoints"

    process = command.start(*arguments)
    any("learning rate of" in line for line in process.stderr)  # the last line before the state is made
    process.send_signal(signal.SIGINT)  # there is nothing to save: it ends at once
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert printed.endswith(f"interrupted: no step is saved in {checkpoints}, so the same command begins anew\n")

    process = command.start(*arguments, start_new_session=True)
    signal_after_step(process, tmp_path, 10, signal.SIGINT, group=True)  # as a terminal does
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    (saved,) = checkpoints.iterdir()
    assert int(saved.name) >= 10
    assert "Ctrl-C: saving at the end of this step" in printed
    assert printed.endswith(
        f"interrupted: the same command goes on from step {saved.name}, which is saved in {checkpoints}\n"
    )

    process = command.start(*arguments)
    going_on = any(f"Going on from step {saved.name} of 100000" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert going_on
    assert process.returncode == 130
    assert max(int(path.name) for path in checkpoints.iterdir()) >= int(saved.name)


# In a file system of 8 MiB: fills it up after the first steps, and makes room when the run has noticed.
FULL_DISK = """
mount -t tmpfs -o size=8m none "$DISK" || exit 99
(
  until grep -qs step "$DISK/w/metrics.jsonl"; do sleep 0.02; done
  cat /dev/zero > "$DISK/filler"
  until grep -q "CONTINUING WITHOUT IT" "$DISK.log"; do sleep 0.02; done
  rm "$DISK/filler"
) 2> /dev/null &
filling=$!
"$@" 2> "$DISK.log"
status=$?
kill $filling
cp -r "$DISK/w" "$DISK.copy"
exit $status
"""


def test_a_disk_that_is_full_for_a_while(command: Command, tmp_path: pathlib.Path):
    """The run goes on, and nothing is missing in the end."""
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = (
        *TINY,
        *("--config.total_steps=200", "--config.eval.every_steps=200", "--config.checkpoint.every_steps=20"),
        *("--config.checkpoint.on_error=continue", "--config.log.tensorboard=True", f"--workdir={disk / 'w'}"),
    )
    process = subprocess.run(
        ["unshare", "-rm", "sh", "-c", FULL_DISK, "sh", sys.executable, "-m", "vision_jax.main", *arguments],
        env={**command.environment, "DISK": str(disk)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if process.returncode == 99 or "unshare" in process.stderr:
        pytest.skip(f"no file system may be mounted here: {process.stderr}")
    printed = disk.with_suffix(".log").read_text()
    assert process.returncode == 0, printed
    assert "Traceback" not in printed
    lines = records(tmp_path / "disk.copy")
    assert [line["step"] for line in lines] == [*range(5, 201, 5), 200]
    assert lines[-2]["train/failed_saves"] >= 1
    assert "200" in [path.name for path in (tmp_path / "disk.copy" / "checkpoints").iterdir()]
    assert not list((tmp_path / "disk.copy" / "checkpoints").glob("*tmp*"))


def test_digests_tell_states_apart(uninterrupted):
    """The comparisons above would see another state: no two arrays with values have the same digest."""
    arrays, _ = uninterrupted(TINY)
    digests = [digest for shape, _, digest in arrays.values() if np.prod(shape) > 1]
    assert len(set(digests)) > 0.9 * len(digests)
