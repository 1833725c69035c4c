"""What the training program makes of a configuration, without running all of it."""

import dataclasses
import importlib
import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from conftest import Command, image_fields, records
from jax.sharding import PartitionSpec

from vision_jax import build, evaluate, train
from vision_jax import config as config_lib
from vision_jax.data.loader import batch_fields
from vision_jax.data.views import View
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError
from vision_jax.models.resnet import BasicBlock, ResNet
from vision_jax.runtime.checkpoint import Checkpointer


def test_progressive_resizing_compiles_every_size_beforehand():
    config = config_lib.default_config()
    config.batch_size, config.epochs, config.schedule.warmup_epochs = 8, 4.0, 0.0
    config.data.progressive_epochs, config.data.progressive_sizes = (0, 1.5, 3), (8, 16, 8)
    config.data.max_bad_records = 1
    plan = config_lib.make_plan(config, num_examples=80)
    assert plan.train_sizes == ((0, 8), (15, 16), (30, 8))
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:2])
    model = ResNet(block=BasicBlock, depths=(1, 0, 0, 0), num_classes=5, small_stem=True, zero_init_last=False)
    config.data.image_size = 16
    objective = build.make_objective(config, 5, plan)
    objective = dataclasses.replace(objective, setup=dataclasses.replace(objective.setup, model=model))
    program = build.make_program(config, plan, objective, mesh)
    state = program.initialize()
    compiled = build.compile_steps(build.trace_steps(config, plan, program, mesh))
    place = sharding.batch_placer(mesh, 8)
    for size in (8, 16):
        shapes = sharding.abstract_batch(mesh, 8, image_fields(size, replaces=True))
        batch = place({name: np.ones(x.shape, x.dtype) for name, x in shapes.items()})
        state, metrics = compiled(state, batch)
        assert metrics["replaced_records"] == 8
    with pytest.raises(KeyError):  # no other size was compiled, and none is at this time
        compiled(state, {**batch, "image": jax.numpy.ones((8, 24, 24, 3), "uint8")})


def test_the_configuration_reaches_optimizer_schedule_and_groups():
    config = config_lib.default_config()
    config.batch_size, config.epochs, config.schedule.warmup_epochs = 8, 4.0, 1.0
    config.data.image_size, config.data.channels = 16, 1
    config.data.mean, config.data.std = (0.5,), (0.5,)
    config.optimizer.update({"name": "adamw", "learning_rate": 1e-3, "b2": 0.95, "frozen": ("^conv1/",)})
    config.schedule.update({"name": "step", "warmup_factor": 0.1, "milestone_epochs": (2,), "factor": 0.5})
    plan = config_lib.make_plan(config, num_examples=80)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    config.model.name = "lenet5"
    program = build.make_program(config, plan, build.make_objective(config, 5, plan), mesh)
    state = program.initialize()
    assert "conv1" not in str(jax.tree_util.tree_leaves_with_path(state.opt_state))  # no moments are kept
    batch = {"image": jax.numpy.ones((8, 16, 16, 1), "uint8"), "label": jax.numpy.arange(8) % 5}
    batch["mask"] = jax.numpy.ones(8)
    step = jax.jit(program.train_step)
    after, metrics = step(state, batch)
    assert metrics["learning_rate"] == pytest.approx(1e-4)
    assert (after.params["conv1"]["kernel"] == state.params["conv1"]["kernel"]).all()
    # Adam's first step is the learning rate in each direction; the decay of AdamW is times it, 1e-4 * 1e-4 of a weight.
    change = abs(after.params["fc3"]["bias"] - state.params["fc3"]["bias"])
    assert change == pytest.approx(1e-4, rel=1e-3)
    for t, expected in ((5, 0.55e-3), (10, 1e-3), (19, 1e-3), (20, 0.5e-3)):
        metrics = step(state.replace(step=jax.numpy.int32(t)), batch)[1]
        assert metrics["learning_rate"] == pytest.approx(expected)


