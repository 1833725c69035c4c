"""torchvision's files of detectors and segmenters, by the names that torchvision has for the networks."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from vision_jax import build
from vision_jax.assembly import dense_files
from vision_jax.dense import weights
from vision_jax.dense.networks import create_segmenter
from vision_jax.errors import ConfigError, DataError


def write(path: pathlib.Path, shapes: dict[str, tuple[int, ...]]) -> str:
    safetensors.numpy.save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "tensors", "classes", "first", "fields"),
    [
        (
            "retinanet_resnet50_fpn",
            {
                "head.classification_head.cls_logits.weight": (9 * 91, 4, 3, 3),
                "backbone.fpn.inner_blocks.0.weight": (4, 4),
            },
            91,
            "person",
            {"model.norm_epsilon": 0.0, "objective.name": "retinanet"},
        ),
        (
            "retinanet_resnet50_fpn",
            {
                "head.classification_head.cls_logits.weight": (9 * 91, 4, 3, 3),
                "backbone.fpn.inner_blocks.0.0.weight": (4,),
            },
            91,
            "person",
            {"model.norm_epsilon": None},
        ),
        (
            "retinanet_resnet50_fpn_v2",
            {"head.classification_head.cls_logits.weight": (9 * 7, 4, 3, 3)},
            7,
            None,
            {"objective.version": 2},
        ),
        (
            "fcos_resnet50_fpn",
            {"head.classification_head.cls_logits.weight": (91, 4, 3, 3)},
            91,
            "person",
            {"objective.name": "fcos", "data.dense.shorter": (800,)},
        ),
        (
            "deeplabv3_resnet101",
            {"aux_classifier.4.weight": (5, 4, 1, 1), "classifier.4.weight": (21, 4, 1, 1)},
            21,
            "aeroplane",
            {"model.name": "resnet101", "model.output_stride": 8, "objective.head": "deeplabv3"},
        ),
    ],
)
def test_configurations(
    name: str, tensors: dict, classes: int, first: str | None, fields: dict, tmp_path: pathlib.Path
):
    config, found, names = dense_files.describe(name, write(tmp_path / "a.safetensors", tensors))
    assert found == classes
    assert (names[1] if names else None) == first
    flat = config.to_dict()
    for path, value in fields.items():
        entry = flat
        for part in path.split("."):
            entry = entry[part]
        assert entry == value, path


def test_names_of_coco():
    """The ids of some categories, as COCO has them; ten numbers between 1 and 90 are not used."""
    names = dense_files.COCO_NAMES
    known = {0: "background", 1: "person", 18: "dog", 44: "bottle", 62: "chair", 73: "laptop", 90: "toothbrush"}
    assert {number: names[number] for number in known} == known
    assert len(names) == 91
    assert names.count("N/A") == 10
    assert len(set(names)) == 82


def test_a_file_is_loaded(tmp_path: pathlib.Path):
    network = create_segmenter("fcn_resnet50", num_classes=21)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.random(x.shape, np.float32), shapes)
    path = tmp_path / "fcn.safetensors"
    safetensors.numpy.save_file(weights.to_torch(network, variables), path)
    trained = build.from_file("fcn_resnet50", str(path))
    assert (trained.dense, trained.num_classes, trained.class_names[8]) == ("masks", 21, "cat")
    assert "aux_head" not in trained.variables["params"]  # which only training needs
    np.testing.assert_array_equal(
        trained.variables["params"]["head"]["classifier"]["conv"]["kernel"],
        variables["params"]["head"]["classifier"]["conv"]["kernel"],
    )
    with pytest.raises(ConfigError, match=r"There are 2 names of classes, and .* has 21 classes"):
        build.from_file("fcn_resnet50", str(path), ["a", "b"])


def test_files_of_other_models(tmp_path: pathlib.Path):
    path = write(tmp_path / "a.safetensors", {"conv1.weight": (4, 3, 7, 7)})
    with pytest.raises(DataError, match="has no whole network of a detector or segmenter"):
        build.from_file("fcos_resnet50_fpn", path)
