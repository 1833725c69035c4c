"""Class activation maps: by formula, of every family, and where those of a trained network lie."""

import functools
from typing import Any

import families
import jax
import numpy as np
import pytest
import scipy.ndimage
from explain import shallow

from vision_jax import explain
from vision_jax.errors import ConfigError
from vision_jax.explain import cam
from vision_jax.models import intermediates

IMAGES = np.random.default_rng(0).uniform(size=(3, 16, 16, 1)).astype(np.float32)
TARGETS = np.array([3, 0, 9])


@functools.cache
def by_formula() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The last activations, the classifier's weights of the targets, and the maps of it."""
    variables = shallow.initial(0)
    network = explain.Network(shallow.MODEL, variables, shallow.MEAN, shallow.STD)

    def run(images: jax.Array) -> Any:
        given = network, images, TARGETS
        _, found = intermediates.apply_with_intermediates(
            shallow.MODEL, variables, network.normalize(images), ["conv3"]
        )
        maps = {"cam": cam.gradcam(*given), "pp": cam.gradcam_pp(*given), "pp0": cam.gradcam_pp(*given, epsilon=0.0)}
        return found["conv3"], maps

    activations, maps = jax.jit(run)(IMAGES)
    weights = variables["params"]["fc"]["kernel"][:, TARGETS].T
    return np.asarray(activations, np.float64), np.asarray(weights, np.float64), maps


def test_gradcam_where_features_are_averaged():
    """The gradient is the classifier's weight / positions: the class activation map of Zhou et al. 2016."""
    activations, weights, maps = by_formula()
    expected = np.einsum("bhwc,bc->bhw", activations, weights) / 64
    np.testing.assert_allclose(maps["cam"], expected, rtol=1e-4, atol=1e-7)
    assert expected.min() < 0 < expected.max()


def test_gradcam_pp_where_features_are_averaged():
    activations, weights, maps = by_formula()
    gradients, total = weights / 64, activations.sum((1, 2))
    for name, epsilon in (("pp", 1e-6), ("pp0", 0)):
        shares = gradients**2 / (2 * gradients**2 + total * gradients**3 + epsilon)
        expected = np.einsum("bhwc,bc->bhw", activations, 64 * shares * np.maximum(gradients, 0))
        np.testing.assert_allclose(maps[name], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_maps_are_cut_off_scaled_and_enlarged():
    """Between the centers of pixels, as SciPy does it."""
    maps = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    maps[2] = -1  # without any evidence

    def scale(one: np.ndarray) -> np.ndarray:
        return (one - one.min()) / (1e-7 + (one - one.min()).max())

    enlarged = [
        scipy.ndimage.zoom(scale(np.maximum(one, 0)), 3, order=1, mode="nearest", grid_mode=True) for one in maps
    ]
    found = jax.jit(lambda maps: cam.to_image(maps, (12, 15, 3)))(maps)
    np.testing.assert_allclose(found, [scale(one) for one in enlarged], atol=1e-5)
    assert found[2].max() == 0


def share_on_ink(maps: np.ndarray, ink: np.ndarray) -> float:
    """The share of the mass of maps on pixels with ink, on average over maps that are not empty."""
    total = maps.sum((1, 2))
    return float(((maps * ink).sum((1, 2))[total > 0] / total[total > 0]).mean())


def test_gradcam_of_a_trained_network_lies_on_the_ink():
    """And that of random networks does not: the sanity check of Adebayo et al. 2018 (arXiv:1810.03292)."""
    variables, digits = shallow.trained()
    network = explain.Network(shallow.MODEL, variables, shallow.MEAN, shallow.STD)
    predicted = np.asarray(jax.jit(lambda images: network.apply(images))(digits.images)).argmax(1)
    assert (predicted == digits.labels).mean() > 0.5
    area = digits.ink.mean()
    for name in ("gradcam", "gradcam_pp"):
        made = explain.make_explainer(shallow.MODEL, explain.parse_method(name), mean=shallow.MEAN, std=shallow.STD)
        run = jax.jit(lambda variables, made=made: made(variables, digits.images, digits.labels))
        of_random = np.mean([share_on_ink(np.asarray(run(shallow.initial(seed))), digits.ink) for seed in range(1, 6)])
        of_trained = share_on_ink(np.asarray(run(variables)), digits.ink)
        assert of_trained > 3 * area
        assert of_random < 2.2 * area
        assert of_trained > 1.8 * of_random


SLOW = ("googlenet", "inception_v3", "shufflenet_v2_x0_5")  # to trace


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.exhaustive if name in SLOW else ()) for name in families.names()]
)
def test_every_family_has_a_map(name: str):
    """Of the images' size, of the layer that is the model's default; nothing is computed."""
    model, size = families.create(name)
    targets = jax.ShapeDtypeStruct((2,), np.int32)
    run = explain.make_explainer(model, explain.parse_method("gradcam"))
    found = jax.eval_shape(run, *families.shapes(name), targets)
    assert (found.shape, found.dtype) == ((2, size, size), np.float32)


def test_layers_are_named_as_in_torch_and_refused_in_one_line():
    model, size = families.create("resnet18", depths=(2, 2, 2, 2))
    known = intermediates.shapes(model, (size, size, 3))
    found = [cam.find_layer(model, name, known) for name in (None, "layer3/1", "layer3.1", "stem")]
    assert found == ["layer4", "layer3/1", "layer3/1", "stem"]
    there = r"the model has stem, layer\{1\.\.4\}/\{0\.\.1\}, layer\{1\.\.4\}\.$"
    for layer, message in (("layer5", "is not there"), ("features", "has no positions")):
        with pytest.raises(ConfigError, match=f"'{layer}' {message}: {there}"):
            cam.find_layer(model, layer, known)
    model, size = families.create("deit_tiny_patch16_224", depth=3)
    method = explain.parse_method("gradcam_pp:layer=blocks/1/attn")
    there = r"has patch_embed, blocks/\{0\.\.2\}/norm\{1\.\.2\}, blocks/\{0\.\.2\}, norm\."
    with pytest.raises(ConfigError, match=there):
        explain.check(model, method, (size, size, 3))
    run, targets = explain.make_explainer(model, method), jax.ShapeDtypeStruct((2,), np.int32)
    with pytest.raises(ConfigError, match=there):
        jax.eval_shape(run, *families.abstract(model, size), targets)


def test_ranges_of_names():
    names = ["a/0", "a/1", "a/2", "b2/x", "b4/x", "c", "d/0/e/1", "d/0/e/2", "d/1/e/1", "d/1/e/2", "f10"]
    assert cam.ranges(names) == ["a/{0..2}", "b2/x", "b4/x", "c", "d/{0..1}/e/{1..2}", "f10"]
    assert cam.ranges([]) == []
