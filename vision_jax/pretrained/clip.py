"""Weights of CLIPs and SigLIPs, under the names of OpenAI, open_clip, Hugging Face and big_vision.

All become the names of `vision_jax.models.clip`, as torch would write them; what differs are names, matrices that are
stored transposed, queries, keys and values apart or together, and axes of the length 1.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import DataError
from vision_jax.models.clip import Clip
from vision_jax.models.transformer import resample_positions
from vision_jax.models.vit_weights import big_vision_layout
from vision_jax.pretrained import files, naming
from vision_jax.pretrained.files import WeightFile
from vision_jax.pretrained.tensors import Tensor, assemble, tensors_of, to_numpy

log = logging.getLogger(__name__)

_Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]

# OpenAI's and open_clip's: one tower for texts at the root, or under "text."; images in ViTs of their own, or timm's.
_OPEN_CLIP: _Rules = (
    (r"^(?=positional_embedding$|token_embedding\.|transformer\.|ln_final\.|text_projection)", "text."),
    (r"^visual\.trunk\.", "visual."),
    (r"^visual\.class_embedding$", "visual.cls_token"),
    (r"^(visual|text)\.positional_embedding$", r"\1.pos_embed"),
    (r"^visual\.ln_pre\.", "visual.norm_pre."),
    (r"^visual\.ln_post\.", "visual.norm."),
    (r"^visual\.proj$", "visual.head.weight"),
    (r"^text\.ln_final\.", "text.norm."),
    (r"^text\.text_projection$", "text.head.weight"),
    (r"^text\.text_projection\.", "text.head."),
    (r"\.transformer\.resblocks\.", ".blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
# Of the ResNets too, the first convolution is conv1, and keeps its name.
_OPEN_CLIP_VIT: _Rules = ((r"^visual\.conv1\.(?=weight$)", "visual.patch_embed.proj."), *_OPEN_CLIP)
_HUGGING_FACE: _Rules = (
    (r"^vision_model\.", "visual."),
    (r"^text_model\.", "text."),
    (r"\.embeddings\.class_embedding$", ".cls_token"),
    (r"\.embeddings\.patch_embedding\.", ".patch_embed.proj."),
    (r"\.embeddings\.position_embedding\.weight$", ".pos_embed"),
    (r"\.embeddings\.token_embedding\.", ".token_embedding."),
    (r"\.pre_layrnorm\.", ".norm_pre."),
    (r"\.(post_layernorm|final_layer_norm)\.", ".norm."),
    (r"^visual_projection\.", "visual.head."),
    (r"^text_projection\.", "text.head."),
    (r"\.encoder\.layers\.", ".blocks."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"^visual\.head\.probe$", "visual.attn_pool.latent"),
    (r"^visual\.head\.attention\.in_proj_", "visual.attn_pool.qkv."),
    (r"^visual\.head\.attention\.out_proj\.", "visual.attn_pool.proj."),
    (r"^visual\.head\.layernorm\.", "visual.attn_pool.norm."),
    (r"^visual\.head\.mlp\.", "visual.attn_pool.mlp."),
)
_BIG_VISION: _Rules = (
    (r"^t$", "logit_scale"),
    (r"^b$", "logit_bias"),
    (r"^img/", "visual/"),
    (r"^txt/", "text/"),
    (r"/embedding/(?=kernel$|bias$)", "/patch_embed.proj/"),
    (r"/Embed_0/embedding$", "/token_embedding.weight"),
    (r"/pos_embedding$", "/pos_embed"),
    (r"/(Transformer|Encoder_0)/", "/"),
    (r"/encoder_norm/", "/norm/"),
    (r"/encoderblock_(\d+)/LayerNorm_0/", r"/blocks/\1/norm1/"),
    (r"/encoderblock_(\d+)/LayerNorm_1/", r"/blocks/\1/norm2/"),
    (r"/encoderblock_(\d+)/", r"/blocks/\1/attn_or_mlp/"),
    (r"/MAPHead_0/probe$", "/attn_pool/latent"),
    (r"/MAPHead_0/LayerNorm_0/", "/attn_pool/norm/"),
    (r"/MAPHead_0/", "/attn_pool/"),
    (r"(attn_or_mlp/)?MlpBlock_0/Dense_0/", "mlp/fc1/"),
    (r"(attn_or_mlp/)?MlpBlock_0/Dense_1/", "mlp/fc2/"),
    (r"attn_or_mlp/MultiHeadDotProductAttention_0/", "attn/"),
    (r"/MultiHeadDotProductAttention_0/", "/"),
    (r"/out/(?=kernel$|bias$)", "/proj/"),
    (r"/(query|key|value)/(?=kernel$|bias$)", lambda found: f"/{found[1][0]}/"),
    (r"/(kernel|scale)$", ".weight"),
    (r"/", "."),
)
# What OpenAI's checkpoints and older ones of transformers have beside the weights.
_NO_WEIGHTS = re.compile(
    r"(^|\.)(input_resolution|context_length|vocab_size|position_ids|attn_mask|num_batches_tracked)$"
)
_BIG_VISION_PREFIXES = ("params/", "opt/target/")


def load(model: Clip, path: Any) -> dict[str, Any]:
    """Reads the variables of a model of images and words from a file.

    Args:
        model: see `vision_jax.models.clip_variants.create`.
        path: as for `vision_jax.pretrained.load`.

    Returns:
        `params` and `batch_stats`, float32.

    Raises:
        DataError: if the file cannot be read, or is not of this model.
    """
    file = files.read(path)
    try:
        return from_tensors(model, file.tensors)
    except DataError as error:
        raise DataError(f"{file.path}: {error}") from error


def read(path: Any) -> WeightFile:
    """Reads a file of weights; see `vision_jax.pretrained.read`."""
    return files.read(path)


def from_tensors(model: Clip, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Converts tensors into variables; their names tell whose they are. Positions of another image size are adapted.

    Args:
        model: for which they are.
        tensors: by name; NumPy's or torch's.

    Returns:
        `params` and `batch_stats`, float32.

    Raises:
        DataError: if tensors are missing, left over or of another shape; it names some of them.
    """
    wanted = model_tensors(model)
    values = to_own_names(tensors)
    for tensor in wanted:
        if tensor.name in values:
            values[tensor.name] = _fit(tensor, values[tensor.name])
    _raise_if_different(wanted, values)
    return assemble(wanted, values)


