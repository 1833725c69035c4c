"""Methods as text, and what is refused."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from explain import shallow
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vision_jax import explain
from vision_jax.errors import ConfigError
from vision_jax.explain import methods

QUICK = {"smoothgrad": ":samples=2", "integrated_gradients": ":steps=2", "rise": ":masks=5"}


def test_text_and_methods():
    assert explain.parse_method("gradcam") == methods.GradCam()
    assert explain.parse_method("gradcam:layer=layer3") == methods.GradCam(layer="layer3")
    assert explain.parse_method("ig:steps=64") == methods.IntegratedGradients(steps=64)
    assert explain.parse_method("ig : baseline=mean : rule=gauss-legendre").baseline == "mean"
    found = explain.parse_method("smoothgrad:sigma=1e-1:samples=9:squared=TRUE")
    assert found == methods.SmoothGrad(sigma=0.1, samples=9, squared=True)
    assert str(found) == "smoothgrad:sigma=0.1:samples=9:squared=True"
    for name, kind in explain.METHODS.items():
        assert explain.parse_method(name) == kind()
        assert explain.parse_method(str(kind())) == kind()
    assert explain.parse_method(str(found)) == found
    assert hash(found) != hash(dataclasses.replace(found, samples=8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gradcan", "method is 'gradcan': there are gradient, saliency, .*, rise"),
        ("", "method is '': there are gradient"),
        ("ig:step=4", "ig has no option 'step': it takes steps, baseline, rule, as in ig:steps="),
        ("gradient:steps=4", "gradient has no option 'steps': it takes none"),
        ("ig:steps=many", "steps of ig is 'many': give a whole number"),
        ("ig:steps=2.5", "steps of ig is '2.5': give a whole number"),
        ("ig:steps=0", "steps of integrated_gradients is 0: give 1 or more"),
        ("ig:steps", "steps of ig is given without a value"),
        ("ig:steps=2:steps=3", "steps of ig is given twice"),
        ("ig:rule=left", "rule of integrated_gradients is 'left': there are midpoint, gauss-legendre"),
        ("ig:baseline=blue", "baseline of integrated_gradients is 'blue': give a number from 0 to 1, or mean"),
        ("occlusion:baseline=255", "baseline of occlusion is 255.0: give a number from 0 to 1, or mean"),
        ("occlusion:window=4:stride=5", "stride of occlusion is 5: give 4 or less"),
        ("smoothgrad:squared=1", "squared of smoothgrad is '1': give true or false"),
        ("smoothgrad:sigma=nan", "sigma of smoothgrad is 'nan': give a number"),
        ("smoothgrad:sigma=-0.1", "sigma of smoothgrad is -0.1: give 0 or more"),
        ("ig:baseline=inf", "baseline of integrated_gradients is 'inf': give a number from 0 to 1, or mean"),
        ("rise:share=1", "share of rise is 1.0: give one above 0 and below 1"),
        ("rollout:fusion=sum", "fusion of rollout is 'sum': there are mean, max, min"),
        ("rollout:discard=1", "discard of rollout is 1.0: give a share below 1"),
        ("gradcam:layer=", "layer of gradcam is '': give a name"),
    ],
)
def test_what_cannot_be_meant(text: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        explain.parse_method(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(explain.METHODS.keys() - {"ig", "rollout"}))
def test_maps_are_of_the_images_size(name: str):
    """And negative only where the method says so."""
    method = explain.parse_method(name + QUICK.get(name, ""))
    images = np.random.default_rng(0).uniform(size=(2, 16, 16, 1)).astype(np.float32)
    run = explain.make_explainer(shallow.MODEL, method, mean=shallow.MEAN, std=shallow.STD)
    key = jax.random.key(0) if method.random else None
    found = jax.jit(run)(shallow.initial(0), images, np.array([1, 2]), key)
    assert (found.shape, found.dtype) == ((2, 16, 16), np.float32)
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0
    assert (found.min() < 0) == method.signed
    if method.random:
        with pytest.raises(ConfigError, match="give it a random key"):
            run(shallow.initial(0), images, np.array([1, 2]), None)


@pytest.mark.exhaustive
@pytest.mark.parametrize("text", ["gradient", "smoothgrad:samples=3", "gradcam_pp", "occlusion", "rise:masks=20"])
def test_images_may_be_divided_over_devices(text: str):
    """Each device explains its own: nothing is exchanged."""
    images = np.random.default_rng(0).uniform(size=(8, 16, 16, 1)).astype(np.float32)
    run = explain.make_explainer(shallow.MODEL, explain.parse_method(text), mean=shallow.MEAN, std=shallow.STD)
    given = shallow.initial(0), images, np.arange(8), jax.random.key(0)
    expected = jax.jit(run)(*given)
    divided = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    program = jax.jit(run, in_shardings=(None, divided, divided, None)).lower(*given).compile()
    assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", program.as_text())
    np.testing.assert_allclose(program(*given), expected, rtol=1e-5, atol=1e-6)


def test_targets_that_are_not_there():
    run = explain.make_explainer(shallow.MODEL, explain.parse_method("gradient"))
    images = np.zeros((2, 16, 16, 1), np.float32)
    for targets, message in (
        ([1, 10], "target class is 10: the model has the classes 0 to 9"),
        ([-1, 2], "target class is -1"),
        ([0.5, 2], "target classes are float64: give integers"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(shallow.initial(0), images, np.array(targets), None)
    with pytest.raises(ConfigError, match="images are uint8"):
        run(shallow.initial(0), images.astype(np.uint8), np.array([1, 2]), None)
    with pytest.raises(ConfigError, match="has no classes"):
        explain.make_explainer(shallow.MODEL.clone(num_classes=0), explain.parse_method("gradient"))


def test_windows_that_do_not_fit():
    for text, message in (("window=40", "window of 40 pixels"), ("stride=3", "window of 2 pixels and a stride of 3")):
        with pytest.raises(ConfigError, match=message):
            explain.check(shallow.MODEL, explain.parse_method(f"occlusion:{text}"), (16, 16, 1))
    explain.check(shallow.MODEL, explain.parse_method("occlusion"), (16, 16, 1))
