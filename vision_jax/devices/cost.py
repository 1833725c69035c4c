"""What a compiled step costs a device, as far as its compiler says, and the time that takes at the device's peak rates.

The compiler's account counts the bytes that each fused operation reads and writes. It counts the body of a loop once,
however often it runs, and nothing within custom calls, such as Pallas kernels. Products are counted as traced instead
(`flops.py`), where a loop's body counts as often as it runs.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from vision_jax.devices import flops

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# What an operation gives, and its name: `%name = (f32[8,4]{1,0:T(8,128)}, f32[]) all-reduce-start(%x, ...`. What ends
# with -done gives what the start of it did.
_CALL = re.compile(rf"^\s*(?:ROOT )?%[\w.-]+ = (?P<result>.*?) (?P<name>{'|'.join(_COLLECTIVES)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"\b(?P<kind>pred|bf16|[fsuc]\d+\w*)\[(?P<shape>[\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a step; all of one device, where not said otherwise.

    Attributes:
        chips: the number of devices.
        images: that a device processes.
        flops: operations, as the compiler counts them.
        product_flops: operations of the convolutions and matrix products, counted as in `flops.py`.
        bytes_accessed: read from and written to memory.
        argument_bytes: of the state and the batch.
        temp_bytes: of what the step holds besides them.
        collective_bytes: by kind, of the results of the communication with other devices.
    """

    chips: int
    images: float
    flops: float
    product_flops: float
    bytes_accessed: float
    argument_bytes: int
    temp_bytes: int
    collective_bytes: dict[str, int]


def measure(traced: jax.stages.Traced, compiled: jax.stages.Compiled, mesh: Mesh, batch_size: int) -> Cost | None:
    """Returns the cost of a compiled step; None if its compiler does not say.

    Args:
        traced, compiled: the step.
        mesh: of its devices.
        batch_size: of the global batch.
    """
    memory, counted = compiled.memory_analysis(), compiled.cost_analysis()
    if memory is None or not counted or "bytes accessed" not in counted:
        return None
    return Cost(
        chips=mesh.size,
        images=batch_size / mesh.size,
        flops=float(counted.get("flops", 0.0)),
        product_flops=flops.count(traced.jaxpr) / mesh.size,
        bytes_accessed=float(counted["bytes accessed"]),
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        collective_bytes=count_collectives(compiled.as_text() or ""),
    )


def count_collectives(text: str) -> dict[str, int]:
    """Returns the bytes of what collective operations of a compiled program give to a device, by kind.

    Args:
        text: the program's; its shapes are those of one device.
    """
    total: dict[str, int] = collections.defaultdict(int)
    for line in text.splitlines():
        if match := _CALL.match(line):
            sizes = [_num_bytes(array) for array in _ARRAY.finditer(match["result"])]
            if match["start"] and match["name"] != "all-reduce":
                # It gives the operand too, and marks of a few bytes: what is received is the second of these.
                sizes = [max(sizes)] if match["name"] == "all-gather" else [min(sizes[:2])]
            total[match["name"]] += sum(sizes)
    return dict(total)


def _num_bytes(array: re.Match[str]) -> int:
    digits = re.search(r"\d+", array["kind"])
    bits = int(digits[0]) if digits else 8
    return math.ceil(math.prod(int(size) for size in array["shape"].split(",") if size) * bits / 8)


def ideal_seconds(cost: Cost, chip: flops.Chip, dtype: Any) -> Mapping[str, float]:
    """Returns how long products, memory and communication take at a chip's peak rates, in seconds, where known.

    A step takes at least the longest of them. An all-reduce sends twice what it gives: parts to be added, then sums.
    """
    seconds = {"products": cost.product_flops / chip.peak(dtype)}
    if chip.bandwidth is not None:
        seconds["memory"] = cost.bytes_accessed / (1e9 * chip.bandwidth)
    if chip.interconnect is not None:
        sent = sum(size * (2 if name == "all-reduce" else 1) for name, size in cost.collective_bytes.items())
        seconds["interconnect"] = sent / (1e9 * chip.interconnect)
    return seconds
