"""Optimizers by name, as optax transformations.

Each is optax's, unless published recipes used torch's or timm's and those differ, which is then documented. In the
formulas below, g is the gradient, p the parameter, lr the learning rate and wd the weight decay.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from vision_jax.errors import ConfigError, suggest
from vision_jax.optim.clipping import create_clipping
from vision_jax.optim.masks import CLASSIFIER, Mask, is_stacked, matches, path_string

Rate: TypeAlias = optax.ScalarOrSchedule
Transformation: TypeAlias = optax.GradientTransformation


class _StepState(NamedTuple):
    step: jax.Array


def _by_step(function: Callable[[jax.Array, Any, Any], Any]) -> Transformation:
    """Returns the transformation that applies function(updates done, gradients, parameters)."""

    def update(grads: Any, state: _StepState, params: Any = None) -> tuple[Any, _StepState]:
        return function(state.step, grads, params), _StepState(optax.safe_increment(state.step))

    return optax.GradientTransformation(lambda params: _StepState(jnp.zeros((), jnp.int32)), update)


def _at(value: Rate, count: jax.Array) -> Any:
    return value(count) if callable(value) else value


@dataclasses.dataclass(frozen=True)
class WeightDecay:
    """Weight decay.

    Attributes:
        rate: a number or a function of the number of updates done.
        mask: which parameters decay: a tree of booleans, or a function from the parameters to one; None: all.
        form: see `create_optimizer`.
        peak: the peak learning rate, for the form "relative".
    """

    rate: Rate
    mask: Mask
    form: str
    peak: float | None

    def __bool__(self) -> bool:
        return callable(self.rate) or self.rate != 0

    def of(self, params: Any) -> Any:
        """Returns a tree of booleans: which parameters decay."""
        if not self or self.mask is None:
            return jax.tree.map(lambda _: bool(self), params)
        return self.mask(params) if callable(self.mask) else self.mask

    def before(self) -> Transformation:
        """Returns the transformation to apply to the gradients first."""
        return self._add(1.0) if self and self.form == "coupled" else optax.identity()

    def after(self) -> Transformation:
        """Returns the transformation to apply to the direction, before it is multiplied by the learning rate."""
        if not self or self.form == "coupled":
            return optax.identity()
        return self._add(1 / self.peak if self.form == "relative" and self.peak else 1.0)

    def _add(self, factor: float) -> Transformation:
        rate = self.rate
        if not callable(rate):
            return optax.add_decayed_weights(rate * factor, self.mask)
        # optax takes functions here only since 0.2.7.
        added = _by_step(lambda t, grads, params: jax.tree.map(lambda g, p: g + rate(t) * factor * p, grads, params))
        return added if self.mask is None else optax.masked(added, self.mask)


def _chain(decay: WeightDecay, direction: Transformation, learning_rate: Rate) -> Transformation:
    return optax.chain(decay.before(), direction, decay.after(), optax.scale_by_learning_rate(learning_rate))


def _trace(momentum: float, nesterov: bool, mu_dtype: Any) -> Transformation:
    return optax.trace(momentum, nesterov, accumulator_dtype=mu_dtype) if momentum else optax.identity()


def sgd(
    learning_rate: Rate, decay: WeightDecay, *, momentum: float = 0.0, nesterov: bool = False, mu_dtype: Any = None
) -> Transformation:
    """Returns stochastic gradient descent as torch.optim.SGD has it.

    m = momentum * m + g
    p -= lr * (g + momentum * m if nesterov else m)
    """
    return _chain(decay, _trace(momentum, nesterov, mu_dtype), learning_rate)


def adam(
    learning_rate: Rate,
    decay: WeightDecay,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    mu_dtype: Any = None,
) -> Transformation:
    """Returns Adam (Kingma and Ba 2014, arXiv:1412.6980); with the decay of AdamW (Loshchilov and Hutter 2017,
    arXiv:1711.05101), it is AdamW.

    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g^2
    p -= lr * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)
    """
    return _chain(decay, optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype), learning_rate)


def nadamw(
    learning_rate: Rate,
    decay: WeightDecay,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    mu_dtype: Any = None,
) -> Transformation:
    """Returns AdamW with Nesterov momentum as the AlgoPerf benchmark (arXiv:2306.07179) and timm have it.

    As Adam, with b1 * m + (1 - b1) * g in the place of m. optax.nadamw divides the two parts by different corrections
    (Dozat 2016), and so starts with other steps.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        mu = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=mu_dtype), params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, jax.tree.map(jnp.zeros_like, params))

    def update(grads: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        mu = optax.update_moment(grads, state.mu, b1, 1)
        nu = optax.update_moment(grads, state.nu, b2, 2)
        ahead = optax.bias_correction(optax.update_moment(grads, mu, b1, 1), b1, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), ahead, optax.bias_correction(nu, b2, count))
        mu = jax.tree.map(lambda new, old: new.astype(old.dtype), mu, state.mu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return _chain(decay, optax.GradientTransformation(init, update), learning_rate)


def _scale_by_rms(decay: float, eps: float, centered: bool, initial: float, eps_in_sqrt: bool) -> Transformation:
    scale_by = optax.scale_by_stddev if centered else optax.scale_by_rms
    return scale_by(decay, eps, initial, eps_in_sqrt=eps_in_sqrt)


def rmsprop(
    learning_rate: Rate,
    weight_decay: WeightDecay,
    *,
    decay: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    nesterov: bool = False,
    centered: bool = False,
    mu_dtype: Any = None,
) -> Transformation:
    """Returns RMSprop as torch.optim.RMSprop has it, where `decay` is called alpha.

    v = decay * v + (1 - decay) * g^2
    m = momentum * m + g / (sqrt(v) + eps)
    p -= lr * m

    With `centered`, v less the square of the gradients' moving average is in the place of v.
    """
    direction = optax.chain(_scale_by_rms(decay, eps, centered, 0.0, False), _trace(momentum, nesterov, mu_dtype))
    return _chain(weight_decay, direction, learning_rate)


def rmsprop_tf(
    learning_rate: Rate,
    weight_decay: WeightDecay,
    *,
    decay: float = 0.9,
    eps: float = 1e-10,
    momentum: float = 0.0,
    centered: bool = False,
    mu_dtype: Any = None,
) -> Transformation:
    """Returns RMSprop as TensorFlow 1 and timm (`rmsproptf`) have it, for EfficientNets and MobileNets.

    v = decay * v + (1 - decay) * g^2, and v is 1 in the beginning
    m = momentum * m + lr * g / sqrt(v + eps)
    p -= m

    A fall of the learning rate so comes into force only with what is added to the momentum thereafter. A decay that is
    not coupled is not in the momentum.
    """
    rms = _scale_by_rms(decay, eps, centered, 1.0, True)
    rate = optax.scale_by_learning_rate(learning_rate, flip_sign=False)
    chain = optax.chain(weight_decay.before(), rms, rate, _trace(momentum, False, mu_dtype), optax.scale(-1.0))
    if not weight_decay or weight_decay.form == "coupled":
        return chain
    decayed = optax.chain(weight_decay.after(), optax.scale_by_learning_rate(learning_rate))

    def init(params: Any) -> tuple[Any, Any]:
        return chain.init(params), decayed.init(params)

    def update(grads: Any, state: tuple[Any, Any], params: Any = None) -> tuple[Any, tuple[Any, Any]]:
        updates, first = chain.update(grads, state[0], params)
        less, second = decayed.update(jax.tree.map(jnp.zeros_like, grads), state[1], params)
        return jax.tree.map(jnp.add, updates, less), (first, second)

    return optax.GradientTransformation(init, update)


def _norm(path: str, x: jax.Array) -> jax.Array:
    """Returns the Euclidean norm of a parameter; of stacked ones, each has its own."""
    axes = tuple(range(1, x.ndim)) if is_stacked(path) else None
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=axes is not None))


