"""Floating-point operations of a training step, and what chips could do at most: model FLOPs utilization (MFU).

The convention: a multiply-add is two operations, and only convolutions and products of matrices count, as in published
counts of multiply-adds: those of a step are three times those of the model's forward pass (one for the outputs, two for
the gradients) but for the first layer, whose images need no gradient. As there, products with padding count. All of the
step is counted: a teacher's forward pass, SAM's second gradient, the products within Muon.

XLA's own count, `cost_analysis`, will not do for this: it counts the body of a loop once, however often it runs
(`model.scan_blocks`, `optimizer.accumulate`), it counts what is computed anew in the backward pass (`model.remat`), and
it depends on which kernels a backend has. So the step is counted as it was traced, before XLA: the body of a loop as
often as the loop runs, and what JAX marks as computed anew not at all. Of the branches of a condition the costliest
counts, as in XLA: with `optimizer.sam_every` above 1 that is more than is done.

MFU is these operations a second divided by the peak of all devices, in the dtype that the model computes in.
"""

import dataclasses
import math
from typing import Any

import jax

_RECOMPUTED = "rematted_computation"  # in JAX's name of what `jax.checkpoint` computes again


def count(jaxpr: Any) -> int:
    """Returns the operations of a traced function: twice `multiply_adds`."""
    return 2 * multiply_adds(jaxpr)


def multiply_adds(jaxpr: Any) -> int:
    """Counts the multiply-adds of convolutions and products of matrices in a jaxpr and in those within it.

    In a convolution, each element of the kernel meets each position of the output, padded or not; or, if there are
    fewer, each position of the input: so zeros around and between the gradients do not count on the way back.
    """
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if _RECOMPUTED in str(equation.source_info.name_stack):
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
    return total


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    """Returns the jaxprs among the parameters of an equation."""

    def is_jaxpr(value: Any) -> bool:
        return hasattr(value, "eqns") or hasattr(value, "jaxpr")

    return [value for value in jax.tree.leaves(list(params.values()), is_leaf=is_jaxpr) if is_jaxpr(value)]


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a device can do at most, without sparsity, as its maker says.

    Attributes:
        kinds: names of it, as `device.device_kind` says.
        half: tera-operations a second in bfloat16; in float16 on V100 and T4, which have no bfloat16 of their own.
        single: the same in float32 as JAX computes by default: bfloat16 on TPUs, TensorFloat-32 on GPUs that have it.
        source: of the figures.
    """

    kinds: tuple[str, ...]
    half: float
    single: float
    source: str

    def peak(self, dtype: Any) -> float:
        """Returns operations a second of one device, computing in this dtype."""
        return 1e12 * (self.single if jax.numpy.dtype(dtype).itemsize > 2 else self.half)


def _tpu(kinds: tuple[str, ...], chip: float, source: str, devices: int = 1) -> Chip:
    """Returns a TPU of which JAX shows each chip as so many devices."""
    return Chip(kinds, chip / devices, chip / devices, source)


_CLOUD_TPU = "cloud.google.com/tpu/docs/"
_HOPPER = "NVIDIA H100 Tensor Core GPU data sheet (half of the figures with sparsity)"

CHIPS = (
    # JAX shows the two cores of a chip as devices of their own, but for v4 and v5p.
    _tpu(("TPU v2",), 46.0, _CLOUD_TPU + "v2", devices=2),
    _tpu(("TPU v3",), 123.0, _CLOUD_TPU + "v3", devices=2),
    _tpu(("TPU v4",), 275.0, _CLOUD_TPU + "v4"),
    _tpu(("TPU v5 lite", "TPU v5e"), 197.0, _CLOUD_TPU + "v5e"),
    _tpu(("TPU v5", "TPU v5p"), 459.0, _CLOUD_TPU + "v5p"),
    _tpu(("TPU v6 lite", "TPU v6e"), 918.0, _CLOUD_TPU + "v6e"),
    _tpu(("TPU7x",), 2307.0, _CLOUD_TPU + "tpu7x", devices=2),
    Chip(
        ("Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB", "Tesla V100-SXM3-32GB"),
        *(125.0, 15.7, "NVIDIA V100 data sheet, NVLink"),
    ),
    Chip(("Tesla V100-PCIE-16GB", "Tesla V100-PCIE-32GB"), 112.0, 14.0, "NVIDIA V100 data sheet, PCIe"),
    Chip(("Tesla T4",), 65.0, 8.1, "NVIDIA T4 data sheet"),
    Chip(
        (
            *("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"),
            *("A100-SXM4-40GB", "A100-SXM4-80GB", "A100-PCIE-40GB"),  # of older drivers
        ),
        *(312.0, 156.0, "NVIDIA A100 data sheet"),
    ),
    Chip(("NVIDIA A10",), 125.0, 62.5, "NVIDIA A10 data sheet"),
    Chip(("NVIDIA A10G",), 70.0, 35.0, "NVIDIA A10G data sheet (for AWS)"),
    Chip(("NVIDIA A30",), 165.0, 82.0, "NVIDIA A30 data sheet"),
    Chip(("NVIDIA A40",), 149.7, 74.8, "NVIDIA A40 data sheet"),
    Chip(("NVIDIA RTX A6000",), 154.8, 77.4, "NVIDIA Ampere GA102 whitepaper"),
    # Tensor cores of these, accumulating in float32 as XLA does, work at half the rate of accumulating in float16.
    Chip(("NVIDIA GeForce RTX 3090",), 71.0, 35.6, "NVIDIA Ampere GA102 whitepaper"),
    Chip(("NVIDIA GeForce RTX 4090",), 165.2, 82.6, "NVIDIA Ada whitepaper"),
    Chip(("NVIDIA L4",), 121.0, 60.0, "NVIDIA L4 data sheet (half of the figures with sparsity)"),
    Chip(("NVIDIA L40S",), 362.0, 183.0, "NVIDIA L40S data sheet"),
    Chip(("NVIDIA H100 80GB HBM3",), 989.4, 494.7, f"{_HOPPER}, SXM"),
    Chip(("NVIDIA H100 PCIe",), 756.0, 378.0, f"{_HOPPER}, PCIe"),
    Chip(("NVIDIA H100 NVL", "NVIDIA H200 NVL"), 835.5, 417.5, "NVIDIA H100 NVL and H200 NVL data sheets"),
    Chip(
        ("NVIDIA H200", "NVIDIA GH200 480GB"),
        989.4,
        494.7,
        "NVIDIA H200 and GH200 data sheets (half of those with sparsity)",
    ),
    Chip(("NVIDIA B200",), 2250.0, 1125.0, "NVIDIA HGX B200 data sheet (an eighth; half of those with sparsity)"),
    Chip(("NVIDIA GB200",), 2500.0, 1250.0, "NVIDIA GB200 NVL72 data sheet (half of the figures with sparsity)"),
)


def find_chip(device_kind: str) -> Chip | None:
    """Returns the chip of which a device is; None if it is not in the table, such as a part of a GPU (MIG) or a CPU."""
    return next((chip for chip in CHIPS if device_kind in chip.kinds), None)
