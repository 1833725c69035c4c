"""The suite of a detector or segmenter: what its evaluations give, in the suite's files."""

import csv
import json
import pathlib

import pytest
from conftest import records

from vision_jax.commands import suite


@pytest.mark.parametrize(
    ("kind", "metric"), [("boxes", "AP"), pytest.param("masks", "miou", marks=pytest.mark.exhaustive)]
)
def test_rows_are_what_the_run_measured(
    kind: str,
    metric: str,
    dense_runs: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
):
    arguments = [f"--workdir={dense_runs[kind]}", "--sets=val", f"--output={tmp_path / 'out'}"]
    assert suite.main(arguments) == 0
    written = json.loads((tmp_path / "out" / "suite.json").read_text())
    entry = written["sets"]["val"]
    (known,) = [line for line in records(dense_runs[kind]) if f"val/{metric}" in line]
    for name, value in entry["measures"].items():
        expected = known[f"val/{name}"]
        assert value == (None if expected is None or expected < 0 else pytest.approx(100 * expected, abs=1e-3))
    assert (entry["count"], entry["expected"], entry["damaged"]) == (16, 16, 0)
    assert len(entry["classes"]["classes"]) == {"boxes": 10, "masks": 11}[kind]
    (row,) = csv.DictReader((tmp_path / "out" / "suite.csv").open())
    assert row["set"] == "val"
    assert float(row[metric]) == pytest.approx(entry["measures"][metric], abs=1e-4)
    capsys.readouterr()
    assert suite.main(arguments) == 0
    assert "measured before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sets=val,c"], "--sets is 'val,c': detectors and segmenters are measured on the validation split"),
        (["--sets=adversarial", "--attack=fgsm"], "--attack is 'fgsm', which is of models of whole images"),
        (["--data=somewhere"], "--data is 'somewhere', which is of models of whole images"),
        (["--explain=gradcam"], "--explain is 'gradcam', which is of models of whole images"),
    ],
)
def test_other_sets_are_refused(
    flags: list[str],
    message: str,
    dense_runs: dict[str, pathlib.Path],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
):
    assert suite.main([f"--workdir={dense_runs['boxes']}", f"--output={tmp_path / 'out'}", *flags]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
