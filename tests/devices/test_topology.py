"""TPU slices and GPUs that are not here, and what a step costs on them."""

import importlib.util
import json
import pathlib
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vision_jax import dry_run
from vision_jax.config import loading
from vision_jax.devices import compilation, cost, flops, sharding, topology
from vision_jax.errors import ConfigError
from vision_jax.models.transformer import attention

# The cache of compiled programs is not for such devices.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")

REPOSITORY = pathlib.Path(__file__).parent.parent.parent
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, XLA's compiler for TPUs, is not installed"
)
needs_cuda_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None or importlib.util.find_spec("jax_plugins.xla_cuda12") is None,
    reason="jax-cuda12-plugin, XLA's compiler for NVIDIA GPUs, is not installed",
)
ONE_AXIS = {"data": -1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "v9:2x2",
            "The topology 'v9:2x2' is not known. Give TPU chips along each dimension, such as v2:4x4, .* h100:8,",
        ),
        ("v5e", "The topology 'v5e' is not known"),
        ("v5e:0x4", "The topology 'v5e:0x4' is not known"),
        ("v5e:2x2x2", "The topology 'v5e:2x2x2' has 3 dimensions, and a v5e 2."),
        ("h100", "The topology 'h100' is not known"),
        ("h100:4x2", "The topology 'h100:4x2' has 2 dimensions, and a h100 1."),
        ("v5p:4x4", "The topology 'v5p:4x4' has 2 dimensions, and a v5p 3."),
        pytest.param("v5e:3x3", "XLA does not know the topology 'v5e:3x3': .*not divisible", marks=needs_libtpu),
    ],
)
def test_unknown_slices(name: str, message: str):
    with pytest.raises(ConfigError, match=f"^{message}"):
        topology.describe(name)


def test_the_compiler_may_be_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs XLA's compiler for TPUs, .*: pip install -e '\.\[tpu\]'$"):
        topology.describe("v5e:2x2")
    with pytest.raises(
        ConfigError, match=r"needs XLA's compiler for NVIDIA GPUs, .*: pip install -e '\.\[cuda-compiler\]'"
    ):
        topology.describe("h100:8")


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "count", "kind", "slices"),
    [
        ("v5e:1x1", 1, "TPU v5 lite", 1),
        ("v5e:4x4", 16, "TPU v5 lite", 1),
        ("2xv5e:2x2", 8, "TPU v5 lite", 2),
        ("v4:2x2x2", 8, "TPU v4", 1),
        ("v5p:2x2x1", 4, "TPU v5", 1),
        ("v6e:2x4", 8, "TPU v6 lite", 1),
    ],
)
def test_slices(name: str, count: int, kind: str, slices: int):
    devices = topology.describe(name)
    assert len(devices) == count
    assert {device.device_kind for device in devices} == {kind}
    assert flops.find_chip(kind).bandwidth > 0
    mesh = sharding.make_mesh(ONE_AXIS, devices)
    order = [getattr(device, "slice_index", 0) for device in mesh.devices.flat]
    assert order == sorted(order)  # a slice's devices are neighbors
    assert len(set(order)) == slices


@needs_cuda_compiler
@pytest.mark.parametrize("name", topology.GPUS)
def test_gpus(name: str):
    """Twice two of them; what the compiler is told of their memory is what the table of chips says."""
    devices = topology.describe(f"2x{name}:2")
    assert len(devices) == 4
    assert {(device.platform, device.device_kind) for device in devices} == {("gpu", topology.GPUS[name].kind)}
    assert topology.compiler_options(sharding.make_mesh(ONE_AXIS, devices))
    chip = flops.find_chip(topology.GPUS[name].kind)
    assert topology.GPUS[name].memory == pytest.approx(2**30 * chip.memory, rel=1e-3)
    assert topology.GPUS[name].bandwidth == pytest.approx(1e9 * chip.bandwidth, rel=5e-3)


@pytest.mark.parametrize(
    "name", [pytest.param("v5e:2x2", marks=needs_libtpu), pytest.param("h100:4", marks=needs_cuda_compiler)]
)
def test_a_step_on_a_slice(name: str):
    """Four chips' shares of a product, and the all-reduce of its gradient; the bytes are those of the arrays."""
    mesh = sharding.make_mesh(ONE_AXIS, topology.describe(name))
    state = jax.ShapeDtypeStruct((1024, 512), jnp.float32, sharding=sharding.replicated(mesh))
    batch = jax.ShapeDtypeStruct(
        (256, 1024), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
    )

    def step(weights: jax.Array, batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        def loss(weights: jax.Array) -> jax.Array:
            return jnp.square(batch @ weights.astype(jnp.bfloat16)).astype(jnp.float32).sum()

        value, gradient = jax.value_and_grad(loss)(weights)
        return weights - gradient, value

    traced = compilation.trace_step(mesh, step, state, batch)
    compiled = compilation.compile_step(traced, topology.compiler_options(mesh))
    found = cost.measure(traced, compiled, mesh, 256)
    assert (found.chips, found.images) == (4, 64)
    assert found.argument_bytes == 1024 * 512 * 4 + 64 * 1024 * 2
    assert found.collective_bytes["all-reduce"] in (1024 * 512 * 2 + 4, 1024 * 512 * 4 + 4)  # in bfloat16 or float32
    # It reads the weights and writes them, and twice the batch. A TPU copies to on-chip memory besides.
    assert 2 * found.argument_bytes <= found.bytes_accessed <= 16 * found.argument_bytes
    assert 4 * found.product_flops == flops.count(traced.jaxpr) == 2 * 2 * 256 * 1024 * 512


@needs_libtpu
def test_a_step_that_does_not_fit():
    mesh = sharding.make_mesh(ONE_AXIS, topology.describe("v5e:1x1"))
    whole = sharding.replicated(mesh)
    state = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=whole)
    batch = jax.ShapeDtypeStruct((2**16, 2**17), jnp.float32, sharding=whole)  # 32 GiB
    traced = compilation.trace_step(mesh, lambda state, batch: (state, batch.sum()), state, batch)
    with pytest.raises(ConfigError, match=r"memory of a device: .*\(32\.00G\).*15\.75G.*\. Decrease batch_size or set"):
        compilation.compile_step(traced)


