"""Floating-point operations of a training step, and the peak rates of chips: model FLOPs utilization (MFU).

The convention: a multiply-add is two operations, and only convolutions and matrix products count, as in published
counts of multiply-adds: a step has three times those of the model's forward pass (one for the outputs, two for the
gradients) except for the first layer, whose images need no gradient. As there, products with padding count. The whole
step is counted: a teacher's forward pass, SAM's second gradient, the products within Muon.

XLA's own count, `cost_analysis`, is not suitable: it counts the body of a loop once, however often it runs
(`model.scan_blocks`, `optimizer.accumulate`), it counts recomputation in the backward pass (`model.remat`), and it
depends on the kernels of the backend. So the step is counted as traced, before XLA: the body of a loop as often as the
loop runs, and rematerialized operations not at all. Of the branches of a conditional, the most expensive one counts, as
in XLA: with `optimizer.sam_every` above 1 that is more than is executed.

MFU is these operations per second divided by the peak of all devices, in the model's compute dtype.
"""

import dataclasses
import math
from typing import Any

import jax

from vision_jax.models.layers import NOT_COUNTED

RECOMPUTED = "rematted_computation"  # in JAX's names of operations that `jax.checkpoint` recomputes
# cuDNN's attention, which is one operation: pairs of products, of query and key and of probability and value.
_ATTENTION = {"dot_product_attention_fwd_wrapper": 1, "dot_product_attention_bwd_wrapper": 2}


def count(jaxpr: Any) -> int:
    """Returns the operations of a traced function: twice `multiply_adds`."""
    return 2 * multiply_adds(jaxpr)


def multiply_adds(jaxpr: Any) -> int:
    """Counts the multiply-adds of convolutions and matrix products in a jaxpr and in its inner jaxprs.

    In a convolution, each element of the kernel is applied at each position of the output, padded or not; or, if there
    are fewer, of the input: so zeros around and between gradients do not count in the backward pass.
    """
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if any(name in str(equation.source_info.name_stack) for name in (RECOMPUTED, NOT_COUNTED)):
            continue
        name = equation.primitive.name
        inner = [multiply_adds(value) for value in _jaxprs(equation.params)]
        if name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * (equation.params["length"] if name == "scan" else 1)
        if name == "conv_general_dilated":
            dimensions = equation.params["dimension_numbers"]
            (inputs, kernel), outputs = (v.aval.shape for v in equation.invars), equation.outvars[0].aval.shape
            positions = min(
                math.prod(inputs[axis] for axis in dimensions.lhs_spec[2:]),
                math.prod(outputs[axis] for axis in dimensions.out_spec[2:]),
            )
            total += positions * math.prod(kernel) * outputs[dimensions.out_spec[0]]
        elif name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval
            total += equation.outvars[0].aval.size * math.prod(left.shape[axis] for axis in contracted)
        elif name in _ATTENTION:
            query, key, value = (v.aval.shape for v in equation.invars[:3])  # (batch, tokens, heads, features)
            total += _ATTENTION[name] * math.prod(query[:3]) * key[1] * (query[3] + value[3])
    return total


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    """Returns the jaxprs among the parameters of an equation."""

    def is_jaxpr(value: Any) -> bool:
        return hasattr(value, "eqns") or hasattr(value, "jaxpr")

    return [value for value in jax.tree.leaves(list(params.values()), is_leaf=is_jaxpr) if is_jaxpr(value)]


@dataclasses.dataclass(frozen=True)
class Chip:
    """The peak rates of a device, without sparsity, as specified by its manufacturer.

    Attributes:
        kinds: its names in `device.device_kind`.
        half: tera-operations per second in bfloat16; in float16 on V100 and T4, which lack bfloat16.
        single: the same in float32 as JAX computes it by default: bfloat16 on TPUs, TensorFloat-32 on GPUs that have
            it.
        source: of the figures.
        memory: gibibytes of its own memory, all that there is (for GPUs, as in XLA's description of them); None: not in
            this table.
        bandwidth: gigabytes (10^9) per second to and from that memory; None: not in this table.
        interconnect: gigabytes per second that it sends to the others of its slice over all links together; None: not
            in this table.
    """

    kinds: tuple[str, ...]
    half: float
    single: float
    source: str
    memory: float | None = None
    bandwidth: float | None = None
    interconnect: float | None = None

    def peak(self, dtype: Any) -> float:
        """Returns the operations per second of one device in this compute dtype."""
        return 1e12 * (self.single if jax.numpy.dtype(dtype).itemsize > 2 else self.half)


def _tpu(
    kinds: tuple[str, ...],
    chip: float,
    source: str,
    *,
    memory: float,
    bandwidth: float,
    interconnect: float | None = None,
    devices: int = 1,
) -> Chip:
    """Returns a TPU whose chips, of which these figures are, appear in JAX as this many devices each."""
    shared = None if interconnect is None else interconnect / devices
    return Chip(kinds, chip / devices, chip / devices, source, memory / devices, bandwidth / devices, shared)


