"""Runs that prune: their weights and averages, what is written of them, and that devices do not matter."""

import json
import pathlib
from typing import Any

import jax
import mesh_cases
import numpy as np
import onnx
import pytest
from conftest import records
from ml_collections import ConfigDict

from vision_jax import build, optim, recipes, train
from vision_jax import config as config_lib
from vision_jax.commands import compress
from vision_jax.compress import sparsity
from vision_jax.errors import ConfigError, DataError
from vision_jax.optim.masks import STEM

PRUNED = ("conv2/kernel", "fc1/kernel", "fc2/kernel")


def make_config(**prune: Any) -> ConfigDict:
    config = recipes.digits("lenet5")
    config.update({"batch_size": 64, "total_steps": 12, "ema_decay": 0.9, "seed": 1})
    config.optimizer.update({"learning_rate": 0.05, "momentum": 0.9})
    config.schedule.warmup_epochs = 0.0
    config.eval.every_steps = 12
    config.log.update({"every_steps": 1, "tensorboard": False})
    config.prune.update(prune)
    return config


def kernels(params: Any) -> dict[str, np.ndarray]:
    flat = jax.tree_util.tree_leaves_with_path(params)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in flat}
    return {path: x for path, x in named.items() if path.endswith("kernel")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run that prunes to 80 % between the steps 4 and 8 (an epoch has 22)."""
    workdir = tmp_path_factory.mktemp("pruned")
    config = make_config(sparsity=0.8, begin_epochs=4 / 22, end_epochs=8 / 22, every_steps=2)
    state = train.train_and_evaluate(config, workdir)
    assert state.ema is not None
    for params in (state.params, state.ema["params"]):
        shares = {path: float((x == 0).mean()) for path, x in kernels(params).items()}
        for path in PRUNED:
            assert shares.pop(path) == pytest.approx(0.8, abs=1e-3)
        assert not any(shares.values())
    return workdir


def test_metrics_have_the_sparsity(run: pathlib.Path):
    found = {line["step"]: line["train/sparsity"] for line in records(run) if "train/sparsity" in line}
    expected = [0.8 - 0.8 * (1 - (step - 4) / 4) ** 3 if step >= 4 else 0 for step in (2, 4, 6, 8)]
    values = [expected[min(3, max(0, step // 2 - 1))] for step in range(1, 13)]
    np.testing.assert_allclose([found[step] for step in range(1, 13)], values, atol=1e-4)


@pytest.fixture(scope="module")
def files(run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    output = tmp_path_factory.mktemp("smaller") / "new" / "files"
    flags = ["--methods=weights8", "--examples=16", f"--output={output}"]
    assert compress.main([f"--workdir={run}", *flags]) == 0
    return output


def test_exported_files_have_the_zeros(run: pathlib.Path, files: pathlib.Path):
    params = kernels(build.from_workdir(run).variables["params"])
    for name in ("float32", "weights8"):
        graph = onnx.load(str(files / f"{name}.onnx")).graph
        tensors = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
        for path in PRUNED:
            zeros = int((params[path] == 0).sum())
            assert any(x.size == params[path].size and (x == 0).sum() >= zeros for x in tensors), path
    full = [onnx.numpy_helper.to_array(x) for x in onnx.load(str(files / "float32.onnx")).graph.initializer]
    conv = next(x for x in full if x.size == params["conv2/kernel"].size)
    np.testing.assert_array_equal(conv == 0, params["conv2/kernel"].transpose(3, 2, 0, 1) == 0)


def test_what_compress_says_of_zeros(files: pathlib.Path):
    found = json.loads((files / "compress.json").read_text())["sparsity"]
    shares = {row["path"]: row["sparsity"] for row in found["layers"]}
    assert shares["fc1/kernel"] == pytest.approx(0.8, abs=1e-4)
    assert shares["conv1/kernel"] == 0
    sizes = {row["path"]: int(np.prod(row["shape"])) for row in found["layers"]}
    zeros = sum(round(shares[path] * sizes[path]) for path in PRUNED)
    assert found["sparsity"] == pytest.approx(zeros / sum(sizes.values()))
    assert found["dense_bytes"] == 4 * found["parameters"] == 4 * 44_426
    # A bit for each weight of the three, and what is not zero.
    weights = sum(sizes[path] for path in PRUNED)
    assert found["sparse_bytes"] == pytest.approx(4 * (found["parameters"] - zeros) + weights / 8, abs=3)
    assert "| fc1/kernel |" in sparsity.text(found)


def test_each_file_has_a_model_card(files: pathlib.Path):
    names = {path.name for path in files.iterdir()}
    assert names == {"compress.json", *(f"{name}.onnx{end}" for name in ("float32", "weights8") for end in ("", ".md"))}
    card = (files / "weights8.onnx.md").read_text()
    row = json.loads((files / "compress.json").read_text())["rows"][1]
    assert "stored in int8, with a scale for each output channel" in card
    assert f"| val/top1 | {100 * row['top1']:.2f} % |" in card
    assert 'InferenceSession("weights8.onnx")' in card


def test_after_an_error_everything_is_as_it_was(
    run: pathlib.Path, files: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    errors = [DataError("no images"), OSError(28, "No space left on device")]

    def broken(*_: Any, **__: Any) -> Any:
        raise errors[0]

    before = {path.name: path.read_bytes() for path in files.iterdir()}
    flags = [f"--workdir={run}", "--methods=weights8", "--examples=16"]
    monkeypatch.setattr("vision_jax.compress.program.measure.accuracy", broken)
    while errors:
        assert compress.main([*flags, f"--output={files}", "--overwrite"]) == 1
        assert {path.name: path.read_bytes() for path in files.iterdir()} == before
        assert compress.main([*flags, f"--output={tmp_path / 'a' / 'b'}"]) == 1
        assert not list(tmp_path.iterdir())
        errors.pop(0)


def test_patterns_are_found():
    kernel = np.ones((3, 3, 8, 4), np.float32)
    assert sparsity.pattern_of(kernel) == ""
    kernel[:, :, ::2] = 0
    assert sparsity.pattern_of(kernel) == "2:4"
    kernel[:, :, :4] = 1
    kernel[:, :, 4:] = 0
    assert sparsity.pattern_of(kernel) == "4:8"
    assert sparsity.pattern_of(np.ones((6, 4))) == ""
    # Half of the values, and two bits for the place of each.
    assert sparsity.Layer("x", (64, 4), 128, "2:4").stored_bits == 128 * 34


def test_a_dense_run_is_pruned_to_two_of_four_at_once(run: pathlib.Path, tmp_path: pathlib.Path):
    """As Mishra et al. do; its masks are those of the weights that it begins with, whose zeros are few enough here."""
    config = make_config(pattern="2:4", end_epochs=0.0)
    config.total_steps, config.eval.every_steps = 2, 2
    config.model.pretrained = str(run)
    state = train.train_and_evaluate(config, tmp_path)
    given = kernels(build.from_workdir(run).variables["params"])
    for params in (state.params, state.ema["params"]):
        for path, x in kernels(params).items():
            if path in ("fc1/kernel", "fc2/kernel"):
                groups = lambda values: np.abs(values).reshape(-1, 4, values.shape[1])  # noqa: E731
                assert ((groups(x) != 0).sum(1) <= 2).all()
                lost, kept = np.where(x == 0, given[path], 0), np.where(x == 0, np.inf, np.abs(given[path]))
                assert (groups(lost).max(1) <= groups(kept).min(1)).all()
            else:
                assert path == "conv2/kernel" or (x != 0).any()


@pytest.mark.parametrize("mesh", ["fsdp"])
def test_eight_devices_prune_as_one(mesh: str):
    cases = [mesh_cases.Case("pruned", "data", jax.devices()[:1]), mesh_cases.Case("pruned", mesh)]
    (one, losses), (eight, other) = (case.train(case.initialize(), 0, 3) for case in cases)
    np.testing.assert_allclose(losses, other, rtol=1e-4)
    masks = [jax.tree.leaves(optim.masks_of(state.opt_state)) for state in (one, eight)]
    total = sum(x.size for x in masks[0])
    assert sum(int(x.sum()) for x in masks[0]) == sum(int(x.sum()) for x in masks[1]) == total // 2
    # Gradients are added up in another order, so that a few weights near the threshold may differ.
    assert sum(int((np.asarray(a) != np.asarray(b)).sum()) for a, b in zip(*masks, strict=True)) <= 0.002 * total
    hidden = eight.opt_state.hidden["blocks"]["0"]["mlp"]["fc1"]["kernel"]
    assert hidden.sharding == eight.params["blocks"]["0"]["mlp"]["fc1"]["kernel"].sharding


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity": 1.0}, r"prune.sparsity is 1.0, which must be at least 0 and less than 1"),
        ({"sparsity": 0.5, "scope": "layer"}, r"prune.scope is 'layer': "),
        ({"sparsity": 0.5, "masked": "hold"}, r"prune.masked is 'hold': did you mean held"),
        ({"sparsity": 0.5, "every_steps": 0}, r"prune.every_steps is 0, which must be positive"),
        ({"pattern": "2/4"}, r"prune.pattern is '2/4': it takes N:M, such as 2:4"),
        ({"pattern": "4:2"}, r"prune.pattern is '4:2': it takes N:M"),
        ({"pattern": "2:4", "sparsity": 0.8}, r"prune.pattern=2:4 makes 0.5 of the weights zero: leave prune.sparsity"),
        ({"pattern": "2:4", "scope": "global"}, r"prune.scope is 'global', and prune.pattern=2:4"),
        ({"end_epochs": 3.0}, r"prune.end_epochs is set, but nothing is pruned: set prune.sparsity or prune.pattern"),
        ({"sparsity": 0.5, "initial_sparsity": 0.6}, r"prune.initial_sparsity is 0.6, more than the sparsity at the"),
        ({"sparsity": 0.5, "begin_epochs": 2.0, "end_epochs": 1.0}, r"prune.end_epochs is 1.0, before prune.begin"),
    ],
)
def test_fields_that_do_not_go_together(fields: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        config_lib.validate(make_config(**fields), num_devices=1)


def test_pruning_that_is_longer_than_the_run():
    with pytest.raises(
        ConfigError, match=r"Pruning goes from step 0 to step 44, and the run has 12 \(an epoch has 22\)"
    ):
        config_lib.make_plan(make_config(sparsity=0.5, end_epochs=2.0), 1437)
    assert config_lib.make_plan(make_config(sparsity=0.5, begin_epochs=4 / 22), 1437).prune_steps == (4, 8)
    assert config_lib.make_plan(make_config(), 1437).prune_steps == (0, 0)
    assert tuple(make_config().prune.exclude) == (STEM,)
