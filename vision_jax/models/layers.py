"""Layers that several families share."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from vision_jax.errors import ConfigError, suggest

# He et al. 2015 with fan-out, as in torchvision's ResNets.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# torch's default for linear layers: uniform within 1 / sqrt(inputs).
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# Transformer weights. timm's trunc_normal_ cuts at +-2, which is 100 standard deviations here: a plain normal.
transformer_init = nn.initializers.normal(0.02)


def xavier_init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Returns weights that are uniform within sqrt(6 / (inputs + outputs)) (Glorot and Bengio 2010).

    A kernel that projects patches, (height, width, channels, features), counts as the matrix that it is.
    """
    return uniform_init(math.sqrt(6 / (math.prod(shape[:-1]) + shape[-1])))(key, shape, dtype)


def xavier_thirds_init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Returns `xavier_init` of three matrices next to each other: queries, keys and values of (inputs, 3 * outputs)."""
    return uniform_init(math.sqrt(6 / (shape[0] + shape[1] / 3)))(key, shape, dtype)


def uniform_init(bound: float) -> nn.initializers.Initializer:
    """Returns what makes numbers that are uniform from -bound to bound."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


# A scope of operations that are no part of a model's own, and that `devices/flops.py` does not count: what is computed
# so that less has to be kept.
NOT_COUNTED = "not_counted"

# Variable collections: what `capture` stores, and what it adds. They exist only on request.
INTERMEDIATES, ATTENTION, PERTURBATIONS = "intermediates", "attention", "perturbations"


def capture(module: nn.Module, x: jax.Array, name: str = "", *, collection: str = INTERMEDIATES) -> jax.Array:
    """Names an activation, so that `vision_jax.models.intermediates` can find it.

    If it is not requested, nothing is computed or stored. See `over_batch_axes` for where it lies.

    Args:
        module: that computes the activation; its path is the first part of the name.
        x: the activation.
        name: the rest of the name; "": the activation is the module's output.
        collection: where it is stored, if that is mutable and the model is not being initialized.

    Returns:
        x, plus its perturbation if the variables contain one; the rest of the model must use this.
    """
    x = over_batch_axes(x)
    if is_perturbed(module, name):
        x = x + module.get_variable(PERTURBATIONS, _key(name)).astype(x.dtype)
    if is_captured(module, collection):
        module.put_variable(collection, _key(name), x)
    return x


def norm_relu_pool(
    module: nn.Module,
    norm: "BatchNorm",
    x: jax.Array,
    pool: Callable[[jax.Array], jax.Array],
    name: str,
    *,
    train: bool,
) -> tuple[jax.Array, jax.Array]:
    """Normalizes a map, cuts off what is negative, names that with `capture`, and pools it: see `BatchNorm`.

    Args:
        module, name: as for `capture`.
        norm: of the map.
        x: the map, (batch, ..., channels).
        pool: max pooling.
        train: as for `BatchNorm`.

    Returns:
        the map before and after pooling; both with the perturbation, if there is one.
    """
    normalized, pooled = norm(x, train=train, pool=pool)
    captured = capture(module, nn.relu(normalized), name)
    return captured, pool(captured) if is_perturbed(module, name) else nn.relu(pooled)


def capture_beside(module: nn.Module, x: Callable[[], jax.Array], name: str) -> None:
    """Captures the result of a function, which the logits do not depend on. It is only called on request.

    Raises:
        ConfigError: if there is a perturbation of it, which would have no effect.
    """
    if is_perturbed(module, name):
        raise ConfigError(f"The logits of this model do not depend on {name!r}: perturb a layer before it.")
    if is_captured(module, INTERMEDIATES):
        module.put_variable(INTERMEDIATES, _key(name), x())


def is_perturbed(module: nn.Module, name: str = "") -> bool:
    """Returns whether the variables contain a perturbation of an activation."""
    return module.has_variable(PERTURBATIONS, _key(name))


def is_captured(module: nn.Module, collection: str) -> bool:
    """Returns whether the activations of a collection are requested."""
    return module.is_mutable_collection(collection) and not module.is_initializing()


def _key(name: str) -> str:
    return f"output:{name}" if name else "output"  # not the name of any submodule


