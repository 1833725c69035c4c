"""Protocols that measure frozen features: nearest neighbors, few-shot ridge regression, logistic regression, a probe.

And what tells whether features have collapsed: their spread, and their effective rank.

Pure functions of arrays. Products of matrices are computed in full float32, also where the hardware would round. Those
of nearest neighbors are in `neighbors`, and those of the probe, which is trained step by step, in `probe`; this module
has all of them.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vision_jax.evaluators.neighbors import nearest, neighbor_votes, normalize
from vision_jax.evaluators.probe import LinearProbe, ProbeState, make_probe_step, train_probes
from vision_jax.losses import softmax_cross_entropy

__all__ = [
    "Linear",
    "LinearProbe",
    "ProbeState",
    "Ridge",
    "Sweep",
    "effective_rank",
    "fit_logistic",
    "fit_ridge",
    "linear_scores",
    "logistic_objective",
    "make_probe_step",
    "nearest",
    "neighbor_votes",
    "normalize",
    "ridge_scores",
    "spread",
    "sweep_logistic",
    "top1",
    "train_probes",
]

_matmul = functools.partial(jnp.matmul, precision="highest")


# ---- Collapse


def spread(features: np.ndarray) -> float:
    """Returns the mean over dimensions of the standard deviation of features that are divided by their norms.

    It is at most 1 / sqrt(dim), where they point evenly into all directions, and 0 where they have collapsed into one
    (Chen and He 2020, arXiv:2011.10566).

    Args:
        features: (n, dim) float.
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return float(np.std(features / np.where(norms > 0, norms, 1), axis=0, dtype=np.float64).mean())


def effective_rank(features: np.ndarray) -> float:
    """Returns exp(-sum_k p_k log p_k), where p_k is the share of the k-th singular value in the sum of all.

    It is 1 for features on one line through the origin, and r if r singular values are equal and the others 0 (Roy and
    Vetterli 2007, "The effective rank"; of self-supervised features, Garrido et al. 2022, arXiv:2210.02885). There can
    be no more than there are rows, so features are to be compared by as many of them.

    The singular values are the roots of the eigenvalues of features^T features, in float64, whose rounding, about a
    millionth of the largest singular value, counts as 0.

    Args:
        features: (n, dim) float; if all are 0, the rank is 0.
    """
    x = np.asarray(features, np.float64)
    squares = np.linalg.eigvalsh(x.T @ x if x.shape[0] > x.shape[1] else x @ x.T)
    values = np.sqrt(squares[squares > len(squares) * np.finfo(np.float64).eps * squares.max()])
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


# ---- Few-shot ridge regression


class Ridge(NamedTuple):
    """A linear function of standardized features; see `fit_ridge`.

    Attributes:
        mean, std: (dim,) float32, of the training features; 1e-5 is added to std.
        weights: (dim + 1, classes) float32; the last row is that of the constant feature.
    """

    mean: jax.Array
    std: jax.Array
    weights: jax.Array


_CONSTANT = 100.0  # the value of the constant feature, so large that its weight is hardly penalized


@functools.partial(jax.jit, static_argnames="num_classes")
def fit_ridge(features: jax.Array, labels: jax.Array, num_classes: int, l2: float | jax.Array = 1024.0) -> Ridge:
    """Fits google-research/big_vision's few-shot regression (evaluators/fewshot_lsr.py).

    Features are standardized and a constant one of 100 is appended: x. Targets t are 1 for the label and -1 for other
    classes. The weights W minimize |x W - t|^2 + l2 |W|^2.

    Standardized features have zero sums. So the constant one is orthogonal to them, and its weights and theirs are
    solved for separately, the latter with centered targets: this is exact, and in float32 more accurate than one
    system. The smaller of the two equivalent systems, of dim or of examples, is solved.

    Args:
        features: (examples, dim) float.
        labels: (examples,) integers.
        num_classes: number of classes.
        l2: the penalty, a positive number.
    """
    features = jnp.asarray(features, jnp.float32)
    count, dim = features.shape
    mean, std = features.mean(0), features.std(0) + 1e-5
    x = (features - mean) / std
    targets = 2 * jax.nn.one_hot(labels, num_classes) - 1
    centered = targets - targets.mean(0)
    if dim <= count:
        gram = _matmul(x.T, x) + l2 * jnp.eye(dim)
        weights = jax.scipy.linalg.solve(gram, _matmul(x.T, centered), assume_a="pos")
    else:
        gram = _matmul(x, x.T) + l2 * jnp.eye(count)
        weights = _matmul(x.T, jax.scipy.linalg.solve(gram, centered, assume_a="pos"))
    constant = _CONSTANT * targets.sum(0) / (_CONSTANT**2 * count + l2)
    return Ridge(mean, std, jnp.concatenate([weights, constant[None]]))


@jax.jit
def ridge_scores(ridge: Ridge, features: jax.Array) -> jax.Array:
    """Returns the score of each class, (n, classes) float32, of features, (n, dim)."""
    x = (jnp.asarray(features, jnp.float32) - ridge.mean) / ridge.std
    return _matmul(x, ridge.weights[:-1]) + _CONSTANT * ridge.weights[-1]


# ---- Logistic regression


class Linear(NamedTuple):
    """A linear classifier: weights (dim, classes) and bias (classes,), float32."""

    weights: jax.Array
    bias: jax.Array


def linear_scores(linear: Linear, features: jax.Array) -> jax.Array:
    """Returns the logits, (n, classes) float32, of features, (n, dim)."""
    return _matmul(jnp.asarray(features, jnp.float32), linear.weights) + linear.bias


