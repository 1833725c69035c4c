"""Weights to and from torch: files, adaptation, errors, and the way from a run to a file and back."""

import json
import logging
import pathlib

import jax
import numpy as np
import pytest
import reference
import safetensors.numpy
from conftest import Command, records

from vision_jax import config as config_lib
from vision_jax import evaluate, pretrained
from vision_jax.commands import export
from vision_jax.errors import ConfigError, DataError


@pytest.fixture(scope="module", name="state")
def resnet18() -> dict[str, np.ndarray]:
    return reference.load("timm.resnet18")[0]


def assert_same(a: object, b: object) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_files_of_all_kinds(state: dict[str, np.ndarray], tmp_path: pathlib.Path):
    expected = pretrained.from_torch("resnet18", state)
    safetensors.numpy.save_file(state, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **state)
    for file in ("a.safetensors", "a.npz"):
        assert_same(pretrained.load("resnet18", tmp_path / file), expected)
    half = {key: value.astype(jax.numpy.bfloat16) for key, value in state.items()}
    # A file of halves, written by hand: NumPy has no bfloat16, so that its writer refuses.
    (tmp_path / "half.safetensors").write_bytes(safetensors_file(half))
    loaded = pretrained.load("resnet18", tmp_path / "half.safetensors")
    assert_same(loaded, jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16).astype(np.float32), expected))