def lamb(
    learning_rate: Rate,
    decay: WeightDecay,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    max_grad_norm: float | None = 1.0,
    trust_clip: bool = False,
    always_adapt: bool = False,
    mu_dtype: Any = None,
) -> Transformation:
    """Returns LAMB (You et al. 2019, arXiv:1904.00962) as timm and NVIDIA's FusedLAMB have it.

    g *= min(1, max_grad_norm / |all g|)
    u = Adam's direction + wd * p
    p -= lr * |p| / |u| * u, where the ratio is 1 if one of the norms is 0

    Args:
        max_grad_norm: largest global norm of the gradients; None: they are not clipped. It is there by default, and
            recipes that name no clipping have it.
        trust_clip: the ratio is at most 1.
        always_adapt: parameters that do not decay have a ratio too; otherwise theirs is 1.
    """

    def trust(path: Any, adapts: bool, u: jax.Array, p: jax.Array) -> jax.Array:
        if not adapts:
            return u
        p_norm, u_norm = _norm(path_string(path), p), _norm(path_string(path), u)
        ratio = jnp.where((p_norm > 0) & (u_norm > 0), p_norm / jnp.where(u_norm > 0, u_norm, 1), 1)
        return (jnp.minimum(ratio, 1) if trust_clip else ratio) * u

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        adapts = jax.tree.map(lambda decays: decays or always_adapt, decay.of(params))
        return jax.tree_util.tree_map_with_path(trust, adapts, updates, params), state

    return optax.chain(
        optax.identity() if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm),
        optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
        decay.after(),
        optax.GradientTransformation(optax.init_empty_state, update),
        optax.scale_by_learning_rate(learning_rate),
    )


