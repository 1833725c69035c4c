"""Checks detectors and segmenters with torchvision's results; see README.md."""

import functools
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from references import common

from vision_jax.dense import networks, weights

TOLERANCE = 2e-4  # of the standard deviation of what is expected


def read(path: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a file; its texts are JSON."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return {key: json.loads(str(value)) if value.dtype.kind == "U" else value for key, value in arrays.items()}


def check_segmentation(case: dict[str, Any]) -> dict[str, jax.Array]:
    """Checks maps, logits, classes and the number of parameters of a network, which its weights tell.

    Returns:
        its outputs, for what is computed of them.
    """
    state = state_of(case)
    kind = "deeplabv3" if "classifier.0.project.0.weight" in state else "fcn"
    classes = len(state["classifier.4.weight"])
    aux = "aux_classifier.0.weight" in state
    network = networks.create_segmenter(kind, backbone=resnet_of(state), num_classes=classes, aux=aux)
    variables = load(network, case, state)
    outputs, found = apply(network, variables, pixels(case), ("layer3", "layer4"))
    for name in ("layer3", "layer4"):
        check_map(case, name, to_nchw(found[name]))
    check_map(case, "logits", to_nchw(outputs["out"]))
    if aux:
        check_map(case, "aux", to_nchw(outputs["aux"]))
    check_classes(case, outputs["out"])
    return outputs


def check_detection(case: dict[str, Any]) -> networks.HeadOutputs:
    """Checks maps, outputs and the number of parameters of a detector, which its weights tell.

    Returns:
        its outputs, for what is computed of them.
    """
    state = state_of(case)
    kind, backbone = detector_of(state), resnet_of(state)
    network = networks.create_detector(kind, backbone=backbone, num_classes=int(case["num_classes"]))
    variables = load(network, case, state)
    levels = [f"neck/{name if name.startswith('p') else f'p{int(name) + 3}'}" for name in case["levels"]]
    stages = [f"layer{i + 2}" for i in range(3)]
    outputs, found = apply(network, variables, pixels(case), (*stages, *levels))
    for i, stage in enumerate(stages):
        check_map(case, f"body_{i}", to_nchw(found[stage]))
    for level, name in zip(case["levels"], levels, strict=True):
        check_map(case, f"fpn_{level}", to_nchw(found[name]))
    height, width = (int(length) for length in case["size"])
    np.testing.assert_array_equal(network.map_sizes(height, width), case["maps"])
    for name, value in outputs._asdict().items():
        assert (f"{name}_sample" in case) == (value is not None)
        if value is not None:
            check_map(case, name, np.asarray(value))
    return outputs


def detector_of(state: dict[str, np.ndarray]) -> str:
    """Returns the method that a state dict is of."""
    if "head.regression_head.bbox_ctrness.weight" in state:
        return "fcos"
    return "retinanet_v2" if "head.classification_head.conv.0.1.weight" in state else "retinanet"


def resnet_of(state: dict[str, np.ndarray]) -> str:
    """Returns the name of the backbone that a state dict has."""
    blocks = sum(bool(re.search(r"layer\d\.\d+\.conv1\.weight$", name)) for name in state)
    convolutions = 3 if any(name.endswith("layer1.0.conv3.weight") for name in state) else 2
    return f"resnet{convolutions * blocks + 2}"


def state_of(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the state dict that a case names."""
    variances = case["variances"]
    return {
        name: common.fill(name, tuple(shape), variances.get(name.rpartition(".")[0], 1.0))
        for name, shape in case["state"].items()
    }


def pixels(case: dict[str, Any], batch: int | None = None) -> jax.Array:
    """Returns the images of a case, (batch, height, width, 3)."""
    if batch is None:
        batch = int(case["logits_shape" if "logits_shape" in case else "cls_logits_shape"][0])
    height, width = (int(length) for length in case["size"])
    return jnp.asarray(np.moveaxis(common.seeded(int(case["seed"]), (batch, 3, height, width)), 1, -1))


def load(network: Any, case: dict[str, Any], state: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the variables of a state dict, which they give back, and of which there are as many as there should."""
    variables = weights.from_torch(network, state)
    given_back = weights.to_torch(network, variables)
    assert given_back.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(given_back[name], value)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == int(case["parameters"])
    return variables


@functools.cache
def _compiled(network: Any, names: tuple[str, ...]) -> Any:
    return jax.jit(lambda variables, images: network.apply_with_intermediates(variables, images, names))


def apply(network: Any, variables: Any, images: jax.Array, names: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """Returns the outputs of a network, and activations by name."""
    return _compiled(network, names)(variables, images)


def check_map(case: dict[str, Any], name: str, found: np.ndarray) -> None:
    """Compares an array with the sample and the summaries of it that are stored."""
    found = np.asarray(found)
    assert found.dtype == np.float32
    assert found.shape == tuple(case[f"{name}_shape"])
    sample, expected = found.reshape(-1)[:: int(case[f"{name}_step"])], case[f"{name}_sample"]
    error = np.abs(sample.astype(np.float64) - expected).max() / expected.std()
    assert error <= TOLERANCE, f"{name} is off by {error:.2e} of the spread"
    wide = found.astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(wide), case[f"{name}_norm"], rtol=TOLERANCE)
    assert abs(wide.mean() - case[f"{name}_mean"]) <= TOLERANCE * wide.std()


def check_classes(case: dict[str, Any], logits: jax.Array) -> None:
    """Compares the best class of every third pixel, where it is the best by more than rounding."""
    found = np.asarray(logits)[:, ::3, ::3]
    clear = case["margin"].astype(np.float32) > 4 * TOLERANCE * found.std()
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found.argmax(-1)[clear], case["prediction"][clear])


def to_nchw(array: jax.Array) -> np.ndarray:
    return np.moveaxis(np.asarray(array), -1, 1)
