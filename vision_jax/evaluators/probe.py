"""The linear probe of frozen features, trained by gradient descent, for several learning rates in one pass.

Products of matrices are computed in full float32, also where the hardware would round.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vision_jax.data import order
from vision_jax.errors import ConfigError, DataError, suggest
from vision_jax.losses import softmax_cross_entropy
from vision_jax.optim import create_optimizer, create_schedule

OPTIMIZERS = ("sgd", "lars")


class LinearProbe(nn.Module):
    """A linear layer; before it, as MAE has it (He et al. 2021, arXiv:2111.06377), batch norm without scale and bias.

    As in torch, the running variance is unbiased, and the batch is normalized by the biased one.

    Attributes:
        num_classes: number of classes.
        normalize: False: the linear layer alone.
        momentum: weight of the old running statistics; 1 minus torch's momentum.
        epsilon: added to the variance.
    """

    num_classes: int
    normalize: bool = True
    momentum: float = 0.9
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits, (n, num_classes) float32, of features, (n, dim)."""
        features = jnp.asarray(features, jnp.float32)
        if self.normalize:
            features = self._normalize(features, train)
        init = nn.initializers.normal(0.01)
        return nn.Dense(self.num_classes, kernel_init=init, precision="highest", name="fc")(features)

    def _normalize(self, features: jax.Array, train: bool) -> jax.Array:
        count, dim = features.shape
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (dim,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (dim,), jnp.float32)
        mean, var = running_mean.value, running_var.value
        if train:
            mean, var = features.mean(0), features.var(0)
            if not self.is_initializing():
                keep, take, unbiased = self.momentum, 1 - self.momentum, var * (count / max(1, count - 1))
                running_mean.value = keep * running_mean.value + take * mean
                running_var.value = keep * running_var.value + take * unbiased
        return (features - mean) * jax.lax.rsqrt(var + self.epsilon)


class ProbeState(NamedTuple):
    """A probe in training: its `params` and `batch_stats`, and the state of the optimizer."""

    params: Any
    batch_stats: Any
    opt_state: Any


def make_probe_step(
    probe: LinearProbe, optimizer: optax.GradientTransformation
) -> Callable[[ProbeState, jax.Array, jax.Array], tuple[ProbeState, jax.Array]]:
    """Returns the jitted step of a probe: (state, features (n, dim), labels (n,)) -> (state, mean cross-entropy).

    MAE's optimizer is `create_optimizer("lars", rate, momentum=0.9, by_rank=True)`.
    """

    @jax.jit
    def step(state: ProbeState, features: jax.Array, labels: jax.Array) -> tuple[ProbeState, jax.Array]:
        value, batch_stats, grads = _gradients(probe, state, features, labels)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return ProbeState(optax.apply_updates(state.params, updates), batch_stats, opt_state), value

    return step


