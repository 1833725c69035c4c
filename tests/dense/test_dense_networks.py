"""Detectors and segmenters: torchvision's numbers, formulas, and what is promised of all of them."""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import common, dense_networks

from vision_jax.dense import networks, weights
from vision_jax.dense.detection_heads import DetectionHead
from vision_jax.errors import ConfigError, DataError
from vision_jax.models.convnext import ConvNeXt
from vision_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from vision_jax.models.vit import VisionTransformer
from vision_jax.pretrained import files

KEY = jax.random.key(0)
SMALL = ResNet(block=BasicBlock, depths=(1, 1, 1, 1), num_classes=0, zero_init_last=False)
CASES = [
    (path, check)
    for pattern, check in (
        ("segmentation.*.npz", dense_networks.check_segmentation),
        ("detection.*.npz", dense_networks.check_detection),
    )
    for path in common.files("dense", pattern)
]


def shapes_of(network: Any, height: int = 64, width: int = 64) -> Any:
    images = jnp.zeros((1, height, width, network.backbone.in_channels))
    return jax.eval_shape(lambda key: network.init(key, images), KEY)


def numbers(shapes: Any, seed: int = 0) -> Any:
    """Numbers for shapes: kernels that keep the scale, and all else around one half."""
    rng = np.random.default_rng(seed)

    def value(x: jax.ShapeDtypeStruct) -> jax.Array:
        if len(x.shape) > 1:
            return jnp.asarray(rng.normal(0, np.sqrt(1 / np.prod(x.shape[:-1])), x.shape), jnp.float32)
        return jnp.asarray(rng.uniform(0.3, 0.7, x.shape), jnp.float32)

    return jax.tree.map(value, shapes)


@functools.cache
def small(kind: str) -> tuple[Any, Any]:
    """A network on a small ResNet, and variables."""
    create: Any = networks.create_detector if kind in networks.DETECTOR_KINDS else networks.create_segmenter
    network = create(kind, backbone=SMALL, num_classes=3)
    return network, numbers(shapes_of(network))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fcn_resnet50", 35_322_218),
        ("fcn_resnet101", 54_314_346),
        ("deeplabv3_resnet50", 42_004_074),
        ("deeplabv3_resnet101", 60_996_202),
        ("retinanet_resnet50_fpn", 34_014_999),
        ("retinanet_resnet50_fpn_v2", 38_198_935),
        ("fcos_resnet50_fpn", 32_269_600),
    ],
)
def test_there_are_as_many_parameters_as_published(name: str, expected: int):
    """torchvision's numbers (the meta of its weights); frozen norms have none there."""
    if name in networks.list_detectors():
        network: Any = networks.create_detector(name, num_classes=91)
    else:
        network = networks.create_segmenter(name, num_classes=21)
    shapes = shapes_of(network)
    count = sum(x.size for x in jax.tree.leaves(shapes["params"]))
    frozen = set(networks.norm_paths(shapes)) if network.frozen_norms else set()
    leaves = jax.tree_util.tree_leaves_with_path(shapes["params"])
    count -= sum(x.size for path, x in leaves if "/".join(key.key for key in path) in frozen)
    assert count == expected


def test_upernet_on_swin_has_as_many_parameters_as_published():
    """Swin-T: 60 M, and what transformers' UperNet has without the 1,536 of the norm of the last features."""
    network = networks.create_segmenter("upernet", backbone="swin_tiny_patch4_window7_224", num_classes=150)
    shapes = shapes_of(network, 224, 224)
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == 59_941_862
    assert set(shapes["params"]["neck"]) == {f"norm_{i}" for i in range(4)}


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_dilated_resnet_computes_the_strided_one_and_what_is_between(block: Any):
    """Of an output stride of 8, every fourth position of the last map sees what the strided network's sees there."""
    make = functools.partial(ResNet, block=block, depths=(1, 1, 2, 2), num_classes=0)
    images = jax.random.normal(KEY, (1, 32, 64, 3))
    variables = numbers(jax.eval_shape(lambda: make().init(KEY, images, train=False)))

    def maps(stride: int) -> tuple[jax.Array, ...]:
        return make(output_stride=stride).apply(variables, images, train=False, method="stage_maps")

    strided, dilated = jax.jit(lambda: (maps(32), maps(8)))()
    assert [x.shape[1:3] for x in dilated] == [(8, 16), (4, 8), (4, 8), (4, 8)]
    assert [x.shape[1:3] for x in jax.eval_shape(lambda: maps(16))] == [(8, 16), (4, 8), (2, 4), (2, 4)]
    for i, step in ((2, 2), (3, 4)):
        expected = np.asarray(strided[i])
        np.testing.assert_allclose(dilated[i][:, ::step, ::step], expected, atol=1e-4 * expected.std())


