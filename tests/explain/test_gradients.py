"""Gradients of functions whose gradients are known, and of a small vision transformer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_vit

import vision_jax
from vision_jax import explain
from vision_jax.errors import ConfigError
from vision_jax.explain import gradients

SHAPE, CLASSES = (4, 6, 2), 3
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(48, CLASSES)).astype(np.float32)
IMAGES = RNG.uniform(size=(5, *SHAPE)).astype(np.float32)
TARGETS = np.array([0, 2, 1, 2, 0])


def linear(images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1) @ WEIGHTS


def squares(images: jax.Array) -> jax.Array:
    return jnp.square(images.reshape(len(images), -1)) @ WEIGHTS


def weights_of_targets() -> np.ndarray:
    return WEIGHTS[:, TARGETS].T.reshape(5, *SHAPE)


def test_the_gradient_of_a_linear_function_is_its_weights():
    found = gradients.gradient(linear, IMAGES, TARGETS)
    np.testing.assert_allclose(found, weights_of_targets(), rtol=1e-6)
    found = gradients.smoothgrad(linear, IMAGES, TARGETS, jax.random.key(0), samples=3)
    np.testing.assert_allclose(found, weights_of_targets(), rtol=1e-5)
    for rule in gradients.RULES:
        found = gradients.integrated_gradients(linear, IMAGES, TARGETS, baseline=0.25, rule=rule, steps=3)
        np.testing.assert_allclose(found, weights_of_targets() * (IMAGES - 0.25), rtol=1e-5, atol=1e-6)


def test_smoothgrad_averages_over_noise():
    """The gradient of squares is 2 w x, so that given noise is averaged too; unknown noise does so in the limit."""
    noise = RNG.normal(size=(4, *IMAGES.shape)).astype(np.float32)
    run = functools.partial(gradients.smoothgrad, squares, IMAGES, TARGETS, sigma=0.3)
    single = 2 * weights_of_targets() * (IMAGES + np.float32(0.3) * noise)
    np.testing.assert_allclose(run(noise=noise), single.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(noise=noise, squared=True), np.square(single).mean(0), rtol=1e-4, atol=1e-5)
    expected = np.square(2 * weights_of_targets()) * (np.square(IMAGES) + 0.09)
    found = run(jax.random.key(1), samples=4000, squared=True)
    assert np.abs(found / expected - 1).max() < 0.1
    with pytest.raises(ConfigError, match="give it a random key"):
        run()


def test_noise_belongs_to_an_image():
    keys = jax.random.split(jax.random.key(2), 5)
    run = functools.partial(gradients.smoothgrad, squares, samples=2)
    together = run(IMAGES, TARGETS, keys)
    alone = run(IMAGES[3:4], TARGETS[3:4], keys[3:4])
    np.testing.assert_allclose(together[3], alone[0], rtol=1e-6)
    assert np.abs(together[0] / together[4] * weights_of_targets()[4] / weights_of_targets()[0] - 1).max() > 0.1


def test_rules_of_integration():
    """A rule of n nodes is exact for polynomials: midpoint for lines, Gauss-Legendre up to the degree 2n - 1."""
    for rule, degree in (("midpoint", 1), ("gauss-legendre", 7)):
        nodes, weights = gradients.quadrature(rule, 4)
        for power in range(degree + 2):
            error = abs((weights * nodes.astype(np.float64) ** power).sum() - 1 / (power + 1))
            assert (error < 1e-7) == (power <= degree), (rule, power, error)


@functools.cache
def transformer() -> tuple[Any, dict[str, Any], np.ndarray]:
    """A small vision transformer whose logits are of some size, and images."""
    model = vision_jax.create_model(small_vit.NAME, num_classes=CLASSES)
    images = RNG.uniform(size=(3, 8, 8, 3)).astype(np.float32)
    variables = model.init(jax.random.key(0), images, train=False)
    return model, jax.tree.map(lambda x: 20 * x if x.shape == (32, CLASSES) else x, variables), images


@pytest.mark.parametrize(
    "method",
    ["ig:steps=64", pytest.param("ig:steps=30:rule=gauss-legendre:baseline=0.2", marks=pytest.mark.exhaustive)],
)
def test_integrated_gradients_add_up_to_the_difference_of_scores(method: str):
    model, variables, images = transformer()
    normalization = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.3)}
    targets = np.array([2, 0, 1])
    run = explain.make_explainer(model, explain.parse_method(method), **normalization)
    run = jax.jit(run, compiler_options={"xla_backend_optimization_level": 3})  # quicker in loops
    network = explain.Network(model, variables, *normalization.values())
    apply = jax.jit(lambda images: network.apply(images))
    baseline = np.full_like(images, 0.2 if "0.2" in method else 0)
    rows = np.arange(3)
    difference = apply(images)[rows, targets] - apply(baseline)[rows, targets]
    assert np.abs(difference).min() > 0.1
    found = run(variables, images, targets, None).sum((1, 2))
    np.testing.assert_allclose(found, difference, rtol=2e-3)


def test_maps_are_those_of_the_gradient():
    model, variables, images = transformer()
    targets = np.array([2, 0, 1])

    def run(variables: Any, images: jax.Array) -> tuple[jax.Array, ...]:
        methods = map(explain.parse_method, ("gradient", "saliency", "gradient_x_input"))
        made = (explain.make_explainer(model, method, mean=(0.5,), std=(0.5,)) for method in methods)
        network = explain.Network(model, variables, (0.5,), (0.5,))
        return gradients.gradient(network.apply, images, targets), *(one(variables, images, targets) for one in made)

    each, *found = jax.jit(run)(variables, images)
    expected = each.sum(-1), np.abs(each).max(-1), (each * images).sum(-1)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