def lars(
    learning_rate: Rate,
    decay: WeightDecay,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    trust_coefficient: float = 0.001,
    eps: float = 1e-8,
    trust_clip: bool = False,
    always_adapt: bool = False,
    by_rank: bool = False,
    classic_momentum: bool = False,
    mu_dtype: Any = None,
) -> Transformation:
    """Returns LARS (You et al. 2017, arXiv:1708.03888) as timm has it.

    r = trust_coefficient * |p| / (|g| + wd * |p| + eps), or 1 if one of the norms is 0
    m = momentum * m + r * (g + wd * p)
    p -= lr * m

    Args:
        trust_clip: r is min(r / lr, 1), so that no step is longer than SGD's (LARC).
        always_adapt: parameters that do not decay have a ratio too; otherwise theirs is 1.
        by_rank: as in the scripts of MoCo v3, Barlow Twins, VICReg and MAE: parameters of two and more dimensions have
            a ratio, whether or not they decay, and others have none; r = trust_coefficient * |p| / |g + wd * p|.
        classic_momentum: the learning rate is part of the momentum, as in SimCLR's code: m = momentum * m + lr * r * (g
            + wd * p); p -= m. So a change of the rate acts on what is added from then on.
    """

    def adapt(count: jax.Array, grads: Any, params: Any) -> Any:
        rate = _at(decay.rate, count)

        def adapted(path: Any, decays: bool, g: jax.Array, p: jax.Array) -> jax.Array:
            name = path_string(path)
            wd = rate if decays else 0.0
            direction = g + wd * p if decays else g
            if not (p.ndim - is_stacked(name) > 1 if by_rank else decays or always_adapt):
                return direction
            p_norm, g_norm = _norm(name, p), _norm(name, direction if by_rank else g)
            ratio = trust_coefficient * p_norm / (g_norm if by_rank else g_norm + wd * p_norm + eps)
            ratio = jnp.where((p_norm > 0) & (g_norm > 0), ratio, 1)
            if trust_clip:
                ratio = jnp.minimum(ratio / _at(learning_rate, count), 1)
            return ratio * direction

        return jax.tree_util.tree_map_with_path(adapted, decay.of(params), grads, params)

    parts = [_trace(momentum, nesterov, mu_dtype), optax.scale_by_learning_rate(learning_rate)]
    return optax.chain(_by_step(adapt), *(reversed(parts) if classic_momentum else parts))


