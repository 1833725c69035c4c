"""Names that the tensors of vision transformers have in files of other code bases, and other sizes of them."""

import logging
import math
import re

import numpy as np

from vision_jax.models.registry import Shape, Tensors
from vision_jax.models.transformer import resample_positions

log = logging.getLogger(__name__)


def from_big_vision(arrays: Tensors) -> dict[str, np.ndarray]:
    """Returns the state dict of arrays that google-research's big_vision or vision_transformer wrote.

    What has no counterpart keeps its name. A layer `pre_logits` before the classifier is left out.
    """
    prefix = next((p for p in _BIG_VISION_PREFIXES if p + "embedding/kernel" in arrays), "")
    state: dict[str, np.ndarray] = {}
    for key, value in arrays.items():
        if not key.startswith(prefix):  # the state of the optimizer
            continue
        key = key.removeprefix(prefix)
        if key.startswith("pre_logits/"):
            log.warning("%s is left out: the logits are not those of these weights, the features are.", key)
        elif "/encoderblock/" in key:  # stacked by `nn.scan`
            for i, layer in enumerate(value):
                layer_key = key.replace("/encoderblock/", f"/encoderblock_{i}/")
                state[_big_vision_name(layer_key)] = big_vision_layout(layer_key, layer)
        else:
            state[_big_vision_name(key)] = big_vision_layout(key, value)
    for name in [name for name in state if ".query." in name]:
        parts = [name.replace("query", part) for part in ("query", "key", "value")]
        if all(part in state for part in parts):
            state[name.replace("query", "qkv")] = np.concatenate([state.pop(part) for part in parts])
    positions = state.get("pos_embed")
    if positions is not None and "cls_token" in state and math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:
        # Positions were added before the class token was put in front, which has none.
        state["pos_embed"] = np.pad(positions, ((0, 0), (1, 0), (0, 0)))
    return state


_BIG_VISION_PREFIXES = ("opt/target/", "params/", "params/img/")
_BIG_VISION_NAMES = (
    (r"^embedding/", "patch_embed.proj/"),
    (r"^cls$", "cls_token"),
    (r"^(Transformer/)?(posembed_input/)?pos_embedding$", "pos_embed"),
    (r"^Transformer/encoder_norm/", "norm/"),
    (r"^Transformer/encoderblock_(\d+)/", r"blocks.\1."),
    # The numbers of modules of one kind within a block come from two generations of flax.
    (r"LayerNorm_0/", "norm1/"),
    (r"LayerNorm_\d+/", "norm2/"),
    (r"MlpBlock_\d+/Dense_0/", "mlp.fc1/"),
    (r"MlpBlock_\d+/Dense_1/", "mlp.fc2/"),
    (r"MultiHeadDotProductAttention_\d+/out/", "attn.proj/"),
    (r"MultiHeadDotProductAttention_\d+/(query|key|value)/", r"attn.\1/"),
    (r"/(kernel|scale)$", ".weight"),
    (r"/bias$", ".bias"),
)


def _big_vision_name(key: str) -> str:
    for pattern, replacement in _BIG_VISION_NAMES:
        key = re.sub(pattern, replacement, key)
    return key


def big_vision_layout(key: str, value: np.ndarray) -> np.ndarray:
    """Returns an array of big_vision's as torch stores it; heads are one axis with their features."""
    if re.search(r"/(query|key|value)/", key):
        return value.reshape(value.shape[0], -1).T if key.endswith("kernel") else value.reshape(-1)
    if key.endswith("/out/kernel"):
        return value.reshape(-1, value.shape[-1]).T
    if key.endswith("kernel"):
        return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value


def to_torchvision(name: str, shape: Shape) -> tuple[str, Shape]:
    """Returns the name and shape that torchvision's `VisionTransformer` has for a tensor."""
    for pattern, replacement in _TORCHVISION_NAMES:
        name = re.sub(pattern, replacement, name)
    return name, shape


_TORCHVISION_NAMES = (
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^norm\.", "encoder.ln."),
    (r"^head\.", "heads.head."),
    (r"^blocks\.", "encoder.layers.encoder_layer_"),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
)


def to_authors(name: str, shape: Shape) -> tuple[str, Shape]:
    """Returns the name that a tensor has in DeiT III's checkpoints; DeiT's, DINO's and MAE's have timm's names."""
    return re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name), shape


def resample(name: str, value: np.ndarray, shape: Shape) -> np.ndarray:
    """Returns a tensor for another image size: the position embeddings are interpolated.

    Raises:
        DataError: if they are not those of a square grid.
    """
    return resample_positions(value, shape[1]) if name == "pos_embed" else value
