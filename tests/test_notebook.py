"""docs/digits.ipynb, whose cells run in a process of their own, one after the other.

They are executed as Python: a kernel of Jupyter would bring a dozen packages, and they use nothing of it.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY, Command, records

NOTEBOOK = json.loads((REPOSITORY / "docs" / "digits.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_nothing_stale_is_stored():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    for cell in NOTEBOOK["cells"]:
        assert cell["id"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    prose = "".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown")
    for link in re.findall(r"\]\(([^)#]+)", prose):
        assert (REPOSITORY / "docs" / link).exists()


@pytest.mark.slow
def test_it_trains_evaluates_and_explains(command: Command, tmp_path: pathlib.Path):
    shown = 'plt.show = lambda: print("shown", [axes.has_data() for axes in plt.gcf().axes])'
    script = "\n\n".join(["import matplotlib.pyplot as plt", shown, *CODE])
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, **command.environment, "MPLBACKEND": "Agg", "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("264 steps\n")
    assert done.stdout.count("shown [True, True") == 2
    assert "False" not in done.stdout
    last = [line for line in records(tmp_path / "runs" / "digits") if "val/count" in line][-1]
    assert last["val/ema_top1"] > 0.9
    assert f"{last['val/ema_top1']:.2%} of 360 digits are right" in done.stdout
