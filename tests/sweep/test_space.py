"""What may be searched: how it is written, and what is refused before anything begins."""

import json
import pathlib

import numpy as np
import pytest
from conftest import REPOSITORY

from vision_jax.config import command_line
from vision_jax.errors import ConfigError
from vision_jax.sweep import plan, space

CONFIG = str(REPOSITORY / "configs" / "quickstart.py")


def make(*settings: str, overrides: tuple[str, ...] = (), **fields) -> plan.Search:
    return plan.Search(CONFIG, overrides, space.read(None, settings), "val/top1", higher=True, **fields)


def test_the_points_of_a_grid_are_those_of_numpy():
    found = space.read(
        None, ["a=log:0.001:10:5", "b=uniform:-1:1:4", "c=int:2:9:3", "d=choice:(0, 1),x,[2,3]", "--config.e=int:0:1"]
    )
    np.testing.assert_allclose(found[0].grid(), np.geomspace(0.001, 10, 5))
    np.testing.assert_allclose(found[1].grid(), np.linspace(-1, 1, 4))
    assert found[0].grid()[-1] == 10  # and not beyond it
    assert found[2].grid() == [2, 5, 8]
    assert found[2].ends() == [2, 8]
    assert found[3].grid() == ["(0, 1)", "x", "[2,3]"]
    points = plan.grid(found[2:])
    assert len(points) == 3 * 3 * 2
    assert points[1] == {"c": 2, "d": "(0, 1)", "e": 1}
    assert len({json.dumps(point) for point in points}) == len(points)


def test_a_file_has_the_same_and_lists(tmp_path: pathlib.Path):
    path = tmp_path / "space.json"
    path.write_text(
        json.dumps({"optimizer.learning_rate": "log:0.01:1", "optimizer.nesterov": [True, False], "data.mean": [[0.1]]})
    )
    rate, nesterov, mean = space.read(str(path), [])
    assert rate == space.parse("optimizer.learning_rate", "log:0.01:1")
    assert nesterov.ends() == ["True", "False"]
    assert mean.ends() == ["(0.1,)"]
    config = command_line.load(CONFIG, [f"--config.data.mean={mean.ends()[0]}", "--config.optimizer.nesterov=False"])
    assert config.data.mean == (0.1,)
    assert config.optimizer.nesterov is False
    with pytest.raises(ConfigError, match=r"optimizer\.nesterov is in the search space twice"):
        space.read(str(path), ["optimizer.nesterov=choice:True"])
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="which must be an object such as"):
        space.read(str(path), [])
    path.write_text("{")
    with pytest.raises(ConfigError, match="which is not JSON"):
        space.read(str(path), [])
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        space.read(str(tmp_path / "none.json"), [])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.learning_rate", "give FIELD=SPACE"),
        ("a=0.1", "The search space of a is '0.1': give log:"),
        ("a=log:0.1", "log takes two or three numbers"),
        ("a=log:0.1:1:2:3", "log takes two or three numbers"),
        ("a=log:0.1:nan", "log takes two or three numbers"),
        ("a=log:0:1", "numbers that have logarithms are above 0"),
        ("a=log:1:0.1", "the first number must be less"),
        ("a=log:0.1:one", "could not convert string to float: 'one'"),
        ("a=int:1:2.5", "invalid literal for int"),
        ("a=int:1:9:0", "a step is 1 or more"),
        ("a=uniform:0:1:1", "a grid has 2 points or more"),
        ("a=choice:x,,y", "of which a value is empty"),
        ("a=choice:x,y,x", "which has x twice"),
    ],
)
def test_what_is_no_space(setting: str, message: str):
    with pytest.raises(ConfigError, match=message):
        space.read(None, [setting])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.learning_rat=log:0.1:1", "is no field of the configuration: did you mean optimizer.learning_rate"),
        ("optimizer=choice:a,b", "optimizer cannot be searched as a whole: give a field of it, such as optimizer."),
        ("batch_size=log:8:64", r"batch_size is an integer, and its search space is log:8:64: give int:8:64"),
        ("optimizer.nesterov=int:0:1", r"optimizer.nesterov is True or False, .*give choice:"),
        ("data.mean=uniform:0:1", "data.mean is no single number"),
        ("batch_size=choice:64,many", "batch_size=many cannot work: .*many"),
        ("optimizer.name=choice:sgd,sdg", "optimizer.name=sdg cannot work: .*did you mean sgd"),
        ("label_smoothing=uniform:0:2", "label_smoothing=2.0 cannot work: .*label_smoothing is 2.0"),
        ("ema_decay=choice:0.9", "--config.ema_decay=0.5 sets a field that is searched"),
    ],
)
def test_what_no_run_could_use_is_refused_at_once(setting: str, message: str):
    with pytest.raises(ConfigError, match=r"(?s)" + message):
        plan.check(make(setting, overrides=("--config.ema_decay=0.5",)))


def test_values_that_need_other_values_are_not_refused():
    """SGD takes no betas, and AdamW no momentum: either can work, so both are searched."""
    plan.check(
        make(
            "optimizer.name=choice:sgd,adamw",
            "optimizer.momentum=choice:0.9,None",
            overrides=("--config.optimizer.nesterov=None",),
        )
    )
    with pytest.raises(ConfigError, match=r"optimizer\.name=adamw cannot work"):
        plan.check(make("optimizer.name=choice:sgd,adamw", "optimizer.momentum=choice:0.9,0.8"))


def test_a_grid_needs_points():
    with pytest.raises(ConfigError, match=r"log:0\.1:1, which a grid needs a number of points for: log:0\.1:1:5"):
        plan.grid(make("optimizer.learning_rate=log:0.1:1").space)


def test_the_direction_of_a_metric():
    config = command_line.load(CONFIG)
    assert plan.find_direction(config, "val/ema_top1", None) is True
    assert plan.find_direction(config, "val/loss", None) is False
    assert plan.find_direction(config, "val/loss", "max") is True
    assert plan.find_direction(config, "train/loss", None) is False
    with pytest.raises(ConfigError, match=r"--direction=max or --direction=min"):
        plan.find_direction(config, "train/mfu", None)
    with pytest.raises(ConfigError, match="did you mean val/top1"):
        plan.find_direction(config, "vall/top1", None)