def lion(
    learning_rate: Rate, decay: WeightDecay, *, b1: float = 0.9, b2: float = 0.99, mu_dtype: Any = None
) -> Transformation:
    """Returns Lion (Chen et al. 2023, arXiv:2302.06675).

    p -= lr * sign(b1 * m + (1 - b1) * g)
    m = b2 * m + (1 - b2) * g
    """
    return _chain(decay, optax.scale_by_lion(b1, b2, mu_dtype=mu_dtype), learning_rate)


def adafactor(
    learning_rate: Rate,
    decay: WeightDecay,
    *,
    decay_rate: float = 0.8,
    b2_cap: float = 0.999,
    min_dim_size_to_factor: int = 32,
    eps: float = 1e-30,
    clipping_threshold: float | None = None,
    momentum: float = 0.9,
    multiply_by_parameter_scale: bool = False,
    mu_dtype: Any = jnp.bfloat16,
) -> Transformation:
    """Returns Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) as changed to train large vision transformers (Zhai
    et al. 2021, arXiv:2106.04560) and as google-research/big_vision has it.

    b2 = min(b2_cap, 1 - t^-decay_rate)
    v = b2 * v + (1 - b2) * (g^2 + eps), of which only the means over rows and over columns are kept
    u = g / sqrt(v), then u /= max(1, rms(u) / clipping_threshold), then times rms(p) if so set
    m = momentum * m + (1 - momentum) * u
    p -= lr * m

    Against the original, b2 has a cap, there is momentum, kept in half the memory, and no learning rate relative to
    that of the parameter. Of a parameter with less than two axes of `min_dim_size_to_factor` all of v is kept. Stacked
    blocks share one rms where there is a `clipping_threshold` or the parameter's scale.
    """

    def second_decay(step: jax.Array, exponent: Any) -> jax.Array:
        return jnp.minimum(b2_cap, 1 - (jnp.asarray(step, jnp.float32) + 1) ** -exponent)

    direction = optax.chain(
        optax.scale_by_factored_rms(
            decay_rate=decay_rate,
            min_dim_size_to_factor=min_dim_size_to_factor,
            epsilon=eps,
            decay_rate_fn=second_decay,
        ),
        optax.clip_by_block_rms(clipping_threshold) if clipping_threshold else optax.identity(),
        optax.scale_by_param_block_rms() if multiply_by_parameter_scale else optax.identity(),
        optax.ema(momentum, debias=False, accumulator_dtype=mu_dtype) if momentum else optax.identity(),
    )
    return _chain(decay, direction, learning_rate)


class _AdanState(NamedTuple):
    step: jax.Array
    mu: Any
    delta: Any
    nu: Any
    grads: Any


