"""Writes a graph as an ONNX file."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vision_jax.errors import ConfigError, DataError
from vision_jax.export.graph import BATCH, FOUND, Graph, Node, Tensor

OPSETS = range(17, 24)  # which are tested
DEFAULT_OPSET = 18

# A file of protobuf may have 2 GiB; what is not weights is far less than the rest.
LARGEST = 2**31 - 2**26


def import_onnx() -> Any:
    """Returns the package `onnx`.

    Raises:
        ConfigError: if it, or onnxruntime, is not installed.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"ONNX files need onnx and onnxruntime: pip install 'vision_jax[onnx]' ({error}).") from error
    return onnx


def is_large(graph: Graph, largest: int = LARGEST) -> bool:
    """Returns whether weights are too large for one file, and lie in another one beside it."""
    return sum(array.nbytes for array in graph.constants.values()) > largest


def write(graph: Graph, path: pathlib.Path, metadata: Mapping[str, str], *, external: bool) -> None:
    """Writes a graph as a file.

    Args:
        graph: what to write.
        path: of the file.
        metadata: properties of the model.
        external: weights are written to the file `NAME.data` beside it.

    Raises:
        OSError: if it cannot be written.
    """
    onnx = import_onnx()
    helper = onnx.helper
    made = helper.make_graph(
        [_node(helper, node, number) for number, node in enumerate(graph.nodes)],
        "vision_jax",
        [_value_info(helper, tensor) for tensor in graph.inputs],
        [_value_info(helper, tensor) for tensor in graph.outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
    )
    opsets = [helper.make_opsetid("", graph.opset)]
    model = helper.make_model(
        made,
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="vision_jax",
        producer_version=metadata.get("vision_jax", ""),
    )
    helper.set_model_props(model, dict(metadata))
    options = {"save_as_external_data": True, "location": f"{path.name}.data"} if external else {}
    onnx.save_model(model, str(path), **options)


def load(path: pathlib.Path) -> Callable[..., np.ndarray | tuple[np.ndarray, ...]]:
    """Checks a file, and returns the function that onnxruntime makes of it, on the CPU.

    Its first argument is the first input, and others have the names of inputs; several outputs are a tuple.

    Raises:
        DataError: if it is no valid model.
    """
    onnx = import_onnx()
    import onnxruntime

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DataError(f"The graph that was written is not valid ONNX: {error}") from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: np.ndarray, **others: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        results = session.run(None, {session.get_inputs()[0].name: images, **others})
        return results[0] if len(results) == 1 else tuple(results)

    return run


def _node(helper: Any, node: Node, number: int) -> Any:
    attributes = {
        name: helper.np_dtype_to_tensor_dtype(value) if isinstance(value, np.dtype) else value
        for name, value in node.attributes.items()
    }
    return helper.make_node(node.op, node.inputs, node.outputs, f"{node.outputs[0]}:{number}", **attributes)


def _value_info(helper: Any, tensor: Tensor) -> Any:
    shape = ["detections" if size == FOUND else size if size % BATCH else "batch" for size in tensor.shape]
    return helper.make_tensor_value_info(tensor.name, helper.np_dtype_to_tensor_dtype(tensor.dtype), shape)
