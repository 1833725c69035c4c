import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vision_jax
from vision_jax.errors import ConfigError
from vision_jax.models import registry
from vision_jax.models.mbconv import BlockSpec, ConvBlock, InvertedResidual, Row, build, round_channels


@pytest.mark.parametrize(("channels", "rounded"), [(3, 8), (11.2, 16), (17.6, 16), (35.2, 32), (44, 48), (99, 96)])
def test_channels_lose_at_most_a_tenth(channels: float, rounded: int):
    assert round_channels(channels) == rounded


def test_channels_can_be_rounded_to_the_nearest():
    assert round_channels(35.2) == round_channels(35.2, limit=0) == 32
    assert (round_channels(11.2), round_channels(11.2, limit=0)) == (16, 8)


def test_a_table_is_scaled():
    table = (
        Row(InvertedResidual, 1, 3, 2, 4, 24, 0.25, nn.relu),
        Row(InvertedResidual, 1, 5, 1, 2.5, 24),
        Row(ConvBlock, 1, 1, 1, 1, 96),
    )
    stages = build(table, 16, 1.5, 1.2)
    assert stages == (
        (
            BlockSpec(InvertedResidual, 3, 2, 64, 40, 4, nn.relu),
            # The later row of the stage is the one that becomes deeper.
            BlockSpec(InvertedResidual, 5, 1, 104, 40, 0, None),
            BlockSpec(InvertedResidual, 5, 1, 104, 40, 0, None),
        ),
        (BlockSpec(ConvBlock, 1, 1, 40, 144, 0, None), BlockSpec(ConvBlock, 1, 1, 144, 144, 0, None)),
    )
    assert build(table, 16, squeeze_expanded=True)[0][0].squeezed == 16


def test_stochastic_depth_needs_branches():
    assert vision_jax.create_model("mobilenetv2_035", drop_path_rate=0.1).drop_path_rate == 0.1
    with pytest.raises(ConfigError, match="no residual branches"):
        vision_jax.create_model("mobilenetv1_100", drop_path_rate=0.1)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv2_100", "mobilenet_v3_small", "mnasnet_050"])
def test_torchvision_has_a_name_for_each_tensor(name: str):
    model, known = vision_jax.create_model(name), registry.entry(name)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    modules = {tuple(k.key for k in path)[1:-1] for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
    theirs = {known.torchvision(".".join((*module, "weight")), (1,))[0] for module in modules}
    assert len(theirs) == len(modules)


def test_original_models_have_tensorflows_padding_and_norms():
    ours, original = (vision_jax.create_model(name) for name in ("efficientnet_b0", "tf_efficientnet_b0"))
    assert (ours.padding, ours.norm_epsilon, ours.norm_momentum) == (None, 1e-5, 0.9)
    assert (original.padding, original.norm_epsilon, original.norm_momentum) == ("SAME", 1e-3, 0.99)


def test_drop_path_rates_rise_with_the_blocks():
    model = vision_jax.create_model("efficientnet_b0", drop_path_rate=0.32)
    bound = model.bind(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)))
    rates = [block.args[-1] for stage in bound.blocks.stages for block in stage]
    np.testing.assert_allclose(rates, np.arange(16) * 0.02, atol=1e-12)
