"""docs/results.md: figures are those of logs that are kept, and commands still give the configurations that ran."""

import json
import pathlib
import re
import shlex

import pytest

from vision_jax.config import command_line, store

RESULTS = pathlib.Path(__file__).parent.parent / "docs" / "results"
PAGE = RESULTS.with_suffix(".md").read_text()
NAMES = sorted(path.name for path in RESULTS.iterdir())
# What depends on where a run is, and not on what it computes.
PLACES = ("data.dir", "model.pretrained")


def rows() -> dict[str, str]:
    """Returns the lines of the page's tables, by what is in their first cell."""
    return dict(re.findall(r"^\| `(\w+)` \| (.*)$", PAGE, flags=re.MULTILINE))


def test_each_run_has_a_row_and_no_row_is_without_a_run():
    assert sorted(rows()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_those_of_the_logs(name: str):
    lines = [json.loads(line) for line in (RESULTS / name / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "val/top1" in line][-1]
    assert last["step"] == lines[-1]["step"]
    assert f"{100 * last['val/top1']:.2f} %" in rows()[name]
    for file in ("command.txt", "config.json", "metrics.jsonl"):
        assert f"(results/{name}/{file})" in rows()[name]


@pytest.mark.parametrize("name", NAMES)
def test_commands_give_the_configurations_that_were_run(name: str):
    """Fields that have come since then are at what they are by default, and leave the run as it was."""
    *_, command = (RESULTS / name / "command.txt").read_text().splitlines()
    program, *flags = shlex.split(command)[2:]
    assert program == "vision_jax.main"
    assert f"--workdir=runs/{name}" in flags
    config, *others = (flag for flag in flags if flag.startswith("--config"))
    now = dict(store.flatten(json.loads(store.to_json(command_line.load(config.partition("=")[2], others)))))
    then = dict(store.flatten(json.loads((RESULTS / name / "config.json").read_text())))
    assert not {
        field: (value, now.get(field, "gone"))
        for field, value in then.items()
        if field not in PLACES and now.get(field, "gone") != value
    }
