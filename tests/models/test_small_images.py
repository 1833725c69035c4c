"""Wide ResNet and ResNet-9."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vision_jax
from vision_jax.errors import ConfigError
from vision_jax.models.layers import BatchNorm, Conv
from vision_jax.models.wideresnet import Block, Stage

KEY = jax.random.key(0)
IMAGES = np.random.RandomState(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def parameters(name: str, **options: object) -> int:
    model = vision_jax.create_model(name, **options)
    params = jax.eval_shape(lambda: model.init(KEY, IMAGES, train=False))["params"]
    return sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("name", "depth", "factor", "published"),
    [
        ("wrn_16_1", 16, 1, None),
        ("wrn_16_4", 16, 4, 2.7),
        ("wrn_28_10", 28, 10, 36.5),
        ("wrn_34_10", 34, 10, 46.2),
        ("wrn_40_2", 40, 2, 2.2),
    ],
)
def test_number_of_parameters_of_wide_resnets(name: str, depth: int, factor: int, published: float | None):
    """Of the convolutions, norms and the classifier, as the paper's table of the architecture has them; in millions."""
    count, before = 3 * 9 * 16, 16
    for width in (16 * factor, 32 * factor, 64 * factor):
        for _ in range((depth - 4) // 6):
            count += 2 * before + 9 * before * width + 2 * width + 9 * width * width
            count += before * width if before != width else 0
            before = width
    count += 2 * before + 10 * before + 10
    assert parameters(name) == count
    assert published is None or round(count / 1e6, 1) == published


def test_number_of_parameters_of_resnet9():
    """6.57 million: eight 3x3 convolutions with norms, and a classifier without bias."""
    widths = [(3, 64), (64, 128), (128, 128), (128, 128), (128, 256), (256, 512), (512, 512), (512, 512)]
    assert parameters("resnet9") == sum(9 * a * b + 2 * b for a, b in widths) + 512 * 10 == 6_573_120


def test_wide_resnets_are_of_certain_depths():
    with pytest.raises(ConfigError, match="depth is 18"):
        vision_jax.create_model("wrn_16_4", depth=18)


def test_shortcuts_of_wide_resnets():
    """A projection where the width changes, of what the first norm gives; without branches, nothing else is done."""
    block = functools.partial(Block, width=6, conv=Conv, norm=BatchNorm)
    stage = Stage(block, 2, (0.0, 0.0))
    x = np.random.RandomState(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
    params = quick(lambda: stage.init(KEY, x, False))()["params"]
    assert [("downsample" in params[str(i)]) for i in range(2)] == [True, False]
    without = {name: value | {"conv2": {"kernel": jnp.zeros((3, 3, 6, 6))}} for name, value in params.items()}
    stats = {str(i): {"bn1": statistics(4 + 2 * i), "bn2": statistics(6)} for i in range(2)}
    result = quick(lambda v: stage.apply(v, x, False))({"params": without, "batch_stats": stats})
    activated = np.maximum(x, 0) / np.sqrt(np.float32(1 + 1e-5))
    np.testing.assert_allclose(result, activated[:, ::2, ::2] @ params["0"]["downsample"]["kernel"][0, 0], atol=1e-5)


def statistics(features: int) -> dict[str, jax.Array]:
    return {"mean": jnp.zeros(features), "var": jnp.ones(features)}


def test_logits_of_resnet9_are_an_eighth():
    model = vision_jax.create_model("resnet9", num_classes=3)
    maps = np.random.RandomState(0).standard_normal((2, 512)).astype(np.float32)
    kernel = np.random.RandomState(1).standard_normal((512, 3)).astype(np.float32)
    logits = model.apply({"params": {"fc": {"kernel": kernel}}}, maps, train=False, method="classify")
    np.testing.assert_allclose(logits, maps @ kernel / 8, rtol=1e-4, atol=1e-5)
