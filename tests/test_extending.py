"""The files of docs/extending.md, as they stand there: each trains, and the run is used with it."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY, Command, records
from ml_collections import ConfigDict

from vision_jax import augment, build, evaluate, recipes, train
from vision_jax.commands import export
from vision_jax.data.sources import OWN_SOURCES
from vision_jax.errors import ConfigError
from vision_jax.models import registry
from vision_jax.objectives import OBJECTIVES

TEXT = (REPOSITORY / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```\n", TEXT, re.DOTALL))


@pytest.fixture(autouse=True)
def nothing_remains(monkeypatch: pytest.MonkeyPatch):
    """What a file registers is forgotten after each test."""
    for known in (registry._MODELS, registry._ALIASES, OWN_SOURCES, OBJECTIVES, augment.POLICIES):
        for name in ("two_convolutions", "shapes", "focal", "speckle"):
            monkeypatch.delitem(known, name, raising=False)
            monkeypatch.setitem(known, name, None)
            monkeypatch.delitem(known, name)


def read(name: str, directory: pathlib.Path) -> ConfigDict:
    """Returns the configuration of a file of the page, for two steps."""
    (directory / name).write_text(FILES[name])
    config = recipes.load(str(directory / name))
    config.total_steps, config.schedule.warmup_epochs = 2, 0.0
    config.log.tensorboard = False
    return config


def test_all_are_tested():
    assert sorted(FILES) == ["my_augmentation.py", "my_data.py", "my_model.py", "my_objective.py"]
    assert TEXT.count("```python") == len(FILES)


@pytest.mark.slow
def test_a_model(
    command: Command, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    config = read("my_model.py", tmp_path)
    workdir, file = tmp_path / "run", tmp_path / "my_model.py"
    state = train.train_and_evaluate(config, workdir)
    assert state.params["conv1"]["kernel"].shape == (5, 5, 1, 32)
    trained = records(workdir)[-1]
    recipes.load(str(file))  # a file may be read again
    with pytest.raises(ConfigError, match="There is a model 'resnet50' already: register yours by another name"):
        registry.register("resnet50", registry.entry("two_convolutions").create)
    assert evaluate.evaluate_checkpoint(workdir, config=config)[1]["val/top1"] == trained["val/top1"]

    # The weights have names in no other library, and the program is checked against JAX.
    assert export.main(["--format=timm", f"--workdir={workdir}", str(tmp_path / "x.safetensors")]) == 1
    printed = capsys.readouterr().err
    assert "timm has no two_convolutions, and so no names for its weights." in printed
    assert "--format=onnx" in printed
    monkeypatch.delitem(registry._MODELS, "two_convolutions")
    arguments = ["--format=stablehlo", f"--workdir={workdir}", str(tmp_path / "x.stablehlo")]
    assert export.main(arguments) == 1
    assert "model.name=two_convolutions, which this package does not have. If its" in capsys.readouterr().err
    assert export.main([*arguments, f"--config={file}"]) == 0
    assert (tmp_path / "x.stablehlo").exists()

    printed = command("--mode=eval", f"--workdir={workdir}", status=1)
    assert "If its config file registers it, pass that: --config=FILE." in printed
    assert f"{trained['val/top1']:.2%}" in command("--mode=eval", f"--workdir={workdir}", f"--config={file}")


def test_a_data_set(tmp_path: pathlib.Path):
    config = read("my_data.py", tmp_path)
    source = build.create_source(config, train=True)
    assert (len(source), source.class_names) == (512, ("disk", "square"))
    assert source[3] == source[3]
    train.train_and_evaluate(config, tmp_path / "run")
    assert records(tmp_path / "run")[-1]["val/count"] == 64
    config.data.source = "shape"
    with pytest.raises(ConfigError, match=re.escape("data.source is 'shape': did you mean shapes")):
        train.check_input(config)


def test_an_augmentation(tmp_path: pathlib.Path):
    config = read("my_augmentation.py", tmp_path)
    policy = augment.create_policy("speckle-m0.2")
    image = np.full((100, 100, 1), 7, np.uint8)
    seen = np.asarray(jax.jit(policy)(jax.random.key(0), image))
    for value, share in ((7, 0.8), (0, 0.1), (255, 0.1)):
        assert np.mean(seen == value) == pytest.approx(share, abs=0.02)
    keys = jax.random.split(jax.random.key(1), 400)
    changed = jax.vmap(lambda key: (augment.create_policy("speckle-p0.5")(key, image[:9, :9]) != 7).any())(keys)
    assert changed.mean() == pytest.approx(0.5, abs=0.1)
    assert build.make_objective(config, 10).setup.augmentation.config.policy == "speckle-p0.5-m0.05"
    train.train_and_evaluate(config, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"m takes a number from 0\.0 to 1\.0, not 2"):
        augment.create_policy("speckle-m2")


def test_an_objective(tmp_path: pathlib.Path):
    config = read("my_objective.py", tmp_path)
    objective = build.make_objective(config, 10)
    logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 0.1, 0.3]])
    targets = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    p = np.exp([2.0, 0.3]) / np.exp(np.asarray(logits)).sum(1)
    for gamma in (0.0, 2.0):
        loss, weight = dataclasses.replace(objective, gamma=gamma).label_loss(logits, (), targets, None)
        assert float(loss) == pytest.approx(float((-((1 - p) ** gamma) * np.log(p)).sum()), rel=1e-5)
        assert float(weight) == 2
    train.train_and_evaluate(config, tmp_path / "run")
    assert 0 < records(tmp_path / "run")[0]["train/loss"] < 2.4
    with config.unlocked():
        config.objective.gama = 1.0
    with pytest.raises(ConfigError, match=re.escape("objective.gama is no option of Focal: did you mean gamma")):
        train.check_input(config)
