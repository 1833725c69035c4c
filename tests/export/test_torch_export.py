"""torch's exporter on timm's model with the same weights gives a file with the same results as ours."""

import pathlib

import families
import jax
import numpy as np
import onnxruntime
import pytest
from test_onnx_families import session_of, written

import vision_jax
from vision_jax import pretrained
from vision_jax.export import check

MODELS = ("resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto", "densenet121", "regnety_002")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", MODELS)
def test_torch_agrees(name: str, tmp_path: pathlib.Path):
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    pytest.importorskip("onnxscript")  # of which torch's exporter is made
    model, size = vision_jax.create_model(name, num_classes=7), 224 if name.startswith("vit") else 96
    variables = families.random(families.abstract(model, size)[0])
    theirs = timm.create_model(name, num_classes=7)
    state = pretrained.to_torch(name, jax.tree.map(np.asarray, variables), "timm")
    theirs.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()}, strict=False)
    missing = set(theirs.state_dict()) - set(state)
    assert all(key.endswith("num_batches_tracked") for key in missing)
    images = np.random.default_rng(0).normal(size=(3, 3, size, size)).astype(np.float32)
    path = tmp_path / "theirs.onnx"
    torch.onnx.export(
        theirs.eval(),
        (torch.from_numpy(images),),
        str(path),
        dynamo=True,
        opset_version=18,
        input_names=["images"],
        output_names=["logits"],
    )
    (expected,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        ["logits"], {"images": images}
    )
    session = session_of(written(model, variables, size), tmp_path / "ours.onnx")
    (result,) = session.run(["logits"], {"images": images})
    assert check.difference(result, expected) < check.TOLERANCES["float32"]
