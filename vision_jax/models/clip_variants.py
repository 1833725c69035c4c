"""CLIPs and SigLIPs by open_clip's names (mlfoundations/open_clip, `model_configs`), and what their weights expect."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from vision_jax.errors import ConfigError, suggest
from vision_jax.models.clip import CLIP_EPSILON, SIGLIP_EPSILON, Clip, ImageTower, TextTower, Transformer
from vision_jax.models.clip_resnet import EXPANSION, ModifiedResNet
from vision_jax.models.registry import HALVES, InputSpec

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP_VOCABULARY, CLIP_CONTEXT = 49408, 77
SIGLIP_VOCABULARY = 32000
_HEAD_FEATURES = 64  # of CLIP's attention


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model that is known by its name.

    Attributes:
        name: open_clip's.
        create: makes the module; see `create`.
        input: the images that its weights expect.
        square: images are resized to the square, whatever their aspect ratio; else the shorter side is, and the center
            cropped.
        texts: "clip" or "siglip": how texts become tokens; see `vision_jax.text`.
    """

    name: str
    create: Callable[..., Clip]
    input: InputSpec
    square: bool
    texts: str


_VARIANTS: dict[str, Variant] = {}
# OpenAI's names of its weights with transformers, which are with the quick form of GELU.
_ALIASES = {
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}


def list_clips() -> list[str]:
    """Returns the sorted names of all models."""
    return sorted(_VARIANTS)


def variant(name: str) -> Variant:
    """Returns what is known of a model by its name, open_clip's or OpenAI's.

    Raises:
        ConfigError: if there is none.
    """
    name = _ALIASES.get(name, name)
    if name not in _VARIANTS:
        raise ConfigError(f"There is no model {name!r} of images and words: {suggest(name, list_clips())}")
    return _VARIANTS[name]


def create(name: str, *, dtype: Any = jnp.float32, **options: Any) -> Clip:
    """Returns a model of images and words.

    Args:
        name: one of `list_clips()`.
        dtype: what it computes in; parameters are float32.
        **options: `activation`, where it has blocks; `img_size`, to which weights are then adapted; `remat`.

    Raises:
        ConfigError: for an unknown name or option.
    """
    known = variant(name)
    if unknown := sorted(options.keys() - {"activation", "img_size", "remat"}):
        raise ConfigError(f"{name} has no option {unknown[0]!r}: there are activation, img_size and remat.")
    return known.create(dtype=dtype, **options)


@dataclasses.dataclass(frozen=True)
class _Text:
    """The tower for texts: its width, blocks and heads; and the length of embeddings."""

    width: int
    depth: int
    num_heads: int


def clip_text(text: _Text, embed_dim: int, activation: str, dtype: Any, remat: bool | str) -> TextTower:
    """Returns CLIP's tower for texts."""
    blocks = Transformer(text.depth, text.num_heads, 4 * text.width, activation, CLIP_EPSILON, remat, dtype)
    return TextTower(CLIP_VOCABULARY, CLIP_CONTEXT, text.width, blocks, embed_dim, dtype=dtype)


def _register_clip(name: str, size: int, patch: int, image: tuple[int, int, int], embed_dim: int, text: _Text) -> None:
    """Adds a CLIP by its own name, with GELU, and by another one, with the quick form of it, which OpenAI's has.

    Args:
        name: open_clip's.
        size, patch: height and width of the images, and of a patch.
        image: width, blocks and heads of the tower for images.
        embed_dim: length of the embeddings.
        text: the tower for texts.
    """
    width, depth, num_heads = image

    def of(default: str) -> Callable[..., Clip]:
        def make(*, dtype: Any, activation: str = default, img_size: int = size, remat: bool | str = False) -> Clip:
            blocks = Transformer(depth, num_heads, 4 * width, activation, CLIP_EPSILON, remat, dtype)
            visual = ImageTower(img_size, patch, width, blocks, embed_dim, dtype=dtype)
            return Clip(visual, clip_text(text, embed_dim, activation, dtype, remat))

        return make

    _register_both(name, size, of)


