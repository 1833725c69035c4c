"""Layouts and meshes: that they are as the rules say, and that a step's results do not depend on them."""

import functools
import json
import re
from types import SimpleNamespace

import jax
import mesh_cases
import numpy as np
import optax
import pytest
from conftest import Command, image_fields, launch
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from mesh_cases import BATCH_SIZE, MESHES, STEPS, Case

from vision_jax import build
from vision_jax import config as config_lib
from vision_jax.devices import compilation, partition, sharding
from vision_jax.errors import ConfigError


def axes_of(num_devices: int, **sizes: int) -> dict[str, int]:
    config = config_lib.default_config()
    config.mesh.update(sizes)
    return sharding.mesh_axes(config.mesh, num_devices)


def test_sizes_of_axes():
    assert axes_of(8) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert axes_of(8, data=2, fsdp=-1, tensor=2) == {"data": 2, "fsdp": 2, "tensor": 2}
    for sizes, message in (
        ({"data": 4}, "make 4 devices, but there are 8: set one of the axes to -1"),
        ({"tensor": 3}, "make a multiple of 3 devices, but there are 8"),
        ({"fsdp": -1}, "except for one of -1"),
        ({"fsdp": 0}, "sizes must be positive"),
    ):
        with pytest.raises(ConfigError, match=message):
            axes_of(8, **sizes)


def test_axes_cross_slices_from_the_first_on():
    assert sharding.split_axes((8, 1, 1), 2) == ((4, 1, 1), (2, 1, 1))
    assert sharding.split_axes((2, 4, 2), 4) == ((1, 2, 2), (2, 2, 1))
    with pytest.raises(ConfigError, match="A mesh of 4 x 1 x 4 devices cannot be made of 6 slices"):
        sharding.split_axes((4, 1, 4), 6)


def test_last_axes_stay_within_a_slice():
    """Two slices of four devices, as those of TPUs say of themselves, in an order that mixes them."""
    devices = [SimpleNamespace(id=i, slice_index=i % 2, process_index=i // 4, platform="cpu") for i in range(8)]
    for device in devices:
        device.device_kind = "none"
    config = config_lib.default_config()
    config.mesh.update({"data": -1, "fsdp": 2, "tensor": 2})
    array = sharding.device_array(config.mesh, devices)
    assert array.shape == (2, 2, 2)
    assert [{device.slice_index for device in part.flat} for part in array] == [{0}, {1}]


SIZES = {"data": 2, "fsdp": 4, "tensor": 2}


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("head/kernel", (512, 1000), P(None, "fsdp")),  # the largest dimension
        ("head/kernel", (512, 1001), P("fsdp", None)),  # that 4 divides
        ("head/kernel", (511, 1001), P()),
        ("norm/scale", (1024,), P()),  # too small
        ("blocks/3/attn/qkv/kernel", (512, 1536), P("tensor", "fsdp")),
        ("blocks/attn/qkv/kernel", (12, 512, 1536), P(None, "tensor", "fsdp")),  # stacked
        ("blocks/3/attn/proj/kernel", (512, 512), P("tensor", "fsdp")),
        ("decoder/blocks/attn/proj/kernel", (4, 512, 512), P(None, "tensor", "fsdp")),  # a head with blocks of its own
        ("projector/0/kernel", (512, 2048), P(None, "fsdp")),
        ("blocks/3/mlp/fc1/kernel", (512, 2048), P("fsdp", "tensor")),
        ("blocks/3/mlp/fc1/kernel", (512, 2049), P("fsdp", None)),
        ("blocks/3/mlp/fc1/bias", (2048,), P("tensor")),
        ("blocks/3/mlp/fc2/kernel", (2048, 512), P("tensor", "fsdp")),
        ("blocks/3/mlp_tokens/fc2/kernel", (256, 196), P("tensor", None)),
        ("layers/0/blocks/0/attn/qkv/kernel", (512, 1536), P(None, "fsdp")),  # a Swin's heads are not divided
    ],
)
def test_layouts_by_default(path: str, shape: tuple[int, ...], spec: P):
    assert partition.Rules(SIZES).spec(path, shape) == spec
    assert partition.Rules({"data": 8, "fsdp": 1, "tensor": 1}).spec(path, shape) == P()


