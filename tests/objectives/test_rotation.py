import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rotation as recipe
from conftest import records

import vision_jax
from vision_jax import build, recipes, train
from vision_jax import config as config_lib
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError, DataError
from vision_jax.objectives import OBJECTIVES, Setup
from vision_jax.objectives.rotation import Rotation
from vision_jax.runtime.checkpoint import Checkpointer

SHAPE = (16, 16, 1)


def objective() -> Rotation:
    model = vision_jax.create_model("lenet5", num_classes=0)
    return Rotation(setup=Setup(model, SHAPE, (0.3,), (0.35,)))


def test_the_loss_equals_its_formula():
    """All four rotations of each image, by NumPy; and a row that does not count in an evaluation."""
    mine = objective()
    variables = jax.jit(lambda: build.initialize(mine, jax.random.key(0)))()
    assert variables["params"].keys() == {"conv1", "conv2", "fc1", "fc2", "rotation"}
    images = np.random.RandomState(0).randint(0, 256, (3, *SHAPE)).astype(np.uint8)
    mask = np.array([1, 1, 0], np.float32)
    views = mine.views(jax.random.split(jax.random.key(1), 3), {"image": images, "label": None, "mask": mask})
    assert views["image"].shape == (3, 4, *SHAPE)

    losses, hits = [], []
    for image in images:
        for angle in range(4):
            turned = (np.rot90(image, angle) / 255 - 0.3) / 0.35
            features = mine.setup.model.apply(variables, turned[None].astype(np.float32), train=False)
            head = variables["params"]["rotation"]
            logits = np.asarray(features @ head["kernel"] + head["bias"], np.float64)[0]
            losses.append(np.log(np.exp(logits).sum()) - logits[angle])
            hits.append(logits.argmax() == angle)
    progress = mine.progress(jnp.int32(0))
    out = mine.loss(variables, views, (), jax.random.key(2), progress, train=True)
    assert float(out.weight) == 12
    assert float(out.loss) == pytest.approx(sum(losses), rel=1e-5)
    out = mine.loss(variables, views, (), jax.random.key(2), progress, train=False)
    assert float(out.weight) == 8
    assert float(out.loss) == pytest.approx(sum(losses[:8]), rel=1e-5)
    assert float(out.metrics["top1"][0]) == sum(hits[:8])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run on the digits, on two devices, stopped on the way and continued."""
    workdir = tmp_path_factory.mktemp("rotation") / "w"
    config = recipe.get_config()
    with pytest.MonkeyPatch.context() as patch:
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:2])
        patch.setattr(sharding, "make_mesh", lambda sizes: mesh)
        train.train_and_evaluate(config, workdir)
    return workdir


@pytest.mark.exhaustive
def test_the_digits_are_turned_upright(run: pathlib.Path):
    """Chance is a quarter; some digits look the same upside down."""
    lines = records(run)
    evaluations = [line for line in lines if "val/count" in line]
    assert [line["step"] for line in evaluations] == [80, 160]
    assert evaluations[-1]["val/count"] == 360
    assert evaluations[-1]["val/top1"] > 0.5
    assert evaluations[-1]["val/loss"] < evaluations[0]["val/loss"]
    assert {"val/ema_loss", "val/ema_top1"} <= evaluations[-1].keys()
    assert "val/top5" not in evaluations[-1]
    assert all(
        {"train/loss", "train/top1", "train/grad_norm"} <= line.keys() for line in lines if "val/count" not in line
    )


def test_another_run_starts_from_it(run: pathlib.Path):
    """With its averages, without its head, and with a new classifier; and it is refused for another model."""
    config = recipe.get_config()
    config.objective = config_lib.default_config().objective
    config.model.pretrained, config.checkpoint.best_metric = str(run), "val/top1"
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    plan = config_lib.make_plan(config, 1437)
    labels = build.make_objective(config, 10, plan)
    program = build.make_program(config, plan, labels, mesh)
    state = program.initialize(build.load_initial(config, labels, [str(i) for i in range(10)], mesh))
    _, theirs = build.restore_variables(Checkpointer(run / "checkpoints"), 160, recipe.get_config(), mesh)
    random = program.initialize()
    for name in ("conv1", "conv2", "fc1", "fc2"):
        np.testing.assert_array_equal(state.params[name]["kernel"], theirs["ema_"]["params"][name]["kernel"])
    np.testing.assert_array_equal(state.params["fc3"]["kernel"], random.params["fc3"]["kernel"])
    assert "rotation" not in state.params
    jax.tree.map(np.testing.assert_array_equal, state.ema["params"], state.params)

    config.data.image_size = 28  # where the first dense layer sees more
    labels = build.make_objective(config, 10, plan)
    program, given = build.make_program(config, plan, labels, mesh), build.load_initial(config, labels, [], mesh)
    with pytest.raises(DataError, match=r"fc1/kernel has the shape \(16, 120\) in the weights, and \(256, 120\) here"):
        program.initialize(given)

    config.model.name = "resnet18"
    labels = build.make_objective(config, 10, plan)
    with pytest.raises(DataError, match=r"is a run of lenet5, and this is resnet18: 100 of its 100 arrays are missing"):
        build.load_initial(config, labels, [], mesh)


def test_options_are_those_of_the_dataclass():
    def problems(**fields: object) -> str:
        config = recipe.get_config()
        with config.unlocked():
            config.objective.update(fields)
        with pytest.raises(ConfigError) as caught:
            config_lib.validate(config, 1)
        return str(caught.value)

    assert "objective.angles is no option of Rotation: there are: name" in problems(angles=3)
    assert "objective.name is 'rotations': did you mean rotation" in problems(name="rotations")
    assert "objective.class_weights is set, but classification has its options in" in problems(
        name="classification", class_weights=(1.0,)
    )
    with pytest.raises(ConfigError, match="'angles' is no option of rotation"):
        recipes.objective("rotation", angles=3)
    with pytest.raises(ConfigError, match="no objective 'rotations'"):
        recipes.objective("rotations")


def test_a_stored_configuration_has_its_objective_and_evaluations():
    config = recipe.get_config()
    with config.unlocked():
        config.evals = {"val": {"kind": "objective", "every_epochs": 2.0}}
    again = config_lib.from_dict(json.loads(config_lib.to_json(config)))
    assert again.to_dict() == config.to_dict()
    changed, _ = config_lib.differences(config_lib.default_config(), config)
    assert "objective.name: None -> 'rotation'" in changed


def test_objectives_are_plain_data():
    """So they can be compared, hashed and replaced: what they compute is up to their fields alone."""
    for kind in OBJECTIVES.values():
        assert dataclasses.is_dataclass(kind)
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert objective() == objective()
    assert len({objective(), objective()}) == 1