def test_maps_of_one_stride_are_told_apart():
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    model = SMALL.clone(output_stride=8)

    def shapes(method: str) -> Any:
        return jax.eval_shape(lambda x: model.init_with_output(KEY, x, train=False, method=method)[0], images)

    assert {stride: x.shape[-1] for stride, x in shapes("feature_maps").items()} == {2: 64, 4: 64, 8: 512}
    assert [x.shape[-1] for x in shapes("stage_maps")] == [64, 128, 256, 512]
    with pytest.raises(ConfigError, match="output_stride is 4: give 8, 16 or 32"):
        SMALL.clone(output_stride=4)
    with pytest.raises(ConfigError, match="leave small_stem unset"):
        SMALL.clone(output_stride=8, small_stem=True)


@pytest.mark.parametrize("kind", networks.DETECTOR_KINDS)
def test_a_detector_says_something_of_every_anchor(kind: str):
    network, variables = small(kind)
    sizes = network.map_sizes(32, 48)
    assert sizes == ((4, 6), (2, 3), (1, 2), (1, 1), (1, 1))
    anchors = network.num_anchors * sum(rows * columns for rows, columns in sizes)
    images = jax.random.normal(KEY, (2, 32, 48, 3))
    outputs, stats = jax.jit(lambda v, x: network.apply(v, x, train=False))(variables, images)
    assert outputs.cls_logits.shape == (2, anchors, 3)
    assert outputs.bbox_regression.shape == (2, anchors, 4)
    assert all(x.dtype == jnp.float32 for x in outputs if x is not None)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    if kind == "fcos":
        assert outputs.bbox_ctrness.shape == (2, anchors, 1)
        assert (np.asarray(outputs.bbox_regression) >= 0).all()
    else:
        assert outputs.bbox_ctrness is None


def test_classes_are_rare_in_the_beginning():
    head = DetectionHead(5)
    levels = (jax.random.normal(KEY, (1, 4, 4, 32)),)
    outputs, variables = jax.jit(lambda x: head.init_with_output(KEY, x))(levels)
    np.testing.assert_allclose(jax.nn.sigmoid(outputs.cls_logits), 0.01, rtol=0.05)
    tower = variables["params"]["regression_head"]["conv"]["conv_0"]
    np.testing.assert_allclose(np.std(tower["kernel"]), 0.01, rtol=0.05)
    assert not np.asarray(tower["bias"]).any()


@pytest.mark.exhaustive
def test_frozen_norms_are_no_part_of_a_training():
    network = networks.create_detector("fcos", backbone=SMALL, num_classes=2, frozen_norms=True)
    variables = numbers(shapes_of(network))
    images = jax.random.normal(KEY, (1, 32, 32, 3))

    @jax.jit
    def gradients(params: Any) -> Any:
        def loss(params: Any) -> Any:
            outputs, stats = network.apply({**variables, "params": params}, images, train=True)
            return sum(jnp.square(x).mean() for x in outputs), stats

        return jax.grad(loss, has_aux=True)(params)

    found, stats = gradients(variables["params"])
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    norms = {
        "/".join(key.key for key in path): float(jnp.abs(x).max())
        for path, x in jax.tree_util.tree_leaves_with_path(found)
    }
    frozen = set(networks.norm_paths(variables))
    assert {"bn1/scale", "layer4/0/bn2/bias", "layer2/0/downsample/1/scale"} <= frozen
    assert {name for name, value in norms.items() if value == 0} == frozen


