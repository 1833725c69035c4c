"""Schedules by numbers worked by hand."""

import math

import jax
import numpy as np
import pytest

from vision_jax.errors import ConfigError
from vision_jax.optim import create_schedule, list_schedules, scale_learning_rate, schedule_arguments


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        # peak 2, 100 steps
        ("constant", {}, {0: 2, 100: 2}),
        ("constant", {"warmup_steps": 4}, {0: 0, 1: 0.5, 3: 1.5, 4: 2, 5: 2}),
        ("constant", {"warmup_steps": 10, "warmup_factor": 0.01}, {0: 0.02, 5: 2 * (0.01 + 0.99 / 2), 10: 2}),
        ("constant", {"cooldown_steps": 20}, {80: 2, 90: 1, 95: 0.5, 100: 0}),
        ("cosine", {}, {0: 2, 25: 1 + math.sqrt(0.5), 50: 1, 100: 0, 120: 0}),
        ("cosine", {"warmup_steps": 20, "end_factor": 0.1}, {0: 0, 10: 1, 20: 2, 60: 2 * (0.1 + 0.9 / 2), 100: 0.2}),
        ("cosine", {"end_factor": 10.0}, {0: 2, 50: 11, 100: 20}),  # a weight decay that rises
        # With the warm-up over its beginning, it falls from step 0 on, and so jumps at step 20.
        ("cosine", {"warmup_steps": 20, "overlap_warmup": True}, {19: 1.9, 20: 1 + math.cos(math.pi / 5), 50: 1}),
        ("cosine", {"warmup_steps": 21, "warmup_reaches_peak": True}, {0: 0, 10: 1, 20: 2, 21: 2}),
        ("cosine", {"warmup_steps": 1, "warmup_reaches_peak": True, "warmup_factor": 0.1}, {0: 0.2, 1: 2}),
        ("linear", {"warmup_steps": 20}, {0: 0, 20: 2, 40: 1.5, 60: 1, 100: 0}),
        ("linear", {"end_factor": 0.5}, {0: 2, 50: 1.5, 100: 1}),
        ("polynomial", {"warmup_steps": 20}, {20: 2, 60: 0.5, 80: 0.125, 100: 0}),
        ("polynomial", {"power": 3.0, "end_factor": 0.2}, {0: 2, 50: 2 * (0.2 + 0.8 / 8), 100: 0.4}),
        ("step", {"every": 30}, {0: 2, 29: 2, 30: 0.2, 59: 0.2, 60: 0.02, 90: 0.002, 100: 0.002}),
        ("step", {"every": 2.4, "factor": 0.5}, {0: 2, 2: 2, 3: 1, 4: 1, 5: 0.5, 12: 2 / 32}),
        ("step", {"milestones": (50, 75), "factor": 0.5, "warmup_steps": 10}, {5: 1, 10: 2, 49: 2, 50: 1, 75: 0.5}),
        ("exponential", {"every": 10, "factor": 0.25}, {0: 2, 5: 1, 10: 0.5, 20: 0.125}),
        ("exponential", {"every": 10, "factor": 0.25, "staircase": True}, {0: 2, 9: 2, 10: 0.5, 19: 0.5, 20: 0.125}),
        ("exponential", {"every": 10, "factor": 0.25, "end_factor": 0.1}, {10: 0.5, 20: 0.2, 100: 0.2}),
        ("rsqrt", {"warmup_steps": 10, "timescale": 10}, {5: 1, 10: 2, 40: 1, 90: 2 / 3}),
        ("rsqrt", {"warmup_steps": 10, "timescale": 10, "cooldown_steps": 20}, {40: 1, 90: 1 / 3, 100: 0}),
        ("piecewise", {"points": ((0, 0.2), (20, 1), (100, 0.05))}, {0: 0.4, 10: 1.2, 20: 2, 60: 1.05, 100: 0.1}),
        ("piecewise", {"points": [[50, 1], [60, 0]]}, {0: 2, 50: 2, 55: 1, 60: 0, 100: 0}),
        ("wsd", {"warmup_steps": 10, "decay_steps": 20}, {0: 0, 10: 2, 80: 2, 90: 1, 100: 0}),
        ("wsd", {"decay_steps": 40, "decay": "sqrt", "end_factor": 0.1}, {60: 2, 70: 2 * (0.1 + 0.9 / 2), 100: 0.2}),
        ("wsd", {"decay_steps": 40, "decay": "cosine"}, {60: 2, 70: 1 + math.sqrt(0.5), 80: 1, 100: 0}),
    ],
)
def test_schedules(name: str, kwargs: dict, expected: dict[int, float]):
    schedule = create_schedule(name, 2.0, total_steps=100, **kwargs)
    for step, value in expected.items():
        assert float(schedule(step)) == pytest.approx(value, rel=1e-5, abs=1e-6), step
    steps = np.asarray(list(expected), np.int32)
    np.testing.assert_allclose(jax.jit(schedule)(steps), list(expected.values()), rtol=1e-5, atol=1e-6)