class ImageModel(nn.Module, kw_only=True):
    """The interface of all models: their options, and the ways to apply them.

    A model defines `setup`, `feature_maps`, `features`, `classify` and `gradcam_layer`, and names its activations with
    `capture`. Modules and parameters have the names of timm's state dict, or of torchvision's for models that timm does
    not have; `vision_jax.pretrained` relies on this.

    Attributes:
        num_classes: number of logits; 0: the model returns its features.
        in_channels: of the images.
        dtype: compute dtype.
        drop_rate: dropout rate before the classifier, in training.
        drop_path_rate: drop rate of the last residual branch in training, increasing linearly with depth from 0
            (stochastic depth, Huang et al. 2016, arXiv:1603.09382).
    """

    residual: ClassVar[bool] = True  # has branches that `drop_path_rate` can drop
    # Epsilon of the layer norm that detectors and segmenters put on each map, where maps are sums of branches that the
    # model itself normalizes only in the end; None: maps are used as they are.
    map_norm_epsilon: ClassVar[float | None] = None

    num_classes: int = 1000
    in_channels: int = 3
    dtype: Any = jnp.float32
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0

    @property
    def gradcam_layer(self) -> str:
        """The default layer for Grad-CAM: the last one with spatial positions. See `models.intermediates`."""
        raise NotImplementedError

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patch tokens, in models with tokens."""
        return 0

    def prepare(self, images: jax.Array) -> jax.Array:
        """Returns the images in the model's compute dtype.

        Raises:
            ValueError: if they have the wrong number of channels.
        """
        if images.ndim != 4 or images.shape[-1] != self.in_channels:
            raise ValueError(
                f"the images have the shape {images.shape}, and the model takes (batch, height, width, "
                f"{self.in_channels}): set in_channels"
            )
        return images.astype(self.dtype)

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        """Returns the last feature map of each resolution.

        Args:
            images: (batch, height, width, channels), normalized.
            train: normalize by batch statistics and update the running ones; apply dropout.

        Returns:
            by stride: (batch, about height / stride, about width / stride, features).
        """
        raise NotImplementedError

    def stage_maps(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        """Returns the last map of each stage, the finest first; arguments as for `feature_maps`.

        These are `feature_maps` from stride 4 on, or where all strides are below, all of them. A model whose stages
        share a stride, because they are dilated, has one for each stage all the same.
        """
        maps = self.feature_maps(images, train=train)
        return tuple(maps[stride] for stride in sorted(maps) if stride >= min(4, max(maps)))

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the input of the classifier, (batch, features) float32. Arguments as for `feature_maps`."""
        raise NotImplementedError

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits of features, (batch, num_classes)."""
        raise NotImplementedError

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits, (batch, num_classes) float32. Arguments as for `feature_maps`."""
        features = capture(self, self.features(images, train=train), "features")
        return self.logits(features, train=train) if self.num_classes else features

    def logits(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits of features, (batch, num_classes) float32, under that name."""
        return capture(self, self.classify(features, train=train).astype(jnp.float32), "logits")


def Classifier(num_classes: int, **options: Any) -> nn.Dense:
    """Returns the dense layer that maps features to logits.

    It always computes in float32, at less than 0.1 % of the model's cost: in bfloat16, logits above 4 would be
    multiples of 1/32, which creates ties between classes.

    Args:
        num_classes: number of logits.
        **options: of `nn.Dense`.
    """
    return nn.Dense(num_classes, dtype=jnp.float32, **options)


def Conv(
    features: int,
    kernel_size: int | tuple[int, int],
    strides: int = 1,
    *,
    padding: int | tuple[int, int] | str | None = None,
    groups: int = 1,
    use_bias: bool = False,
    dtype: Any = jnp.float32,
    layer: type[nn.Conv] = nn.Conv,
    **options: Any,
) -> nn.Conv:
    """Returns a convolution with torch's arguments.

    Args:
        padding: on each side, one for both dimensions or one for each, or TensorFlow's "SAME"; None: half the kernel.
        groups: number of groups of channels.
        layer: the class of the convolution.
        **options: of `nn.Conv`.
    """
    size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if padding is None:
        padding = ((size[0] - 1) // 2, (size[1] - 1) // 2)
    if isinstance(padding, int):
        padding = (padding, padding)
    if not isinstance(padding, str):
        padding = [(p, p) for p in padding]  # type: ignore[assignment]
    options.setdefault("kernel_init", conv_init)
    return layer(
        features,
        size,
        strides=strides,
        padding=padding,
        feature_group_count=groups,
        use_bias=use_bias,
        dtype=dtype,
        **options,
    )


def conv_norm(conv: nn.Conv, norm: "BatchNorm", x: jax.Array, *, train: bool) -> jax.Array:
    """Returns norm(conv(x)), for 1x1 convolutions that widen a map: with stride 1, their result is not kept."""
    y = conv(x)
    if conv.strides != 1 or y.shape[-1] <= x.shape[-1]:
        return norm(y, train=train)
    return norm(y, train=train, factors=(x, conv.variables["params"]["kernel"]))


def max_pool(x: jax.Array, size: int, stride: int, *, padding: int = 0, ceil: bool = False) -> jax.Array:
    """torch's max pooling of (batch, height, width, channels); `ceil`: windows may extend beyond the edge."""
    return nn.max_pool(x, (size, size), (stride, stride), _pool_padding(x, size, stride, padding, ceil))


def avg_pool(
    x: jax.Array, size: int, stride: int, *, padding: int = 0, ceil: bool = False, count_include_pad: bool = True
) -> jax.Array:
    """torch's average pooling of (batch, height, width, channels); `ceil`: windows may extend beyond the edge.

    Positions that `ceil` adds beyond the edge are never counted.
    """
    if ceil and padding and count_include_pad:
        raise NotImplementedError("torch counts the padding here, but not the positions beyond it")
    pads = _pool_padding(x, size, stride, padding, ceil)
    return nn.avg_pool(x, (size, size), (stride, stride), pads, count_include_pad=count_include_pad and not ceil)


def _pool_padding(x: jax.Array, size: int, stride: int, padding: int, ceil: bool) -> Sequence[tuple[int, int]]:
    pads = []
    for length in x.shape[1:3]:
        extra = 0
        if ceil:
            count = -(-(length + 2 * padding - size) // stride) + 1
            if (count - 1) * stride >= length + padding:  # torch: a window starts inside or in the left padding
                count -= 1
            extra = max(0, (count - 1) * stride + size - length - 2 * padding)
        pads.append((padding, padding + extra))
    return pads


def adaptive_avg_pool(x: jax.Array, height: int, width: int) -> jax.Array:
    """torch's adaptive average pooling of (batch, height, width, channels) to another height and width, in float32.

    Cell i of n averages the rows from floor(i * rows / n) to ceil((i + 1) * rows / n): cells may overlap, and rows are
    repeated if there are fewer rows than cells.

    Raises:
        ValueError: if there is nothing to average.
    """
    if x.shape[1:3] == (height, width):
        return x
    _check_not_empty(x)

    def averages(length: int, cells: int) -> np.ndarray:
        matrix = np.zeros((cells, length), np.float32)
        for i in range(cells):
            start, end = i * length // cells, math.ceil((i + 1) * length / cells)
            matrix[i, start:end] = 1 / (end - start)
        return matrix

    rows, columns = averages(x.shape[1], height), averages(x.shape[2], width)
    pooled = jnp.einsum("bhwc,ih,jw->bijc", x.astype(jnp.float32), rows, columns, precision="highest")
    return pooled.astype(x.dtype)


def global_mean(x: jax.Array) -> jax.Array:
    """Averages (batch, height, width, features) over positions, in float32.

    Raises:
        ValueError: if there is nothing to average.
    """
    _check_not_empty(x)
    return x.astype(jnp.float32).mean((1, 2))


def _check_not_empty(x: jax.Array) -> None:
    if 0 in x.shape[1:3]:
        raise ValueError("the images are too small: nothing is left of them")


class DropPath(nn.Module):
    """Drops a residual branch for whole examples (stochastic depth, Huang et al. 2016, arXiv:1603.09382).

    Attributes:
        rate: drop probability; kept branches are divided by 1 - rate.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: (batch, ...)."""
        return nn.Dropout(self.rate, broadcast_dims=tuple(range(1, x.ndim)))(x, deterministic=not train)


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Returns the rate of each block of each stage, increasing linearly from 0 to `rate`."""
    rates = iter(np.linspace(0.0, rate, sum(depths)).tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]


# What is kept for the backward pass of a block that is rematerialized.
_REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_saveable,
}


def maybe_remat(block: type[nn.Module], remat: bool | str | None) -> type[nn.Module]:
    """Returns a block, called as `block(x, train)`, whose activations are rematerialized in the backward pass.

    Args:
        block: the class.
        remat: "full" or True: no activation within the block is kept; "dots": results of matrix products (but not of
            convolutions) are kept; "", False or None: the block itself is returned.

    Raises:
        ConfigError: for anything else.
    """
    if not remat:
        return block
    policy = "full" if remat is True else remat
    if policy not in _REMAT_POLICIES:
        raise ConfigError(f"remat is {remat!r}: {suggest(str(remat), list(_REMAT_POLICIES))}")
    return nn.remat(block, static_argnums=(2,), policy=_REMAT_POLICIES[policy])


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Returns x times the normal distribution's share below x (Hendrycks & Gimpel 2016, arXiv:1606.08415), exactly.

    For the backward pass only x is kept; by itself, differentiation would keep several arrays of its size.
    """
    return nn.gelu(x, approximate=False)


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    slope = 0.5 * jax.lax.erfc(-wide * math.sqrt(0.5)) + wide * jnp.exp(-0.5 * wide**2) / math.sqrt(2 * math.pi)
    return ((gradient.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """Returns the approximation of `gelu` by a hyperbolic tangent, which is JAX's and big_vision's default."""
    return nn.gelu(x, approximate=True)


def quick_gelu(x: jax.Array) -> jax.Array:
    """Returns x times the sigmoid of 1.702 x, with which OpenAI's CLIP approximates `gelu` (arXiv:1606.08415)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
}


def dot_after(activation: str) -> Callable[..., jax.Array]:
    """Returns the product of one of `ACTIVATIONS` of x, for `nn.Dense`: for the backward pass only x is kept."""
    function = ACTIVATIONS[activation]

    def dot(x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None) -> jax.Array:
        return jax.checkpoint(
            lambda x, kernel: jax.lax.dot_general(function(x), kernel, dimensions, precision=precision)
        )(x, kernel)

    return dot


dot_after_gelu = dot_after("gelu")


def over_tensor_axis(x: jax.Array, dimension: int) -> jax.Array:
    """Shards a dimension over the `tensor` axis of the current mesh (`jax.set_mesh`), if the axis divides it.

    The sharding of the other dimensions is left to the compiler.
    """
    size = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    if size == 1 or x.shape[dimension] % size:
        return x
    spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[dimension] = "tensor"
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def over_batch_axes(x: jax.Array) -> jax.Array:
    """Divides the examples, (batch, ...), over the axes of the current mesh that divide the batch, if one is `fsdp`.

    Weights that are divided too are then gathered where they are used. Left to itself, the compiler sometimes divides
    features as it finds the weights divided, and gathers the whole batch for the next layer.
    """
    shape = jax.sharding.get_abstract_mesh().shape
    if shape.get("fsdp", 1) == 1 or x.shape[0] % (shape["data"] * shape["fsdp"]):
        return x
    spec = PartitionSpec(("data", "fsdp"), *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, spec)


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe and Szegedy 2015) over the batch and all positions, with float32 statistics.

    In training, the running statistics become `momentum * old + (1 - momentum) * new`, where the new variance is
    unbiased, as in torch; the batch is normalized by the biased one. Parameters `scale` and `bias`, and statistics
    `mean` and `var`, are (channels,) float32.

    Attributes:
        dtype: of the result.
        group_size: number of consecutive examples normalized together; 0, or more than the batch: the global batch,
            whatever its sharding. The running statistics are the mean over the groups.
        momentum: weight of the old running statistics; 1 minus torch's momentum.
        epsilon: added to the variance.
        scale_init: initializer of the scale.
        use_scale, use_bias: whether it has these parameters (torch's `affine`); else they are 1 and 0.
    """

    dtype: Any = jnp.float32
    group_size: int = 0
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    use_scale: bool = True
    use_bias: bool = True

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        pool: Callable[[jax.Array], jax.Array] | None = None,
        factors: tuple[jax.Array, jax.Array] | None = None,
    ) -> Any:
        """Normalizes x, (batch, ..., channels).

        Max pooling behind the norm is best given as `pool`: normalization keeps the order of a channel's values, or
        reverses it where the scale is negative, so the largest normalized value is the normalized largest one. Then the
        normalized map, often the largest of a model, is neither written for the pooling nor kept for its backward pass.
        The results are the same to the bit. Of values that rounding or a scale of 0 makes equal, the largest has the
        gradient, not the first.

        Args:
            x: the map.
            train: normalize by batch statistics, and update the running ones.
            pool: max pooling of a map; None: there is none.
            factors: (batch, ..., inputs) and (..., inputs, channels), whose product x is: what a 1x1 convolution has
                made it of. In training x is then not kept for the backward pass: see `_normalize_product`.

        Returns:
            the normalized map; with `pool`, that and what `pool` would make of it: a compiled program computes what is
            used of them.

        Raises:
            ValueError: if the batch cannot be divided into groups.
        """
        channels = x.shape[-1]
        scale, bias = jnp.ones(channels), jnp.zeros(channels)
        if self.use_scale:
            scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)

        def turn(values: jax.Array) -> jax.Array:
            """Reverses the order of the channels whose scale is negative, if there is pooling."""
            return values if pool is None else values * jnp.where(scale < 0, -1, 1).astype(values.dtype)

        x = turn(x)
        group_size = min((train and self.group_size) or x.shape[0], x.shape[0])
        if x.shape[0] % group_size:
            raise ValueError(f"A batch of {x.shape[0]} examples cannot be normalized in groups of {group_size}.")

        normalized = None
        if not train:
            mean, var = turn(running_mean.value)[None], running_var.value[None]
        elif factors is None:
            mean, var = _moments(x, group_size)
        else:
            inputs, kernel = factors
            normalized, mean, var = _normalize_product(
                x, inputs, kernel.reshape(-1, channels), scale, bias, group_size, self.epsilon
            )

        def normalize(values: jax.Array) -> jax.Array:
            return _normalize(values, mean, var, turn(scale), bias, self.epsilon).astype(self.dtype)

        if train and not self.is_initializing():
            count = x.size // (mean.shape[0] * channels)
            keep, take = self.momentum, 1 - self.momentum
            unbiased = var * (count / max(1, count - 1))
            running_mean.value = keep * running_mean.value + take * turn(mean).mean(0)
            running_var.value = keep * running_var.value + take * unbiased.mean(0)
        if normalized is not None:
            return normalized.astype(self.dtype)
        return normalize(x) if pool is None else (normalize(x), normalize(pool(x)))


def _moments(x: jax.Array, group_size: int) -> tuple[jax.Array, jax.Array]:
    """Returns mean and biased variance of (batch, ..., channels) over groups of examples, (groups, channels) float32.

    One pass over x gives both. In float32 the variance has a relative error of about 1e-7 * (mean / deviation)^2, which
    matters for ratios above some hundreds; it can even be slightly negative.
    """
    grouped = x.reshape(-1, group_size, *x.shape[1:]).astype(jnp.float32)
    axes = tuple(range(1, grouped.ndim - 1))
    mean = grouped.mean(axes)
    return mean, jnp.maximum(0.0, jnp.square(grouped).mean(axes) - jnp.square(mean))


def _normalize(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    """Normalizes (batch, ..., channels) by moments of each group, (groups, channels); the result is float32."""
    groups, channels = mean.shape
    grouped = x.reshape(groups, -1, *x.shape[1:]).astype(jnp.float32)
    shape = (groups, *[1] * (x.ndim - 1), channels)
    factor = jax.lax.rsqrt(var + epsilon) * scale
    return ((grouped - mean.reshape(shape)) * factor.reshape(shape) + bias).reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _normalize_product(
    x: jax.Array,
    inputs: jax.Array,
    kernel: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    group_size: int,
    epsilon: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns x = inputs kernel normalized by the moments of groups of examples, and these.

    Everything that the backward pass needs of x is a sum over positions, and as x is linear in the inputs, it follows
    from sums over them: with the gradient g of the result, from inputs^T g, which the kernel's gradient is made of
    anyway, and inputs^T inputs. Where x has more channels than the inputs, as at the end of a bottleneck, reading these
    is cheaper than reading x, which is not kept.

    Args:
        x: (batch, ..., channels).
        inputs: (batch, ..., features) of the same dtype.
        kernel: (features, channels) float32.
        scale, bias: (channels,) float32.
        group_size: examples that are normalized together.
        epsilon: added to the variance.

    Returns:
        (batch, ..., channels) of x's dtype; mean and variance of each group, (groups, channels) float32, which have no
        derivative.
    """
    return _normalize_product_forward(x, inputs, kernel, scale, bias, group_size, epsilon)[0]


def _normalize_product_forward(
    x: jax.Array,
    inputs: jax.Array,
    kernel: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    group_size: int,
    epsilon: float,
) -> tuple[Any, Any]:
    mean, var = _moments(x, group_size)
    normalized = _normalize(x, mean, var, scale, bias, epsilon).astype(x.dtype)
    return (normalized, mean, var), (inputs, kernel, scale, mean, jax.lax.rsqrt(var + epsilon))


def _normalize_product_backward(group_size: int, epsilon: float, kept: Any, gradients: Any) -> tuple[Any, ...]:
    inputs, kernel, scale, means, inverses = kept
    weights = kernel.astype(inputs.dtype)
    exact = weights.astype(jnp.float32)
    meshed = not jax.sharding.get_abstract_mesh().empty

    def whole(matrix: jax.Array) -> jax.Array:
        """Keeps the compiler from dividing a group's matrix, which costs more communication than it saves."""
        return jax.lax.with_sharding_constraint(matrix, PartitionSpec(None, None)) if meshed else matrix

    def of_group(
        inputs: jax.Array, gradient: jax.Array, mean: jax.Array, inverse: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns the gradients of a group's inputs, of the kernel, scale and bias."""
        positions = tuple(range(inputs.ndim - 1))
        count = math.prod(inputs.shape[:-1])

        def product(left: jax.Array, right: jax.Array, axes: Any, dtype: Any = jnp.float32) -> jax.Array:
            return jax.lax.dot_general(left, right, (axes, ((), ())), preferred_element_type=dtype)

        by_bias = gradient.astype(jnp.float32).sum(positions)
        with_gradient = whole(product(inputs, gradient, (positions, positions)))
        total = inputs.astype(jnp.float32).sum(positions)[:, None]
        with jax.named_scope(NOT_COUNTED):
            with_inputs = whole(product(inputs, inputs, (positions, positions)))
            with_normalized = (with_inputs @ exact - total * mean) * inverse
        by_scale = inverse * ((exact * with_gradient).sum(0) - mean * by_bias)
        # The gradient of x is factor * (gradient - mean gradient - share * normalized x).
        factor, mean_gradient, share = scale * inverse, by_bias / count, by_scale / count
        by_kernel = whole(factor * (with_gradient - total * mean_gradient - share * with_normalized))
        last = ((inputs.ndim - 1,), (1,))
        by_inputs = product(gradient, (exact * factor).astype(weights.dtype), last)
        with jax.named_scope(NOT_COUNTED):
            mixing = whole((exact * (factor * share * inverse)) @ exact.T)
            by_inputs -= product(inputs, mixing.astype(weights.dtype), last, inputs.dtype).astype(jnp.float32)
            by_inputs += exact @ (factor * (share * inverse * mean - mean_gradient))
        return by_inputs.astype(inputs.dtype), by_kernel, by_scale, by_bias

    if len(means) == 1:  # without an axis more, which would keep the compiler from fusing
        by_inputs, *of_parameters = of_group(inputs, gradients[0], means[0], inverses[0])
    else:
        groups, gradient = (x.reshape(len(means), -1, *x.shape[1:]) for x in (inputs, gradients[0]))
        by_inputs, *of_each = jax.vmap(of_group)(groups, gradient, means, inverses)
        of_parameters = [values.sum(0) for values in of_each]
    return (None, by_inputs.reshape(inputs.shape), *of_parameters)


_normalize_product.defvjp(_normalize_product_forward, _normalize_product_backward)
