"""Whole trainings of detectors and segmenters: killed and resumed, and on one device and eight."""

import json
import pathlib
import signal
import time

import numpy as np
import pytest
from chaos import TIMINGS
from conftest import Command, records

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive, pytest.mark.timeout(1200)]

STEPS = 12
# Adam's first updates are signs of gradients, some of which are as small as the errors of sums in another order; the
# statistics of few small maps enlarge these errors.
STEADY = (
    "--config.optimizer.name=sgd",
    "--config.optimizer.learning_rate=0.02",
    "--config.objective.frozen_norms=True",
)


def arguments(variant: str) -> tuple[str, ...]:
    """Flags for a few steps of a small network on small images."""
    flags = (
        f"--config=configs/digits_dense.py:{variant}",
        f"--config.total_steps={STEPS}",
        "--config.batch_size=8",
        "--config.schedule.warmup_epochs=0",
        "--config.eval.every_steps=6",
        "--config.checkpoint.every_steps=3",
        "--config.log.every_steps=1",
        "--config.log.tensorboard=False",
        "--config.data.train_examples=64",
        "--config.data.dense.canvases=((48, 48),)",
    )
    return flags if variant == "fcn" else (*flags, "--config.objective.channels=32")


def outcome(workdir: pathlib.Path) -> tuple[dict[str, list], list[dict]]:
    """Returns digests of every array of the last state, and all metrics but the timings."""
    about = json.loads((workdir / "checkpoints" / str(STEPS) / "about" / "metadata").read_text())
    return about["arrays"], [{k: v for k, v in line.items() if not k.startswith(TIMINGS)} for line in records(workdir)]


@pytest.mark.parametrize("variant", ["retinanet", "fcn"])
def test_a_killed_run_ends_bitwise_the_same(command: Command, tmp_path: pathlib.Path, variant: str):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command(*arguments(variant), f"--workdir={whole}")
    process = command.start(*arguments(variant), f"--workdir={killed}")
    metrics = killed / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"step": 7,' in metrics.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    command(*arguments(variant), f"--workdir={killed}")
    assert outcome(killed) == outcome(whole)


@pytest.mark.parametrize("variant", ["retinanet", "fcos", "fcn"])
def test_eight_devices_do_what_one_does(command: Command, tmp_path: pathlib.Path, variant: str):
    found = {}
    for devices in (1, 8):
        workdir = tmp_path / str(devices)
        command(*arguments(variant), *STEADY, f"--workdir={workdir}", devices=devices)
        found[devices] = [line["train/loss"] for line in records(workdir) if "train/loss" in line]
    assert len(found[1]) == STEPS
    # Segmenters have norms in their heads, too.
    np.testing.assert_allclose(found[8], found[1], rtol=0.005 if variant == "fcn" else 1e-4)
