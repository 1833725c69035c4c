"""`python -m vision_jax benchmark step`. How fast a step is, is not tested."""

import dataclasses
import importlib.util
import json
import pathlib
import statistics

import jax
import numpy as np
import pytest

from vision_jax.benchmark import step as step_benchmark
from vision_jax.benchmark import torch_step, train_step
from vision_jax.benchmark.step import Result, TorchResult
from vision_jax.commands import benchmark as command
from vision_jax.config import command_line
from vision_jax.devices import sharding

TESTS = pathlib.Path(__file__).parent.parent
RESNET, VIT = (f"--config={TESTS / name}.py" for name in ("small_resnet", "small_vit"))
# What the digits, of which these configurations are, do not share with generated images.
RGB = ("--config.data.channels=3", "--config.data.mean=(0.5,0.5,0.5)", "--config.data.std=(0.5,0.5,0.5)")
ROUNDS = ("--rounds=2", "--steps=2")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, XLA's compiler for TPUs, is not installed"
)


class FakeTorchStep:
    """Takes two seconds a step, then four."""

    compile_seconds = 5.0

    def __init__(self, job: torch_step.Job, device: str):
        self.job, self.calls = job, 0

    def run(self, steps: int) -> float:
        self.calls += 1
        return steps * (2.0 if self.calls < 3 else 4.0)  # the first call is the warm-up

    def peak_bytes(self) -> int:
        return 3 * 2**30


@pytest.fixture
def report(tmp_path: pathlib.Path):
    """Runs the command, and returns what it writes as JSON."""

    def run(*flags: str) -> dict:
        assert command.main(["step", *flags, f"--json={tmp_path / 'out.json'}"]) == 0
        return json.loads((tmp_path / "out.json").read_text())

    return run


def test_steps_of_several_configurations(report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch_step, "find_problem", lambda: "not installed")
    found = report(RESNET, VIT, *RGB, *ROUNDS, "--batch_size=16")
    assert found["environment"]["devices"] == jax.device_count()
    assert found["environment"]["jax"] == jax.__version__
    assert found["flags"]["overrides"] == list(RGB)
    assert [result["model"] for result in found["results"]] == ["small_resnet", "small_vit"]
    printed = capsys.readouterr().out
    assert "Steps in a round: 2; rounds: 2; torch: not installed\n" in printed
    for result in found["results"]:
        assert (result["batch_size"], result["devices"], result["dtype"]) == (16, jax.device_count(), "float32")
        assert len(result["seconds"]) == 2
        assert result["median_seconds"] == pytest.approx(statistics.median(result["seconds"]))
        assert result["images_per_second"] == pytest.approx(16 / result["median_seconds"])
        assert result["mfu"] is None  # of a CPU, no peak is known
        assert result["compile_seconds"] > 0
        assert result["memory_source"] == "compiler"  # nor does its allocator count
        assert result["memory_bytes"] > 0
        assert result["torch"] == {"problem": "not installed"}
        (line,) = [line for line in printed.splitlines() if line.startswith(result["config"])]
        assert f"{1e3 * result['median_seconds']:10.2f} (" in line
        assert f"{result['images_per_second']:10.1f}       -" in line
        assert "attack" not in result


@pytest.mark.parametrize("attack", ["pgd", pytest.param("apgd", marks=pytest.mark.exhaustive)])
def test_a_step_of_an_attack(attack: str, report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch_step, "find_problem", lambda: "not installed")
    (result,) = report(VIT, *RGB, *ROUNDS, "--batch_size=16", f"--attack={attack}")["results"]
    found = result["attack"]
    assert found["kind"] == attack
    assert len(found["seconds"]) == 2
    assert found["images_per_second"] == pytest.approx(16 / found["median_seconds"])
    assert found["ratios"] == pytest.approx(
        [its / plain for its, plain in zip(found["seconds"], result["seconds"], strict=True)]
    )
    # Images need a gradient and weights none: a training step has three forward passes less the first layer's gradient
    # for images, and an attack's two and that.
    assert found["flops"] == pytest.approx(result["flops"] * 2 / 3, rel=0.1)
    assert f"\n  {attack}/training: {found['ratio']:.2f} (" in capsys.readouterr().out


