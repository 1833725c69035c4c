"""Parts that families made of patches share."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import DataError
from vision_jax.models.layers import (
    ACTIVATIONS,
    ATTENTION,
    NOT_COUNTED,
    capture,
    dense_init,
    dot_after,
    is_captured,
    is_perturbed,
    over_tensor_axis,
    transformer_init,
)


def to_patches(images: jax.Array, size: int) -> jax.Array:
    """Cuts images, (batch, height, width, channels), into squares.

    Returns:
        (batch, height / size, width / size, size, size, channels).

    Raises:
        ValueError: if the images cannot be divided so.
    """
    batch, height, width, channels = images.shape
    if height % size or width % size:
        raise ValueError(f"images of {height} x {width} pixels cannot be divided into patches of {size} x {size}")
    return images.reshape(batch, height // size, size, width // size, size, channels).swapaxes(2, 3)


def take_tokens(x: jax.Array, numbers: jax.Array) -> jax.Array:
    """Returns some tokens of each example.

    Each is fetched as a whole, which is what accelerators can do; and in the backward pass they are put back.

    Args:
        x: (batch, tokens, features).
        numbers: (batch, taken) int32, from 0 to tokens - 1; those of an example differ.

    Returns:
        (batch, taken, features).
    """
    return jax.vmap(lambda x, i: x.at[i].get(unique_indices=True, mode="promise_in_bounds"))(x, numbers)


@jax.custom_vjp
def permute_tokens(x: jax.Array, numbers: jax.Array, inverse: jax.Array) -> jax.Array:
    """Returns all tokens of each example in another order: `take_tokens` of a permutation, whose inverse is known.

    With it, tokens are fetched in the backward pass too, while TPUs would put them back one after the other.

    Args:
        x: (batch, tokens, features).
        numbers: (batch, tokens) int32, of which each has all numbers.
        inverse: (batch, tokens) int32, the position of each number in `numbers`.
    """
    del inverse
    return take_tokens(x, numbers)


def _permute_forward(x: jax.Array, numbers: jax.Array, inverse: jax.Array) -> tuple[jax.Array, Any]:
    return take_tokens(x, numbers), (numbers, inverse)


def _permute_backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, None, None]:
    numbers, inverse = kept
    return permute_tokens(gradient, inverse, numbers), None, None


permute_tokens.defvjp(_permute_forward, _permute_backward)


class _Projection(nn.Module):
    """A dense layer on patches, (..., size, size, channels), whose kernel is that of a convolution."""

    features: int
    dtype: Any
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer
    use_bias: bool

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (*patches.shape[-3:], self.features), jnp.float32)
        flat = patches.reshape(*patches.shape[:-3], -1).astype(self.dtype)
        projected = flat @ kernel.reshape(-1, self.features).astype(self.dtype)
        if not self.use_bias:
            return projected
        return projected + self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype)


class PatchEmbed(nn.Module):
    """Cuts images into squares and projects each, as a convolution does whose stride is its size.

    It is computed as one product of matrices, which is what accelerators are fastest at.

    Attributes:
        patch_size: height and width of a patch.
        features: of each patch, in the result.
        dtype: what it computes in.
        kernel_init: of the projection; torch's default for convolutions unless given.
        bias_init: of the projection.
        use_bias: whether it has one.
    """

    patch_size: int
    features: int
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = dense_init
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    use_bias: bool = True

    @nn.compact
    def __call__(self, images: jax.Array, kept: jax.Array | None = None) -> jax.Array:
        """Returns (batch, height / patch_size, width / patch_size, features).

        Args:
            images: (batch, height, width, channels).
            kept: (batch, kept) int32, the numbers of the patches that are wanted, row by row from the top left; the
                result is (batch, kept, features). None: all.

        Raises:
            ValueError: if the images cannot be divided into patches.
        """
        patches = to_patches(images, self.patch_size)
        if kept is not None:
            batch, height, width, *square = patches.shape
            rows = patches.reshape(batch, height * width, math.prod(square))
            patches = take_tokens(rows, kept).reshape(*kept.shape, *square)
        inits = self.kernel_init, self.bias_init
        return _Projection(self.features, self.dtype, *inits, self.use_bias, name="proj")(patches)


class Mlp(nn.Module):
    """Two dense layers with an activation between them, on the last axis; the result has the features of the input.

    Attributes:
        hidden_features: between the layers.
        dtype: what it computes in.
        drop_rate: probability of dropping a unit after either layer, in training.
        kernel_init: of both layers.
        bias_init: of both layers.
        activation: between them; one of `ACTIVATIONS`.
    """

    hidden_features: int
    dtype: Any = jnp.float32
    drop_rate: float = 0.0
    kernel_init: nn.initializers.Initializer = transformer_init
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init, bias_init=self.bias_init)
        y = dense(self.hidden_features, name="fc1")(x)
        if train and self.drop_rate:
            y = nn.Dropout(self.drop_rate)(ACTIVATIONS[self.activation](y), deterministic=False)
            y = dense(x.shape[-1], name="fc2")(y)
        else:
            y = dense(x.shape[-1], name="fc2", dot_general=dot_after(self.activation))(y)
        return nn.Dropout(self.drop_rate)(y, deterministic=not train)


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None, recompute: bool = False
) -> jax.Array:
    """Returns softmax(query key^T / sqrt(features) + bias) value; arguments and result as `attend`'s.

    This is the place that chooses what computes it: cuDNN's kernel (Dao et al. 2022, arXiv:2205.14135), which has no
    maps of (batch, heads, tokens, tokens) in memory, where there is one; else products that the compiler fuses with the
    softmax. So it is for a single query, as of a pooling, whose map is small.
    """
    if bias is None and query.shape[1] > 1 and _has_flash_kernel(query.dtype, query.shape[-1]):
        return _flash(query, key, value)
    return _fused(query, key, value, bias, recompute)


def _has_flash_kernel(dtype: Any, features: int) -> bool:
    """Returns whether cuDNN computes attention without bias: in half precision, on Ampere GPUs and later ones.

    Args:
        dtype: of queries, keys and values.
        features: of each head.
    """
    device, mesh = jax.local_devices()[0], jax.sharding.get_abstract_mesh()
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return False
    if not mesh.empty and mesh.abstract_device.device_kind != device.device_kind:
        return False  # the program is for devices that are not here
    half = dtype in (jnp.bfloat16, jnp.float16)
    return half and features % 8 == 0 and features <= 128 and float(device.compute_capability) >= 8


def _flash_kernel(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


@jax.custom_vjp
def _flash(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`attention` by cuDNN, with a second derivative, which some optimizers take, and which cuDNN does not have."""
    return _flash_kernel(query, key, value)


