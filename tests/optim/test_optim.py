import json
import math
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vision_jax
from vision_jax.errors import ConfigError
from vision_jax.optim import create_optimizer, create_schedule, decay_mask

REFERENCE = np.load(pathlib.Path(__file__).parent.parent / "parity" / "optimizers.npz")
CASES = {name: case for name, case in json.loads(str(REFERENCE["cases"])).items() if case[0] == "torch.SGD"}
SHAPES = {"w": (16, 8), "b": (8,)}


def value(name: str, step: int) -> np.ndarray:
    """The gradient of a step, or the parameter at step 0, as the reference has it."""
    seed = zlib.crc32(f"{name}.{step}".encode())
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(SHAPES[name], dtype=np.float32)


@pytest.mark.parametrize("case", CASES)
def test_sgd_follows_torch(case: str):
    _, learning_rate, weight_decay, arguments, clip = CASES[case]
    optimizer = create_optimizer(
        "sgd",
        learning_rate,
        weight_decay=weight_decay,
        decay_mask={"w": True, "b": False},
        clip_global_norm=clip,
        **arguments,
    )
    params = {name: jnp.asarray(value(name, 0)) for name in SHAPES}
    state = optimizer.init(params)
    for step in range(1, 21):
        updates, state = optimizer.update({name: value(name, step) for name in SHAPES}, state, params)
        params = optax.apply_updates(params, updates)
        if step in (1, 2, 5, 20):
            for name in SHAPES:
                np.testing.assert_allclose(params[name], REFERENCE[f"{case}/{name}/{step}"], rtol=1e-5, atol=1e-6)


def test_unknown_optimizer_and_argument():
    with pytest.raises(ConfigError, match="no optimizer 'sdg': did you mean sgd"):
        create_optimizer("sdg", 0.1)
    with pytest.raises(ConfigError, match="b3"):
        create_optimizer("sgd", 0.1, b3=0.9)


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


def test_other_schedules():
    constant = create_schedule("constant", 0.5, total_steps=10, warmup_steps=4)
    assert [float(constant(step)) for step in range(6)] == pytest.approx([0, 0.125, 0.25, 0.375, 0.5, 0.5])
    cosine = create_schedule("cosine", 1.0, total_steps=10, end_factor=0.1)
    assert float(cosine(0)) == pytest.approx(1.0)
    assert float(cosine(5)) == pytest.approx(0.55)
    assert float(cosine(10)) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="shorter than the training of 10"):
        create_schedule("cosine", 1.0, total_steps=10, warmup_steps=10)