def _gradients(
    probe: LinearProbe, state: ProbeState, features: jax.Array, labels: jax.Array
) -> tuple[jax.Array, Any, Any]:
    """Returns the mean cross-entropy of a batch, the batch statistics after it, and the gradients."""

    def loss(params: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = probe.apply(variables, features, train=True, mutable=["batch_stats"])
        return softmax_cross_entropy(logits, labels).mean(), updated.get("batch_stats", {})

    (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    return value, batch_stats, grads


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How linear probes are trained; without weight decay, and with a learning rate that falls on a half cosine to 0.

    The defaults are DINO's (Caron et al. 2021, arXiv:2104.14294). MAE's (He et al. 2021, arXiv:2111.06377) are
    `Recipe("lars", epochs=90, warmup_epochs=10, batch_size=16384, normalize=True)`, with a learning rate of 0.1.

    Attributes:
        optimizer: "sgd", or "lars", whose trust ratios are those of MAE's script (`by_rank`).
        epochs: passes over the examples. The last, incomplete batch of each is left out.
        warmup_epochs: at the beginning, in which the learning rate rises linearly from 0.
        batch_size: examples of a step, or all if there are fewer.
        momentum: of the optimizer.
        normalize: begin with a batch norm without scale and bias.

    Raises:
        ConfigError: if one of them cannot be.
    """

    optimizer: str = "sgd"
    epochs: int = 100
    warmup_epochs: float = 0.0
    batch_size: int = 1024
    momentum: float = 0.9
    normalize: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer is {self.optimizer!r}: {suggest(self.optimizer, OPTIMIZERS)}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give 1 or more.")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ConfigError(f"warmup_epochs is {self.warmup_epochs}: give 0 or more, and less than {self.epochs}.")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum is {self.momentum}: give 0 or more, and less than 1.")


class Probes(NamedTuple):
    """Linear probes that were trained side by side; the first axis of each array is that of their learning rates."""

    module: LinearProbe
    variables: Any

    def scores(self, features: jax.Array) -> jax.Array:
        """Returns the logits, (rates, n, classes) float32, of features, (n, dim)."""
        return _scores(self.module, self.variables, features)


@functools.partial(jax.jit, static_argnums=0)
def _scores(module: LinearProbe, variables: Any, features: jax.Array) -> Any:
    return jax.vmap(lambda values: module.apply(values, features, train=False))(variables)


def train_probes(
    features: jax.Array | np.ndarray,
    labels: jax.Array | np.ndarray,
    num_classes: int,
    learning_rates: Sequence[float],
    recipe: Recipe,
    *,
    seed: int = 0,
    before_epoch: Callable[[], object] = lambda: None,
) -> Probes:
    """Trains a linear probe for each of several learning rates, on the same batches, in one pass.

    The device holds the features, and of each probe the weights and their momentum. An epoch takes 4 * rates *
    examples * dim * num_classes operations in float32.

    Args:
        features: (examples, dim) float.
        labels: (examples,) integers.
        num_classes: number of classes.
        learning_rates: one for each probe, for batches of 256 examples: that of a step is rate * batch size / 256.
        recipe: the rest.
        seed: of the initial weights and, with the epoch, of the order of the examples (`order.permutation`).
        before_epoch: called before each epoch; it may raise something, to stop.

    Raises:
        DataError: if there are no examples.
    """
    count = len(labels)
    if not count:
        raise DataError("There are no examples to train a probe on.")
    batch_size = min(recipe.batch_size, count)
    per_epoch = count // batch_size
    module, optimizer, run_epoch = _program(recipe, num_classes, per_epoch)
    variables = module.init(jax.random.key(seed), jnp.zeros((1, features.shape[1])), train=False)
    params = variables["params"]
    initial = ProbeState(params, variables.get("batch_stats", {}), optimizer.init(params))
    rates = jnp.asarray(learning_rates, jnp.float32) * (batch_size / 256)
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(rates), *x.shape)), initial)
    features, labels = jnp.asarray(features), jnp.asarray(labels, jnp.int32)
    for epoch in range(recipe.epochs):
        before_epoch()
        rows = order.permutation(seed, epoch, count)[: per_epoch * batch_size].reshape(per_epoch, batch_size)
        states = run_epoch(states, rates, features, labels, rows)
    return Probes(module, {"params": states.params, "batch_stats": states.batch_stats})


@functools.lru_cache(maxsize=4)  # so that the next evaluation compiles nothing
def _program(
    recipe: Recipe, num_classes: int, per_epoch: int
) -> tuple[LinearProbe, optax.GradientTransformation, Callable[..., ProbeState]]:
    """Returns the probe, its optimizer with a peak learning rate of 1, and an epoch of all probes, jitted.

    The updates of both optimizers are proportional to the learning rate, and their states do not depend on it. So the
    rate of each probe is multiplied in at the end, and all else is the same for all.
    """
    schedule = create_schedule(
        "cosine",
        1.0,
        total_steps=recipe.epochs * per_epoch,
        warmup_steps=round(recipe.warmup_epochs * per_epoch),
    )
    options: dict[str, Any] = {"by_rank": True} if recipe.optimizer == "lars" else {}
    optimizer = create_optimizer(recipe.optimizer, schedule, momentum=recipe.momentum, **options)
    module = LinearProbe(num_classes, normalize=recipe.normalize)

    def update(state: ProbeState, rate: jax.Array, features: jax.Array, labels: jax.Array) -> ProbeState:
        _, batch_stats, grads = _gradients(module, state, features, labels)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: rate * u, updates)
        return ProbeState(optax.apply_updates(state.params, updates), batch_stats, opt_state)

    @functools.partial(jax.jit, donate_argnums=0)
    def run_epoch(
        states: ProbeState, rates: jax.Array, features: jax.Array, labels: jax.Array, rows: jax.Array
    ) -> ProbeState:
        def step(states: ProbeState, chosen: jax.Array) -> tuple[ProbeState, None]:
            return jax.vmap(update, (0, 0, None, None))(states, rates, features[chosen], labels[chosen]), None

        return jax.lax.scan(step, states, rows)[0]

    return module, optimizer, run_epoch
