import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vision_jax
from vision_jax import pretrained

NAME = "mixer_s16_224"
SMALL = {"embed_dim": 8, "depth": 2, "img_size": 48, "num_classes": 5}


def test_loads_big_visions_arrays(tmp_path: pathlib.Path):
    random = np.random.default_rng(0)

    def dense(name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
        return {f"{name}/kernel": random.standard_normal((inputs, outputs)), f"{name}/bias": random.random(outputs)}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {f"{name}/scale": random.random(8), f"{name}/bias": random.random(8)}

    arrays = {"stem/kernel": random.standard_normal((16, 16, 3, 8)), "stem/bias": random.random(8)}
    for block in ("MixerBlock_0", "MixerBlock_1"):
        arrays |= norm(f"{block}/LayerNorm_0") | norm(f"{block}/LayerNorm_1")
        arrays |= dense(f"{block}/token_mixing/Dense_0", 9, 4) | dense(f"{block}/token_mixing/Dense_1", 4, 9)
        arrays |= dense(f"{block}/channel_mixing/Dense_0", 8, 32) | dense(f"{block}/channel_mixing/Dense_1", 32, 8)
    arrays |= norm("pre_head_layer_norm") | dense("head", 8, 5)
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    np.savez(tmp_path / "mixer.npz", **arrays)

    params = pretrained.load(NAME, tmp_path / "mixer.npz", **SMALL)["params"]
    assert len(jax.tree.leaves(params)) == len(arrays)
    for ours, theirs in {
        ("stem", "proj", "kernel"): "stem/kernel",
        ("blocks", "1", "norm2", "scale"): "MixerBlock_1/LayerNorm_1/scale",
        ("blocks", "0", "mlp_tokens", "fc1", "kernel"): "MixerBlock_0/token_mixing/Dense_0/kernel",
        ("blocks", "1", "mlp_channels", "fc2", "bias"): "MixerBlock_1/channel_mixing/Dense_1/bias",
        ("norm", "bias"): "pre_head_layer_norm/bias",
        ("head", "kernel"): "head/kernel",
    }.items():
        leaf = params
        for key in ours:
            leaf = leaf[key]
        np.testing.assert_array_equal(leaf, arrays[theirs])


@pytest.mark.parametrize("name", [NAME, "resmlp_12_224"])
def test_other_images_than_it_is_made_for(name: str):
    model = vision_jax.create_model(name, **SMALL)
    with pytest.raises(ValueError, match="made for 48 x 48 pixels: set img_size"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 48, 3)), train=False))
