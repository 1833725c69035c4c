"""What a compiled step costs a device, as far as its compiler says, and the time that takes at the device's peak rates.

The account of the compiler for TPUs counts the bytes that each fused operation reads and writes. It counts the body of
a loop once, however often it runs, and nothing within custom calls, such as Pallas kernels. The compiler for GPUs gives
no such account for a device that is not here: its bytes are counted from the program, in the same way, with what the
kernels of cuDNN and cuBLAS are given. Products are counted as traced instead (`flops.py`), where a loop's body counts
as often as it runs.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from vision_jax.devices import flops

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# The lines of a compiled program: `%fused_computation.1 (param_0: f32[8,4]) -> f32[8] {` begins a computation, and
# `%name = (f32[8,4]{1,0:T(8,128)}, f32[]) all-reduce-start(%x, ...` is an instruction: what it gives, its opcode, its
# operands, and the rest. What ends with -done gives what the start of it did.
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?(?P<name>%[\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^\s*(?P<root>ROOT )?(?P<name>%[\w.-]+) = (?P<result>.*?) (?P<opcode>[a-z][\w-]*)"
    r"\((?P<operands>[^)]*)\)(?P<rest>.*)$"
)
_NAME = re.compile(r"%[\w.-]+")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_ARRAY = re.compile(
    r"\b(?P<kind>pred|bf16|[fsuc]\d+\w*)\[(?P<shape>[\d,]*)\](?:\{(?P<order>[\d,]*)(?::T\((?P<tile>[\d,]+)\))?)?"
)
# Opcodes of what moves nothing, or is not counted; of what reads no more than it gives; and of copies.
_FREE = ("tuple", "get-tuple-element", "bitcast", "parameter", "constant", "partition-id", "custom-call")
_SLICES = ("slice", "dynamic-slice", "gather")
_COPIES = ("copy", "copy-start", "slice-start", "transpose")
_LIBRARIES = ("__cudnn$", "__cublas$")  # whose kernels are custom calls; the last part of their result is scratch space


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a step; all of one device, where not said otherwise.

    Attributes:
        chips: the number of devices.
        images: that a device processes.
        flops: operations, as the compiler counts them; `product_flops` where it does not.
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
    memory, counted, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text() or ""
    products = flops.count(traced.jaxpr) / mesh.size
    if counted is None and mesh.devices.flat[0].platform == "gpu":
        counted = {"flops": products, "bytes accessed": sum(bytes_by_part(text, ()).values())}
    if memory is None or not counted or "bytes accessed" not in counted:
        return None
    return Cost(
        chips=mesh.size,
        images=batch_size / mesh.size,
        flops=float(counted.get("flops", 0.0)),
        product_flops=products,
        bytes_accessed=float(counted["bytes accessed"]),
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        collective_bytes=count_collectives(text),
    )


def count_collectives(text: str) -> dict[str, int]:
    """Returns the bytes of what collective operations of a compiled program give to a device, by kind.

    Args:
        text: the program's; its shapes are those of one device.
    """
    total: dict[str, int] = collections.defaultdict(int)
    counted = set()
    for line in text.splitlines():
        if (match := _INSTRUCTION.match(line)) is None:
            continue
        name = match["opcode"].removesuffix("-start")
        if name not in _COLLECTIVES:
            continue
        if channel := _CHANNEL.search(line):
            # Where computation goes on meanwhile, each of the fused operations beside it repeats the instruction.
            if channel[1] in counted:
                continue
            counted.add(channel[1])
        sizes = [_num_bytes(array) for array in _ARRAY.finditer(match["result"])]
        if match["opcode"].endswith("-start") and name != "all-reduce":
            # It gives the operand too, and marks of a few bytes: what is received is the second of these.
            sizes = [max(sizes)] if name == "all-gather" else [min(sizes[:2])]
        total[name] += sum(sizes)
    return dict(total)


def _num_bytes(array: re.Match[str]) -> int:
    return math.ceil(math.prod(_numbers(array["shape"])) * _bits(array) / 8)


def _padded_bytes(array: re.Match[str]) -> int:
    """Returns the bytes of an array in memory, where its last dimensions are filled up to whole tiles."""
    shape = _numbers(array["shape"])
    if array["tile"]:
        shape = [shape[axis] for axis in reversed(_numbers(array["order"]))]
        tile = _numbers(array["tile"])
        shape = [1] * (len(tile) - len(shape)) + shape
        shape[-len(tile) :] = [math.ceil(n / size) * size for n, size in zip(shape[-len(tile) :], tile, strict=True)]
    return math.ceil(math.prod(shape) * _bits(array) / 8)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _bits(array: re.Match[str]) -> int:
    digits = re.search(r"\d+", array["kind"])
    return int(digits[0]) if digits else 8


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """An instruction of a compiled program.

    Attributes:
        name: such as %fusion.3.
        opcode: such as fusion.
        arrays: bytes of each array of its result.
        operands: names of the instructions, of the same computation, whose results it takes; of a parameter, its
            number.
        rest: its attributes and metadata.
    """

    name: str
    opcode: str
    arrays: tuple[int, ...]
    operands: tuple[str, ...]
    rest: str

    @property
    def size(self) -> int:
        """Bytes of its result."""
        return sum(self.arrays[:-1] if self.is_library and len(self.arrays) > 1 else self.arrays)

    @property
    def is_library(self) -> bool:
        """Whether it is a kernel of cuDNN or cuBLAS."""
        return any(f'custom_call_target="{name}' in self.rest for name in _LIBRARIES)

    @property
    def called(self) -> str:
        """The name of the computation that a fusion does."""
        match = re.search(r"\bcalls=(%[\w.-]+)", self.rest)
        assert match is not None, self
        return match[1]


class _Program:
    """The computations of a compiled program, by name: each has its instructions, by name.

    Args:
        text: the program's.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, _Instruction]] = {}
        self.roots: dict[str, _Instruction] = {}
        current = self.entry = ""
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                current = header["name"]
                self.computations[current] = {}
                if header["entry"]:
                    self.entry = current
            elif match := _INSTRUCTION.match(line):
                instruction = _Instruction(
                    match["name"],
                    match["opcode"],
                    tuple(_padded_bytes(array) for array in _ARRAY.finditer(match["result"])),
                    (match["operands"],) if match["opcode"] == "parameter" else tuple(_NAME.findall(match["operands"])),
                    match["rest"],
                )
                self.computations[current][instruction.name] = instruction
                if match["root"]:
                    self.roots[current] = instruction

    def executed(self) -> Iterator[tuple[dict[str, _Instruction], _Instruction]]:
        """Yields each instruction that is executed, with those of its computation; what is within fusions is not.

        Those of the body of a loop are yielded once, and those of all branches of a conditional.
        """
        waiting, seen = [self.entry], set()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            for instruction in self.computations[name].values():
                if instruction.opcode in ("while", "conditional", "call"):
                    waiting += [other for other in _NAME.findall(instruction.rest) if other in self.computations]
                else:
                    yield self.computations[name], instruction

    def moved(self, scope: Mapping[str, _Instruction], instruction: _Instruction) -> int:
        """Returns the bytes that an instruction reads and writes.

        Args:
            scope: the instructions of its computation.
            instruction: one of them.
        """
        opcode = instruction.opcode
        if (opcode in _FREE and not instruction.is_library) or opcode.endswith("-done"):
            return 0
        if opcode in ("copy-start", "slice-start", "collective-permute-start"):
            return 2 * min(instruction.arrays[:2])  # its result has both what is read and what is written
        if opcode in _SLICES:
            return 2 * instruction.size
        if opcode == "dynamic-update-slice":
            return 2 * scope[instruction.operands[1]].size
        if opcode == "fusion":
            return self._written(instruction.called, self.roots[instruction.called]) + sum(
                self._read(instruction.called, number, scope[operand].size)
                for number, operand in enumerate(instruction.operands)
            )
        return instruction.size + sum(scope[operand].size for operand in instruction.operands)

    def _written(self, name: str, instruction: _Instruction) -> int:
        """Returns the bytes that a fusion writes for a result of the computation that it does."""
        scope = self.computations[name]
        match instruction.opcode:
            case "tuple":
                return sum(self._written(name, scope[operand]) for operand in instruction.operands)
            case "bitcast":
                return self._written(name, scope[instruction.operands[0]])
            case "dynamic-update-slice":  # of an array that is already there
                return scope[instruction.operands[1]].size
            case "fusion":
                return self._written(instruction.called, self.roots[instruction.called])
        return instruction.size

    def _read(self, name: str, number: int, size: int) -> int:
        """Returns the bytes that a fusion reads of an operand, of so many bytes, of the computation that it does."""
        scope = self.computations[name].values()
        parameter = next(x for x in scope if x.opcode == "parameter" and x.operands == (str(number),))
        read, aliases = 0, {parameter.name}
        for instruction in scope:  # which come after what they use
            if not aliases.intersection(instruction.operands):
                continue
            first = instruction.operands[0] in aliases
            if instruction.opcode == "bitcast":
                aliases.add(instruction.name)
            elif instruction.opcode in _SLICES and first:
                read += instruction.size
            elif instruction.opcode == "fusion":
                read += sum(
                    self._read(instruction.called, inner, size)
                    for inner, operand in enumerate(instruction.operands)
                    if operand in aliases
                )
            elif not (instruction.opcode == "dynamic-update-slice" and first):
                return size
        return min(read, size)


