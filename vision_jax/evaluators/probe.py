"""The linear probe of frozen features, trained by gradient descent, for several learning rates in one pass.

Products of matrices are computed in full float32, also where the hardware would round.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vision_jax.errors import ConfigError, DataError, suggest
from vision_jax.losses import softmax_cross_entropy
from vision_jax.optim import create_optimizer

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


class Probes(NamedTuple):
    """Linear probes that were trained side by side; the first axis of each array is that of their learning rates."""

    module: LinearProbe
    variables: Any

    def hits(self, features: jax.Array, labels: jax.Array, block: int = 4096) -> np.ndarray:
        """Returns how many examples each probe has right among its best class and its five best, (2, rates) int64.

        Args:
            features: (n, dim) float.
            labels: (n,) integers.
            block: rows that are computed at once.
        """
        total = np.zeros((2, len(jax.tree.leaves(self.variables)[0])), np.int64)
        for start in range(0, len(labels), block):
            rows = slice(start, start + block)
            total += np.asarray(_hits(self.module, self.variables, features[rows], labels[rows]))
        return total


@functools.partial(jax.jit, static_argnums=0)
def _hits(module: LinearProbe, variables: Any, features: jax.Array, labels: jax.Array) -> jax.Array:
    logits: Any = jax.vmap(lambda v: module.apply(v, features, train=False))(variables)
    best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1] == labels[:, None]
    return jnp.stack([best[..., 0].sum(-1), best.any(-1).sum(-1)])


def train_probes(
    features: jax.Array,
    labels: jax.Array,
    num_classes: int,
    learning_rates: Sequence[float],
    *,
    epochs: int,
    batch_size: int = 1024,
    optimizer: str = "sgd",
    normalize: bool = False,
    momentum: float = 0.9,
    seed: int = 0,
) -> Probes:
    """Trains a linear probe for each of several learning rates, on the same batches, in one pass.

    The rate falls on a half cosine to 0, from its value at the first step on; there is no weight decay. That is DINO's
    probe with `sgd` (Caron et al. 2021, arXiv:2104.14294), and MAE's (He et al. 2021, arXiv:2111.06377), but for its
    warm-up, with `lars` and `normalize`. Rates are those of steps: multiply the sources' by batch_size / 256.

    Args:
        features: (examples, dim) float.
        labels: (examples,) integers.
        num_classes: number of classes.
        learning_rates: one for each probe.
        epochs: passes over the examples.
        batch_size: of a step, or all examples if there are fewer. The last incomplete batch of an epoch is left out.
        optimizer: of `OPTIMIZERS`.
        normalize: begin with a batch norm without scale and bias.
        momentum: of the optimizer.
        seed: of the initial weights and of the order of the examples.

    Raises:
        ConfigError: for an unknown optimizer.
        DataError: if there are no examples.
    """
    if optimizer not in OPTIMIZERS:
        raise ConfigError(f"The probe's optimizer is {optimizer!r}: {suggest(optimizer, OPTIMIZERS)}")
    count = len(labels)
    if not count:
        raise DataError("There are no examples to train a probe on.")
    batch_size = min(batch_size, count)
    per_epoch = count // batch_size
    # The rate of each probe comes last: what comes before it is the same for all.
    options: dict[str, Any] = {"by_rank": True} if optimizer == "lars" else {}
    chain = create_optimizer(optimizer, 1.0, weight_decay=0.0, momentum=momentum, **options)
    module = LinearProbe(num_classes, normalize=normalize)
    variables = module.init(jax.random.key(seed), jnp.zeros((1, features.shape[1])), train=False)
    params, stats = variables["params"], variables.get("batch_stats", {})
    initial = ProbeState(params, stats, chain.init(params))
    rates = jnp.asarray(learning_rates, jnp.float32)
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(rates), *x.shape)), initial)
    features, labels = jnp.asarray(features, jnp.float32), jnp.asarray(labels, jnp.int32)

    def update(state: ProbeState, rate: jax.Array, x: jax.Array, y: jax.Array) -> ProbeState:
        _, batch_stats, grads = _gradients(module, state, x, y)
        updates, opt_state = chain.update(grads, state.opt_state, state.params)
        scaled = jax.tree.map(lambda u: rate * u, updates)
        return ProbeState(optax.apply_updates(state.params, scaled), batch_stats, opt_state)

    @jax.jit
    def epoch(states: ProbeState, rows: jax.Array, first: jax.Array) -> ProbeState:
        def step(states: ProbeState, part: tuple[jax.Array, jax.Array]) -> tuple[ProbeState, None]:
            chosen, number = part
            share = (1 + jnp.cos(jnp.pi * number / (epochs * per_epoch))) / 2
            x, y = features[chosen], labels[chosen]
            return jax.vmap(update, (0, 0, None, None))(states, share * rates, x, y), None

        return jax.lax.scan(step, states, (rows, first + jnp.arange(per_epoch)))[0]

    for number in range(epochs):
        order = np.random.default_rng((seed, number)).permutation(count)[: per_epoch * batch_size]
        states = epoch(states, jnp.asarray(order.reshape(per_epoch, batch_size)), jnp.int32(number * per_epoch))
    return Probes(module, {"params": states.params, "batch_stats": states.batch_stats})
