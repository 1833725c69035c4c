"""`python -m vision_jax benchmark predict`. How fast it is, is not tested."""

import json
import pathlib

import pytest

from vision_jax.commands import benchmark as command


def test_the_ratio_is_that_of_the_rounds(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    output = tmp_path / "found.json"
    assert command.main(["predict", "--images=9", "--rounds=2", f"--json={output}"]) == 0
    found = json.loads(output.read_text())
    rates = found["images_per_second"]
    assert len(rates["loader"]) == len(rates["predict"]) == 2
    assert found["ratios"] == [ours / alone for ours, alone in zip(rates["predict"], rates["loader"], strict=True)]
    assert "9 JPEGs of ImageNet's sizes, lenet5 at 28x28 pixels" in capsys.readouterr().out


def test_models_that_are_not_there(capsys: pytest.CaptureFixture):
    assert command.main(["predict", "--model=lenet"]) == 1
    assert "There is no model 'lenet'" in capsys.readouterr().err
