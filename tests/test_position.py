import json
import math

from ml_collections import ConfigDict

from vision_jax import config as config_lib
from vision_jax import position


def make(**fields: object) -> ConfigDict:
    config = config_lib.default_config()
    config.update({"batch_size": 8, "epochs": 20.0})
    config.optimizer.learning_rate = 0.1
    config.schedule.warmup_epochs = 0.0
    config.update_from_flattened_dict(fields)
    return config


def saved(config: ConfigDict, **more: object) -> dict:
    """Returns what a checkpoint says of itself."""
    return {"config": json.loads(config_lib.to_json(config)), **more}


def cosine(step: int, total: int, peak: float = 0.1) -> float:
    return peak * (1 + math.cos(math.pi * step / total)) / 2


def test_position_after_another_batch_size_and_length():
    """Of 80 examples: 10 steps an epoch in batches of 8, and 5 in batches of 16."""
    about = saved(make(), num_examples=80)
    assert position.describe_change(about, make(), 80, 40) is None
    assert position.describe_change(about, make(batch_size=16), 80, 40) == (
        f"Step 40 was epoch 4 and is epoch 8 now; the learning rate was {cosine(40, 200):.4g} "
        f"and is {cosine(40, 100):.4g}."
    )
    assert position.describe_change(about, make(epochs=10.0), 80, 40) == (
        f"Step 40 was epoch 4 and is epoch 4 now; the learning rate was {cosine(40, 200):.4g} "
        f"and is {cosine(40, 100):.4g}."
    )
    scaled = make(**{"optimizer.learning_rate_batch_size": 4})
    assert f"and is {cosine(40, 200, peak=0.2):.4g}." in position.describe_change(about, scaled, 80, 40)


def test_position_with_other_data():
    about = saved(make(), num_examples=80)
    assert "was epoch 4 and is epoch 2 now" in position.describe_change(about, make(), 160, 40)
    # A checkpoint of an older version does not say of how many examples it was trained.
    assert position.describe_change(saved(make()), make(), 160, 40) is None


def test_position_before_that_cannot_be_told():
    about = saved(make(batch_size=100), num_examples=80)
    change = position.describe_change(about, make(), 80, 40)
    assert change.startswith(f"Step 40 is epoch 4 now, with a learning rate of {cosine(40, 200):.4g}.")
    assert "batch_size is 100" in change
    about["config"]["colour"] = 3
    assert "colour" in position.describe_change(about, make(), 80, 40)
