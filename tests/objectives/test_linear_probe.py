"""The linear probe: the step, of a network with batch norm; and a run, from one without labels."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rotation
from conftest import records
from ml_collections import ConfigDict

import vision_jax
from vision_jax import augment, build, recipes, train
from vision_jax import config as config_lib
from vision_jax.devices import sharding
from vision_jax.errors import CheckpointError, ConfigError, DataError
from vision_jax.models.resnet import BasicBlock, ResNet
from vision_jax.objectives import OBJECTIVES, Setup
from vision_jax.objectives.linear_probe import LinearProbe
from vision_jax.runtime.checkpoint import Checkpointer


def test_a_step_equals_its_formula_and_costs_a_forward_pass():
    """The gradient of the classifier by NumPy, from features in evaluation; and what the compiler counts."""
    config = config_lib.default_config()
    config.update({"batch_size": 8, "total_steps": 10})
    config.data.update({"image_size": 8, "eval_resize": 8})
    config.augment.mixup = 0.8
    config.optimizer.update({"momentum": 0.9, "nesterov": True, "decay_rule": "all", "weight_decay": 0.01})
    config.schedule.warmup_epochs = 0.0
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    plan = config_lib.make_plan(config, 64)
    random = np.random.default_rng(0)
    batch = {"image": random.integers(0, 256, (8, 8, 8, 3), np.uint8), "label": np.arange(8, dtype=np.int32)}
    batch["mask"] = np.ones(8, np.float32)
    options = {"zero_init_last": False, "drop_path_rate": 0.5, "head_std": 0.0}  # no branch is dropped
    model = ResNet(block=BasicBlock, depths=(1, 0, 0, 0), num_classes=10, small_stem=True, **options)

    def lowered(name: str) -> tuple[build.Program, jax.stages.Lowered]:
        config.objective.name = name
        objective = build.make_objective(config, 10, plan)
        objective = dataclasses.replace(objective, setup=dataclasses.replace(objective.setup, model=model))
        program = build.make_program(config, plan, objective, mesh)
        return program, jax.jit(program.train_step).lower(program.abstract_state, batch)

    _, training = lowered("classification")
    program, step = lowered("linear_probe")
    assert step.cost_analysis()["flops"] < 0.4 * training.cost_analysis()["flops"]

    state = program.initialize()
    assert sorted(x.size for x in jax.tree.leaves(state.opt_state) if x.size > 1) == [10, 640]
    moved = jax.tree.map(lambda x: x + random.uniform(0.0, 0.1, x.shape).astype(np.float32), state.batch_stats)
    state = state.replace(batch_stats=moved)  # to what this batch does not have
    after, metrics = step.compile(compiler_options={"xla_backend_optimization_level": 0})(state, batch)
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, state.batch_stats)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), after.params, state.params)
    assert {name for name, found in changed.items() if any(jax.tree.leaves(found))} == {"fc"}

    keys = augment.example_keys(config.seed, state.step, 8)
    views = program.objective.views(keys, batch)
    views = program.objective.mix(augment.batch_key(config.seed, state.step, 8), views)
    features = jax.jit(lambda variables, images: model.apply(variables, images, train=False, method="features"))(
        state.variables, views["image"]
    )
    features, targets = np.asarray(features, np.float64), np.asarray(views["target"], np.float64)
    assert ((targets > 0) & (targets < 1)).any()
    assert features.max() > 0.3
    assert float(metrics["loss"]) == pytest.approx(np.log(10), rel=1e-6)  # of a classifier that is zero
    difference = (0.1 - targets) / 8
    # Nesterov's first step is 1.9 times the gradient.
    expected = -0.1 * 1.9 * features.T @ difference
    np.testing.assert_allclose(after.params["fc"]["kernel"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after.params["fc"]["bias"], -0.1 * 1.9 * difference.sum(0), rtol=1e-4, atol=1e-7)


def without_labels_config() -> ConfigDict:
    """The configuration of SimCLR on the digits, with moving averages."""
    config = rotation.get_config()
    config.objective = recipes.objective("simclr", hidden=(64,), out=32, temperature=0.2)
    config.update({"batch_size": 128, "total_steps": 80, "ema_decay": 0.9})
    config.data.views = "2x16:0.3-1"
    config.optimizer.update({"name": "adamw", "learning_rate": 0.005, "momentum": None, "nesterov": None})
    return config


def probe_config(pretrained: str | None) -> ConfigDict:
    """The configuration of a linear probe of 80 steps, on parameters that are divided over devices."""
    config = rotation.get_config()
    config.objective = config_lib.default_config().objective
    config.objective.name = "linear_probe"
    config.model.pretrained = pretrained
    config.update({"ema_decay": None, "total_steps": 80})
    config.checkpoint.best_metric = "val/top1"
    config.mesh.update({"fsdp": 2, "fsdp_min_size": 1})
    return config


@pytest.fixture(scope="module")
def without_labels(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("without_labels") / "w"
    with pytest.MonkeyPatch.context() as patch:
        config = without_labels_config()
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:2])
        patch.setattr(sharding, "make_mesh", lambda sizes: mesh)
        train.train_and_evaluate(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def probe(without_labels: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("probe") / "w"
    train.train_and_evaluate(probe_config(str(without_labels)), workdir)
    return workdir


def test_a_probe_of_a_run_without_labels(without_labels: pathlib.Path, probe: pathlib.Path, tmp_path: pathlib.Path):
    """It learns more than that of random weights; and but for the classifier, not a bit changes."""
    train.train_and_evaluate(probe_config(None), tmp_path / "w")
    learned, random = (records(workdir)[-1]["val/top1"] for workdir in (probe, tmp_path / "w"))
    assert learned > random + 0.2
    before, after = (Checkpointer(w / "checkpoints").about(80)["arrays"] for w in (without_labels, probe))
    for layer in ("conv1", "conv2", "fc1", "fc2"):
        for kind in ("kernel", "bias"):
            path = f"params/{layer}/{kind}"
            assert after[f"model/{path}"] == before[f"model/ema/{path}"], path
    momenta = [name for name, about in after.items() if not name.startswith("model/") and about[0]]
    assert len(momenta) == 2
    assert all("/fc3/" in name for name in momenta)


def test_which_weights_of_a_run_are_taken(without_labels: pathlib.Path, probe: pathlib.Path):
    config = probe_config(str(without_labels))
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:2])
    objective = build.make_objective(config, 10)
    checkpointer = Checkpointer(without_labels / "checkpoints")
    _, theirs = build.restore_variables(checkpointer, 80, without_labels_config(), mesh)
    for average, prefix in ((None, "ema_"), (True, "ema_"), (False, "")):
        config.model.pretrained_average = average
        given = build.load_initial(config, objective, [], mesh)
        jax.tree.map(np.testing.assert_array_equal, given["params"], theirs[prefix]["params"])
    different = jax.tree.map(lambda a, b: bool((a != b).any()), theirs[""]["params"], theirs["ema_"]["params"])
    assert all(jax.tree.leaves(different))

    config.model.update({"pretrained": str(probe), "pretrained_average": True})
    with pytest.raises(CheckpointError, match="keeps no moving averages: leave"):
        build.load_initial(config, objective, [], mesh)
    config.model.pretrained_average = None
    # A probe does not take the classifier of a run with the same classes; another training does.
    names = [str(i) for i in range(10)]
    assert not build.load_initial(config, objective, names, mesh)["params"].get("fc3")
    config.objective.name = None
    assert build.load_initial(config, build.make_objective(config, 10), names, mesh)["params"]["fc3"]


def test_a_method_begins_with_the_heads_of_its_own_runs_alone(
    without_labels: pathlib.Path, probe: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    """Projectors of SimCLR and Barlow Twins have the same names, and in part the same shapes."""
    caplog.set_level("INFO", "vision_jax")
    config = without_labels_config()
    config.model.pretrained = str(without_labels)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    plan = config_lib.make_plan(config, 1437)

    def begin(name: str, **options: Any) -> dict[str, Any]:
        caplog.clear()
        config.objective = recipes.objective(name, **options)
        return build.load_initial(config, build.make_objective(config, 10, plan), [], mesh)

    given = begin("simclr", hidden=(64,), out=32)
    checkpointer = Checkpointer(without_labels / "checkpoints")
    _, theirs = build.restore_variables(checkpointer, 80, without_labels_config(), mesh)
    jax.tree.map(np.testing.assert_array_equal, given, theirs["ema_"])
    assert "projector" in given["params"]
    assert "only its backbone" not in caplog.text
    with pytest.raises(DataError, match=r"do not fit, such as params/projector/\S+ is missing"):
        begin("simclr", hidden=(64, 64), out=32)
    with pytest.raises(DataError, match=r"projector/3/kernel has the shape \(64, 32\), not \(64, 16\)"):
        begin("simclr", hidden=(64,), out=16)

    for options in ({"hidden": (64,), "out": 32}, {"hidden": (48,), "out": 16}):
        given = begin("barlow_twins", **options)
        assert "is a run of simclr, not of barlow_twins: only its backbone is used" in caplog.text
        assert set(given["params"]) == {"conv1", "conv2", "fc1", "fc2"}
        assert not given["batch_stats"]
    config.model.pretrained = str(probe)
    begin("simclr", hidden=(64,), out=32)
    assert "is a run of linear_probe, not of simclr" in caplog.text
    assert {record.levelname for record in caplog.records if "only its backbone" in record.message} == {"INFO"}


def test_a_probe_of_random_weights_is_told(caplog: pytest.LogCaptureFixture):
    config = probe_config(None)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:2])
    assert build.load_initial(config, build.make_objective(config, 10), [], mesh) is None
    assert "the classifier learns from the features of random weights" in caplog.text


def test_models_with_several_classifiers_are_refused():
    model = vision_jax.create_model("deit_tiny_distilled_patch16_224")
    with pytest.raises(ConfigError, match="trains one classifier of pooled features, and the model has several"):
        LinearProbe(setup=Setup(model, (224, 224, 3), (0.5,), (0.5,)))
    assert OBJECTIVES["linear_probe"] is LinearProbe


def test_the_rules_of_a_model_that_scans_over_its_blocks():
    """And whose classifier has a norm, which has no parameters, and which weights of others do not have."""
    config = config_lib.default_config()
    config.model.update({"name": "vit_tiny_patch16_224", "scan_blocks": True, "norm_before_head": True})
    config.objective.name = "linear_probe"
    plan = config_lib.make_plan(config, 1000)
    objective = build.make_objective(config, 5, plan)
    program = build.make_program(config, plan, objective, sharding.make_mesh(config.mesh, jax.devices()[:1]))
    rows = program.rules.table(build.abstract_variables(objective)["params"])
    assert [row.path for row in rows if not row.frozen] == ["head/bias", "head/kernel"]
    model = objective.setup.model.clone(norm_before_head=False, num_classes=0)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    given = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    state = jax.eval_shape(program.initialize, given)
    assert state.batch_stats["head_norm"]["mean"].shape == (192,)
    assert state.params["head"]["kernel"].shape == (192, 5)
