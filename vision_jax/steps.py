"""The training and evaluation steps: pure functions of (state, batch), to be jitted.

A batch is a dict of `image`, (batch, height, width, channels) uint8, `label`, (batch,) int32, and `mask`, (batch,)
float32, 0 where a row only fills up the last batch of an evaluation. One of training may have `replaced`, (batch,)
float32, 1 where another record stands for a damaged one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vision_jax import augment, optim
from vision_jax.losses import Loss, distillation_loss, smooth_targets, softmax_cross_entropy
from vision_jax.metrics import classification_sums, in_top_k
from vision_jax.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[..., tuple[TrainState, Metrics]]

# Sets the key of dropout apart from those of mixing, which are made of the same key.
_DROPOUT = 2**32 - 2

NO_AUGMENTATION = augment.create_augmentation(augment.AugmentConfig())


@dataclasses.dataclass(frozen=True)
class Ema:
    """How the moving average of parameters and batch statistics moves.

    Attributes:
        decay: average = decay * average + (1 - decay) * new.
        every: steps between its updates.
        start: updates of the parameters until then it is the parameters and statistics themselves.
        warmup: in its n-th update the decay is at most (1 + n) / (10 + n), so that it soon forgets where it began.
    """

    decay: float
    every: int = 1
    start: int = 0
    warmup: bool = False

    def decay_at(self, step: jax.Array) -> jax.Array | float:
        """Returns the decay after so many updates of the parameters; 1 where the average does not move."""
        if (self.every, self.start, self.warmup) == (1, 0, False):
            return self.decay
        since = step - self.start
        decay: jax.Array | float = self.decay
        if self.warmup:
            n = jnp.maximum(0, since) // self.every
            decay = jnp.minimum(decay, (1 + n) / (10 + n))
        return jnp.where(since <= 0, 0.0, jnp.where(since % self.every == 0, decay, 1.0))


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A model that another one learns from.

    Attributes:
        model: the module; its variables are an argument of the training step.
        kind, temperature: see `losses.distillation_loss`.
        weight: what its loss counts; that of the labels counts one minus it.
        mean, std: normalization of its images, which are those of the student otherwise.
    """

    model: nn.Module
    kind: str
    temperature: float
    weight: float
    mean: Sequence[float]
    std: Sequence[float]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
    augmentation: augment.Augmentation = NO_AUGMENTATION,
    label_smoothing: float = 0.0,
    loss: Loss = softmax_cross_entropy,
    auxiliary_weight: float = 0.3,
    teacher: Teacher | None = None,
    ema: Ema | None = None,
    accumulate: int = 1,
    sam_rho: float | None = None,
    sam_every: int = 1,
) -> TrainStep:
    """Returns the function that does one update.

    With `accumulate`, the gradients are the mean of those of so many parts of the batch, computed one after another:
    part i has the rows i, i + accumulate, i + 2 * accumulate and so on, so that each device has its share of each.
    Augmentation and mixing see the whole batch. Without batch norm the update is that of the whole batch but for
    rounding; with it, each part is normalized by itself, and the running statistics move with each part.

    Args:
        model: the module; it has `num_classes`. If it has `aux_logits` set, its auxiliary classifiers learn too; if it
            has `heads`, the second one learns from the teacher.
        optimizer: an optax transformation; of `optim.guard`, it may skip steps.
        schedule: the learning rate by step, for the metrics only.
        seed: keys the augmentation and dropout, with the step and the example's position.
        mean, std: normalization; see `augment.normalize`.
        augmentation: what is done to the images, and by mixing to the targets.
        label_smoothing: see `smooth_targets`.
        loss: of logits and targets; see `losses.create_loss`.
        auxiliary_weight: what the loss of each auxiliary classifier counts.
        teacher: whose logits for the same images are learned too.
        ema: how the moving average moves; None: none is kept.
        accumulate: parts of the batch; see above.
        sam_rho, sam_every: see `optim.sam_gradients`: the distance, and every how many steps; None: not at all.

    Returns:
        (state, batch, variables of the teacher) -> (new state, metrics); without a teacher the last may be left out.
        The metrics are () float32: loss, top1, grad_norm, learning_rate, with a guard skipped_steps (in the training so
        far) and skipped_in_a_row, and replaced_records if the batch tells which they are.
    """
    forward = _make_forward(model, teacher)
    optimizer = optax.with_extra_args_support(optimizer)

    def part_loss(params: Any, batch_stats: Any, part: Batch, key: jax.Array, teacher_variables: Any) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        (logits, auxiliary, student), batch_stats = forward(variables, part["image"], key)
        value = loss(logits, part["target"]).mean()
        for other in auxiliary:
            value += auxiliary_weight * loss(other, part["target"]).mean()
        if teacher is not None:
            images = part["image"]
            if (tuple(mean), tuple(std)) != (tuple(teacher.mean), tuple(teacher.std)):
                images = augment.normalize(
                    255 * (images * jnp.asarray(std) + jnp.asarray(mean)), teacher.mean, teacher.std
                )
            theirs: Any = teacher.model.apply(teacher_variables, images, train=False)
            distance = distillation_loss(student, theirs, kind=teacher.kind, temperature=teacher.temperature)
            value = (1 - teacher.weight) * value + teacher.weight * distance.mean()
        if student is not logits:
            logits = (logits + student) / 2
        return value, (batch_stats, in_top_k(logits, part["label"], 1).mean(dtype=jnp.float32))

    def train_step(state: TrainState, batch: Batch, teacher_variables: Any = None) -> tuple[TrainState, Metrics]:
        examples, key = _prepare(batch, state.step)
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), examples)

        def objective(params: Any) -> jax.Array:
            """Of the first part, for optimizers that look at more than its gradient."""
            first = examples if accumulate == 1 else jax.tree.map(lambda x: x[0], parts)
            return part_loss(params, state.batch_stats, first, key, teacher_variables)[0]

        def gradients(params: Any) -> tuple[Any, tuple[jax.Array, Any, jax.Array]]:
            grad_fn = jax.value_and_grad(part_loss, has_aux=True)
            if accumulate == 1:
                (value, (stats, top1)), grads = grad_fn(params, state.batch_stats, examples, key, teacher_variables)
                return grads, (value, stats, top1)

            def add(carry: Any, part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
                stats, sums = carry
                key_ = jax.random.fold_in(key, part[0])
                (value, (stats, top1)), grads = grad_fn(params, stats, part[1], key_, teacher_variables)
                return (stats, jax.tree.map(jnp.add, sums, (grads, value, top1))), None

            zero = jnp.zeros((), jnp.float32)
            start = (state.batch_stats, (jax.tree.map(jnp.zeros_like, params), zero, zero))
            (stats, sums), _ = jax.lax.scan(add, start, (jnp.arange(accumulate), parts))
            grads, value, top1 = jax.tree.map(lambda x: x / accumulate, sums)
            return grads, (value, stats, top1)

        if sam_rho is None:
            grads, (value, batch_stats, top1) = gradients(state.params)
        else:
            due = True if sam_every == 1 else state.step % sam_every == 0
            grads, (value, batch_stats, top1) = optim.sam_gradients(gradients, state.params, sam_rho, apply=due)
        after = _update(state, grads, value, batch_stats, objective)
        updates_done = state.step
        metrics = {"loss": value, "top1": top1, "grad_norm": optax.tree.norm(grads)}
        if isinstance(after.opt_state, optim.GuardState):
            updates_done -= state.opt_state.skipped  # which a schedule does not count
            metrics["skipped_steps"] = after.opt_state.skipped.astype(jnp.float32)
            metrics["skipped_in_a_row"] = after.opt_state.in_a_row.astype(jnp.float32)
        metrics["learning_rate"] = jnp.asarray(schedule(updates_done), jnp.float32)
        if "replaced" in batch:
            metrics["replaced_records"] = batch["replaced"].sum()
        return after, metrics

    def _prepare(batch: Batch, step: jax.Array) -> tuple[Batch, jax.Array]:
        """Returns augmented images, labels and targets, and the key of what drops units."""
        images, labels = batch["image"], batch["label"]
        keys = augment.example_keys(seed, step, labels.shape[0])
        images = jax.vmap(augmentation.augment_image)(keys, images)
        images = augment.normalize(images, mean, std)
        images = jax.vmap(augmentation.after_normalize)(keys, images)
        targets = smooth_targets(labels, model.num_classes, label_smoothing)
        key = augment.batch_key(seed, step, labels.shape[0])
        images, targets = augmentation.mix(key, augmentation.col_out(key, images), targets)
        return {"image": images, "label": labels, "target": targets}, jax.random.fold_in(key, _DROPOUT)

    def _update(
        state: TrainState, grads: Any, value: jax.Array, batch_stats: Any, objective: Callable[[Any], jax.Array]
    ) -> TrainState:
        """Returns the next state; of a step that is skipped, the same one but for the counters."""
        guarded = isinstance(state.opt_state, optim.GuardState)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, loss=value, obj_fn=objective)
        params = optax.apply_updates(state.params, updates)
        decay = ema.decay_at(state.step + 1) if ema is not None else 1.0
        if guarded:
            accepted = opt_state.accepted
            batch_stats = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), batch_stats, state.batch_stats)
            decay = jnp.where(accepted, decay, 1.0)
        average = state.ema
        if ema is not None:
            new = {"params": params, "batch_stats": batch_stats}
            average = jax.tree.map(lambda old, value: decay * old + (1 - decay) * value, average, new)
        return TrainState(state.step + 1, params, batch_stats, opt_state, average)

    return train_step


