"""Models as ONNX: onnxruntime and JAX agree on one variant of each family, and exhaustively on all of them."""

import pathlib
from collections import Counter
from typing import Any

import families
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

import vision_jax
from vision_jax.commands import models
from vision_jax.export import check, onnx_file
from vision_jax.export.graph import Graph
from vision_jax.export.jaxpr import trace
from vision_jax.export.optimize import optimize
from vision_jax.models import registry, vgg
from vision_jax.models.layers import Conv

TOLERANCE = check.TOLERANCES["float32"]


def written(model: Any, variables: Any, size: int, opset: int = onnx_file.DEFAULT_OPSET, name: str = "model") -> Graph:
    """Returns the graph of a model, of any number of images (batch, channels, size, size)."""
    graph = trace(
        lambda images: model.apply(variables, images.transpose(0, 2, 3, 1), train=False),
        (0, model.in_channels, size, size),
        np.float32,
        opset,
        name,
    )
    optimize(graph)
    return graph


def session_of(graph: Graph, path: pathlib.Path) -> onnxruntime.InferenceSession:
    """Returns the session of a graph, whose file is valid."""
    onnx_file.write(graph, path, {}, external=False)
    onnx.checker.check_model(str(path), full_check=True)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def largest_difference(model: Any, variables: Any, session: onnxruntime.InferenceSession, size: int) -> float:
    """Returns how far one session is from JAX with batches of 1 and 8; see `check.difference`."""
    images = np.random.default_rng(0).normal(size=(8, size, size, model.in_channels)).astype(np.float32)
    apply = jax.jit(
        lambda variables, images: model.apply(variables, images, train=False),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    expected = np.asarray(apply(variables, images))
    assert expected.std() > 0
    results = [session.run(["logits"], {"images": images[:count].transpose(0, 3, 1, 2)})[0] for count in (1, 8)]
    return max(check.difference(results[0], expected[:1]), check.difference(results[1], expected))


def after_weights(graph: Graph) -> list[str]:
    """Returns what multiplies or adds constants right behind a convolution, instead of being a part of it."""
    uses = Counter(graph.uses())
    consumers = {name: node for node in graph.nodes for name in node.inputs}
    found = []
    for node in graph.nodes:
        after = consumers.get(node.outputs[0])
        if node.op == "Conv" and after is not None and uses[node.outputs[0]] == 1:
            constants = [graph.constants[name] for name in after.inputs if name in graph.constants]
            if after.op in ("Add", "Sub", "Mul", "Div") and any(array.size > 1 for array in constants):
                found.append(f"{node.place}: {after.op}")
    return found


@pytest.mark.parametrize("name", families.cases())
def test_every_family_agrees(name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    # Widths do not matter, and these have most of the weights of all families together.
    monkeypatch.setattr(vgg, "Conv", lambda features, *args, **options: Conv(min(features, 32), *args, **options))
    options = {"alexnet": {"widths": (8,) * 5}, "densenet121": {"depths": (1,) * 4}}.get(name, {})
    model, size = families.create(name, **options)
    variables = families.random(families.abstract(model, size)[0])
    graph = written(model, variables, size)
    assert largest_difference(model, variables, session_of(graph, tmp_path / "model.onnx"), size) < TOLERANCE
    assert not after_weights(graph)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_half_precision(name: str, tmp_path: pathlib.Path):
    """Weights are float16, also those with batch norm in them, which JAX computes in float32; blocks may be scanned."""
    options = {"scan_blocks": True} if "scan_blocks" in registry.option_names(name) else {}
    model, size = families.create(name, **options)
    variables = families.random(families.abstract(model, size)[0])
    graph = written(model.clone(dtype=jnp.float16), variables, size)
    found = [graph.constants.get(node.inputs[1]) for node in graph.nodes if node.op in ("Conv", "MatMul")]
    assert {array.dtype for array in found if array is not None} == {np.dtype(np.float16)}
    assert not after_weights(graph)
    session = session_of(graph, tmp_path / "model.onnx")
    assert largest_difference(model, variables, session, size) < check.TOLERANCES["float16"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", vision_jax.list_models())
def test_every_model_agrees(name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Of few pixels, with its own widths and one block of each kind, since all blocks of a stage are the same."""
    if name not in models.read_facts():
        pytest.skip("a model of another test")
    monkeypatch.setattr(vgg, "Conv", lambda features, *args, **options: Conv(min(features, 64), *args, **options))
    options: dict[str, Any] = {"widths": (8,) * 5} if name.startswith("alexnet") else {}
    if "img_size" in registry.option_names(name) and registry.entry(name).input.size > 98:
        options["img_size"] = 98 if "patch14" in name else 96
    model, size = families.create(name, **options)
    size = 67 if name == "alexnet_original" else options.get("img_size", size)
    variables = families.random(families.abstract(model, size)[0])
    graph = written(model, variables, size, name=name)
    assert largest_difference(model, variables, session_of(graph, tmp_path / "model.onnx"), size) < TOLERANCE