_CLOUD_TPU = "cloud.google.com/tpu/docs/"
_HOPPER = "NVIDIA H100 Tensor Core GPU data sheet (half of the figures with sparsity)"

CHIPS = (
    # JAX shows the two cores of a chip as separate devices, except for v4 and v5p.
    _tpu(("TPU v2",), 46.0, _CLOUD_TPU + "v2", memory=16, bandwidth=700, devices=2),
    _tpu(("TPU v3",), 123.0, _CLOUD_TPU + "v3", memory=32, bandwidth=900, devices=2),
    _tpu(("TPU v4",), 275.0, _CLOUD_TPU + "v4", memory=32, bandwidth=1228, interconnect=300),
    _tpu(("TPU v5 lite", "TPU v5e"), 197.0, _CLOUD_TPU + "v5e", memory=16, bandwidth=819, interconnect=200),
    _tpu(("TPU v5", "TPU v5p"), 459.0, _CLOUD_TPU + "v5p", memory=95, bandwidth=2765, interconnect=600),
    _tpu(("TPU v6 lite", "TPU v6e"), 918.0, _CLOUD_TPU + "v6e", memory=32, bandwidth=1640, interconnect=400),
    _tpu(("TPU7x",), 2307.0, _CLOUD_TPU + "tpu7x", memory=192, bandwidth=7380, interconnect=600, devices=2),
    Chip(
        ("Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB", "Tesla V100-SXM3-32GB"),
        *(125.0, 15.7, "NVIDIA V100 data sheet, NVLink"),
    ),
    Chip(("Tesla V100-PCIE-16GB", "Tesla V100-PCIE-32GB"), 112.0, 14.0, "NVIDIA V100 data sheet, PCIe"),
    Chip(("Tesla T4",), 65.0, 8.1, "NVIDIA T4 data sheet"),
    Chip(
        (
            *("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"),
            *("A100-SXM4-40GB", "A100-PCIE-40GB"),  # of older drivers
        ),
        *(312.0, 156.0, "NVIDIA A100 data sheet"),
    ),
    Chip(
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        *(312.0, 156.0, "NVIDIA A100 data sheet; half of NVLink's bandwidth is that of one direction"),
        *(79.3, 2039, 300),
    ),
    Chip(("NVIDIA A10",), 125.0, 62.5, "NVIDIA A10 data sheet"),
    Chip(("NVIDIA A10G",), 70.0, 35.0, "NVIDIA A10G data sheet (for AWS)"),
    Chip(("NVIDIA A30",), 165.0, 82.0, "NVIDIA A30 data sheet"),
    Chip(("NVIDIA A40",), 149.7, 74.8, "NVIDIA A40 data sheet"),
    Chip(("NVIDIA RTX A6000",), 154.8, 77.4, "NVIDIA Ampere GA102 whitepaper"),
    # Tensor cores of these, when accumulating in float32 as XLA does, run at half the rate of float16 accumulation.
    Chip(("NVIDIA GeForce RTX 3090",), 71.0, 35.6, "NVIDIA Ampere GA102 whitepaper"),
    Chip(("NVIDIA GeForce RTX 4090",), 165.2, 82.6, "NVIDIA Ada whitepaper"),
    Chip(("NVIDIA L4",), 121.0, 60.0, "NVIDIA L4 data sheet (half of the figures with sparsity)"),
    Chip(("NVIDIA L40S",), 362.0, 183.0, "NVIDIA L40S data sheet"),
    Chip(("NVIDIA H100 80GB HBM3",), 989.4, 494.7, f"{_HOPPER}, SXM", 79.1, 3350, 450),
    Chip(("NVIDIA H100 PCIe",), 756.0, 378.0, f"{_HOPPER}, PCIe"),
    Chip(("NVIDIA H100 NVL", "NVIDIA H200 NVL"), 835.5, 417.5, "NVIDIA H100 NVL and H200 NVL data sheets"),
    Chip(("NVIDIA GH200 480GB",), 989.4, 494.7, "NVIDIA GH200 data sheet (half of the figures with sparsity)"),
    Chip(
        ("NVIDIA H200",),
        *(989.4, 494.7, "NVIDIA H200 data sheet (half of the figures with sparsity)"),
        *(141.0, 4800, 450),
    ),
    Chip(
        ("NVIDIA B200",),
        *(2250.0, 1125.0, "NVIDIA HGX B200 data sheet (an eighth; half of those with sparsity)"),
        *(178.3, 7700, 900),
    ),
    Chip(("NVIDIA GB200",), 2500.0, 1250.0, "NVIDIA GB200 NVL72 data sheet (half of the figures with sparsity)"),
)


def find_chip(device_kind: str) -> Chip | None:
    """Returns the chip of a device; None if it is not in the table, such as a part of a GPU (MIG) or a CPU."""
    return next((chip for chip in CHIPS if device_kind in chip.kinds), None)