def test_layouts_that_are_given():
    rules = partition.Rules(SIZES, (("head/kernel$", "-,fsdp+tensor"), ("fc1/", "tensor")))
    assert rules.spec("head/kernel", (10, 16)) == P(None, ("fsdp", "tensor"))
    assert rules.spec("blocks/fc1/kernel", (3, 5, 16)) == P(None, None, "tensor")
    assert partition.format_spec(rules.spec("head/kernel", (10, 16)), 2) == "-,fsdp+tensor"
    for layout, message in (
        ("fsdp", "divides a dimension of 10 by 4, in head/bias"),
        ("-,fsdp", "has 2 dimensions, but head/bias has 1"),
        ("model", "names the axis 'model'; there are data, fsdp, tensor"),
        ("tensor,tensor", "uses an axis twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            partition.Rules(SIZES, (("bias", layout),)).spec("head/bias", (10,))


def test_a_placed_batch_is_no_view_of_the_memory_that_it_came_from():
    """The loader writes the next batch there. JAX takes over memory that is aligned as here, instead of copying it."""
    mesh = sharding.make_mesh(config_lib.default_config().mesh, jax.devices()[:2])
    memory = np.zeros(2**16 + 64, np.uint8)
    rows = memory[-memory.ctypes.data % 64 :][: 2**16].reshape(8, -1)
    rows[:] = np.arange(8)[:, None]
    placed = sharding.batch_placer(mesh, 8)({"image": rows})["image"]
    rows[:] = 255
    np.testing.assert_array_equal(placed[:, 0], np.arange(8))


def test_averages_and_optimizer_are_laid_out_as_their_parameters():
    config = mesh_cases.make_config("vit", "tensor")
    config.mesh.update({"data": 2, "fsdp": 2, "tensor": 2, "rules": (("^head/kernel$", "fsdp+tensor,-"),)})
    mesh = sharding.make_mesh(config.mesh)
    plan = config_lib.make_plan(config, 160)
    state = build.make_program(config, plan, build.make_objective(config, 8, plan), mesh).abstract_state
    moments = [optax.tree.get(state.opt_state, name) for name in ("mu", "nu")]
    for tree in (state.params, state.ema["params"], *moments):
        assert tree["head"]["kernel"].sharding.spec == P(("fsdp", "tensor"), None)
        assert tree["blocks"]["0"]["mlp"]["fc1"]["kernel"].sharding.spec == P("fsdp", "tensor")
    assert state.step.sharding.spec == P()
    config.mesh.rules = (("^heads/", "fsdp"),)
    with pytest.raises(ConfigError, match=r"the pattern '\^heads/' matches no parameter; there are such as blocks/"):
        partition.layouts(build.partition_rules(config, mesh), mesh, state.params, state)


def instructions(compiled: jax.stages.Compiled) -> str:
    """Returns a program without what names its sources and its mesh."""
    text = compiled.as_text()
    text = text[re.search(r"^%", text, re.MULTILINE).start() :]
    return re.sub(r", (metadata|frontend_attributes)=\{[^}]*\}|mesh\['data'=8[^]]*\]", "", text)


def test_data_parallel_steps_are_the_same_program_as_on_a_mesh_without_further_axes():
    case = Case("resnet", "data")
    plain = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    config = mesh_cases.make_config("resnet", "data")
    plan = config_lib.make_plan(config, 160)
    step = build.make_program(config, plan, build.make_objective(config, 8, plan), case.mesh).train_step
    whole, rows = NamedSharding(plain, P()), NamedSharding(plain, P("data"))
    batch = sharding.abstract(sharding.abstract_batch(case.mesh, BATCH_SIZE, image_fields(8)), rows)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=whole)
    other = jitted.lower(sharding.abstract(case.abstract_state, whole), batch, {}).compile()
    assert instructions(case.step) == instructions(other)


@pytest.mark.slow
def test_fsdp_divides_the_state_of_a_large_vit():
    config = config_lib.default_config()
    config.model.update({"name": "vit_large_patch16_224", "scan_blocks": True})
    config.update({"batch_size": 8, "total_steps": 10, "ema_decay": 0.999})
    config.data.update({"source": "synthetic", "image_size": 32, "eval_resize": 32})
    config.optimizer.update({"name": "adamw", "learning_rate": 1e-3})
    config.schedule.warmup_epochs = 0.0
    config.mesh.update({"data": 1, "fsdp": -1})
    mesh = sharding.make_mesh(config.mesh)
    plan = config_lib.make_plan(config, 160)
    program = build.make_program(config, plan, build.make_objective(config, 1000, plan), mesh)
    state = program.abstract_state
    compiled = compilation.compile_step(
        compilation.trace_step(mesh, program.train_step, state, sharding.abstract_batch(mesh, 8, image_fields(32)), {})
    )
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert total > 4 * 300e6 * 4  # parameters, their average and two moments
    assert partition.bytes_per_device(state) < compiled.memory_analysis().argument_size_in_bytes < total / 5
    # Weights are gathered when they are needed, a block at a time: not all of them at once.
    assert compiled.memory_analysis().temp_size_in_bytes < total / 5


@pytest.mark.parametrize("model", ["resnet", "vit"])
def test_fsdp_gathers_weights_and_no_activations(model: str):
    """What devices give each other has no axis that is as long as the batch: 56 examples, of which each has 7."""
    config = mesh_cases.make_config(model, "fsdp")
    config.batch_size = 56
    config.mesh.update({"data": 1, "fsdp": 8})
    mesh = sharding.make_mesh(config.mesh)
    plan = config_lib.make_plan(config, 160)
    program = build.make_program(config, plan, build.make_objective(config, 1000, plan), mesh)
    batch = sharding.abstract_batch(mesh, 56, image_fields(8))
    traced = compilation.trace_step(mesh, program.train_step, program.abstract_state, batch, {})
    given = re.findall(
        r"= (.*) (?:all-gather|all-to-all|all-reduce|collective-permute)(?:-start)?\(",
        instructions(compilation.compile_step(traced)),
    )
    assert any("[32,96]" in shapes for shapes in given) or model != "vit"  # the weights of the attention
    assert [shapes for shapes in given if re.search(r"\b56\b", shapes)] == []


@pytest.fixture(scope="module")
def by_one_process(tmp_path_factory: pytest.TempPathFactory):
    """Returns a directory, and what trains a model on a data mesh of four devices of this process.

    It leaves a checkpoint in the directory, and returns the case and its losses.
    """
    directory = tmp_path_factory.mktemp("cases")

    @functools.cache
    def train(model: str) -> tuple[Case, list[list[float]]]:
        case = Case(model, "data", jax.devices()[:4])
        state, found = case.train(case.initialize(), 0, STEPS)
        case.save(directory / model, state)
        return case, found + case.train(state, STEPS, STEPS + 1)[1]

    return directory, train


CASES = [f"{model}-{mesh}" for model in ("resnet", "grouped_resnet", "vit") for mesh in MESHES]
OFTEN = ["grouped_resnet-fsdp", "vit-tensor"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [OFTEN, pytest.param([x for x in CASES if x not in OFTEN], marks=pytest.mark.exhaustive)], ids=["a", "b"]
)
def test_two_processes_by_two_devices_train_as_one_by_four(command: Command, by_one_process, names: list[str]):
    """Each on three meshes: the same losses, and what either saves is restored by the other, which goes on alike."""
    directory, train = by_one_process
    expected = {model: train(model) for model in sorted({name.split("-")[0] for name in names})}
    launch(command, "mesh_cases", f"--directory={directory}", *names, devices=2, timeout=240)
    found = json.loads((directory / "losses.json").read_text())
    assert list(found) == names
    for name, losses in found.items():
        case, of_one = expected[name.split("-")[0]]
        np.testing.assert_allclose(losses, of_one, rtol=2e-4, err_msg=name)
        _, more = case.train(case.restore(directory / name), STEPS, STEPS + 1)
        np.testing.assert_allclose(more, of_one[STEPS:], rtol=2e-4, err_msg=f"restored from {name}")
