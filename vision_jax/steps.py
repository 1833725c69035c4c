"""The training step: a pure function of (state, batch), to be jitted. It knows no label and no loss.

A batch is a dict of arrays whose first axis is the example, as the loader describes it. `mask`, (batch,) float32, is in
every batch: 0 where a row only fills up the last one of an evaluation. One of training may have `replaced`, (batch,)
float32, 1 where another record stands for a damaged one.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vision_jax import augment, optim
from vision_jax.errors import ConfigError
from vision_jax.objectives.base import Climbed, Objective, Views
from vision_jax.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[..., tuple[TrainState, Metrics]]

# Scopes of the operations in compiled programs, by which profiles and `devices/cost.py` tell the parts of a step apart.
AUGMENTATION, OPTIMIZER = "augmentation", "optimizer"

# Set the keys of the loss (dropout) and of the targets apart from those of mixing, which are made of the same key.
_LOSS, _TARGETS = 2**32 - 2, 2**32 - 4


@dataclasses.dataclass(frozen=True)
class Sam:
    """Sharpness-aware minimization; see `optim.sam_gradients`.

    Attributes:
        rho: how far up the loss is looked.
        every: it is done every so many steps; such a step costs a second gradient.
    """

    rho: float
    every: int = 1


class _Sums(NamedTuple):
    """What is added over micro-batches: gradients of `loss / rows`, and the sums and weights of `Out`."""

    grads: Any
    loss: jax.Array
    weight: jax.Array
    metrics: dict[str, tuple[jax.Array, jax.Array]]
    sums: Any
    average_stats: Any


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    accumulate: int = 1,
    sam: Sam | None = None,
    rules: optim.GroupRules | None = None,
) -> TrainStep:
    """Returns the function that does one update.

    With `accumulate`, the gradients are those of so many micro-batches, computed one after another: micro-batch i has
    the rows i, i + accumulate, i + 2 * accumulate and so on, so that each device has its share of each. Mixing sees the
    whole batch; if there is none, only one micro-batch is augmented at a time. Without batch norm the update is that of
    the whole batch but for rounding; with it, each micro-batch is normalized by itself, and the running statistics move
    with each.

    Parameters that are frozen are no argument of the loss that is differentiated: they cost no backward pass, and count
    in no norm.

    Args:
        objective: what is minimized.
        optimizer: of the trained parameters; of `optim.guard`, it may skip steps, which leave all but the step counter
            as it was, `extra` and the average too; of `optim.prune`, it keeps weights zero, in the average too.
        schedule: the learning rate by step, for the metrics only.
        seed: keys augmentation and dropout, with the step and the example's position.
        accumulate: micro-batches; see above.
        sam: perturb the parameters before the gradient; None: not at all.
        rules: what holds for which parameters: it says which of them are frozen; None: none is.

    Returns:
        (state, batch, values of the objective's constants) -> (new state, metrics); without constants the last may be
        left out. The metrics are () float32: loss, grad_norm (of the trained parameters), learning_rate, those of the
        objective, with a guard skipped_steps (in the training so far) and skipped_in_a_row, with pruning sparsity (of
        the kernels that are pruned, after the update), and replaced_records if the batch tells which they are.

    Raises:
        ConfigError: if the objective couples examples and is to accumulate, or when the step is traced, if a pattern
            matches no parameter.
    """
    if objective.couples and accumulate > 1:
        raise ConfigError(
            f"{type(objective).__name__} compares the examples of a batch with each other, so micro-batches would give "
            f"another loss: set optimizer.accumulate to 1, not {accumulate}."
        )
    optimizer = optax.with_extra_args_support(optimizer)
    # Where the batch is not mixed, each micro-batch is augmented in its turn, which saves memory; perturbed parameters
    # see the same views and targets, so these are kept.
    rules = rules or optim.GroupRules()
    lazy = accumulate > 1 and not objective.mixes and sam is None

    def train_step(state: TrainState, batch: Batch, constants: Mapping[str, Any] | None = None) -> Any:
        rows = {name: values for name, values in batch.items() if name != "replaced"}
        size = rows["mask"].shape[0]
        # A batch that is seen in several steps has the augmentation and mixing of one.
        drawn = state.step // objective.steps_per_batch if objective.steps_per_batch > 1 else state.step
        keys, mix_key = augment.example_keys(seed, drawn, size), augment.batch_key(seed, drawn, size)
        key = augment.batch_key(seed, state.step, size)
        progress = objective.progress(state.step)
        trained, rest = rules.split(state.params)

        def targets_of(views: Views, number: jax.Array | int) -> Any:
            key_ = _part_key(jax.random.fold_in(key, _TARGETS), number)
            targets = objective.targets(state.variables, state.ema, state.extra, constants or {}, views, key_, progress)
            return jax.lax.stop_gradient(targets)

        def whole() -> Any:
            """Returns views and targets of all micro-batches, or of the batch if there is but one."""
            with jax.named_scope(AUGMENTATION):
                views = objective.mix(mix_key, objective.views(keys, rows))
            if accumulate == 1:
                return views, targets_of(views, 0)
            parts = _split_rows(views, accumulate)
            return parts, jax.lax.map(lambda part: targets_of(*part), (parts, jnp.arange(accumulate)))

        parts: Any = _split_rows((keys, rows), accumulate) if lazy else whole()

        def make(part: Any, number: jax.Array | int) -> Any:
            """Returns views and targets of a micro-batch."""
            if not lazy:
                return part
            with jax.named_scope(AUGMENTATION):
                views = objective.views(*part)
            return views, targets_of(views, number)

        def part_loss(trained: Any, stats: Any, views: Views, targets: Any, number: jax.Array | int) -> Any:
            variables = {"params": optim.merge(trained, rest), "batch_stats": stats}
            key_ = _part_key(jax.random.fold_in(key, _LOSS), number)
            out = objective.loss(variables, views, targets, key_, progress, train=True)
            # Divided by the rows, gradients have the usual size whatever is summed up; the weight comes at the end.
            return out.loss / (size // accumulate), out

        def gradients(trained: Any) -> tuple[Any, tuple[_Sums, Any, Any]]:
            def add(stats: Any, part: Any, number: jax.Array | int) -> tuple[Any, _Sums, Any]:
                views, targets = make(part, number)
                wanted = (0, 3) if objective.climbs else 0
                differentiate = jax.value_and_grad(part_loss, wanted, has_aux=True)
                (_, out), grads = differentiate(trained, stats, views, targets, number)
                rows = out.rows
                if objective.climbs:
                    grads, climbed = grads
                    rows = Climbed(rows, climbed)
                stats = out.variables.get("batch_stats", stats)
                return stats, _Sums(grads, out.loss, out.weight, out.metrics, out.sums, out.average_stats), rows

            if accumulate == 1:
                stats, sums, rows_ = add(state.batch_stats, parts, 0)
            else:
                stats, sums, rows_ = _accumulate(add, state.batch_stats, parts, accumulate)
            per_part = divisor(sums.weight) / (size // accumulate)
            return jax.tree.map(lambda g: g / per_part.astype(g.dtype), sums.grads), (sums, stats, rows_)

        def first_loss(trained: Any) -> jax.Array:
            """Loss of the first micro-batch, for optimizers that need the function itself (Sophia)."""
            part = parts if accumulate == 1 else jax.tree.map(lambda x: x[0], parts)
            views, targets = make(part, 0)
            out = part_loss(trained, state.batch_stats, views, targets, 0)[1]
            return out.loss / divisor(out.weight)

        due = sam is not None and (True if sam.every == 1 else state.step % sam.every == 0)
        if sam is None:
            grads, (sums, stats, rows_) = gradients(trained)
        else:
            masks = optim.masks_of(state.opt_state)
            live = functools.partial(optim.apply_masks, masks=masks)
            grads, (sums, stats, rows_) = optim.sam_gradients(gradients, trained, sam.rho, apply=due, live=live)
        value = sums.loss / divisor(sums.weight)
        metrics = {"loss": value, **{name: total / divisor(weight) for name, (total, weight) in sums.metrics.items()}}

        with jax.named_scope(OPTIMIZER):
            metrics["grad_norm"] = optax.tree.norm(grads)
            updates, opt_state = optimizer.update(grads, state.opt_state, trained, loss=value, obj_fn=first_loss)
            params = optim.merge(optax.apply_updates(trained, updates), rest)
            average_stats = jax.tree.map(lambda x: x / accumulate, sums.average_stats)  # of the micro-batches
            after = _after(objective, state, params, stats, opt_state, (sums.sums, rows_, average_stats))
        updates_done = state.step
        if isinstance(opt_state, optim.GuardState):
            updates_done -= state.opt_state.skipped  # which a schedule does not count
            metrics["skipped_steps"] = opt_state.skipped.astype(jnp.float32)
            metrics["skipped_in_a_row"] = opt_state.in_a_row.astype(jnp.float32)
        metrics["learning_rate"] = jnp.asarray(schedule(updates_done), jnp.float32)
        if (masks := optim.masks_of(opt_state)) is not None:
            metrics["sparsity"] = optim.sparsity_of(masks)
        if "replaced" in batch:
            metrics["replaced_records"] = batch["replaced"].sum()
        return after, metrics

    def _part_key(key: jax.Array, number: jax.Array | int) -> jax.Array:
        return key if accumulate == 1 else jax.random.fold_in(key, number)

    return train_step


def divisor(weight: jax.Array) -> jax.Array:
    """Returns what a sum is divided by: its weight, or 1 where nothing has counted."""
    return jnp.where(weight == 0, 1.0, weight)


def _split_rows(tree: Any, parts: int) -> Any:
    """Splits the first axis into micro-batches, of which row i falls to i % parts: (parts, rows / parts, ...)."""
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), tree)


def _accumulate(add: Callable[..., tuple[Any, _Sums, Any]], stats: Any, parts: Any, number: int) -> Any:
    """Adds up what `add` makes of each micro-batch, and joins rows in the batch's order.

    Args:
        add: (batch statistics, micro-batch, its number) -> (new statistics, sums, rows).
        stats: batch statistics before the first one.
        parts: all micro-batches, stacked.
        number: of them.
    """
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(add, stats, first, jnp.int32(0))[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def body(carry: Any, part: Any) -> Any:
        stats, sums = carry
        stats, more, rows = add(stats, *part)
        return (stats, jax.tree.map(jnp.add, sums, more)), rows

    (stats, sums), rows = jax.lax.scan(body, (stats, zeros), (parts, jnp.arange(number)))
    return stats, sums, jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), rows)


def _after(
    objective: Objective, state: TrainState, params: Any, stats: Any, opt_state: Any, kept: tuple[Any, Any, Any]
) -> TrainState:
    """Returns the next state; of a step that is skipped, the same one but for the counters.

    Args:
        objective, state: before the update.
        params, stats, opt_state: after it; parameters as the optimizer has left them.
        kept: `sums`, `rows` and `average_stats` of `Out`.
    """
    sums, rows, average_stats = kept
    next_ = objective.progress(state.step + 1)
    updated, params = params, objective.constrain(params)
    extra = objective.after(params, state.extra, sums, rows, next_)
    decay = objective.ema_decay(next_)
    if isinstance(opt_state, optim.GuardState):
        accepted = opt_state.accepted

        def taken(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), new, old)

        stats, extra = taken(stats, state.batch_stats), taken(extra, state.extra)
        if params is not updated:  # without update they are as they were, but a constraint may round them
            params = taken(params, updated)
        if average_stats is not None and state.ema is not None:
            average_stats = taken(average_stats, state.ema["batch_stats"])
        decay = None if decay is None else jnp.where(accepted, decay, 1.0)
    average = state.ema
    if average is not None and decay is not None:
        average = move_average(average, {"params": params, "batch_stats": stats}, decay)
        if average_stats is not None:
            average = {**average, "batch_stats": average_stats}
    if average is not None:
        average = {**average, "params": optim.apply_masks(average["params"], optim.masks_of(opt_state))}
    return TrainState(state.step + 1, params, stats, opt_state, average, extra)


def move_average(average: Any, new: Any, decay: jax.Array | float) -> Any:
    """Returns average + (1 - decay) * (new - average), for each array of a tree.

    In this form its fixed point is the value itself: decay * average + (1 - decay) * new is not, since both factors are
    rounded to float32. With a decay of 0 it is a copy.
    """
    if isinstance(decay, float | int):
        return jax.tree.map(lambda old, x: old + (1 - decay) * (x - old), average, new)
    return jax.tree.map(lambda old, x: jnp.where(decay == 0, x, old + (1 - decay) * (x - old)), average, new)