def model_tensors(model: Clip) -> list[Tensor]:
    """Returns the tensors of a model."""
    images = jnp.zeros((1, model.img_size, model.img_size, model.in_channels))
    tokens = jnp.zeros((1, model.text.context_length), jnp.int32)
    return tensors_of(jax.eval_shape(lambda: dict(model.init(jax.random.key(0), images, tokens, train=False))))


def to_own_names(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns tensors under the names and in the layout of `vision_jax.models.clip`, as torch would write them.

    Raises:
        DataError: if the names are nobody's that is known.
    """
    names = [name for name in tensors if not _NO_WEIGHTS.search(name)]
    if any(name.startswith(f"{prefix}img/") for name in names for prefix in _BIG_VISION_PREFIXES):
        values = _of_big_vision(tensors, names)
    elif (prefix := _prefix(names, ("vision_model.", "text_model."))) is not None:
        values = {_renamed(name, _HUGGING_FACE): to_numpy(tensors[prefix + name]) for name in _without(names, prefix)}
    elif (prefix := _prefix(names, ("visual.",))) is not None:
        rules = _OPEN_CLIP_VIT if f"{prefix}visual.class_embedding" in tensors else _OPEN_CLIP
        values = {}
        for name in _without(names, prefix):
            value = to_numpy(tensors[prefix + name])
            # These two are parameters that features are multiplied by, not the weights of a layer.
            values[_renamed(name, rules)] = value.T if name.endswith(("visual.proj", "text_projection")) else value
    else:
        raise DataError(
            f"The names of these weights, such as {naming.some(names)}, are none of OpenAI's, open_clip's, Hugging "
            "Face's or big_vision's for models of images and words."
        )
    return _with_joined_attention(values)


def _prefix(names: Sequence[str], starts: Sequence[str]) -> str | None:
    """Returns what wrappers have put before the names, of which some begin with `starts` behind it."""
    for name in names:
        for start in starts:
            if name.startswith(start):
                return ""
            if f".{start}" in name:
                return name[: name.index(f".{start}") + 1]
    return None


def _without(names: Sequence[str], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _renamed(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _of_big_vision(tensors: Mapping[str, Any], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns big_vision's arrays; those of layers that `nn.scan` has stacked one by one."""
    prefix = next(p for p in _BIG_VISION_PREFIXES if any(name.startswith(f"{p}img/") for name in names))
    layers: dict[str, np.ndarray] = {}
    for name in _without(names, prefix):
        value = to_numpy(tensors[prefix + name])
        if "/encoderblock/" in name:
            for i, layer in enumerate(value):
                layers[name.replace("/encoderblock/", f"/encoderblock_{i}/")] = layer
        else:
            layers[name] = value
    return {_renamed(name, _BIG_VISION): big_vision_layout(name, value) for name, value in layers.items()}


def _with_joined_attention(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Joins queries, keys and values of blocks, and takes the query of the pooling attention apart from the others."""
    for name in [name for name in values if re.search(r"\.q\.(weight|bias)$", name)]:
        parts = [re.sub(r"\.q\.(?=\w+$)", f".{part}.", name) for part in "qkv"]
        if all(part in values for part in parts):
            joined = re.sub(r"\.q\.(?=\w+$)", ".qkv.", name)
            values[joined] = np.concatenate([values.pop(part) for part in parts])
    for name in [name for name in values if ".attn_pool.qkv." in name]:
        value = values.pop(name)
        third = len(value) // 3
        values[name.replace(".qkv.", ".q.")], values[name.replace(".qkv.", ".kv.")] = value[:third], value[third:]
    return values


def _fit(tensor: Tensor, value: np.ndarray) -> np.ndarray:
    """Returns a value with the model's axes of the length 1, and positions for its image size."""
    if value.shape != tensor.shape and value.size == np.prod(tensor.shape, dtype=int):
        squeezed = [tuple(n for n in shape if n != 1) for shape in (value.shape, tensor.shape)]
        value = value.reshape(tensor.shape) if squeezed[0] == squeezed[1] else value
    if tensor.name == "visual.pos_embed" and value.shape[-1:] == tensor.shape[-1:] and value.ndim in (2, 3):
        value = value.reshape(1, -1, value.shape[-1])
        if value.shape != tensor.shape:
            log.info("The positions of %d patches are interpolated to %d.", value.shape[1], tensor.shape[1])
            value = resample_positions(value, tensor.shape[1])
    return value


def _raise_if_different(wanted: Sequence[Tensor], values: Mapping[str, np.ndarray]) -> None:
    shapes = {tensor.name: tensor.shape for tensor in wanted}
    missing = [f"{name} {shape}" for name, shape in shapes.items() if name not in values]
    over = [f"{name} {value.shape}" for name, value in values.items() if name not in shapes]
    wrong = [
        f"{name} {values[name].shape}, not {shape}"
        for name, shape in shapes.items()
        if name in values and values[name].shape != shape
    ]
    parts = naming.differences(missing, over, wrong)
    if parts:
        raise DataError(f"These weights do not fit the model: {', '.join(parts)}. Is it the right one?")