def test_sizes_with_other_parameters_are_refused(image_folder: pathlib.Path, tmp_path: pathlib.Path):
    config = config_lib.default_config()
    config.model.name, config.batch_size, config.schedule.warmup_epochs = "lenet5", 8, 0.0
    config.data.source, config.data.dir = "folder", str(image_folder)
    config.data.image_size, config.data.eval_resize = 32, 32
    config.data.progressive_epochs, config.data.progressive_sizes = (0, 2), (28, 32)
    with pytest.raises(ConfigError, match="lenet5 has other parameters for images of 28 pixels"):
        train.train_and_evaluate(config, tmp_path / "w")
    config.data.progressive_epochs, config.data.progressive_sizes = (), ()
    config.data.eval_size, config.data.eval_resize = 36, 40
    with pytest.raises(ConfigError, match=r"36 pixels \(data.eval_size\) than for 32"):
        train.train_and_evaluate(config, tmp_path / "w")


@pytest.mark.parametrize("balanced", [False, True])
def test_a_run_with_damaged_records_and_the_rest(
    command: Command, image_folder: pathlib.Path, tmp_path: pathlib.Path, balanced: bool
):
    """Damaged records and a subset, with repeated augmentation or balanced sampling; evaluated on fewer devices."""
    for name in ("ant1", "bee3", "cat5"):
        (image_folder / "train" / name[:3] / f"{name}.jpg").write_bytes(b"")
    config = config_lib.default_config()
    config.model.name, config.batch_size, config.schedule.warmup_epochs = "lenet5", 16, 0.0
    config.total_steps, config.log.every_steps, config.eval.every_steps = 6, 3, 6
    config.log.tensorboard, config.compilation_cache = False, ""
    data = config.data
    data.source, data.dir, data.train_examples = "folder", str(image_folder), 23
    data.image_size, data.eval_crop, data.train_filter = 28, 0.875, "pillow-bicubic"
    data.max_bad_records, data.balanced = 3, balanced
    data.repeats = 1 if balanced else 2
    config.mesh.update({"fsdp": 2, "fsdp_min_size": 1})
    train.train_and_evaluate(config, tmp_path / "w")
    lines = records(tmp_path / "w")
    assert [line["step"] for line in lines] == [3, 6, 6]
    replaced = sum(line.get("train/replaced_records", 0) for line in lines)
    assert replaced > 0
    assert replaced % data.repeats == 0  # copies of a damaged record are replaced alike
    assert lines[-1]["val/count"] == 9
    if balanced:
        printed = command("--mode=eval", f"--workdir={tmp_path / 'w'}")
        assert "The mesh of the training is not for these devices" in printed
        again = json.loads((tmp_path / "w" / "metrics.jsonl").read_text().splitlines()[-1])
        assert again["val/loss"] == pytest.approx(lines[-1]["val/loss"], rel=1e-5)
        _, variables = build.restore_variables(
            Checkpointer(tmp_path / "w" / "checkpoints"), 6, config, sharding.make_mesh(config.mesh)
        )
        assert variables[""]["params"]["fc1"]["kernel"].sharding.spec == PartitionSpec("fsdp", None)


def test_views_of_the_configuration_are_those_of_the_batches():
    config = config_lib.default_config()
    config.batch_size = 4
    config.data.update({"source": "synthetic", "image_size": 16, "crop_scale": (0.5, 1.0), "crop_ratio": (0.9, 1.1)})
    assert build.make_views(config) == (View("image", size=16, scale=(0.5, 1.0), ratio=(0.9, 1.1)),)
    config.data.views = "2x16:0.14-1,3x8"
    views = build.make_views(config)
    assert views[1] == View("view1", size=8, count=3, scale=(0.5, 1.0), ratio=(0.9, 1.1))
    plan, mesh = config_lib.make_plan(config, 80), sharding.make_mesh(config.mesh, jax.devices()[:2])
    source = build.create_source(config, train=True)
    for given, shapes in (
        (None, {"image": (4, 2, 16, 16, 3), "view1": (4, 3, 8, 8, 3)}),
        ((View("small", size=4),), {"small": (4, 4, 4, 3)}),
    ):
        fields = batch_fields(build.make_transform(config, plan, given))
        abstract = sharding.abstract_batch(mesh, 4, fields)
        with build.make_train_loader(config, plan, mesh, source, views=given) as loader:
            placed = sharding.batch_placer(mesh, 4)(loader.start(0)().arrays)
        assert set(placed) == set(abstract)
        for name, array in placed.items():
            assert (array.shape, array.dtype) == (abstract[name].shape, abstract[name].dtype)
            assert array.sharding == abstract[name].sharding
            assert array.sharding.spec == PartitionSpec(("data", "fsdp"))
        assert {name: placed[name].shape for name in shapes} == shapes


