"""Several processes train as one does."""

import dataclasses
import json
import pathlib
import re
import signal
import socket
import time

import jax
import numpy as np
import process_cases
import pytest
import tiny_dense
from conftest import LONG_EVALUATION, Command, encode, launch, picture, records
from dense_cases import write_coco

from vision_jax import evaluate, features
from vision_jax.data import order, tfds_format
from vision_jax.devices import sharding
from vision_jax.errors import STATUS_HANG

ARGUMENTS = (
    "--config=configs/quickstart.py",
    "--config.optimizer.learning_rate=0.005",
    "--config.augment.flip=0.5",
    "--config.batch_size=32",
    "--config.schedule.warmup_epochs=0",
    "--config.total_steps=4",
    "--config.eval.every_steps=4",
    "--config.eval.batch_size=128",
    "--config.log.every_steps=1",
    "--config.log.tensorboard=False",
)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_two(command: Command, *arguments: str) -> list:
    port = free_port()
    flags = (f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2")
    return [command.start(*arguments, *flags, f"--process_id={i}", devices=2) for i in range(2)]


def run_two(command: Command, *arguments: str) -> None:
    processes = start_two(command, *arguments)
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs


def wait_for_steps(processes: list, workdir: pathlib.Path) -> None:
    while not (workdir / "metrics.jsonl").exists() or len((workdir / "metrics.jsonl").read_text()) < 200:
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_and_go_on_elsewhere(command: Command, tmp_path: pathlib.Path):
    arguments = (
        *ARGUMENTS,
        "--config.total_steps=100000",
        "--config.eval.every_steps=100000",
        f"--workdir={tmp_path / 'w'}",
    )
    processes = start_two(command, *arguments)
    wait_for_steps(processes, tmp_path / "w")
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs
    (saved,) = (tmp_path / "w" / "checkpoints").iterdir()

    # What two processes saved, one restores and trains on, and two evaluate.
    start = f"Going on from step {saved.name} of {int(saved.name) + 3}"
    arguments = (*ARGUMENTS, f"--config.total_steps={int(saved.name) + 3}", "--allow_config_change")
    assert start in command(*arguments, f"--workdir={tmp_path / 'w'}", devices=4)
    expected = records(tmp_path / "w")[-1]
    run_two(command, "--mode=eval", f"--workdir={tmp_path / 'w'}")
    assert records(tmp_path / "w")[-1]["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-5)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_sigterm_while_two_processes_compile(command: Command, tmp_path: pathlib.Path):
    arguments = (*ARGUMENTS, "--config.total_steps=100000", "--config.eval.every_steps=100000", f"--workdir={tmp_path}")
    processes = start_two(command, *arguments, "--config.compilation_cache=")  # none, for it is to take long
    for line in processes[0].stderr:
        if "learning rate of" in line:  # the last line before the step is compiled
            break
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs


@pytest.mark.slow
def test_ctrl_c_in_an_evaluation_of_two_processes(command: Command, tmp_path: pathlib.Path):
    processes = start_two(command, *ARGUMENTS, *LONG_EVALUATION, f"--workdir={tmp_path}")
    for line in processes[0].stderr:
        if "The evaluation step was compiled" in line:
            break
    time.sleep(1)
    processes[1].send_signal(signal.SIGINT)  # which this one passes on as SIGTERM
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    assert not any("val/top1" in line for line in records(tmp_path))


@pytest.mark.slow
def test_two_processes_go_back_together(command: Command, tmp_path: pathlib.Path):
    """To the checkpoint of the first step, twice, and then they stop; what is gone back over is in test_rewind.py."""
    bad = ("--config.optimizer.learning_rate=1e30", "--config.checkpoint.every_steps=1")
    guard = ("--config.guard.nonfinite=rewind", "--config.guard.max_rewinds=2")
    processes = start_two(command, *ARGUMENTS, *bad, *guard, f"--workdir={tmp_path}")
    for process in processes:
        printed = process.communicate(timeout=120)[1]
        assert printed.count("GOING BACK from step 2 to step 1") == 2, printed
        assert process.returncode not in (0, 75), printed
    assert 80 in [process.returncode for process in processes]  # the end of one may end the other
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def damaged_data(directory: pathlib.Path) -> tuple[int, str]:
    """Makes a data set with a damaged record that the second of two processes needs; returns it and a flag."""
    examples = [(encode(picture(20, 20, seed=i)), i % 3) for i in range(64)]
    directory.mkdir()
    bad = int(order.permutation(0, 0, 64)[20])  # the first process has rows 0 to 15 of a batch, the second the others
    examples[bad] = (examples[bad][0][:300], 0)
    tfds_format.write_dataset(directory, "mine", {"train": examples, "validation": examples}, ["a", "b", "c"])
    return bad, f"--config.data.dir={directory}"


@pytest.mark.slow
def test_what_ends_or_freezes_one_of_two_processes_ends_both(command: Command, tmp_path: pathlib.Path):
    """An error, which ends a process as a signal does, and SIGSTOP; at once, as either waits for half a minute."""
    bad, flag = damaged_data(tmp_path / "data")
    failing = start_two(command, *ARGUMENTS, "--config.data.source=tfds", flag, f"--workdir={tmp_path / 'failing'}")
    arguments = (*ARGUMENTS, "--config.total_steps=100000", "--config.eval.every_steps=100000")
    # The heartbeat of jax.distributed, which would end the process, too, is missed after 25 s at the earliest.
    frozen = start_two(command, *arguments, "--config.watchdog_seconds=15", f"--workdir={tmp_path / 'frozen'}")
    wait_for_steps(frozen, tmp_path / "frozen")
    frozen[1].send_signal(signal.SIGSTOP)
    printed = frozen[0].communicate(timeout=60)[1]
    assert frozen[0].returncode == STATUS_HANG, printed
    assert "in _loop" in (tmp_path / "frozen" / "stacks" / "process_0.txt").read_text()
    frozen[1].send_signal(signal.SIGCONT)  # it goes on without the coordinator
    printed = frozen[1].communicate(timeout=60)[1]
    assert frozen[1].returncode not in (0, 75), printed

    printed = failing[1].communicate(timeout=60)[1]
    assert f"Cannot decode record {bad} " in printed
    assert failing[1].returncode == 1
    printed = failing[0].communicate(timeout=60)[1]
    assert failing[0].returncode not in (0, 75), printed


@pytest.fixture(scope="module")
def found(cache: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    """Returns what two processes found in the cases of process_cases.py."""
    directory = tmp_path_factory.mktemp("cases")
    flags = "--xla_backend_optimization_level=0"
    launch(Command(cache), "process_cases", f"--directory={directory}", devices=1, timeout=180, XLA_FLAGS=flags)
    first, second = (json.loads((directory / f"process_{i}.json").read_text()) for i in range(2))
    return first, second


@pytest.mark.slow
def test_both_go_back_if_one_cannot_read_its_part_of_a_checkpoint(found: tuple[dict, dict]):
    """With FSDP, where each reads other files; in evaluation, which may be told not to, and in training."""
    for process in found:
        assert process["damaged"]["evaluated"] == 4
        kind, text = process["damaged"]["wanted"]
        assert kind == "DamagedError"
        assert re.search(r"checkpoints/8 is damaged: .+ \(process [01]\)\. Get it again", text)
        assert process["damaged"]["steps"] == [12, 12]
        assert sum("GOING BACK" in message for message in process["messages"]) == 2
    moved = [
        message for process in found for message in process["messages"] if "checkpoint of step 8 is now" in message
    ]
    assert len(moved) == 1


@pytest.mark.slow
def test_two_processes_detect_what_one_does(found: tuple[dict, dict], tmp_path: pathlib.Path):
    """COCO's numbers are the same to the last digit, in both."""
    directory = write_coco(tmp_path, tiny_dense.coco_annotations(), "val2017")
    mesh = sharding.make_mesh({"data": 2, "fsdp": 1, "tensor": 1}, jax.devices()[:2])
    evaluators, objective, variables, _ = tiny_dense.detection_setting(directory, mesh)
    expected = evaluate.measure(evaluators, objective, {"": variables})
    assert expected["val/AP"] > 0
    assert found[0]["detected"] == found[1]["detected"] == expected


@pytest.mark.slow
def test_the_first_process_tells_what_it_reads(found: tuple[dict, dict]):
    for index, process in enumerate(found):
        value, error, unexpected, gathered = process["told"]
        assert value == {"process": 0, "é": [1.5, None]}
        assert error == ["CheckpointError", "There is none."]
        expected = ["OSError", "stale handle"], ["DistributedError", "Process 0 failed with OSError: stale handle"]
        assert unexpected == expected[index]
        assert gathered == ["", "x"]


@pytest.mark.slow
def test_processes_that_see_other_data_stop_and_say_so(found: tuple[dict, dict]):
    for process in found:
        length, names, contents, same = process["data"]
        assert same is None
        for kind, text in (length, names, contents):
            assert kind == "DistributedError"
            assert text.startswith("The processes do not see the same data:\n  the ")
            assert "All processes must see the same files in data.dir" in text
            assert text.count(" in process 1\n") == 1
            assert "training data" not in text
        assert "the number of records in the validation data is 9 in process 0 and 10 in process 1" in length[1]
        assert "the hash of the class names of the validation data is " in names[1]
        assert 'the fingerprint of the validation data is "same" in process 0 and "ame" in process 1' in contents[1]


@pytest.mark.slow
def test_weights_of_the_host_are_placed_without_collectives(found: tuple[dict, dict]):
    for index, process in enumerate(found):
        by_jax, local = process["placed"]
        assert by_jax == "compared"
        assert local == [[0, 1, 2], [[0, 1], [2, 3]][index], [0, 1, 2], [0, 1, 2, 3]]


def test_incomplete_flags(command: Command, tmp_path: pathlib.Path):
    printed = command(*ARGUMENTS, f"--workdir={tmp_path}", "--num_processes=2", status=1)
    assert "Several processes need all of --coordinator_address, --num_processes and --process_id" in printed


@pytest.mark.slow
def test_features_are_those_of_one_process(found: tuple[dict, dict], tmp_path: pathlib.Path):
    process_cases.stored(tmp_path)
    one, two = (
        features.read(path, verify=True)
        for path in (tmp_path / "features", pathlib.Path(found[0]["directory"]) / "features")
    )
    np.testing.assert_allclose(np.asarray(one.features), np.asarray(two.features), rtol=1e-5, atol=1e-6)
    assert one.names == two.names == [f"picture {i}" for i in range(20)]
    assert one.labels.tolist() == two.labels.tolist() == [i % 3 for i in range(20)]
    assert dataclasses.replace(two.about, batch_size=8) == dataclasses.replace(one.about, batch_size=8)
    for process in found:
        kind, text = process["stored"]
        assert kind == "ConfigError"
        assert "the number of images is 21 there, and 20 here" in text


@pytest.mark.slow
def test_measures_are_those_of_one_process(found: tuple[dict, dict]):
    expected = process_cases.measured()
    assert expected["results"]["classes/count"] == 21
    for process in found:
        assert process["measured"]["results"] == pytest.approx(expected["results"], rel=1e-5)
        assert process["measured"]["tables"] == expected["tables"]


@pytest.mark.slow
def test_a_suite_has_the_results_of_one_process(found: tuple[dict, dict], tmp_path: pathlib.Path):
    expected = process_cases.suite_of_sets(tmp_path)
    assert expected["done"] == [False, True]
    assert expected["sets"]["c/fog/1"]["damaged"] == 4
    assert [process["suite"] for process in found] == [expected] * 2