def test_a_segmenter_trains_its_norms_and_drops_units():
    network, variables = small("fcn")
    images = jax.random.normal(KEY, (2, 24, 40, 3))

    @jax.jit
    def run(key: jax.Array) -> Any:
        return network.apply(variables, images, train=True, rngs={"dropout": key})

    first, stats = run(jax.random.key(1))
    second, _ = run(jax.random.key(2))
    assert {name: x.shape for name, x in first.items()} == {"out": (2, 24, 40, 3), "aux": (2, 24, 40, 3)}
    assert all((np.asarray(first[name]) != np.asarray(second[name])).any() for name in first)
    assert stats.keys() == variables["batch_stats"].keys() >= {"bn1", "head", "aux_head"}
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), stats, variables["batch_stats"])
    assert all(jax.tree.leaves(changed))


def test_computing_in_bfloat16_gives_float32():
    images = jnp.zeros((1, 32, 32, 3))
    for kind in (*networks.DETECTOR_KINDS, *networks.SEGMENTER_KINDS):
        create: Any = networks.create_detector if kind in networks.DETECTOR_KINDS else networks.create_segmenter
        half = create(kind, backbone=SMALL, num_classes=3, dtype="bfloat16")
        assert half.backbone.dtype == jnp.bfloat16
        assert kind == "linear" or half.head.dtype == jnp.bfloat16
        outputs, stats = jax.eval_shape(
            lambda v, n=half: n.apply(v, images, train=True, rngs={"dropout": KEY}), small(kind)[1]
        )
        assert {x.dtype for x in jax.tree.leaves((outputs, stats))} == {jnp.dtype("float32")}


