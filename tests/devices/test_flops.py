"""Operations of a training step against published multiply-adds and XLA's own count."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.experimental.pallas import tpu as pltpu

import vision_jax
from vision_jax import steps
from vision_jax.build import create_state
from vision_jax.commands.models import facts
from vision_jax.devices import flops
from vision_jax.objectives import Classification, Setup


def traced_step(name: str, size: int, batch: int, *, accumulate: int = 1, **options: Any) -> Any:
    """The trace of a training step."""
    model = vision_jax.create_model(name, **options)
    objective = Classification(setup=Setup(model, (size, size, 3), (0.5,) * 3, (0.5,) * 3))
    schedule = optax.constant_schedule(0.1)
    step = steps.make_train_step(objective, optax.sgd(0.1), schedule, seed=0, accumulate=accumulate)
    state = jax.eval_shape(lambda: create_state(objective, optax.sgd(0.1), seed=0))
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    mask = jax.ShapeDtypeStruct((batch,), jnp.float32)
    return jax.jit(step).trace(state, {"image": images, "label": labels, "mask": mask})


@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [
        # The first layer's images take no gradient: its output size squared, times its kernel, channels and features.
        ("resnet18", 224, 112**2 * 7 * 7 * 3 * 64),
        ("vit_tiny_patch16_224", 224, 14**2 * 16 * 16 * 3 * 192),
    ],
)
def test_a_step_is_three_times_the_published_multiply_adds(name: str, size: int, stem: int):
    counted = flops.count(traced_step(name, size, batch=2).jaxpr)
    assert counted == pytest.approx(2 * 2 * (3 * facts(name)["multiply_adds"] - stem), rel=0.005)


def test_loops_count_as_often_as_they_run_and_what_is_computed_anew_does_not():
    def counted(**options: Any) -> int:
        return flops.count(traced_step("vit_tiny_patch16_224", 32, 8, img_size=32, depth=3, **options).jaxpr)

    plain = counted()
    assert counted(scan_blocks=True, accumulate=2) == plain
    assert counted(remat="full") == plain
    assert counted(scan_blocks=True, accumulate=4, remat="full") == plain


def test_xla_counts_the_same_but_for_loops():
    """Of products alone XLA's count is ours; the body of a loop it counts once, which is why we count ourselves."""
    x, w = jax.ShapeDtypeStruct((64, 128), jnp.float32), jax.ShapeDtypeStruct((6, 128, 128), jnp.float32)

    def unrolled(x, w):
        for i in range(6):
            x = x @ w[i]
        return x

    def looped(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    by_xla = {}
    for function in (unrolled, looped):
        traced = jax.jit(function).trace(x, w)
        assert flops.count(traced.jaxpr) == 2 * 6 * 64 * 128 * 128
        by_xla[function] = traced.lower().compile().cost_analysis()["flops"]
    assert by_xla[unrolled] == pytest.approx(2 * 6 * 64 * 128 * 128, rel=0.01)
    assert by_xla[looped] == pytest.approx(2 * 64 * 128 * 128, rel=0.01)


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (4, 1), (8, 2)])
def test_gradients_of_convolutions(groups: int, stride: int):
    """Each of the two costs what the convolution itself does, with groups and strides, as XLA says of one unpadded."""

    def convolution(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "VALID",
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    size = 16 + (2 if stride == 1 else 1)
    x = jax.ShapeDtypeStruct((4, size, size, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 8 // groups, 16), jnp.float32)
    forward = jax.jit(convolution).trace(x, kernel)
    counted = flops.count(forward.jaxpr)
    assert counted == forward.lower().cost_analysis()["flops"]
    gradient = jax.grad(lambda x, kernel: convolution(x, kernel).sum(), argnums=(0, 1))
    assert flops.count(jax.jit(gradient).trace(x, kernel).jaxpr) == 3 * counted


def test_conditions_count_their_costliest_branch():
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    traced = jax.jit(lambda flag, x: jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x)).trace(True, x)
    assert flops.count(traced.jaxpr) == 2 * 2 * 8**3


def test_chips():
    kinds = [kind for chip in flops.CHIPS for kind in chip.kinds]
    assert len(kinds) == len(set(kinds))
    assert all(chip.single <= chip.half for chip in flops.CHIPS)
    h100 = flops.find_chip("NVIDIA H100 80GB HBM3")
    assert h100.peak("bfloat16") == 989.4e12
    assert h100.peak(jnp.float32) == 494.7e12
    assert flops.find_chip("TPU v3").peak("float32") == 61.5e12  # of one core: JAX has two devices a chip
    assert flops.find_chip("cpu") is None
    assert flops.find_chip("NVIDIA A100-SXM4-40GB MIG 1g.5gb") is None


def test_tpus_are_rated_as_in_jax():
    """Its table, of one core each, differs from Google's pages by at most a seventh (TPU v3: 140 and 123)."""
    devices_a_chip = {"TPU v2": ("v2", 2), "TPU v3": ("v3", 2), "TPU v4": ("v4", 1), "TPU v5": ("v5p", 1)}
    devices_a_chip |= {"TPU v5 lite": ("v5e", 1), "TPU v6 lite": ("v6e", 1), "TPU7x": ("7x", 2)}
    assert sum(chip.kinds[0].startswith("TPU") for chip in flops.CHIPS) == len(devices_a_chip)
    for kind, (version, devices) in devices_a_chip.items():
        version = pltpu.ChipVersion(version)
        cores = version.num_physical_tensor_cores_per_chip // devices
        info = pltpu.get_tpu_info_for_chip(version, cores)
        assert cores * info.bf16_ops_per_second == pytest.approx(flops.find_chip(kind).peak("bfloat16"), rel=1 / 7)
        chip = flops.find_chip(kind)
        assert cores * info.mem_bw_bytes_per_second == pytest.approx(1e9 * chip.bandwidth, rel=1 / 7)
        assert cores * info.hbm_capacity_bytes == pytest.approx(2**30 * chip.memory, rel=1 / 12)