def _register_both(name: str, size: int, of: Callable[[str], Callable[..., Clip]]) -> None:
    """Adds a CLIP under its name and, with QuickGELU, under open_clip's; `of` makes it of an activation."""
    input = InputSpec(size, CLIP_MEAN, CLIP_STD, crop_pct=1.0)
    _VARIANTS[name] = Variant(name, of("gelu"), input, False, "clip")
    quick = f"{name}-quickgelu"
    _VARIANTS[quick] = Variant(quick, of("quick_gelu"), input, False, "clip")


def _register_resnet(
    name: str, size: int, width: int, depths: tuple[int, int, int, int], embed_dim: int, text: _Text
) -> None:
    """Adds a CLIP with a ResNet, with both activations of the tower for texts; arguments as above."""
    num_heads = EXPANSION * 8 * width // _HEAD_FEATURES

    def of(default: str) -> Callable[..., Clip]:
        def make(*, dtype: Any, activation: str = default, img_size: int = size, remat: bool | str = False) -> Clip:
            visual = ModifiedResNet(img_size, width, depths, num_heads, embed_dim, dtype=dtype)
            return Clip(visual, clip_text(text, embed_dim, activation, dtype, remat))

        return make

    _register_both(name, size, of)


@dataclasses.dataclass(frozen=True)
class _SigLip:
    """The sizes of both towers of a SigLIP, which are the same."""

    width: int
    depth: int
    num_heads: int
    mlp_features: int


def _register_siglip(name: str, size: int, patch: int, sizes: _SigLip, context: int = 64) -> None:
    """Adds a SigLIP with the approximate GELU that big_vision trained it with."""

    def make(*, dtype: Any, activation: str = "gelu_tanh", img_size: int = size, remat: bool | str = False) -> Clip:
        width = sizes.width
        blocks = Transformer(sizes.depth, sizes.num_heads, sizes.mlp_features, activation, SIGLIP_EPSILON, remat, dtype)
        text: dict[str, Any] = {"causal": False, "pool": "last", "head_bias": True, "dtype": dtype}
        return Clip(
            ImageTower(img_size, patch, width, blocks, width, "map", dtype=dtype),
            TextTower(SIGLIP_VOCABULARY, context, width, blocks, width, **text),
            initial_scale=10.0,
            initial_bias=-10.0,
        )

    _VARIANTS[name] = Variant(name, make, InputSpec(size, HALVES, HALVES, crop_pct=1.0), True, "siglip")


_SMALL, _MEDIUM, _HUGE = _Text(512, 12, 8), _Text(768, 12, 12), _Text(1024, 24, 16)
_register_clip("ViT-B-32", 224, 32, (768, 12, 12), 512, _SMALL)
_register_clip("ViT-B-16", 224, 16, (768, 12, 12), 512, _SMALL)
_register_clip("ViT-L-14", 224, 14, (1024, 24, 16), 768, _MEDIUM)
_register_clip("ViT-L-14-336", 336, 14, (1024, 24, 16), 768, _MEDIUM)
_register_clip("ViT-H-14", 224, 14, (1280, 32, 16), 1024, _HUGE)

_register_resnet("RN50", 224, 64, (3, 4, 6, 3), 1024, _SMALL)
_register_resnet("RN101", 224, 64, (3, 4, 23, 3), 512, _SMALL)
_register_resnet("RN50x4", 288, 80, (4, 6, 10, 6), 640, _Text(640, 12, 10))
_register_resnet("RN50x16", 384, 96, (6, 8, 18, 8), 768, _MEDIUM)
_register_resnet("RN50x64", 448, 128, (3, 15, 36, 10), 1024, _Text(1024, 12, 16))

_BASE, _LARGE = _SigLip(768, 12, 12, 3072), _SigLip(1024, 24, 16, 4096)
_SHAPE_OPTIMIZED = _SigLip(1152, 27, 16, 4304)
for _size in (224, 256, 384, 512):
    _register_siglip(f"ViT-B-16-SigLIP{'' if _size == 224 else f'-{_size}'}", _size, 16, _BASE)
for _size in (256, 384):
    _register_siglip(f"ViT-L-16-SigLIP-{_size}", _size, 16, _LARGE)
_register_siglip("ViT-SO400M-14-SigLIP", 224, 14, _SHAPE_OPTIMIZED, context=16)
_register_siglip("ViT-SO400M-14-SigLIP-384", 384, 14, _SHAPE_OPTIMIZED)
