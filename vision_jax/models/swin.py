"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030): attention within windows, which every other block shifts.

The tree of variables carries timm's names. Like timm's, the windows of a model belong to its `img_size`: where a map
would be smaller than the window, the window is the map and nothing is shifted. The images that it is applied to may
have another size, to which masks adapt; maps that windows do not fill are padded behind the shift, and torchvision
pads before it, so that the two agree only where nothing is padded, as at 224 pixels.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import DataError
from vision_jax.models import registry
from vision_jax.models.layers import (
    Classifier,
    DropPath,
    ImageModel,
    capture,
    drop_path_rates,
    global_mean,
    maybe_remat,
    transformer_init,
)
from vision_jax.models.registry import InputSpec, Shape
from vision_jax.models.transformer import Mlp, PatchEmbed, attend

PATCH_SIZE = 4
# Added to the logits of pairs that lie side by side only because of the cyclic shift; timm's and torchvision's value.
MASKED = -100.0

_LayerNorm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)


def relative_position_index(window: int) -> np.ndarray:
    """Returns the row of the table of biases for each pair of a window's positions, (window^2, window^2).

    Rows are ordered by the vertical offset of the query from the key, -(window - 1) to window - 1, and then by the
    horizontal one.
    """
    y, x = np.divmod(np.arange(window**2), window)
    return (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)