def adan(
    learning_rate: Rate,
    decay: WeightDecay,
    *,
    b1: float = 0.98,
    b2: float = 0.92,
    b3: float = 0.99,
    eps: float = 1e-8,
    mu_dtype: Any = None,
) -> Transformation:
    """Returns Adan (Xie et al. 2022, arXiv:2208.06677) as its authors and timm have it.

    d = g - the gradient before it; 0 in the first step
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * d
    n = b3 * n + (1 - b3) * (g + b2 * d)^2
    u = (m / (1 - b1^t) + b2 * v / (1 - b2^t)) / (sqrt(n / (1 - b3^t)) + eps)
    p = (p - lr * u) / (1 + lr * wd)

    The paper counts the other way: its betas are 1 less these. optax.adan does for v as here, yet multiplies by 1 - b2,
    not by b2, and decays as AdamW. Here the form "decoupled" decays as AdamW.
    """

    def init(params: Any) -> _AdanState:
        mu = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=mu_dtype), params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return _AdanState(jnp.zeros((), jnp.int32), mu, zeros, zeros, zeros)

    def update(grads: Any, state: _AdanState, params: Any = None) -> tuple[Any, _AdanState]:
        count = optax.safe_increment(state.step)
        change = jax.tree.map(lambda g, before: jnp.where(state.step == 0, 0, g - before), grads, state.grads)
        mu = optax.update_moment(grads, state.mu, b1, 1)
        delta = optax.update_moment(change, state.delta, b2, 1)
        nu = optax.update_moment(jax.tree.map(lambda g, d: g + b2 * d, grads, change), state.nu, b3, 2)
        updates = jax.tree.map(
            lambda m, v, n: (m + b2 * v) / (jnp.sqrt(n) + eps),
            optax.bias_correction(mu, b1, count),
            optax.bias_correction(delta, b2, count),
            optax.bias_correction(nu, b3, count),
        )
        mu = jax.tree.map(lambda new, old: new.astype(old.dtype), mu, state.mu)
        return updates, _AdanState(count, mu, delta, nu, grads)

    direction = optax.GradientTransformation(init, update)
    if decay.form != "proximal" or not decay:
        return _chain(decay, direction, learning_rate)

    def step(count: jax.Array, updates: Any, params: Any) -> Any:
        lr, wd = _at(learning_rate, count), _at(decay.rate, count)

        def leaf(decays: bool, u: jax.Array, p: jax.Array) -> jax.Array:
            return -lr / (1 + lr * wd) * (u + wd * p) if decays else -lr * u

        return jax.tree.map(leaf, decay.of(params), updates, params)

    return optax.chain(direction, _by_step(step))