def _make_forward(model: nn.Module, teacher: Teacher | None) -> Callable[..., Any]:
    """Returns the function from (variables, images, key) to what the model makes of them in training.

    It gives (logits, auxiliary logits, logits that learn from a teacher), and the new batch statistics.
    """
    has_heads = teacher is not None and hasattr(model, "heads")
    method = "heads" if has_heads else "logits_and_auxiliary" if getattr(model, "aux_logits", False) else None

    def forward(variables: dict[str, Any], images: jax.Array, key: jax.Array) -> Any:
        result: Any
        result, updates = model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}, method=method
        )
        batch_stats = updates.get("batch_stats", variables["batch_stats"])
        if has_heads:
            return (result[0], (), result[1]), batch_stats
        logits, auxiliary = result if method else (result, ())
        return (logits, auxiliary, logits), batch_stats

    return forward


def make_eval_step(
    model: nn.Module, *, mean: Sequence[float], std: Sequence[float], flip: bool = False
) -> Callable[[dict[str, dict], Batch], Metrics]:
    """Returns the function that evaluates one batch, with each of several sets of variables.

    Args:
        model: the module.
        mean, std: normalization; see `augment.normalize`.
        flip: average the logits with those of the mirrored image.

    Returns:
        ({prefix: variables}, batch) -> sums over the examples, () float32, under prefix + loss, top1, top5, count.
    """

    def eval_step(variables: dict[str, dict], batch: Batch) -> Metrics:
        images = augment.normalize(batch["image"], mean, std)
        sums = {}
        for prefix, values in variables.items():
            logits: Any = model.apply(values, images, train=False)
            if flip:
                logits = (logits + model.apply(values, images[:, :, ::-1], train=False)) / 2
            for name, value in classification_sums(logits, batch["label"], batch["mask"]).items():
                sums[prefix + name] = value
        return sums

    return eval_step