def test_all_fields_are_on_their_way_before_one_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    mesh = sharding.make_mesh(config_lib.default_config().mesh, jax.devices()[:2])
    events = []
    make, wait = jax.make_array_from_callback, jax.block_until_ready
    monkeypatch.setattr(jax, "make_array_from_callback", lambda *a: events.append("start") or make(*a))
    monkeypatch.setattr(jax, "block_until_ready", lambda x: events.append("wait") or wait(x))
    rows = {"a": np.arange(4), "b": np.zeros((4, 2), np.uint8), "c": np.ones(4, np.float32)}
    placed = sharding.batch_placer(mesh, 4)(rows)
    assert events == ["start"] * 3 + ["wait"]
    assert all((np.asarray(placed[name]) == values).all() for name, values in rows.items())


def test_the_loop_transfers_nothing_that_it_does_not_ask_for(
    image_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """Steps, saves and evaluations: an implicit transfer would be one that a step waits for."""
    loop = train._loop

    def guarded(*arguments: Any) -> Any:
        with jax.transfer_guard("disallow"):
            return loop(*arguments)

    monkeypatch.setattr(train, "_loop", guarded)
    config = config_lib.default_config()
    config.model.name, config.batch_size, config.schedule.warmup_epochs = "lenet5", 8, 0.0
    config.total_steps, config.log.every_steps, config.eval.every_steps, config.ema_decay = 6, 2, 3, 0.9
    config.guard.update({"nonfinite": "skip", "spike_deviations": 8.0})
    config.data.update({"source": "folder", "dir": str(image_folder), "image_size": 28, "eval_resize": 28})
    config.augment.policy, config.log.tensorboard = "rand-m9-mstd0.5-inc1", False
    train.train_and_evaluate(config, tmp_path / "w")
    assert [line["step"] for line in records(tmp_path / "w")] == [2, 3, 4, 6, 6]


@pytest.mark.parametrize("name", [pytest.param("small_resnet", marks=pytest.mark.exhaustive), "small_vit"])
def test_bfloat16_learns_as_float32_does(name: str):
    """The dtype of every accelerator, with an average, perturbed parameters and a guard in it."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        config = importlib.import_module(name).get_config()
        config.update({"dtype": dtype, "total_steps": 20, "batch_size": 64, "ema_decay": 0.9})
        config.optimizer.sam_rho = 0.02
        config.guard.update({"nonfinite": "skip", "spike_deviations": 10.0})
        plan = config_lib.make_plan(config, 640)
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
        program = build.make_program(config, plan, build.make_objective(config, 4, plan), mesh)
        state, step = program.initialize(), jax.jit(program.train_step, donate_argnums=0)
        random, values = np.random.RandomState(0), []
        for _ in range(20):
            labels = random.randint(0, 4, 64)
            images = random.randint(0, 64, (64, 8, 8, 1)) + 48 * labels[:, None, None, None]
            batch = {
                "image": images.astype(np.uint8),
                "label": labels.astype(np.int32),
                "mask": np.ones(64, np.float32),
            }
            state, metrics = step(state, batch)
            values.append(float(metrics["loss"]))
        losses[dtype] = np.array(values)
        assert float(metrics["skipped_steps"]) == 0
        assert {str(x.dtype) for x in jax.tree.leaves((state.params, state.ema, state.batch_stats))} == {"float32"}
    assert losses["float32"][-1] < 0.8 * losses["float32"][0]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.02)


@pytest.mark.parametrize("workdir", ["gs://bucket/run", pathlib.Path("gs://bucket/run")])
def test_a_url_is_no_workdir(workdir: str | pathlib.Path):
    """A `Path` has one slash left."""
    for function in (
        lambda: train.train_and_evaluate(config_lib.default_config(), workdir),
        lambda: evaluate.evaluate_checkpoint(workdir),
    ):
        with pytest.raises(ConfigError, match=r"^The workdir is 'gs://?bucket/run': URLs are not supported here"):
            function()
