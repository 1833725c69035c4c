"""What `faults.py` counts; and, if asked for, a piece of it: runs of all objectives under faults of all kinds."""

import dataclasses
import json
import pathlib
import random
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from faults import KINDS, Fault, Workdir, spoil, summary


def test_pieces_add_up(tmp_path: pathlib.Path):
    paths = [tmp_path / f"{seed}.jsonl" for seed in (3, 4)]
    one = Fault(3, 1, "dino", "clock", "jumps by 5 s", 7, "steps", "forked", seconds=1800.0, outcome="complete")
    other = dataclasses.replace(one, seed=4, kind="SIGKILL", objective="byol", held=False, outcome="other arrays")
    paths[0].write_text(f"{json.dumps(dataclasses.asdict(one))}\n" * 2)
    paths[1].write_text(json.dumps(dataclasses.asdict(other)) + "\n")
    text, failed = summary(paths)
    assert text.startswith("3 faults of the seeds [3, 4] in 1.50 h, 1 in runs that failed.\n\n| objective | SIGKILL |")
    table = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.split("\n") if row.startswith("|")]
    rows = {row[0]: row[1:] for row in table}
    assert rows["dino"] == ["2" if kind == "clock" else "" for kind in KINDS] + ["2"]
    assert rows["all"] == [{"clock": "2", "SIGKILL": "1"}.get(kind, "0") for kind in KINDS] + ["3"]
    assert text.endswith("FAILED: seed 4, 1: byol, SIGKILL, jumps by 5 s: other arrays")
    assert failed == 1


@pytest.mark.parametrize("how", ["cut", "filled with garbage", "zeros", "replaced", "half a line added"])
def test_spoiled_lines_are_told_from_whole_ones(tmp_path: pathlib.Path, how: str):
    workdir = Workdir(tmp_path)
    lines = [{"step": step, "train/loss": 0.5} for step in range(1, 9)]
    for seed in range(10):
        workdir.metrics.write_text("".join(json.dumps({**line, "train/mfu": 0.3}) + "\n" for line in lines))
        assert workdir.lines() == lines
        spoil(workdir.metrics, how, random.Random(seed))
        found = workdir.lines()
        assert all(line in lines for line in found)
        assert (found == lines) == (how == "half a line added")


@pytest.mark.exhaustive
def test_every_objective_under_faults_ends_as_if_there_were_none(tmp_path: pathlib.Path):
    log = tmp_path / "faults.jsonl"
    command = [sys.executable, "tests/faults.py", "--seed=0", "--faults=100", f"--directory={tmp_path}", f"--log={log}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert len(log.read_text().splitlines()) == 100