def bytes_by_part(text: str, scopes: Sequence[str]) -> dict[str, int]:
    """Returns the bytes that a device reads and writes in a compiled training step, by the part of the step.

    An instruction counts with its result and its operands, a fusion as one instruction, and of what is sliced or
    updated in place only the slice. The bodies of loops and all branches of conditionals count once, and of custom
    calls the kernels of cuDNN and cuBLAS alone. The compiler for TPUs counts alike, except that an asynchronous copy
    between memories counts twice in its total, and once here. For a small ResNet, and ViT-S/16 with and without a loop
    over its blocks, on a v5e, these bytes add up to 0.70, 0.77 and 0.69 of the compiler's total; with such copies
    counted twice, to 0.97, 1.01 and 0.91. Of tiny images (16 pixels) with RandAugment they are only 0.26: of such
    fusions its total has more. So take them as shares. On-chip memory counts like the other, as it does for the
    compiler.

    Args:
        text: of the program; its shapes are those of one device.
        scopes: names of `jax.named_scope`s, each of which is a part.

    Returns:
        bytes by part: the scopes, "forward" and "backward" for what is differentiated, "copies" for those that the
        compiler has added, and "other".
    """
    program = _Program(text)
    total = dict.fromkeys((*scopes, "forward", "backward", "copies", "other"), 0)
    for scope, instruction in program.executed():
        total[_part(instruction, scopes)] += program.moved(scope, instruction)
    return total


def _part(instruction: _Instruction, scopes: Sequence[str]) -> str:
    """Returns the part of a step that an instruction belongs to, by the name of the operation that it comes from."""
    match = re.search(r'op_name="([^"]*)"', instruction.rest)
    name = match[1] if match else ""
    path = name.split("/")
    if part := next((scope for scope in scopes if scope in path), None):
        return part
    if "transpose(" in name or flops.RECOMPUTED in name:
        return "backward"
    if "jvp(" in name:
        return "forward"
    return "copies" if instruction.opcode in _COPIES else "other"


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
