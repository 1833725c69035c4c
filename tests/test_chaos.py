"""The short form of `chaos.py`: two processes on the same topology, whose end is that of an undisturbed run to the bit.

Each of them holds a part of the state, so that damage is found by one of them alone.
SIGTERM and a frozen process are in test_processes.py, a file system that fills up in test_resume.py.
"""

import pathlib
import random

import chaos
import pytest


@pytest.mark.exhaustive
@pytest.mark.slow
def test_faults_leave_no_trace(tmp_path: pathlib.Path, cache: pathlib.Path, capsys: pytest.CaptureFixture[str]):
    run = chaos.Chaos(
        "tests/small_vit.py",
        (chaos.Topology(2, 1, "fsdp"),),
        directory=tmp_path,
        disk=tmp_path,
        random=random.Random(0),
        kinds={"SIGKILL": 1, "damage": 1},
        cache=cache,
    )
    run.run(faults=2)  # an error if anything does not hold
    assert sorted(fault.kind for fault in run.faults) == ["SIGKILL", "damage"]
    assert "after 2 faults, and as the uninterrupted: all 42 lines of metrics.jsonl" in capsys.readouterr().out
