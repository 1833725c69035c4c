"""Checkpoints under the names that the models' authors gave their tensors load as those under timm's do.

The names are those of facebookresearch's ConvNeXt, ConvNeXt-V2, deit, dino and mae, and of microsoft's Swin.
"""

import logging
import re

import jax
import numpy as np
import pytest
from test_naming import SMALL, make_state

from vision_jax import pretrained
from vision_jax.errors import DataError

CONVNEXT = {"depths": (1, 1, 2, 1), "widths": (4, 8, 12, 16), "num_classes": 3}
SWIN = {
    "embed_dim": 8,
    "depths": (1, 1, 1, 2),
    "num_heads": (1, 1, 2, 2),
    "window_size": 2,
    "img_size": 64,
    "num_classes": 3,
}


def assert_loads_as(name: str, checkpoint: object, state: dict[str, np.ndarray], options: dict[str, object]) -> None:
    expected = pretrained.from_torch(name, state, **options)
    jax.tree.map(np.testing.assert_array_equal, pretrained.from_torch(name, checkpoint, **options), expected)


def renamed(state: dict[str, np.ndarray], *patterns: tuple[str, str]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(state, "")
    for name in state:
        new = name
        for pattern, replacement in patterns:
            new = re.sub(pattern, replacement, new)
        names[name] = new
    assert len(set(names.values())) == len(state)
    return {names[name]: value for name, value in state.items()}


@pytest.mark.parametrize("name", ["convnext_tiny", "convnext_atto", "convnextv2_tiny", "convnextv2_atto"])
def test_convnext(name: str):
    """From the stem to the classifier; timm's small variants have 1x1 convolutions in place of dense layers."""
    state = make_state(name, **CONVNEXT)
    checkpoint = renamed(
        state,
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"\.blocks\.", "."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"mlp\.grn\.weight", "grn.gamma"),
        (r"mlp\.grn\.bias", "grn.beta"),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    )
    for key, value in checkpoint.items():
        if ".grn." in key:
            checkpoint[key] = value.reshape(1, 1, 1, -1)
        elif "pwconv" in key and value.ndim == 4:
            checkpoint[key] = value[:, :, 0, 0]
    assert "downsample_layers.0.0.weight" in checkpoint
    assert "stages.2.1.pwconv2.bias" in checkpoint
    assert ("stages.0.0.grn.beta" in checkpoint) == name.startswith("convnextv2")
    assert_loads_as(name, {"model": checkpoint}, state, CONVNEXT)


def test_a_pretrained_convnext_v2_has_no_last_norm(caplog: pytest.LogCaptureFixture):
    """The masked autoencoder's encoder ends before the norm of the averaged features, which begins anew."""
    caplog.set_level(logging.INFO, "vision_jax")
    state = make_state("convnextv2_atto", **CONVNEXT)
    encoder = {key: value for key, value in state.items() if not key.startswith("head.")}
    params = pretrained.from_torch("convnextv2_atto", encoder, **CONVNEXT)["params"]
    np.testing.assert_array_equal(params["head"]["norm"]["scale"], 1)
    assert params["head"]["fc"]["kernel"].shape == (16, 3)
    assert "the weights have no classifier; it is new, for 3 classes" in caplog.text


def test_swin():
    """Patches are merged at the end of a stage, not at the beginning of the next; buffers lie beside the weights."""
    name = "swin_tiny_patch4_window7_224"
    state = make_state(name, **SWIN)
    checkpoint = renamed(state, (r"^head\.fc\.", "head."))
    merging = {key: value for key, value in checkpoint.items() if ".downsample." in key}
    checkpoint = {key: value for key, value in checkpoint.items() if key not in merging}
    for stage in (1, 2, 3):
        for rest in ("reduction.weight", "norm.weight", "norm.bias"):
            checkpoint[f"layers.{stage - 1}.downsample.{rest}"] = merging[f"layers.{stage}.downsample.{rest}"]
    checkpoint["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((4, 4), np.int64)
    checkpoint["layers.0.blocks.1.attn_mask"] = np.zeros((4, 4, 4), np.float32)
    assert_loads_as(name, {"model": checkpoint, "epoch": 299}, state, SWIN)
    # Without a classifier too, which does not tell one's names from the other's.
    backbone = {key: value for key, value in checkpoint.items() if not key.startswith("head.")}
    assert_loads_as(name, backbone, state, SWIN | {"num_classes": 0})


def test_deit3():
    name = "deit3_small_patch16_224"
    state = make_state(name, **SMALL)
    checkpoint = renamed(state, (r"\.ls([12])\.gamma", r".gamma_\1"))
    assert "blocks.0.gamma_2" in checkpoint
    assert_loads_as(name, {"model": checkpoint}, state, SMALL)


def test_deit_with_distillation():
    state = make_state("deit_tiny_distilled_patch16_224", **SMALL)
    assert {"dist_token", "head_dist.weight"} <= state.keys()
    assert_loads_as("deit_tiny_distilled_patch16_224", {"model": state}, state, SMALL)


def test_dino():
    """The teacher's backbone is taken, and the projections are left out."""
    name, options = "vit_tiny_patch16_224", SMALL | {"num_classes": 0}
    state = make_state(name, **options)
    projection = {"head.mlp.0.weight": np.ones((4, 8)), "head.last_layer.weight_g": np.ones((2, 1))}
    checkpoint = {
        "student": {f"module.backbone.{key}": value + 1 for key, value in state.items()}
        | {f"module.{key}": value for key, value in projection.items()},
        "teacher": {f"backbone.{key}": value for key, value in state.items()} | projection,
        "optimizer": {"state": {0: {"exp_avg": np.ones(3)}}},
        "epoch": 100,
        "args": {"arch": "vit_small"},
        "dino_loss": {"center": np.ones((1, 2))},
    }
    assert_loads_as(name, checkpoint, state, options)
    assert_loads_as(name, state, state, options)  # the file of the backbone alone


def test_mae(caplog: pytest.LogCaptureFixture):
    """The decoder is left out, and fine-tuning with averaged features has a new norm, as the authors' has."""
    caplog.set_level(logging.INFO, "vision_jax")
    name = "vit_tiny_patch16_224"
    encoder = make_state(name, **SMALL | {"num_classes": 0})
    decoder = {
        "mask_token": np.ones((1, 1, 4)),
        "decoder_pos_embed": np.ones((1, 5, 4)),
        "decoder_embed.weight": np.ones((4, 8)),
        "decoder_blocks.0.norm1.weight": np.ones(4),
        "decoder_norm.weight": np.ones(4),
        "decoder_pred.bias": np.ones(48),
    }
    checkpoint = {"model": encoder | decoder, "optimizer": {}, "epoch": 799, "scaler": {"scale": 1.0}}
    assert_loads_as(name, checkpoint, encoder, SMALL | {"num_classes": 0})
    assert "left out: model, epoch, scaler." in caplog.text

    params = pretrained.from_torch(name, checkpoint, **SMALL, global_pool="avg")["params"]
    np.testing.assert_array_equal(params["fc_norm"]["scale"], 1)
    np.testing.assert_array_equal(params["blocks"]["0"]["norm1"]["scale"], encoder["blocks.0.norm1.weight"])
    with pytest.raises(DataError, match=r"no classifier \(head.bias, head.weight\), so that there is nothing to eval"):
        pretrained.from_torch(name, checkpoint, **SMALL, classifier_seed=None)