def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Returns what is added to the logits of each window in a shifted map, (windows, window^2, window^2).

    Positions see each other if no edge of the unshifted map is between them.
    """

    def region(length: int) -> np.ndarray:
        i = np.arange(length)
        return (i >= length - window).astype(int) + (i >= length - shift)

    regions = 3 * region(height)[:, None] + region(width)
    rows = regions.reshape(height // window, window, width // window, window).transpose(0, 2, 1, 3)
    rows = rows.reshape(-1, window**2)
    return np.where(rows[:, :, None] == rows[:, None, :], 0.0, MASKED).astype(np.float32)


class NormedPatchEmbed(PatchEmbed):
    """Patches, projected and normalized."""

    @nn.compact
    def __call__(self, images: jax.Array, kept: jax.Array | None = None) -> jax.Array:
        return _LayerNorm(dtype=self.dtype, name="norm")(super().__call__(images, kept))


class WindowAttention(nn.Module):
    """Multi-head attention within the windows of a map, with a bias for each offset between two positions.

    Attributes:
        num_heads: that share the features.
        window: height and width.
        shift: by how much the windows are moved, cyclically, down and to the right.
        dtype: what it computes in.
    """

    num_heads: int
    window: int
    shift: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (batch, height, width, features)."""
        batch, height, width, features = x.shape
        side, area = self.window, self.window**2
        if self.shift:
            x = jnp.roll(x, (-self.shift, -self.shift), (1, 2))
        x = jnp.pad(x, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        count = rows * columns
        # Windows go beside the heads, so that the batch stays an axis of its own and a window's bias has no copies.
        x = x.reshape(batch, rows, side, columns, side, features).transpose(0, 2, 4, 1, 3, 5)
        x = x.reshape(batch, area, count, features)
        qkv = nn.Dense(3 * features, dtype=self.dtype, kernel_init=transformer_init, name="qkv")(x)
        qkv = qkv.reshape(batch, area, count, 3, self.num_heads, features // self.num_heads)
        q, k, v = (qkv[:, :, :, i].reshape(batch, area, count * self.num_heads, -1) for i in range(3))
        x = attend(self, q, k, v, self._bias(rows, columns), groups=count)
        x = x.reshape(batch, area, count, features)
        x = nn.Dense(features, dtype=self.dtype, kernel_init=transformer_init, name="proj")(x)
        x = x.reshape(batch, side, side, rows, columns, features).transpose(0, 3, 1, 4, 2, 5)
        x = x.reshape(batch, rows * side, columns * side, features)[:, :height, :width]
        return jnp.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x

    def _bias(self, rows: int, columns: int) -> jax.Array:
        """Returns what is added to the logits, (1, windows * heads, window^2, window^2) float32."""
        side, area, count = self.window, self.window**2, rows * columns
        shape = ((2 * side - 1) ** 2, self.num_heads)
        table = self.param("relative_position_bias_table", transformer_init, shape, jnp.float32)
        bias = table[relative_position_index(side)].transpose(2, 0, 1)
        if self.shift:
            bias = bias + shift_mask(rows * side, columns * side, side, self.shift)[:, None]
        return jnp.broadcast_to(bias, (count, self.num_heads, area, area)).reshape(1, -1, area, area)


class Block(nn.Module):
    """Window attention and an MLP of four times the width, each behind a norm and beside a shortcut."""

    num_heads: int
    window: int
    shift: int
    dtype: Any
    drop_path_rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = capture(self, _LayerNorm(dtype=self.dtype, name="norm1")(x), "norm1")
        y = WindowAttention(self.num_heads, self.window, self.shift, self.dtype, name="attn")(y)
        x = x + DropPath(self.drop_path_rate)(y, train)
        y = capture(self, _LayerNorm(dtype=self.dtype, name="norm2")(x), "norm2")
        y = Mlp(4 * x.shape[-1], dtype=self.dtype, name="mlp")(y, train)
        return x + DropPath(self.drop_path_rate)(y, train)


class PatchMerging(nn.Module):
    """Halves the resolution: the four neighbors' features side by side, normalized and projected to `features`."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        batch, height, width, features = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, features).transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(batch, height // 2, width // 2, 4 * features)
        x = _LayerNorm(dtype=self.dtype, name="norm")(x)
        return nn.Dense(
            self.features, use_bias=False, dtype=self.dtype, kernel_init=transformer_init, name="reduction"
        )(x)


class Chain(nn.Module):
    """Modules that are applied in turn, named by their numbers; gives the result of each."""

    makers: tuple[Callable[..., nn.Module], ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
        results = []
        for i, make in enumerate(self.makers):
            x = capture(self, make(name=str(i))(x, train), str(i))
            results.append(x)
        return results


class Stage(nn.Module):
    """Blocks of one width, after the merging of patches unless it is the first stage."""

    merge_to: int | None
    blocks: tuple[Callable[..., nn.Module], ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.merge_to is not None:
            x = PatchMerging(self.merge_to, self.dtype, name="downsample")(x)
        return Chain(self.blocks, name="blocks")(x, train)[-1]


class Head(nn.Module):
    """Dropout and the classifier."""

    num_classes: int
    drop_rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dropout(self.drop_rate)(x, deterministic=not train)
        return Classifier(self.num_classes, kernel_init=transformer_init, name="fc")(x)


class SwinTransformer(ImageModel, kw_only=True):
    """A Swin Transformer.

    Attributes:
        embed_dim: features of the first stage; each further one has twice as many.
        depths: blocks of each stage.
        num_heads: of each stage.
        window_size: height and width of the windows, in positions of a map.
        img_size: of the images that the windows are made for.
        remat: rematerialize the activations within blocks (gradient checkpointing), to save memory; see `maybe_remat`.
    """

    map_norm_epsilon: ClassVar[float | None] = 1e-5

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int = 7
    img_size: int = 224
    remat: bool | str = False

    def setup(self) -> None:
        self.patch_embed = NormedPatchEmbed(PATCH_SIZE, self.embed_dim, self.dtype)
        rates = drop_path_rates(self.drop_path_rate, self.depths)
        block = maybe_remat(Block, self.remat)
        stages = []
        for i, heads in enumerate(self.num_heads):
            size = -(-(self.img_size // PATCH_SIZE) // 2**i)  # of this stage's maps
            window = min(self.window_size, size)
            shift = window // 2 if window < size else 0
            blocks = tuple(
                functools.partial(block, heads, window, shift if j % 2 else 0, self.dtype, rate)
                for j, rate in enumerate(rates[i])
            )
            merge_to = self.embed_dim * 2**i if i else None
            stages.append(functools.partial(Stage, merge_to, blocks, self.dtype))
        self.layers = Chain(tuple(stages))
        self.norm = _LayerNorm(dtype=self.dtype)
        if self.num_classes:
            self.head = Head(self.num_classes, self.drop_rate)

    @property
    def gradcam_layer(self) -> str:
        return "norm"

    @property
    def patch_size(self) -> int:
        return PATCH_SIZE

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        return self._maps(self.patch_embed(self.prepare(images)), train)

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        return global_mean(self._last(self.feature_maps(images, train=train)))

    def encode_hidden(self, images: jax.Array, hidden: jax.Array, token: jax.Array, *, train: bool) -> jax.Array:
        """Returns the last map of features, normalized, where some patches are replaced by a token.

        Args:
            images: (batch, height, width, channels).
            hidden: (batch, height / 4, width / 4) bool.
            token: (embed_dim,).
            train: drop branches.
        """
        patches = self.patch_embed(self.prepare(images))
        patches = jnp.where(hidden[..., None], token.astype(self.dtype), patches)
        return self._last(self._maps(patches, train))

    def _maps(self, patches: jax.Array, train: bool) -> dict[int, jax.Array]:
        maps = self.layers(capture(self, patches, "patch_embed"), train)
        return {PATCH_SIZE * 2**i: x for i, x in enumerate(maps)}

    def _last(self, maps: dict[int, jax.Array]) -> jax.Array:
        return capture(self, self.norm(maps[max(maps)]), "norm")

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.head(features, train)


def torchvision_name(name: str, shape: Shape) -> tuple[str, Shape]:
    """From timm's names to torchvision's: one sequence of the stem, stages and the mergings of patches between them."""
    match name.split("."):
        case ["patch_embed", module, leaf]:
            name = f"features.0.{'0' if module == 'proj' else '2'}.{leaf}"
        case ["layers", stage, "downsample", *rest]:
            name = ".".join(["features", str(2 * int(stage)), *rest])
        case ["layers", stage, "blocks", *rest]:
            name = ".".join(["features", str(2 * int(stage) + 1), *rest])
            name = name.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
        case ["head", "fc", leaf]:
            name = f"head.{leaf}"
    return name, shape


def authors_name(name: str, shape: Shape) -> tuple[str, Shape]:
    """From timm's names to those of microsoft's Swin-Transformer, which merges patches at the end of a stage."""
    match name.split("."):
        case ["layers", stage, "downsample", *rest]:
            name = ".".join(["layers", str(int(stage) - 1), "downsample", *rest])
        case ["head", "fc", leaf]:
            name = f"head.{leaf}"
    return name, shape


def torchvision_buffers(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the indices that torchvision stores beside each table of biases."""
    tables = {name: len(value) for name, value in state.items() if name.endswith("relative_position_bias_table")}
    return {
        name.removesuffix("bias_table") + "index": relative_position_index((_side(rows) + 1) // 2).flatten()
        for name, rows in tables.items()
    }


def resample(name: str, table: np.ndarray, shape: Shape) -> np.ndarray:
    """Interpolates a table of biases for another window, as timm does by default (the scheme is BEiT's).

    The old offsets are spread so that their distances grow geometrically from 1 beside the center to reach the new
    edge, which leaves the biases of close positions where they were; between them it is linear along both axes.

    Raises:
        DataError: if the windows are not square.
    """
    old, new = _side(len(table)), _side(shape[0])
    if old**2 != len(table) or old % 2 == 0:
        raise DataError(
            f"{name} has {len(table)} rows, which are not those of a square window, such as {new**2}: only square "
            "windows can be interpolated."
        )
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (old // 2)) / (1 - ratio) > new // 2:
            high = ratio
        else:
            low = ratio
    right = np.cumsum(ratio ** np.arange(old // 2))
    offsets = np.concatenate([-right[::-1], [0], right])
    wanted = np.arange(new) - new // 2
    # Along one axis, linear interpolation is a matrix: what it makes of each unit vector.
    weights = np.stack([np.interp(wanted, offsets, unit) for unit in np.eye(old)], axis=1)
    grid = np.einsum("yi,xj,ijh->yxh", weights, weights, table.reshape(old, old, -1).astype(np.float64))
    return grid.reshape(shape).astype(np.float32)


def _side(rows: int) -> int:
    """Returns the side of a square table."""
    return round(rows**0.5)


# embed_dim, depths, num_heads
_TINY = (96, (2, 2, 6, 2), (3, 6, 12, 24))
_SMALL = (96, (2, 2, 18, 2), (3, 6, 12, 24))
_BASE = (128, (2, 2, 18, 2), (4, 8, 16, 32))
_LARGE = (192, (2, 2, 18, 2), (6, 12, 24, 48))
# Shorter sides of evaluation images before they are cropped to 224 pixels, for torchvision's weights.
_RESIZE = {"swin_t": 232, "swin_s": 246, "swin_b": 238}
# architecture, window_size, img_size, crop_pct, torchvision's name
VARIANTS: dict[str, tuple[tuple[int, tuple[int, ...], tuple[int, ...]], int, int, float, str | None]] = {
    "swin_tiny_patch4_window7_224": (_TINY, 7, 224, 0.9, "swin_t"),
    "swin_small_patch4_window7_224": (_SMALL, 7, 224, 0.9, "swin_s"),
    "swin_base_patch4_window7_224": (_BASE, 7, 224, 0.9, "swin_b"),
    "swin_large_patch4_window7_224": (_LARGE, 7, 224, 0.9, None),
    "swin_base_patch4_window12_384": (_BASE, 12, 384, 1.0, None),
    "swin_large_patch4_window12_384": (_LARGE, 12, 384, 1.0, None),
}
for _name, ((_dim, _depths, _heads), _window, _size, _crop, _alias) in VARIANTS.items():
    registry.register(
        _name,
        functools.partial(
            SwinTransformer, embed_dim=_dim, depths=_depths, num_heads=_heads, window_size=_window, img_size=_size
        ),
        InputSpec(size=_size, crop_pct=_crop),
        torchvision=torchvision_name if _alias else None,
        authors=authors_name,
        torchvision_buffers=torchvision_buffers if _alias else None,
        resample=resample,
        aliases={_alias: InputSpec(crop_pct=224 / _RESIZE[_alias])} if _alias else (),
    )
