"""ONNX files with smaller numbers: int8 arithmetic by onnxruntime, or weights alone."""

import contextlib
import io
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vision_jax.export.onnx_file import import_onnx

_WEIGHTED = ("Conv", "Gemm", "MatMul")
# In networks of convolutions, what lies between them is int8 too, so that nothing is converted on the way.
_BETWEEN = ("Add", "AveragePool", "GlobalAveragePool", "MaxPool")
_LEAST = 1024  # numbers of a weight that is worth being converted
_AXES = {"Conv": 0, "MatMul": -1}  # of output channels


class _Batches:
    """Batches of images, as onnxruntime's calibration reads them, which asks for them one by one."""

    def __init__(self, name: str, batches: Sequence[np.ndarray]):
        self._name, self._batches = name, batches
        self._range = iter(range(len(batches)))

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._range = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, np.ndarray] | None:
        number = next(self._range, None)
        return None if number is None else {self._name: self._batches[number]}


def to_int8(source: pathlib.Path, output: pathlib.Path, batches: Sequence[np.ndarray], calibration: str) -> None:
    """Writes a model that computes in int8.

    Weights have a scale for each output channel, and seven bits: x86 processors without VNNI saturate sums of products
    of eight. Activations have eight, and ranges that are taken from images. In transformers only matrix products and
    convolutions are int8; their residual stream keeps its range.

    Args:
        source: a model in float32.
        output: where it is written.
        batches: images in the form that the model takes.
        calibration: how ranges are found: "percentile" (99.999 % of the values), "entropy", "minmax".

    Raises:
        OSError: if it cannot be written.
    """
    onnx = import_onnx()
    from onnxruntime import quantization

    model = onnx.load(str(source))
    transformer = any(node.op_type == "Softmax" for node in model.graph.node)
    with _quietly():
        quantization.quantize_static(
            str(source),
            str(output),
            _Batches(model.graph.input[0].name, batches),
            op_types_to_quantize=[*_WEIGHTED, *(() if transformer else _BETWEEN)],
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method={
                "percentile": quantization.CalibrationMethod.Percentile,
                "entropy": quantization.CalibrationMethod.Entropy,
                "minmax": quantization.CalibrationMethod.MinMax,
            }[calibration],
            # One batch at a time: the activations of all of them would not fit into memory.
            extra_options={"CalibStridedMinMax": 1, "MatMulConstBOnly": True},
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hides what onnxruntime prints, and its advice to run a preprocessing, which the export has made needless."""
    root = logging.getLogger()
    before, root.disabled = root.disabled, True
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.disabled = before


def to_int8_weights(source: pathlib.Path, output: pathlib.Path) -> int:
    """Writes a model whose weights are stored in int8, with a scale for each output channel, and computes in float32.

    Args:
        source: a model in float32.
        output: where it is written.

    Returns:
        how many tensors are stored so.

    Raises:
        OSError: if it cannot be written.
    """
    onnx = import_onnx()
    model = onnx.load(str(source))
    graph = model.graph
    axes = {node.input[1]: axis for node in graph.node if (axis := _output_axis(node)) is not None}
    made: list[Any] = []
    kept = []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if tensor.name not in axes or values.dtype != np.float32 or values.size < _LEAST:
            kept.append(tensor)
            continue
        axis = axes[tensor.name] % values.ndim
        scale = np.abs(values).max(tuple(i for i in range(values.ndim) if i != axis), keepdims=True) / np.float32(127)
        scale[scale == 0] = 1
        stored, name = np.rint(values / scale).astype(np.int8), tensor.name
        kept += [
            onnx.numpy_helper.from_array(stored, f"{name}:int8"),
            onnx.numpy_helper.from_array(scale.reshape(-1).astype(np.float32), f"{name}:scale"),
        ]
        inputs = [f"{name}:int8", f"{name}:scale"]
        made.append(onnx.helper.make_node("DequantizeLinear", inputs, [name], f"{name}:float", axis=axis))
    nodes = [*made, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    onnx.save_model(model, str(output))
    return len(made)


def _output_axis(node: Any) -> int | None:
    """Returns which axis of a node's second input are its output channels; None: it has no weights."""
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else -1
    return _AXES.get(node.op_type)