def muon(
    learning_rate: Rate,
    decay: WeightDecay,
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    consistent_rms: float | None = None,
    adam_factor: float = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    adam_patterns: Sequence[str] = (CLASSIFIER,),
    mu_dtype: Any = None,
) -> Transformation:
    """Returns Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for kernels and Adam for the rest.

    m = beta * m + (1 - beta) * g, and beta * m + (1 - beta) * g of it if nesterov, both corrected for their start
    u = the orthogonal matrix next to m, about, by `ns_steps` of Newton and Schulz
    p -= lr * sqrt(max(1, outputs / inputs)) * u, or with sqrt(max(outputs, inputs)) * consistent_rms

    The inputs of a convolution are those of all its positions. The matrices are made by optax.contrib.scale_by_muon;
    optax.contrib.muon gives Adam Nesterov momentum too, which Muon's author does not.

    Args:
        consistent_rms: makes steps as long as Adam's where it is about 0.2 (Liu et al. 2025, arXiv:2502.16982).
        adam_factor: learning rate of Adam relative to that of Muon.
        b1, b2: Adam's.
        adam_patterns: regular expressions: kernels where one is found in the path have Adam too. By default, that is
            the classifier, as Muon's author has it.
    """

    def axes(path: Any, p: jax.Array) -> optax.contrib.MuonDimensionNumbers:
        return optax.contrib.MuonDimensionNumbers(
            tuple(range(is_stacked(path_string(path)), p.ndim - 1)), (p.ndim - 1,)
        )

    def label(path: Any, p: jax.Array) -> str:
        name = path_string(path)
        matrix = name.endswith("kernel") and p.ndim - is_stacked(name) > 1 and not matches(name, adam_patterns)
        return "muon" if matrix else "adam"

    def scaled(path: Any, u: jax.Array) -> jax.Array:
        outputs, inputs = u.shape[-1], math.prod(u.shape[is_stacked(path_string(path)) : -1])
        if consistent_rms is not None:
            return math.sqrt(max(outputs, inputs)) * consistent_rms * u
        return math.sqrt(max(1, outputs / inputs)) * u

    by_muon = optax.contrib.scale_by_muon(
        ns_steps=ns_steps,
        beta=beta,
        eps=eps,
        mu_dtype=mu_dtype,
        nesterov=nesterov,
        weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(axes, params),
    )
    by_adam = optax.chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype), optax.scale(adam_factor))
    by_shape = optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(scaled, updates))
    direction = optax.partition(
        {"muon": optax.chain(by_muon, by_shape), "adam": by_adam},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
    return _chain(decay, direction, learning_rate)


def sophia(
    learning_rate: Rate,
    decay: WeightDecay,
    *,
    b1: float = 0.965,
    b2: float = 0.99,
    eps: float = 1e-8,
    gamma: float = 0.01,
    clip_threshold: float = 1.0,
    update_interval: int = 10,
    mu_dtype: Any = None,
) -> Transformation:
    """Returns Sophia-H (Liu et al. 2023, arXiv:2305.14342) as optax.contrib has it.

    m = b1 * m + (1 - b1) * g
    h = b2 * h + (1 - b2) * r * (H r), in every `update_interval`-th step, with the Hessian H and random signs r
    p -= lr * clip(m / (1 - b1^t) / max(gamma * h, eps), clip_threshold)

    Its `update` takes `obj_fn`, from the parameters to the loss, of which it takes the product with the Hessian; such a
    step costs about two more gradients. As in optax, a step uses h of before it, so that the first one is all clipped.
    """
    descent = optax.contrib.sophia(
        *(1.0, b1, b2, eps),
        weight_decay=0.0,
        gamma=gamma,
        clip_threshold=clip_threshold,
        update_interval=update_interval,
        mu_dtype=mu_dtype,
    )
    return _chain(decay, optax.chain(descent, optax.scale(-1.0)), learning_rate)


_FREE_FORMS = ("coupled", "decoupled", "relative")
# What makes it, and the forms of weight decay that it takes, beginning with its own.
_OPTIMIZERS: dict[str, tuple[Callable[..., Transformation], tuple[str, ...]]] = {
    "adafactor": (adafactor, ("decoupled", "coupled", "relative")),
    "adam": (adam, _FREE_FORMS),
    "adamw": (adam, ("decoupled", "coupled", "relative")),
    "adan": (adan, ("proximal", "decoupled", "coupled", "relative")),
    "lamb": (lamb, ("decoupled",)),
    "lars": (lars, ("coupled",)),
    "lion": (lion, ("decoupled", "coupled", "relative")),
    "muon": (muon, ("decoupled", "coupled", "relative")),
    "nadamw": (nadamw, ("decoupled", "coupled", "relative")),
    "rmsprop": (rmsprop, _FREE_FORMS),
    "rmsprop_tf": (rmsprop_tf, _FREE_FORMS),
    "sgd": (sgd, _FREE_FORMS),
    "sophia": (sophia, ("decoupled", "coupled", "relative")),
}
_DTYPES = {"float32": None, "bfloat16": jnp.bfloat16, None: None}
_BELOW_ONE = ("b1", "b2", "b3", "beta", "decay", "momentum")


def list_optimizers() -> list[str]:
    """Returns the sorted names that `create_optimizer` knows."""
    return sorted(_OPTIMIZERS)


def optimizer_arguments(name: str) -> dict[str, Any]:
    """Returns the further arguments that `create_optimizer` takes for an optimizer, with their defaults.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in _OPTIMIZERS:
        raise ConfigError(f"There is no optimizer {name!r}: {suggest(name, list(_OPTIMIZERS))}")
    parameters = inspect.signature(_OPTIMIZERS[name][0]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    return defaults | {"mu_dtype": "bfloat16" if defaults["mu_dtype"] is jnp.bfloat16 else None}


def create_optimizer(
    name: str,
    learning_rate: Rate,
    *,
    weight_decay: Rate = 0.0,
    decay_mask: Mask = None,
    decay_form: str | None = None,
    peak_learning_rate: float | None = None,
    clip_value: float | None = None,
    clip_adaptive: float | None = None,
    clip_adaptive_eps: float = 1e-3,
    clip_adaptive_mask: Mask = None,
    clip_parameter_norm: float | None = None,
    clip_global_norm: float | None = None,
    **kwargs: Any,
) -> optax.GradientTransformation:
    """Returns an optimizer.

    The meaning of the weight decay depends on its form:

        coupled:    g += wd * p, before anything else        L2, as in torch's SGD, Adam and RMSprop
        decoupled:  p -= lr * wd * p                         as in torch's AdamW, and optax
        relative:   p -= lr / peak_learning_rate * wd * p    as in mosaicml/composer's DecoupledSGDW and DecoupledAdamW,
                                                             and google-research/big_vision's `wd` with all optimizers
        proximal:   p /= 1 + lr * wd, after the step         as in Adan

    So `relative` with wd is `decoupled` with wd / peak_learning_rate. In LAMB and LARS the decay is part of the trust
    ratio, and they have no other form.

    Gradients are clipped first: by value, then adaptively, then each by its own norm, then all by their global norm.

    Args:
        name: one of `list_optimizers()`.
        learning_rate: a number, or a function of the number of updates done.
        weight_decay: a number, or a function of the number of updates done.
        decay_mask: a tree of booleans like the parameters, or a function from them to one; None: all decay.
        decay_form: form of weight decay; None: the usual one of the optimizer.
        peak_learning_rate: for "relative", if `learning_rate` is a function: the learning rate at which weight decay is
            applied in full.
        clip_value: elements of gradients are clipped to plus or minus this.
        clip_adaptive: maximum norm of a gradient relative to that of its parameter; see
            `vision_jax.optim.clip_adaptive`.
        clip_adaptive_eps: minimum norm of a parameter in this.
        clip_adaptive_mask: what is clipped adaptively, like `decay_mask`; None: all.
        clip_parameter_norm: the gradient of a parameter is rescaled if its norm is larger.
        clip_global_norm: gradients are rescaled if their global norm is larger.
        **kwargs: of the optimizer, in optax's names; see `optimizer_arguments`. `mu_dtype` is the dtype of the first
            moment, or momentum: "float32" or "bfloat16".

    Raises:
        ConfigError: for an unknown name, argument or form, or a value out of its range.
    """
    defaults = optimizer_arguments(name)
    for key, value in kwargs.items():
        if key not in defaults:
            raise ConfigError(
                f"The optimizer {name!r} does not take the argument {key!r}: it takes {', '.join(sorted(defaults))}."
            )
        if key in _BELOW_ONE and not 0 <= value < 1:
            raise ConfigError(f"{key} of the optimizer {name!r} is {value}: it must be at least 0 and below 1.")
    create, forms = _OPTIMIZERS[name]
    form = decay_form or forms[0]
    if form not in forms:
        raise ConfigError(f"The weight decay of {name!r} has no form {form!r}: there are {', '.join(forms)}.")
    peak = peak_learning_rate
    if form == "relative":
        peak = learning_rate if peak is None and not callable(learning_rate) else peak
        if not peak:
            raise ConfigError("A relative weight decay needs peak_learning_rate, and it must not be 0.")
    if "mu_dtype" in kwargs:
        if kwargs["mu_dtype"] not in _DTYPES:
            raise ConfigError(f"mu_dtype is {kwargs['mu_dtype']!r}: there are float32 and bfloat16.")
        kwargs["mu_dtype"] = _DTYPES[kwargs["mu_dtype"]]
    try:
        optimizer = create(learning_rate, WeightDecay(weight_decay, decay_mask, form, peak), **kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The optimizer {name!r} does not take these arguments: {error}") from error
    clips = create_clipping(
        value=clip_value,
        adaptive=clip_adaptive,
        adaptive_eps=clip_adaptive_eps,
        adaptive_mask=clip_adaptive_mask,
        parameter_norm=clip_parameter_norm,
        global_norm=clip_global_norm,
    )
    return optax.chain(*clips, optimizer) if clips else optimizer
