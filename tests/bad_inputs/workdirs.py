"""Workdirs that cannot be used, and what they hold: damaged, of another run, or of another version."""

import json
import pathlib
from typing import Any

from bad_inputs.case import (
    TRAIN,
    Case,
    Setup,
    changed,
    cut_all,
    directory,
    finished,
    image,
    locked,
    remove,
    text,
    training,
)

from vision_jax.runtime import checkpoint as checkpoints

_EVALUATE = ("main", "--mode=eval", "--workdir=w")
_PREDICT = ("predict", "a.jpg", "--workdir=w")


def _run(name: str, arguments: tuple[str, ...], *before: Setup, value: str, remedy: str, **options: Any) -> Case:
    """Returns a case with a finished run in `w`, which is then changed."""
    return Case(name, arguments, value, remedy, before=(finished(), *before), **options)


def _described(**changes: Any) -> Setup:
    """Changes what the checkpoint says of the run."""

    def change(folder: pathlib.Path) -> None:
        path = folder / "about" / "metadata"
        about = json.loads(path.read_text()) | changes
        del about["checksum"]
        path.write_text(json.dumps(about | {"checksum": checkpoints._checksum(about)}))

    return changed("w/checkpoints/2", change)


_LONGER = (*TRAIN, "--config.total_steps=3")

CASES = (
    training(
        "a workdir that another run uses", before=(directory("w"), changed("w", locked)), value="using w", remedy="wait"
    ),
    training(
        "a file for checkpoints", before=(text("w/checkpoints", "mine"),), value="w/checkpoints", remedy="remove it"
    ),
    training(
        "a workdir below a file",
        "--workdir=file/w",
        before=(text("file", "mine"),),
        value="file/w",
        remedy="Give another",
    ),
    training(
        "a workdir that is a file",
        "--workdir=file",
        before=(text("file", "mine"),),
        value="file",
        remedy="Give another",
    ),
    training("a workdir in /proc", "--workdir=/proc/w", value="/proc/w", remedy="Give another"),
    training("a workdir in /sys", "--workdir=/sys/w", value="/sys/w", remedy="Give another"),
    training("a workdir of too long a name", f"--workdir={'w' * 300}", value="w" * 300, remedy="[Gg]ive another"),
    Case("an evaluation of nothing", _EVALUATE, "w/checkpoints", "check --workdir"),
    _run("a step that was not saved", (*_EVALUATE, "--step=1"), value="step 1", remedy=r"\[2\]"),
    _run("a step of a huge number", (*_EVALUATE, "--step=" + "9" * 30), value="9" * 30, remedy=r"\[2\]"),
    _run("another configuration", (*TRAIN, "--config.seed=7"), value="seed: 0 -> 7", remedy="another --workdir"),
    _run(
        "no configuration in it", _LONGER, changed("w/config.json", remove), value="config.json", remedy="allow_config"
    ),
    _run(
        "half a configuration", _LONGER, text("w/config.json", '{"seed": '), value="config.json", remedy="allow_config"
    ),
    _run(
        "a list for a configuration", _LONGER, text("w/config.json", "[1]"), value="config.json", remedy="allow_config"
    ),
    _run(
        "a longer run in the past",
        (*TRAIN, "--allow_config_change", "--config.total_steps=1"),
        value="step 2",
        remedy="raise",
    ),
    _run(
        "a damaged checkpoint, trained",
        TRAIN,
        changed("w/checkpoints/2", cut_all),
        value="damaged",
        remedy="--workdir|delete",
    ),
    _run(
        "a damaged checkpoint, evaluated",
        _EVALUATE,
        changed("w/checkpoints/2", cut_all),
        value="damaged",
        remedy="from a copy",
    ),
    _run(
        "a damaged checkpoint, used",
        _PREDICT,
        image("a.jpg"),
        changed("w/checkpoints/2", cut_all),
        value="damaged",
        remedy="from a copy",
    ),
    _run(
        "a checkpoint without its description",
        _EVALUATE,
        changed("w/checkpoints/2/about/metadata", remove),
        value="2",
        remedy="from a copy",
    ),
    _run(
        "a checkpoint of a newer version", _EVALUATE, _described(config={"zebra": 1}), value="zebra", remedy="version"
    ),
    _run(
        "an empty checkpoint",
        _EVALUATE,
        changed("w/checkpoints/2", remove),
        text("w/checkpoints/2/x", ""),
        value="2",
        remedy="from a copy",
    ),
    _run(
        "a best step without numbers",
        (*_EVALUATE, "--step=best"),
        text("w/metrics.jsonl", "garbage\n\0\n"),
        value="garbage|val/top1",
        remedy="by its number",
    ),
    _run(
        "a file for the checkpoints",
        _EVALUATE,
        changed("w/checkpoints", remove),
        text("w/checkpoints", ""),
        value="w/checkpoints",
        remedy="check --workdir",
    ),
)
