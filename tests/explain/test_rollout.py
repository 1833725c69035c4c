"""Attention rollout by hand, and of models."""

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vision_jax import explain
from vision_jax.errors import ConfigError
from vision_jax.explain import rollout
from vision_jax.models.intermediates import apply_with_intermediates

ATTENTION = np.array([[[[0.5, 0.5], [0.0, 1.0]]]], np.float32)


def test_two_layers_by_hand():
    """Half of each is the identity: [[.75, .25], [0, 1]], whose square is [[.5625, .4375], [0, 1]]."""
    np.testing.assert_allclose(rollout.product([ATTENTION, ATTENTION])[0], [[0.5625, 0.4375], [0, 1]], rtol=1e-6)


def test_the_last_layer_comes_first():
    other = np.array([[[[1.0, 0.0], [1.0, 0.0]]]], np.float32)
    first, second = np.array([[0.75, 0.25], [0, 1]]), np.array([[1, 0], [0.5, 0.5]])
    np.testing.assert_allclose(rollout.product([ATTENTION, other])[0], second @ first, rtol=1e-6)


def test_heads_are_fused_and_the_smallest_left_out():
    heads = np.array([[[[0.2, 0.8], [0.6, 0.4]], [[0.6, 0.4], [0.5, 0.5]]]], np.float32)
    for fusion, fused in (("max", [[0.6, 0.8], [0.6, 0.5]]), ("min", [[0.2, 0.4], [0.5, 0.4]])):
        mixed = np.array(fused) + np.eye(2)
        expected = mixed / mixed.sum(1, keepdims=True)
        np.testing.assert_allclose(rollout.product([heads], fusion=fusion)[0], expected, rtol=1e-6)
    # Of the means, [[.4, .6], [.55, .45]], the two smallest are .4, which is the first and stays, and .45.
    found = rollout.product([heads], discard=0.5)[0]
    np.testing.assert_allclose(found, [[1.4 / 2, 0.6 / 2], [0.55 / 1.55, 1 / 1.55]], rtol=1e-6)
    with pytest.raises(ConfigError, match="'sum': there are: mean, max, min"):
        rollout.product([heads], fusion="sum")
    with pytest.raises(ConfigError, match=r"is 1\.0: give one from 0"):
        rollout.product([heads], discard=1.0)


@pytest.mark.parametrize(
    "options",
    [
        {"num_registers": 2},
        {"class_token": False, "global_pool": "avg"},
        pytest.param({}, marks=pytest.mark.exhaustive),
    ],
)
def test_maps_of_vision_transformers(options: dict[str, object]):
    """What reaches the class token, or the average of the patches, from each patch."""
    model, size = families.create("deit_tiny_patch16_224", embed_dim=16, num_heads=2, img_size=48, **options)
    variables, images = families.random(families.abstract(model, size))
    method = explain.parse_method("rollout:discard=0.2")
    network = explain.Network(model, variables, (0.0,), (1.0,))

    def run(images: jax.Array) -> tuple[jax.Array, ...]:
        names = ["blocks/0/attn", "blocks/1/attn"]
        _, found = apply_with_intermediates(model, variables, images, names)
        total = rollout.product([found[name] for name in names], discard=0.2)
        maps = explain.make_explainer(model, method)(variables, images, jnp.zeros(2, int))
        return total, rollout.rollout(network, images, discard=0.2), maps

    total, patches, maps = jax.jit(run)(images)
    before = model.num_prefix_tokens
    assert before == {0: 1, 1: 3, 2: 0}[len(options)]
    seen = total[:, 0, before:] if before else total.mean(1)
    seen = seen / seen.max(1, keepdims=True)
    np.testing.assert_allclose(patches, seen.reshape(2, 3, 3), rtol=1e-5)
    assert maps.shape == (2, 48, 48)
    np.testing.assert_allclose(maps[:, 7:9, 23:25].mean((1, 2)), patches[:, 0, 1], rtol=0.05)


def test_models_without_attention_between_all_patches():
    for name, message in (
        ("resnet18", "ResNet has no attention, which rollout multiplies: use gradcam instead"),
        ("mixer_s32_224", "MlpMixer has no attention"),
        ("swin_tiny_patch4_window7_224", "attention of SwinTransformer is within windows"),
    ):
        model, size = families.create(name)
        with pytest.raises(ConfigError, match=message):
            explain.check(model, explain.parse_method("rollout"), (size, size, 3))