def test_changes_with_the_epoch_alone():
    """As timm steps DeiT's schedule: epochs of 10 updates, 2 of them warm-up from 0.1, and a cosine over all 10."""
    schedule = create_schedule(
        "cosine",
        1.0,
        total_steps=100,
        warmup_steps=20,
        warmup_factor=0.1,
        end_factor=0.01,
        per_epoch=10,
        overlap_warmup=True,
    )
    epochs = [0.1, 0.55] + [0.01 + 0.99 * (1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(2, 10)]
    for step in range(100):
        assert float(schedule(step)) == pytest.approx(epochs[step // 10], rel=1e-5)


def test_torchvision_warmup_and_cosine():
    """LinearLR from 0.01 over 5 epochs, then CosineAnnealingLR over 595, one value an epoch."""
    schedule = create_schedule("cosine", 0.5, total_steps=6000, warmup_steps=50, warmup_factor=0.01, per_epoch=10)
    for epoch in (0, 1, 4, 5, 6, 300, 599):
        if epoch < 5:
            expected = 0.5 * (0.01 + 0.99 * epoch / 5)
        else:
            expected = 0.25 * (1 + math.cos(math.pi * (epoch - 5) / 595))
        assert float(schedule(10 * epoch + 9)) == pytest.approx(expected, rel=1e-4)


def test_long_training_keeps_its_precision():
    """Steps up to 2^24 are whole numbers in float32."""
    schedule = create_schedule("linear", 1.0, total_steps=16_000_000)
    assert float(schedule(15_999_999)) == pytest.approx(1 / 16_000_000, rel=1e-6, abs=6e-8)


def test_scales_with_the_batch():
    assert scale_learning_rate(0.1, 1024, 256) == pytest.approx(0.4)
    assert scale_learning_rate(0.1, 1024, 256, "sqrt") == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="no rule 'cubic'"):
        scale_learning_rate(0.1, 1024, 256, "cubic")


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("cosin", {}, "no schedule 'cosin': did you mean cosine"),
        ("cosine", {"power": 2}, "'cosine' has no argument 'power': it takes no further ones"),
        ("polynomial", {"powr": 2}, "'powr': it takes power"),
        ("cosine", {"warmup_steps": 10}, "10 steps must be shorter than the training of 10"),
        ("cosine", {"warmup_steps": 6, "cooldown_steps": 5}, "warm-up of 6 and the cooldown of 5"),
        ("step", {}, "either `every` or `milestones`"),
        ("step", {"every": 2, "milestones": [3]}, "either `every` or `milestones`"),
        ("step", {"every": 0}, "must be above 0"),
        ("exponential", {"factor": 0.1}, "missing 1 required keyword-only argument: 'every'"),
        ("piecewise", {"points": [(5, 1), (5, 0)]}, "must rise"),
        ("piecewise", {"points": [1, 2, 3]}, "does not take these arguments"),
        ("wsd", {"decay_steps": 11}, "between 1 and the 10"),
        ("wsd", {"decay_steps": 5, "decay": "cubic"}, "no decay 'cubic'"),
        ("cosine", {"per_epoch": 0}, "at least one update"),
    ],
)
def test_wrong_arguments(name: str, kwargs: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        create_schedule(name, 1.0, total_steps=10, **kwargs)


def test_lists_arguments():
    assert schedule_arguments("exponential") == ["every", "factor", "staircase"]
    assert list_schedules() == sorted(list_schedules())
    assert {"cosine", "wsd", "rsqrt"} <= set(list_schedules())