def safetensors_file(tensors: dict[str, np.ndarray]) -> bytes:
    """By the format's definition: the length of the header, the header, the data."""
    header, data = {}, b""
    for key, value in tensors.items():
        header[key] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [len(data), len(data) + 2 * value.size]}
        data += value.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_the_hub_is_read_from_its_cache_without_a_network(
    state: dict[str, np.ndarray], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    snapshot = tmp_path / "models--timm--resnet18.made_up" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    safetensors.numpy.save_file(state, snapshot / "model.safetensors")
    (tmp_path / "models--timm--resnet18.made_up" / "refs").mkdir()
    (tmp_path / "models--timm--resnet18.made_up" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loaded = pretrained.load("resnet18", "hf://timm/resnet18.made_up")
    assert_same(loaded, pretrained.from_torch("resnet18", state))
    with pytest.raises(DataError, match=r"hf://timm/nothing could not be downloaded"):
        pretrained.load("resnet18", "hf://timm/nothing")


def test_wrappers_and_counters_are_seen_through(state: dict[str, np.ndarray]):
    wrapped = {f"module.{key}": value for key, value in state.items()}
    wrapped["module.bn1.num_batches_tracked"] = np.array(7)
    assert_same(pretrained.from_torch("resnet18", wrapped), pretrained.from_torch("resnet18", state))


def test_what_does_not_fit_is_named_in_one_line(state: dict[str, np.ndarray]):
    broken = dict(state, extra=np.zeros(3), **{"fc.weight": state["fc.weight"][:, :5]})
    del broken["layer1.0.conv1.weight"], broken["bn1.running_mean"]
    with pytest.raises(DataError) as raised:
        pretrained.from_torch("resnet18", broken)
    message = str(raised.value)
    for part in (
        "2 missing (",
        "layer1.0.conv1.weight (64, 64, 3, 3)",
        "bn1.running_mean (64,)",
        "1 left over (extra (3,))",
        "1 of another shape (fc.weight (1000, 5), not (1000, 512))",
    ):
        assert part in message
    assert "\n" not in message


def test_adaptation_on_request(state: dict[str, np.ndarray], caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "vision_jax")
    whole = pretrained.from_torch("resnet18", state)
    ten = {**state, "fc.weight": state["fc.weight"][:10], "fc.bias": state["fc.bias"][:10]}
    with pytest.raises(DataError, match=r"fc.bias \(10,\), not \(1000,\)"):
        pretrained.from_torch("resnet18", ten)
    assert not caplog.text
    pretrained.from_torch("resnet18", ten, num_classes=10)  # nothing needs to change
    assert not caplog.text

    new = pretrained.from_torch("resnet18", state, num_classes=10, in_channels=1)
    assert "the classifier is new, for 10 classes (fc.bias (1000,) -> (10,), fc.weight (1000, 512)" in caplog.text
    assert "conv1.weight is adapted to 1 channels" in caplog.text
    assert new["params"]["fc"]["kernel"].shape == (512, 10)
    assert np.std(new["params"]["fc"]["kernel"]) == pytest.approx((1 / 3 / 512) ** 0.5, rel=0.1)
    np.testing.assert_allclose(
        new["params"]["conv1"]["kernel"], whole["params"]["conv1"]["kernel"].sum(2, keepdims=True)
    )
    assert_same(new["params"]["layer4"], whole["params"]["layer4"])
    other = pretrained.from_torch("resnet18", state, num_classes=10, classifier_seed=1)
    assert (other["params"]["fc"]["kernel"] != new["params"]["fc"]["kernel"]).any()
    with pytest.raises(DataError, match="the weights have 1000 classes of unknown names, and the model 10"):
        pretrained.from_torch("resnet18", state, num_classes=10, classifier_seed=None)

    # A grey image in every channel gives what the RGB kernels give.
    four = pretrained.from_torch("resnet18", state, in_channels=4)["params"]["conv1"]["kernel"]
    np.testing.assert_allclose(four[:, :, 3], whole["params"]["conv1"]["kernel"][:, :, 0] * 0.75, rtol=1e-6)
    assert four.shape == (7, 7, 4, 64)

    headless = pretrained.from_torch("resnet18", state, num_classes=0)
    assert "left out, because the model has no such head: fc.bias, fc.weight" in caplog.text
    assert "fc" not in headless["params"]


def test_unknown_libraries(state: dict[str, np.ndarray]):
    variables = pretrained.from_torch("resnet18", state)
    assert pretrained.to_torch("resnet18", variables, library="torchvision").keys() == state.keys()
    with pytest.raises(ConfigError, match="library is 'keras'"):
        pretrained.to_torch("resnet18", variables, library="keras")
    with pytest.raises(ConfigError, match="timm has no lenet5"):
        pretrained.to_torch("lenet5", variables, library="timm")


FINE_TUNE = (
    "--config=configs/quickstart.py",
    *("--config.model.name=vit_tiny_patch16_224", "--config.model.scan_blocks=True", "--config.data.image_size=32"),
    *("--config.data.eval_resize=32", "--config.total_steps=2", "--config.batch_size=8"),
    *("--config.schedule.warmup_epochs=0", "--config.log.every_steps=1", "--config.eval.every_steps=2"),
)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_from_a_run_to_a_file_and_back(command: Command, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture):
    """Exported, the weights evaluate to the same numbers, and start another training."""
    workdir, file = tmp_path / "run", tmp_path / "a.safetensors"
    command(*FINE_TUNE, f"--workdir={workdir}")
    exporting = ("--workdir", str(workdir), str(file))
    assert "vit_tiny_patch16_224, step 2, ema weights, 10 classes" in command("export", *exporting, module="vision_jax")
    assert "blocks.11.attn.qkv.weight" in safetensors.numpy.load_file(file)
    assert export.main(list(exporting)) == 1
    assert "is there already" in capsys.readouterr().err
    assert export.main(["--format=torchvision", "--workdir", str(workdir), str(tmp_path / "b.safetensors")]) == 1
    assert "torchvision has no vit_tiny_patch16_224" in capsys.readouterr().err
    assert not list(tmp_path.glob("*b.safetensors*"))
    assert "vit_tiny_patch16_224" in (tmp_path / "a.safetensors.md").read_text()

    trained = records(workdir)[-1]
    weights = f"--config.model.pretrained={file}"
    again = command(*FINE_TUNE, weights, f"--workdir={tmp_path / 'again'}", "--config.optimizer.learning_rate=1e-9")
    assert "Weights: " in again
    tuned = records(tmp_path / "again")[-1]
    assert tuned["val/loss"] == pytest.approx(trained["val/ema_loss"], rel=1e-4)

    config = config_lib.from_dict(json.loads((workdir / "config.json").read_text()))
    config.model.pretrained, config.compilation_cache = str(file), ""
    results = evaluate.evaluate_pretrained(config)
    assert results["val/top1"] == trained["val/ema_top1"]
    assert results["val/loss"] == pytest.approx(trained["val/ema_loss"], rel=1e-5)
    config.model.num_classes = 11  # which would need a new classifier
    with pytest.raises(DataError, match="the data has 10 classes, and the model 11"):
        evaluate.evaluate_pretrained(config)