def logistic_objective(linear: Linear, features: jax.Array, labels: jax.Array, l2: float | jax.Array) -> jax.Array:
    """Returns what `fit_logistic` minimizes (arguments as there), () float32."""
    losses = softmax_cross_entropy(linear_scores(linear, features), labels)
    return losses.sum() + l2 / 2 * jnp.square(linear.weights).sum()


def fit_logistic(
    features: jax.Array,
    labels: jax.Array,
    num_classes: int,
    l2: float | jax.Array,
    *,
    start: Linear | None = None,
    max_iterations: int = 1000,
    tolerance: float = 2e-8,
) -> Linear:
    """Fits multinomial logistic regression by L-BFGS (Liu and Nocedal 1989).

    It minimizes the sum of the cross-entropies + l2 / 2 |weights|^2; the bias is not penalized. So l2 is 1 / C of
    scikit-learn.

    Args:
        features: (examples, dim) float.
        labels: (examples,) integers.
        num_classes: number of classes.
        l2: the penalty.
        start: where to start; None: from zeros.
        max_iterations: the limit.
        tolerance: it ends when no partial derivative of the objective is larger, divided by the number of examples,
            and with features that are centered and divided by their root mean square; or when 100 iterations in a row
            have not lowered the objective, since float32 has its limits.

    Returns:
        the classifier; its bias has the mean of zero, since adding a number to all of them changes no probability.
    """
    dim = features.shape[-1]
    start = start or Linear(jnp.zeros((dim, num_classes)), jnp.zeros(num_classes))
    return _fit_logistic(start, features, labels, l2, max_iterations, tolerance)


_PATIENCE = 100


class _Search(NamedTuple):
    """L-BFGS under way.

    Attributes:
        linear, state: the classifier, and the state of the optimizer.
        slope: the largest partial derivative.
        iteration: iterations done.
        lowest: the lowest objective so far.
        idle: iterations since it was lowered.
    """

    linear: Linear
    state: Any
    slope: jax.Array
    iteration: jax.Array
    lowest: jax.Array
    idle: jax.Array


@jax.jit
def _fit_logistic(
    start: Linear,
    features: jax.Array,
    labels: jax.Array,
    l2: float | jax.Array,
    max_iterations: int | jax.Array,
    tolerance: float | jax.Array,
) -> Linear:
    # Centering changes the bias alone, and scaling the weights and the penalty: the same problem, but solved in fewer
    # iterations, and with derivatives whose size is known.
    features = jnp.asarray(features, jnp.float32)
    center = features.mean(0)
    x = features - center
    scale = jnp.sqrt(jnp.square(x).mean())
    scale = jnp.where(scale > 0, scale, 1)
    x = x / scale

    def objective(linear: Linear) -> jax.Array:
        return logistic_objective(linear, x, labels, l2 / scale**2) / len(x)

    initial = Linear(start.weights * scale, start.bias + _matmul(center, start.weights))
    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def go_on(carry: _Search) -> jax.Array:
        return (carry.slope > tolerance) & (carry.iteration < max_iterations) & (carry.idle < _PATIENCE)

    def step(carry: _Search) -> _Search:
        value, grad = value_and_grad(carry.linear, state=carry.state)
        updates, state = optimizer.update(grad, carry.state, carry.linear, value=value, grad=grad, value_fn=objective)
        linear = optax.apply_updates(carry.linear, updates)
        lower = optax.tree.get(state, "value") < carry.lowest
        slope = jnp.max(jnp.stack([jnp.abs(leaf).max() for leaf in optax.tree.get(state, "grad")]))
        return _Search(
            *(linear, state, slope, carry.iteration + 1),
            lowest=jnp.minimum(carry.lowest, optax.tree.get(state, "value")),
            idle=jnp.where(lower, 0, carry.idle + 1),
        )

    infinity = jnp.float32(jnp.inf)
    start_of_search = _Search(initial, optimizer.init(initial), infinity, jnp.int32(0), infinity, jnp.int32(0))
    linear = jax.lax.while_loop(go_on, step, start_of_search).linear
    weights = linear.weights / scale
    bias = linear.bias - _matmul(center, weights)
    return Linear(weights, bias - bias.mean())


class Sweep(NamedTuple):
    """The result of `sweep_logistic`.

    Attributes:
        accuracies: validation accuracy of each penalty, in their order.
        chosen: position of the first best one.
        linear: the classifier fitted with it on all examples.
    """

    accuracies: list[float]
    chosen: int
    linear: Linear


def sweep_logistic(
    train: tuple[jax.Array, jax.Array], validation: tuple[jax.Array, jax.Array], num_classes: int, l2s: Sequence[float]
) -> Sweep:
    """Chooses the penalty of logistic regression by validation accuracy, and fits it again on all examples.

    This is the protocol of linusericsson/ssl-transfer (Ericsson et al. 2021, arXiv:2011.13377), and before it of
    Kornblith et al. (2019, arXiv:1805.08974). Each fit starts from the one before.

    Args:
        train, validation: (features, labels) each: (examples, dim) float and (examples,) integers.
        num_classes: number of classes.
        l2s: penalties; see `fit_logistic`.
    """
    linear, accuracies = None, []
    for l2 in l2s:
        linear = fit_logistic(*train, num_classes, l2, start=linear)
        accuracies.append(top1(linear_scores(linear, validation[0]), validation[1]))
    chosen = int(np.argmax(accuracies))
    features, labels = (jnp.concatenate(pair) for pair in zip(train, validation, strict=True))
    return Sweep(accuracies, chosen, fit_logistic(features, labels, num_classes, l2s[chosen]))


# ---- Accuracy


def top1(scores: jax.Array, labels: jax.Array) -> float:
    """Returns the share of examples whose label has the highest score, of equal ones the first.

    Args:
        scores: (n, classes) float.
        labels: (n,) integers.
    """
    return float(np.mean(np.argmax(scores, -1) == np.asarray(labels)))