def test_torch_is_measured_in_turn(report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch_step, "find_problem", lambda: "")
    monkeypatch.setattr(torch_step, "TorchStep", FakeTorchStep)
    monkeypatch.setattr(step_benchmark, "_find_torch_problem", lambda job: "")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # as the command would, for this process
    (result,) = report(VIT, *RGB, *ROUNDS, "--batch_size=16")["results"]
    torch = result["torch"]
    assert torch["seconds"] == [2.0, 4.0]
    assert torch["images_per_second"] == pytest.approx(16 / 3)
    assert torch["ratios"] == pytest.approx([2.0 / result["seconds"][0], 4.0 / result["seconds"][1]])
    assert torch["ratio"] == pytest.approx(statistics.median(torch["ratios"]))
    assert (torch["memory_bytes"], torch["compile_seconds"]) == (3 * 2**30, 5.0)
    printed = capsys.readouterr().out
    assert "3000.00 (2000.00-4000.00)" in printed
    assert f"ours/its: {torch['ratio']:.2f} (" in printed


def test_what_torch_cannot_do_is_shown(report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def fail(job: torch_step.Job, device: str):
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(torch_step, "find_problem", lambda: "")
    monkeypatch.setattr(torch_step, "TorchStep", fail)
    monkeypatch.setattr(step_benchmark, "_find_torch_problem", lambda job: "")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    (result,) = report(VIT, *RGB, *ROUNDS, "--batch_size=16")["results"]
    assert result["torch"] == {"problem": "RuntimeError: CUDA out of memory."}
    assert len(result["seconds"]) == 2
    assert "\n  torch: RuntimeError: CUDA out of memory.\n" in capsys.readouterr().out


def traced(*flags: str) -> train_step.Job:
    """Returns what would be measured on one device."""
    config = command_line.load(RESNET.removeprefix("--config="), ["--config.data.source=synthetic", *RGB, *flags])
    job = train_step.trace("small", config, None)
    alone = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return dataclasses.replace(job, traced=dataclasses.replace(job.traced, mesh=alone))


def test_torch_is_compared_where_it_does_the_same():
    rotation = ("--config.objective.name=rotation", "--config.checkpoint.best_metric=val/loss")
    assert step_benchmark._find_torch_problem(traced()) == "timm has no small_resnet"
    assert (
        step_benchmark._find_torch_problem(traced(*rotation)) == "it is compared in classification alone, not Rotation"
    )
    job = traced("--config.model.name=resnet18", "--config.dtype=bfloat16")
    assert step_benchmark._find_torch_problem(job) == ""
    expected = torch_step.Job("resnet18", (8, 8, 3), False, 1000, 32, "sgd", bfloat16=True)
    assert step_benchmark._torch_job(job) == expected
    all_devices = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    several = dataclasses.replace(job, traced=dataclasses.replace(job.traced, mesh=all_devices))
    assert step_benchmark._find_torch_problem(several).startswith("it is compared on one device, and there are 8: set")


def test_random_rows():
    batch = {
        "image": jax.ShapeDtypeStruct((64, 8, 8, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((64,), np.int32),
        "mask": jax.ShapeDtypeStruct((64,), np.float32),
        "weight": jax.ShapeDtypeStruct((64, 2), np.float32),
    }
    rows = train_step.random_rows(batch, 10)
    assert {name: (x.shape, x.dtype) for name, x in rows.items()} == {
        name: (x.shape, x.dtype) for name, x in batch.items()
    }
    assert (rows["image"].min(), rows["image"].max()) == (0, 255)
    assert set(rows["label"]) == set(range(10))
    assert rows["mask"].all()
    assert not rows["weight"].any()


def test_figures_follow_from_the_seconds():
    result = Result(
        batch_size=8,
        flops=600,
        peak_flops=1000.0,
        compile_seconds=1.0,
        seconds=[1.0, 2.0, 4.0],
        memory_bytes=None,
        memory_source="compiler",
        torch=TorchResult([2.0, 2.0, 2.0]),
    )
    assert result.median == 2.0
    assert result.mfu == 0.3
    assert result.ratios == [2.0, 1.0, 0.5]


@needs_libtpu
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
def test_costs_on_tpus_that_are_not_here(report, capsys: pytest.CaptureFixture[str]):
    found = report(VIT, *RGB, "--batch_size=64", "--topology=v5e:2x2", "--attack=pgd")
    assert (found["environment"]["device"], found["environment"]["devices"]) == ("TPU v5 lite", 4)
    (result,) = found["results"]
    assert result["dtype"] == "float32"
    cost = result["cost"]
    assert (cost["chips"], cost["images"]) == (4, 16)
    assert result["bytes_an_image"] == pytest.approx(cost["bytes_accessed"] / 16)
    assert 4 * cost["product_flops"] == result["flops"]
    assert result["seconds"]["memory"] == pytest.approx(cost["bytes_accessed"] / 819e9)
    assert list(result["shares"]) == ["augmentation", "forward", "backward", "optimizer", "copies", "other"]
    assert sum(result["shares"].values()) == pytest.approx(1)
    assert min(result["shares"][part] for part in ("forward", "backward", "optimizer")) > 0
    attack = result["attack"]
    assert attack["cost"]["product_flops"] == pytest.approx(cost["product_flops"] * 2 / 3, rel=0.1)
    assert 0 < attack["bytes_an_image"] < result["bytes_an_image"]
    assert attack["shares"]["optimizer"] == 0
    printed = capsys.readouterr().out
    assert sum(line.startswith("  pgd ") for line in printed.splitlines()) == 2
    first, second = [line for line in printed.splitlines() if line.startswith(result["config"])]
    assert f"{result['bytes_an_image'] / 1e6:9.1f}" in first
    assert f"{result['shares']['backward']:14.1%}" in second


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--config is missing: pass a file"),
        (["--config=nowhere.py"], "Cannot load the config file 'nowhere.py'"),
        (["--config=gs://bucket/x.py"], "--config is 'gs://bucket/x.py': URLs are not supported here"),
        ([VIT, "--config.optimizer.beta=4"], "the configuration has no field 'beta'"),
        ([VIT, "--config.batch_size=many"], "flag --config.batch_size=many: it takes an integer"),
        ([RESNET, *RGB, "--batch_size=3"], "small_resnet.py: The configuration cannot work:\n  - batch_size"),
        ([VIT, "--json=/nowhere/x.json"], "there is no folder /nowhere"),
        ([VIT, "--json=gs://bucket/x.json"], "--json is 'gs://bucket/x.json': URLs are not supported here"),
        ([VIT, "--topology=v5e:2x2", "--rounds=3"], "--rounds is 3, but with --topology nothing is timed"),
        ([VIT, "--topology=v9:2x2"], "The topology 'v9:2x2' is not known"),
        ([VIT, "--attack=fgsm"], "--attack is 'fgsm': "),
        (
            [VIT, *RGB, "--attack=pgd", "--config.objective.name=rotation", "--config.checkpoint.best_metric=val/loss"],
            "has no classifier that could be attacked",
        ),
    ],
)
def test_flags_that_cannot_work(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert command.main(["step", *flags]) == 1
    assert message in capsys.readouterr().err


def test_the_compiler_for_tpus_may_be_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert command.main(["step", VIT, "--topology=v5e:2x2"]) == 1
    assert "libtpu, which is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["step", "--rounds=0"], "argument --rounds"),
        (["step", "--speed"], "unrecognized arguments: --speed"),
        (["input", "--config.batch_size=8"], "unrecognized arguments: --config.batch_size=8"),
    ],
)
def test_wrong_flags(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        command.main(flags)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("optimizer", "model", "fixed_size"), [("sgd", "resnet10t", False), ("adamw", "vit", True)])
def test_a_step_of_torch(optimizer: str, model: str, fixed_size: bool, monkeypatch: pytest.MonkeyPatch):
    """On the CPU, and not compiled."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    monkeypatch.setattr(torch, "compile", lambda model: model)
    name = {"vit": "vit_tiny_patch16_224"}.get(model, model)
    job = torch_step.Job(name, (32, 32, 3), fixed_size, 5, 2, optimizer, bfloat16=True)
    step = torch_step.TorchStep(job, "cpu")
    before = [parameter.clone() for parameter in step._model.parameters()]
    assert step.run(2) > 0
    assert any((a != b).any() for a, b in zip(before, step._model.parameters(), strict=True))
    assert step._images.is_contiguous(memory_format=torch.channels_last)
    assert step.peak_bytes() is None