@needs_libtpu
def test_attention_moves_no_maps_of_float32():
    """In the compute dtype, forward and backward pass move at most 0.7 times what JAX's own do."""
    mesh = sharding.make_mesh(ONE_AXIS, topology.describe("v5e:1x1"))
    shape = jax.ShapeDtypeStruct((16, 196, 6, 64), jnp.bfloat16, sharding=sharding.replicated(mesh))

    def moved(function: Callable[..., jax.Array]) -> float:
        def step(state: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
            loss, gradients = jax.value_and_grad(
                lambda *arguments: function(*arguments, None).astype(jnp.float32).sum(), (0, 1, 2)
            )(state, key, value)
            return sum(gradients), loss

        traced = compilation.trace_step(mesh, step, shape, shape, shape)
        return cost.measure(traced, compilation.compile_step(traced), mesh, 16).bytes_accessed

    assert moved(attention) < 0.7 * moved(jax.nn.dot_product_attention)


@needs_libtpu
def test_a_dry_run_for_a_slice():
    config = loading.load(str(REPOSITORY / "configs" / "quickstart.py"))
    config.data.source, config.dtype = "synthetic", "auto"
    text, found = dry_run.describe(config, "2xv5e:2x2")
    assert "computing in bfloat16" in text
    assert "Mesh: data=8, fsdp=1, tensor=1, of 2xv5e:2x2 (TPU v5 lite), which is not here." in text
    assert "would fit into the 16,384 MiB of a device." in text
    assert re.search(r"It receives from others: .*all-reduce [\d.]+ MB", text)
    assert json.loads(json.dumps(vars(found)))["images"] == config.batch_size / 8
    assert config.dtype == "auto"  # the caller's is untouched


@needs_cuda_compiler
def test_a_dry_run_for_gpus():
    config = loading.load(str(REPOSITORY / "configs" / "quickstart.py"))
    config.data.source, config.dtype = "synthetic", "auto"
    text, found = dry_run.describe(config, "h100:8")
    assert "computing in bfloat16" in text
    assert "Mesh: data=8, fsdp=1, tensor=1, of h100:8 (NVIDIA H100 80GB HBM3), which is not here." in text
    assert re.search(
        r"At the peak rates of this device \(NVIDIA H100 80GB HBM3\): products .* memory .* interconnect", text
    )
    assert found.images == config.batch_size / 8


def test_collectives_are_counted_by_what_they_give():
    """Of programs for eight processors, and of the text that TPUs' asynchronous ones have."""
    mesh = sharding.make_mesh(ONE_AXIS)
    divided, whole = NamedSharding(mesh, PartitionSpec(None, "data")), sharding.replicated(mesh)
    a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((16, 64), (64, 24)))
    rows = NamedSharding(mesh, PartitionSpec("data", None))
    product = jax.jit(jnp.matmul, in_shardings=(divided, rows), out_shardings=whole).lower(a, b).compile()
    assert cost.count_collectives(product.as_text()) == {"all-reduce": 16 * 24 * 4}
    gather = jax.jit(lambda x: x * 2, in_shardings=rows, out_shardings=whole).lower(b).compile()
    assert cost.count_collectives(gather.as_text()) == {"all-gather": 64 * 24 * 4}
    text = """
  %collective-permute-start.1 = (bf16[8,3]{1,0:T(8)}, bf16[8,3]{1,0}, u32[], u32[]{:S(2)}) collective-permute-start(%f)
  %collective-permute-done.1 = bf16[8,3]{1,0:T(8,128)} collective-permute-done(%collective-permute-start.1)
  %all-gather-start = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%p), dimensions={0}
  %all-gather-done = f32[8,4]{1,0} all-gather-done(%all-gather-start)
  %all-reduce.1 = (f32[4]{0:T(512)S(1)}, /*index=1*/pred[5]{0}) all-reduce(%a, %b), channel_id=1
  %all-reduce.2 = (f32[4]{0:T(512)S(1)}, /*index=1*/pred[5]{0}) all-reduce(%c, %d), channel_id=1
"""  # the last one is the one before it, in another fused operation
    assert cost.count_collectives(text) == {"collective-permute": 48, "all-gather": 128, "all-reduce": 21}


def test_ideal_seconds():
    found = cost.Cost(4, 32.0, 1e12, 197e12, 819e9 / 2, 0, 0, {"all-reduce": int(10e9), "all-gather": int(30e9)})
    chip = flops.find_chip("TPU v5 lite")
    expected = {"products": 1.0, "memory": 0.5, "interconnect": (2 * 10 + 30) / 200}
    assert cost.ideal_seconds(found, chip, "bfloat16") == pytest.approx(expected)
    assert set(cost.ideal_seconds(found, flops.find_chip("Tesla T4"), "bfloat16")) == {"products"}
