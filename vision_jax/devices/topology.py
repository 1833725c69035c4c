"""TPU slices and GPUs that are not here: XLA's compilers need none, so a program's cost can be known without one."""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from vision_jax.errors import ConfigError

# Each generation, and the dimensions of its network.
GENERATIONS = {"v2": 2, "v3": 2, "v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
_NAME = re.compile(r"(?:(?P<slices>[1-9]\d*)x)?(?P<generation>\w+):(?P<shape>[1-9]\d*(?:x[1-9]\d*)*)")
# Without these, libtpu looks for TPUs, asks a server of Google's cloud what it is part of, and lets one process at a
# time use it.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Triton's kernels for products are chosen by timing them, which takes the GPU.
_WITHOUT_GPU = {"xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True)
class _Gpu:
    """What XLA's compiler asks of a GPU.

    Attributes:
        kind: its name in `device.device_kind`.
        capability: of CUDA, such as 9.0.
        cores: streaming multiprocessors.
        lanes: float32 units of each.
        shared: bytes of shared memory of each.
        cache: bytes of its second-level cache.
        clock: in GHz.
        memory: bytes of its own memory.
        bandwidth: bytes per second to and from that memory.
    """

    kind: str
    capability: str
    cores: int
    lanes: int
    shared: int
    cache: int
    clock: float
    memory: int
    bandwidth: int

    def target(self) -> str:
        """Returns the description as the text of a `GpuTargetConfigProto` of XLA."""
        major, minor = self.capability.split(".")
        device = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "threads_per_core_limit": 2048,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "registers_per_core_limit": 2**16,
            "registers_per_block_limit": 2**16,
            "shared_memory_per_block": 48 * 1024,
            "shared_memory_per_block_optin": self.shared - 1024,
            "shared_memory_per_core": self.shared,
            "core_count": self.cores,
            "fpus_per_core": self.lanes,
            "l2_cache_size": self.cache,
            "clock_rate_ghz": self.clock,
            "device_memory_size": self.memory,
            "memory_bandwidth": self.bandwidth,
        }
        fields = " ".join(f"{name}: {value}" for name, value in device.items())
        return (
            f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
            'platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } '
            f'runtime_version {{ major: 12 minor: 8 }} device_description_str: "{self.kind}"'
        )


# Figures: openxla/xla at 0774019, xla/backends/gpu/target_config/specs.
GPUS = {
    "a100": _Gpu(
        *("NVIDIA A100-SXM4-80GB", "8.0", 108, 64, 167936, 40 * 2**20, 1.41),
        *(85_100_068_864, 2_039_040_000_000),
    ),
    "h100": _Gpu(
        *("NVIDIA H100 80GB HBM3", "9.0", 132, 128, 233472, 50 * 2**20, 1.98),
        *(84_942_979_072, 3_352_320_000_000),
    ),
    "h200": _Gpu(
        *("NVIDIA H200", "9.0", 132, 128, 233472, 50 * 2**20, 1.98),
        *(151_397_597_184, 4_800_000_000_000),
    ),
    "b200": _Gpu(
        *("NVIDIA B200", "10.0", 148, 128, 233472, 132_644_864, 1.965),
        *(191_514_411_008, 7_672_320_000_000),
    ),
}
_HELP = (
    "Give TPU chips along each dimension, such as "
    f"{', '.join(f'{generation}:' + 'x'.join(['4'] * rank) for generation, rank in GENERATIONS.items())}, "
    f"or GPUs of a host, such as {', '.join(f'{name}:8' for name in GPUS)}; several slices or hosts as 2xv5e:4x4."
)


def describe(name: str) -> Sequence[jax.Device]:
    """Returns the devices of TPU slices, or of hosts with GPUs, as the compiler sees them; nothing can be put on them.

    Args:
        name: the generation and the number of chips along each dimension of its network, such as v5e:4x4 or v5p:2x2x4;
            several slices as 2xv5e:4x4. Or the GPU and how many a host has, such as h100:8; several hosts as 2xh100:8.

    Raises:
        ConfigError: if there is no such slice, or its compiler is not installed.
    """
    match = _NAME.fullmatch(name)
    if match is None or (generation := match["generation"]) not in {*GENERATIONS, *GPUS}:
        raise ConfigError(f"The topology {name!r} is not known. {_HELP}")
    shape, rank = [int(size) for size in match["shape"].split("x")], GENERATIONS.get(generation, 1)
    if len(shape) != rank:
        raise ConfigError(f"The topology {name!r} has {len(shape)} dimensions, and a {generation} {rank}: give {rank}.")
    find = _find_gpus if generation in GPUS else _find_tpus
    try:
        return find(name, generation, shape, int(match["slices"] or 1))
    except (RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise ConfigError(f"XLA does not know the topology {name!r}: {said}. {_HELP}") from error


def _find_tpus(name: str, generation: str, shape: list[int], slices: int) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"The topology {name!r} needs XLA's compiler for TPUs, libtpu, which is not installed: "
            "pip install -e '.[tpu]'"
        )
    for variable, value in _ALONE.items():
        os.environ.setdefault(variable, value)
    options: dict[str, object] = {}
    if slices > 1:
        options["num_slices"] = slices
    if generation == "v4":  # the two cores of a chip are one device, as where there are chips
        options["chip_config_name"] = "megacore"
    if math.prod(shape) < 4:  # a host has four chips, unless one says that it has fewer
        options["chips_per_host_bounds"] = tuple(shape + [1] * (3 - len(shape)))
    topology_name = f"{generation}:{'x'.join(map(str, shape))}"
    return topologies.get_topology_desc(platform="tpu", topology_name=topology_name, **options).devices


def _find_gpus(name: str, generation: str, shape: list[int], slices: int) -> Sequence[jax.Device]:
    plugins = importlib.util.find_spec("jax_plugins")
    if not any(plugins and importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") for version in (12, 13)):
        raise ConfigError(
            f"The topology {name!r} needs XLA's compiler for NVIDIA GPUs, which is not installed: "
            "pip install -e '.[cuda-compiler]' (CUDA itself is not needed)."
        )
    # Hosts that are connected by NVLink, hosts of each, and GPUs of a host.
    described = {"topology": f"{slices}x1x{shape[0]}", "target_config": GPUS[generation].target()}
    return topologies.get_topology_desc(platform="cuda", **described).devices


def compiler_options(mesh: Mesh) -> dict[str, bool] | None:
    """Returns what the compiler has to be told for GPUs that are not here; None for other devices."""
    device = mesh.devices.flat[0]
    return _WITHOUT_GPU if device.platform == "gpu" and device not in jax.devices() else None
