import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vision_jax
from vision_jax import pretrained
from vision_jax.models.convnext import GlobalResponseNorm
from vision_jax.models.regnet import VARIANTS, stage_shapes

# Blocks and widths of the four stages as Radosavovic et al. 2020 publish them, and as torchvision's models have them.
PUBLISHED = {
    "regnetx_002": ((1, 1, 4, 7), (24, 56, 152, 368)),
    "regnetx_004": ((1, 2, 7, 12), (32, 64, 160, 384)),
    "regnetx_004_tv": ((1, 2, 7, 12), (32, 64, 160, 400)),
    "regnetx_006": ((1, 3, 5, 7), (48, 96, 240, 528)),
    "regnetx_008": ((1, 3, 7, 5), (64, 128, 288, 672)),
    "regnetx_016": ((2, 4, 10, 2), (72, 168, 408, 912)),
    "regnetx_032": ((2, 6, 15, 2), (96, 192, 432, 1008)),
    "regnetx_040": ((2, 5, 14, 2), (80, 240, 560, 1360)),
    "regnetx_064": ((2, 4, 10, 1), (168, 392, 784, 1624)),
    "regnetx_080": ((2, 5, 15, 1), (80, 240, 720, 1920)),
    "regnetx_120": ((2, 5, 11, 1), (224, 448, 896, 2240)),
    "regnetx_160": ((2, 6, 13, 1), (256, 512, 896, 2048)),
    "regnetx_320": ((2, 7, 13, 1), (336, 672, 1344, 2520)),
    "regnety_002": ((1, 1, 4, 7), (24, 56, 152, 368)),
    "regnety_004": ((1, 3, 6, 6), (48, 104, 208, 440)),
    "regnety_006": ((1, 3, 7, 4), (48, 112, 256, 608)),
    "regnety_008": ((1, 3, 8, 2), (64, 128, 320, 768)),
    "regnety_008_tv": ((1, 3, 8, 2), (64, 144, 320, 784)),
    "regnety_016": ((2, 6, 17, 2), (48, 120, 336, 888)),
    "regnety_032": ((2, 5, 13, 1), (72, 216, 576, 1512)),
    "regnety_040": ((2, 6, 12, 2), (128, 192, 512, 1088)),
    "regnety_064": ((2, 7, 14, 2), (144, 288, 576, 1296)),
    "regnety_080": ((2, 4, 10, 1), (168, 448, 896, 2016)),
    "regnety_080_tv": ((2, 4, 10, 1), (224, 448, 896, 2016)),
    "regnety_120": ((2, 5, 11, 1), (224, 448, 896, 2240)),
    "regnety_160": ((2, 4, 11, 1), (224, 448, 1232, 3024)),
    "regnety_320": ((2, 5, 12, 1), (232, 696, 1392, 3712)),
    "regnety_1280": ((2, 7, 17, 1), (528, 1056, 2904, 7392)),
}


def test_regnets_stages_are_the_published_ones():
    shapes = {name: stage_shapes(*line, half_up=name.endswith("_tv")) for name, (line, _, _) in VARIANTS.items()}
    assert {name: (depths, widths) for name, (widths, depths) in shapes.items()} == PUBLISHED


def test_response_norm_is_the_papers_formula():
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 3, 5, 4), np.float32)
    scale, bias = random.standard_normal((2, 4), np.float32)
    y = GlobalResponseNorm().apply({"params": {"scale": scale, "bias": bias}}, x)
    norms = np.linalg.norm(x.reshape(2, 15, 4), axis=1)[:, None, None]
    expected = scale * x * norms / (norms.mean(-1, keepdims=True) + 1e-6) + bias + x
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_response_norm_of_a_dead_channel_has_a_gradient():
    x = jnp.ones((1, 2, 2, 3)).at[..., 1].set(0)
    params = {"scale": jnp.ones(3), "bias": jnp.zeros(3)}
    gradient = jax.grad(lambda x: GlobalResponseNorm().apply({"params": params}, x).sum())(x)
    assert np.isfinite(gradient).all()
    assert (gradient[..., 1] == 1).all()  # what the shortcut within the norm passes on


TORCHVISION = {
    "regnety_004": {
        "stem.bn.running_mean": ("stem.1.running_mean", (32,)),
        "s2.b3.conv2.conv.weight": ("trunk_output.block2.block2-2.f.b.0.weight", (104, 8, 3, 3)),
        "s2.b1.downsample.bn.bias": ("trunk_output.block2.block2-0.proj.1.bias", (104,)),
        "s2.b1.se.fc1.weight": ("trunk_output.block2.block2-0.f.se.fc1.weight", (12, 104, 1, 1)),
        "head.fc.weight": ("fc.weight", (1000, 440)),
    },
    "convnext_tiny": {
        "stem.0.weight": ("features.0.0.weight", (96, 3, 4, 4)),
        "stages.1.downsample.1.weight": ("features.2.1.weight", (192, 96, 2, 2)),
        "stages.1.blocks.2.gamma": ("features.3.2.layer_scale", (192, 1, 1)),
        "stages.3.blocks.0.mlp.fc1.weight": ("features.7.0.block.3.weight", (3072, 768)),
        "head.norm.weight": ("classifier.0.weight", (768,)),
    },
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_names(name: str):
    model = vision_jax.create_model(name)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    variables = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), variables)
    ours, theirs = (pretrained.to_torch(name, variables, library) for library in ("timm", "torchvision"))
    assert len(ours) == len(theirs)
    for key, (other, shape) in TORCHVISION[name].items():
        assert key in ours
        assert theirs[other].shape == shape
