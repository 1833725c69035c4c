"""What the recipe of ResNet-50 makes of these functions."""

import math

import jax
import jax.numpy as jnp
import pytest

import vision_jax
from vision_jax.optim import create_schedule, decay_mask


def test_resnet50_recipe_decays_kernels_alone():
    """53 convolutions and one classifier: 23,454,912 weights of convolutions and 2,048,000 of the classifier."""
    model = vision_jax.create_model("resnet50")
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)["params"]
    mask = jax.tree.leaves(decay_mask(params))
    sizes = [x.size for x in jax.tree.leaves(params)]
    assert sum(mask) == 54
    assert sum(size for size, decays in zip(sizes, mask, strict=True) if decays) == 23_454_912 + 2_048_000
    # 53 norms of 26,560 channels in all have a scale and a bias each; the classifier has 1,000 biases.
    assert sum(size for size, decays in zip(sizes, mask, strict=True) if not decays) == 2 * 26_560 + 1_000


def test_schedule_of_the_resnet50_recipe():
    """Warm-up over 5,000 of 56,250 steps to 2.048, then half a cosine to zero."""
    schedule = create_schedule("cosine", 2.048, total_steps=56_250, warmup_steps=5_000)
    expected = {
        0: 0.0,
        1: 2.048 / 5_000,
        2_500: 1.024,
        5_000: 2.048,
        5_000 + 51_250 // 2: 1.024,
        5_000 + 51_250 // 4: 2.048 * (1 + math.cos(math.pi * 12_812 / 51_250)) / 2,
        56_250: 0.0,
    }
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=2e-6)