def _flash_forward(*arguments: jax.Array) -> tuple[jax.Array, Any]:
    result, pull_back = jax.vjp(_flash_kernel, *arguments)
    return result, (arguments, pull_back)


@jax.custom_vjp
def _flash_backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, ...]:
    _, pull_back = kept
    return pull_back(gradient)


def _flash_backward_forward(kept: Any, gradient: jax.Array) -> tuple[tuple[jax.Array, ...], Any]:
    return _flash_backward(kept, gradient), (kept[0], gradient)


def _flash_backward_backward(kept: Any, gradients: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
    def backward(arguments: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(lambda *heads: _fused(*heads, None, False), *arguments)[1](gradient)

    arguments, gradient = jax.vjp(backward, *kept)[1](gradients)
    return (arguments, None), gradient


_flash.defvjp(_flash_forward, _flash_backward)
_flash_backward.defvjp(_flash_backward_forward, _flash_backward_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _fused(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None, recompute: bool) -> jax.Array:
    """`attention` by products and a softmax.

    The backward pass is written out, so that maps of (batch, heads, tokens, tokens), which are what costs most on
    accelerators, exist in the compute dtype alone: only the probabilities are kept, or with `recompute` not even these,
    but the logarithm of the sum of each row's exponentials. Sums and softmax are in float32. The derivative of the
    softmax needs the sum over keys of probability times gradient, which is that over features of result times gradient
    (Dao et al. 2022, arXiv:2205.14135, appendix B).
    """
    return _fused_forward(query, key, value, bias, recompute)[0]


def _logits(query: jax.Array, key: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Returns query key^T / sqrt(features) + bias, (batch, heads, tokens, tokens) float32."""
    products = jnp.einsum("bqhf,bkhf->bhqk", query, key, preferred_element_type=_written(query, bias))
    products = products.astype(jnp.float32) * (1 / math.sqrt(query.shape[-1]))
    return products if bias is None else products + bias


def _written(values: jax.Array, bias: jax.Array | None) -> Any:
    """Returns the dtype of a map as it comes out of a product: where a bias follows, it may be written to memory."""
    return jnp.float32 if bias is None else values.dtype


def _rounded_logits(query: jax.Array, key: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Returns `_logits` as they are written to memory, in the compute dtype, for a softmax in float32."""
    return _logits(query, key, bias).astype(query.dtype).astype(jnp.float32)


def _fused_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None, recompute: bool
) -> tuple[jax.Array, tuple[Any, ...]]:
    logits = _rounded_logits(query, key, bias)
    largest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    exponentials = jnp.exp(logits - largest)
    total = exponentials.sum(-1, keepdims=True)
    probabilities = (exponentials / total).astype(value.dtype)
    result = jnp.einsum("bhqk,bkhf->bqhf", probabilities, value)
    of_map = largest + jnp.log(total) if recompute else probabilities
    return result, (query, key, value, bias, of_map, result)


def _fused_backward(recompute: bool, kept: tuple[Any, ...], gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    query, key, value, bias, of_map, result = kept
    if recompute:
        # Without the barrier, the compiler would find that it has computed this map before, and keep it. One of two
        # factors behind it is enough: what is behind it, a TPU lays out anew for the products a second time.
        query, gradient = jax.lax.optimization_barrier((query, gradient))
        with jax.named_scope(NOT_COUNTED):
            logits = _rounded_logits(query, key, bias)
        probabilities = jnp.exp(logits - of_map).astype(value.dtype)
    else:
        probabilities = of_map
    sums = (gradient.astype(jnp.float32) * result.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    by_probability = jnp.einsum("bqhf,bkhf->bhqk", gradient, value, preferred_element_type=_written(value, bias))
    by_product = probabilities.astype(jnp.float32) * (by_probability.astype(jnp.float32) - sums[..., None])
    by_bias = None
    if bias is not None:
        summed = [axis for axis, size in enumerate(bias.shape) if size == 1 and by_product.shape[axis] > 1]
        by_bias = by_product.sum(summed, keepdims=True).astype(bias.dtype)
    scaled = (by_product * (1 / math.sqrt(query.shape[-1]))).astype(value.dtype)
    return (
        jnp.einsum("bhqk,bkhf->bqhf", scaled, key),
        jnp.einsum("bhqk,bqhf->bkhf", scaled, query),
        jnp.einsum("bhqk,bqhf->bkhf", probabilities, gradient),
        by_bias,
    )


_fused.defvjp(_fused_forward, _fused_backward)


def attend(
    module: nn.Module,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    *,
    groups: int | None = None,
    recompute: bool = False,
) -> jax.Array:
    """Returns softmax(query key^T / sqrt(features) + bias) value, with the softmax in float32.

    The probabilities are captured as the module's own result, apart from other activations: they are computed a second
    time, where the result may come from a kernel that does not have them all. Only if they are perturbed, it is made
    of these.

    Args:
        module: the attention.
        query, key, value: (batch, tokens, heads, features).
        bias: to be broadcast to (batch, heads, tokens, tokens), or None.
        groups: of the heads, such as windows, which have an axis of their own in what is captured.
        recompute: compute the probabilities anew in the backward pass instead of keeping them, where they exist.

    Returns:
        (batch, tokens, heads, features). Captured are (batch, heads, tokens, tokens) float32, or (batch, groups,
        heads / groups, tokens, tokens).
    """
    result = attention(query, key, value, bias, recompute)
    if not (is_captured(module, ATTENTION) or is_perturbed(module)):
        return result
    probabilities = jax.nn.softmax(_logits(query, key, bias))
    shape = probabilities.shape
    if groups is not None:
        probabilities = probabilities.reshape(shape[0], groups, -1, *shape[2:])
    probabilities = capture(module, probabilities, collection=ATTENTION)
    if not is_perturbed(module):
        return result
    return jnp.einsum("bhqk,bkhf->bqhf", probabilities.reshape(shape).astype(value.dtype), value)


class QueryKeyValue(nn.Module):
    """The dense layer that makes queries, keys and values of features, (..., in_features).

    Where the mesh in use (`jax.set_mesh`) has an axis `tensor`, heads are divided over it. The kernel is one matrix, as
    timm has it, in which the heads of one device do not lie beside each other: it is laid out anew for the product,
    which moves fewer bytes than doing so with the result.

    Attributes:
        num_heads: of each of the three; they divide `in_features` among themselves.
        dtype: what it computes in.
        kernel_init: of the one matrix.
    """

    num_heads: int
    dtype: Any
    kernel_init: nn.initializers.Initializer = transformer_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns (..., 3, num_heads, in_features / num_heads)."""
        features = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (features, 3 * features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (3 * features,), jnp.float32)
        shape = (3, self.num_heads, features // self.num_heads)
        kernel = over_tensor_axis(kernel.astype(self.dtype).reshape(features, *shape), 2)
        return jnp.tensordot(x.astype(self.dtype), kernel, axes=1) + bias.astype(self.dtype).reshape(shape)


class LayerScale(nn.Module):
    """Scales each feature of a residual branch (Touvron et al. 2021, arXiv:2103.17239).

    Attributes:
        initial: value of the scale, small, so that a deep model starts near the identity.
        dtype: what it computes in.
    """

    initial: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],), jnp.float32)
        return x.astype(self.dtype) * gamma.astype(self.dtype)


def interpolate_positions(positions: jax.Array, prefix: int, height: int, width: int) -> jax.Array:
    """Interpolates position embeddings within a model, for images of another size than they are learned for.

    As in the code of DINO (Caron et al. 2021, arXiv:2104.14294): bicubic with a = -0.75 and without antialiasing, which
    is torch's; and the scale is taken to be (new + 0.1) / old, so that rounding loses no row there.

    Args:
        positions: (1, prefix + n^2, features), of a square grid.
        prefix: embeddings before the grid's, which are kept.
        height, width: of the new grid.

    Returns:
        (1, prefix + height * width, features), in the dtype of `positions`.
    """
    old = math.isqrt(positions.shape[1] - prefix)
    grid = positions[0, prefix:].reshape(old, old, -1)
    rows, columns = (jnp.asarray(_bicubic_weights(old, new), grid.dtype) for new in (height, width))
    grid = jnp.einsum("hy,wx,yxf->hwf", rows, columns, grid, precision="highest")
    return jnp.concatenate([positions[:, :prefix], grid.reshape(1, height * width, -1)], axis=1)


def _bicubic_weights(old: int, new: int) -> np.ndarray:
    """Returns what the old values along an axis count in each new one, (new, old); see `interpolate_positions`."""
    a, weights = -0.75, np.zeros((new, old))
    places = (np.arange(new) + 0.5) * old / (new + 0.1) - 0.5
    first = np.floor(places).astype(int)
    for offset in (-1, 0, 1, 2):
        x = np.abs(places - first - offset)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        # Beyond the border, the outermost value is repeated.
        np.add.at(weights, (np.arange(new), np.clip(first + offset, 0, old - 1)), np.where(x <= 1, near, far))
    return weights


def resample_positions(positions: np.ndarray, length: int) -> np.ndarray:
    """Interpolates position embeddings of a square grid for another one: bicubic, with antialiasing.

    Embeddings that come before the grid's, of a class token and the like, are kept. There are fewer of them than would
    make the grid longer, so their number follows from the length.

    Args:
        positions: (1, tokens, features).
        length: tokens of the result.

    Returns:
        (1, length, features).

    Raises:
        DataError: if what remains of `positions`, without as many as come before the grid in the result, is no square.
            A square number of positions is taken for a square grid: 36 of 4 x 9 look the same.
    """
    new = math.isqrt(length)
    prefix = length - new**2
    count = positions.shape[1] - prefix
    old = math.isqrt(max(count, 0))
    if old < 1 or old**2 != count:
        raise DataError(
            f"There are {positions.shape[1]} positions, and without the model's {prefix} before the grid the other "
            f"{count} are not a square grid: only square ones can be interpolated (to {new} x {new} here)."
        )
    grid = positions[:, prefix:].reshape(old, old, -1)
    grid = np.asarray(jax.image.resize(grid, (new, new, grid.shape[-1]), "cubic", antialias=True))
    return np.concatenate([positions[:, :prefix], grid.reshape(1, new**2, -1)], axis=1)