def resized(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Linear interpolation between the centers of pixels, one pixel after the other."""
    found = np.zeros((len(x), height, width, x.shape[-1]))
    for i in range(height):
        for j in range(width):
            y = max(0.0, (i + 0.5) * x.shape[1] / height - 0.5)
            z = max(0.0, (j + 0.5) * x.shape[2] / width - 0.5)
            for row, by_row in ((int(y), 1 - y % 1), (min(int(y) + 1, x.shape[1] - 1), y % 1)):
                for column, by_column in ((int(z), 1 - z % 1), (min(int(z) + 1, x.shape[2] - 1), z % 1)):
                    found[:, i, j] += by_row * by_column * x[:, row, column]
    return found


def convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    size = kernel.shape[0]
    padded = np.pad(x, ((0, 0), *[((size - 1) // 2,) * 2] * 2, (0, 0)))
    windows = [
        padded[:, i : i + x.shape[1], j : j + x.shape[2]] @ kernel[i, j] for i in range(size) for j in range(size)
    ]
    return np.sum(windows, 0)


def block(variables: Any, name: str, x: np.ndarray) -> np.ndarray:
    """A convolution, a norm with running statistics and a ReLU."""
    params, stats = variables["params"][name], variables["batch_stats"][name]["norm"]
    y = convolved(x, np.float64(params["conv"]["kernel"]))
    y = (y - stats["mean"]) / np.sqrt(np.float64(stats["var"]) + 1e-5) * params["norm"]["scale"]
    return np.maximum(y + params["norm"]["bias"], 0)


def test_upernet_is_its_formula():
    from vision_jax.dense.segmentation_heads import UperHead

    head = UperHead(4, channels=6, pool_scales=(1, 2))
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(1, *size, 5 + i)).astype(np.float32) for i, size in enumerate([(9, 8), (5, 4), (3, 2)])]
    variables = numbers(jax.eval_shape(lambda: head.init(KEY, maps, False)), 1)
    found = jax.jit(lambda v: head.apply(v, maps, False))(variables)

    last = maps[-1]
    halves = last.shape[1] // 2, -(-last.shape[1] // 2)  # rows 0 and 1, and 1 and 2: the middle one counts twice
    quarters = np.stack([last[:, : halves[1]].mean(1), last[:, halves[0] :].mean(1)], 1)
    parts = [last] + [
        resized(block(variables, f"pooled_{i}", pooled), 3, 2)
        for i, pooled in enumerate((last.mean((1, 2), keepdims=True), quarters))
    ]
    levels = [block(variables, "pooling", np.concatenate(parts, -1))]
    for i in (1, 0):
        levels.insert(0, block(variables, f"lateral_{i}", maps[i]) + resized(levels[0], *maps[i].shape[1:3]))
    levels = [block(variables, "level_0", levels[0]), block(variables, "level_1", levels[1]), levels[2]]
    joined = block(variables, "fusion", np.concatenate([resized(x, 9, 8) for x in levels], -1))
    classifier = variables["params"]["classifier"]["conv"]
    expected = joined @ np.float64(classifier["kernel"][0, 0]) + classifier["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_vision_transformer_has_a_linear_head_and_a_simple_pyramid():
    model = VisionTransformer(patch_size=8, embed_dim=16, depth=1, num_heads=2, img_size=32, num_classes=0)
    network = networks.create_segmenter("linear", backbone=model, num_classes=5)
    variables = numbers(shapes_of(network, 32, 32))
    images = jax.random.normal(KEY, (1, 32, 32, 3))

    @jax.jit
    def run(variables: Any) -> Any:
        maps = model.apply(networks.backbone_variables(variables), images, train=False, method="feature_maps")
        return network.apply(variables, images, train=False)[0], maps[8]

    outputs, patches = run(variables)
    assert outputs.keys() == {"out"}
    classifier = variables["params"]["head"]["classifier"]["conv"]
    expected = resized(np.asarray(patches @ classifier["kernel"][0, 0] + classifier["bias"]), 32, 32)
    np.testing.assert_allclose(outputs["out"], expected, atol=1e-4)

    detector = networks.create_detector("retinanet", backbone=model, num_classes=5)
    assert detector.map_sizes(32, 32) == ((8, 8), (4, 4), (2, 2), (1, 1), (1, 1))
    pyramid = shapes_of(detector, 32, 32)["params"]["neck"]
    assert pyramid["upscale"]["kernel"].shape == (2, 2, 16, 8)
    with pytest.raises(ConfigError, match="fcn needs 2 maps of the backbone, which has 1: set aux to False"):
        networks.create_segmenter("fcn", backbone=model, num_classes=5)
    with pytest.raises(ConfigError, match="take a backbone of four stages"):
        networks.create_segmenter("upernet", backbone=model, num_classes=5)


def test_weights_of_other_classes_are_told(caplog: pytest.LogCaptureFixture):
    network, variables = small("fcn")
    state = weights.to_torch(network, variables)
    assert {"backbone.conv1.weight", "classifier.4.bias", "aux_classifier.1.running_var"} <= state.keys()
    other = networks.create_segmenter("fcn", backbone=SMALL, num_classes=4)
    with pytest.raises(DataError, match=r"tell 3 classes apart, and the network 4: set num_classes to 3, or give"):
        weights.from_torch(other, state)
    found = weights.from_torch(other, state, new_seed=0)
    assert found["params"]["head"]["classifier"]["conv"]["kernel"].shape == (1, 1, 128, 4)
    np.testing.assert_array_equal(
        found["params"]["head"]["block"]["conv"]["kernel"], variables["params"]["head"]["block"]["conv"]["kernel"]
    )

    without = {name: value for name, value in state.items() if not name.startswith("aux_classifier")}
    with pytest.raises(DataError, match="no auxiliary head: make the network without one"):
        weights.from_torch(network, without)
    assert "aux_head" in weights.from_torch(network, without, new_seed=0)["params"]
    plain = networks.create_segmenter("fcn", backbone=SMALL, num_classes=3, aux=False)
    with caplog.at_level(logging.INFO):
        assert "aux_head" not in weights.from_torch(plain, {"model": state})["params"]
    assert "Left out, because the network has no auxiliary head" in caplog.text
    with pytest.raises(DataError, match=r"1 missing \(classifier.0.weight"):
        weights.from_torch(network, {name: value for name, value in state.items() if name != "classifier.0.weight"})


def test_detectors_read_published_names(caplog: pytest.LogCaptureFixture):
    network, variables = small("retinanet")
    state = weights.to_torch(network, variables)
    old = {}
    for name, value in state.items():
        name = name.replace("_blocks.0.0.", "_blocks.0.").replace("_blocks.1.0.", "_blocks.1.")
        name = name.replace("_blocks.2.0.", "_blocks.2.")
        for i in range(4):
            name = name.replace(f"head.conv.{i}.0.", f"head.conv.@{2 * i}.")
        old[name.replace("@", "")] = value
    assert {"head.regression_head.conv.6.bias", "backbone.fpn.layer_blocks.2.weight"} <= old.keys()
    found = weights.from_torch(network, old)
    jax.tree.map(np.testing.assert_array_equal, found, variables)
    assert "set norm_epsilon to 0" in caplog.text
    other = networks.create_detector("retinanet", backbone=SMALL, num_classes=4)
    with pytest.raises(DataError, match="tell 3 classes apart, and the network 4"):
        weights.from_torch(other, old)


def test_a_backbone_begins_with_weights_of_its_own():
    options = {"depths": (1, 1, 1, 1), "widths": (8, 16, 24, 32)}
    network = networks.create_segmenter("upernet", backbone="convnext_atto", num_classes=3, **options)
    model = ConvNeXt(**options, num_classes=7, conv_mlp=True)
    given = numbers(jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False)))
    from vision_jax import pretrained

    state = pretrained.to_torch("convnext_atto", given)
    found = weights.load_backbone(network, files.from_content(state))
    assert found["params"].keys() == {"stem", "stages"}
    jax.tree.map(np.testing.assert_array_equal, found["params"]["stages"], given["params"]["stages"])
    with pytest.raises(ConfigError, match="give name too"):
        weights.load_backbone(small("fcn")[0], files.from_content(state))


def test_activations_have_names():
    network, variables = small("deeplabv3")
    names = ["layer3", "layer4/0", "head/aspp", "head/logits", "aux_head/logits"]
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    outputs, found = jax.eval_shape(lambda v, x: network.apply_with_intermediates(v, x, names), variables, images)
    assert outputs["out"].shape == (1, 64, 64, 3)
    assert [found[name].shape[-1] for name in names] == [256, 512, 256, 3, 3]
    with pytest.raises(ConfigError, match="no intermediate 'asp'"):
        jax.eval_shape(lambda v, x: network.apply_with_intermediates(v, x, ["head/asp"]), variables, images)


def test_names_are_checked():
    assert "fcos_resnet50_fpn" in networks.list_detectors()
    assert "fcn_resnet101" in networks.list_segmenters()
    with pytest.raises(ConfigError, match="did you mean retinanet"):
        networks.create_detector("retinanets", num_classes=3)
    with pytest.raises(ConfigError, match="fcos is a method, and there is no backbone"):
        networks.create_detector("fcos", num_classes=3)
    with pytest.raises(ConfigError, match="fcn_resnet50 has the backbone resnet50"):
        networks.create_segmenter("fcn_resnet50", backbone="resnet18", num_classes=3)
    with pytest.raises(ConfigError, match="none of 16, but 2, 4, 8"):
        networks.create_detector("retinanet", backbone="resnet18", output_stride=8, num_classes=3)
    with pytest.raises(ConfigError, match="num_classes is 0"):
        networks.create_segmenter("fcn_resnet50", num_classes=0)
    with pytest.raises(ConfigError, match="the backbone is a module"):
        networks.create_segmenter("fcn", backbone=SMALL, num_classes=3, output_stride=8)
