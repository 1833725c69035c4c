"""The training and evaluation steps: pure functions of (state, batch), to be jitted.

A batch is a dict of `image`, (batch, height, width, channels) uint8, `label`, (batch,) int32, and `mask`, (batch,)
float32, 0 where a row only fills up the last batch of an evaluation. One of training may have `replaced`, (batch,)
float32, 1 where another record stands for a damaged one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vision_jax import augment
from vision_jax.losses import smooth_targets, softmax_cross_entropy
from vision_jax.metrics import classification_sums, in_top_k
from vision_jax.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# Sets the key of dropout apart from those of mixing, which are made of the same key.
_DROPOUT = 2**32 - 2

NO_AUGMENTATION = augment.create_augmentation(augment.AugmentConfig())


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
    ema_decay: float | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the function that does one update.

    Args:
        model: the module; it has `num_classes`.
        optimizer: an optax transformation.
        schedule: the learning rate by step, for the metrics only.
        seed: keys the augmentation and dropout, with the step and the example's position.
        mean, std: normalization; see `augment.normalize`.
        augmentation: what is done to the images, and by mixing to the targets.
        label_smoothing: see `smooth_targets`.
        ema_decay: ema = decay * ema + (1 - decay) * new, of parameters and batch statistics; None: none is kept.

    Returns:
        (state, batch) -> (new state, metrics). The metrics are () float32: loss, top1, grad_norm, learning_rate, and
        replaced_records if the batch tells which they are.
    """

    num_classes: int = model.num_classes

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        images, labels = batch["image"], batch["label"]
        keys = augment.example_keys(seed, state.step, labels.shape[0])
        images = jax.vmap(augmentation.augment_image)(keys, images)
        images = augment.normalize(images, mean, std)
        images = jax.vmap(augmentation.after_normalize)(keys, images)
        targets = smooth_targets(labels, num_classes, label_smoothing)
        key = augment.batch_key(seed, state.step, labels.shape[0])
        images, targets = augmentation.mix(key, images, targets)
        rngs = {"dropout": jax.random.fold_in(key, _DROPOUT)}

        def loss_fn(params: optax.Params) -> tuple[jax.Array, tuple[jax.Array, dict]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
            loss = softmax_cross_entropy(logits, targets).mean()
            return loss, (logits, updates.get("batch_stats", state.batch_stats))

        (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            new = {"params": params, "batch_stats": batch_stats}
            ema = jax.tree.map(lambda average, value: ema_decay * average + (1 - ema_decay) * value, ema, new)
        metrics = {
            "loss": loss,
            "top1": in_top_k(logits, labels, 1).mean(dtype=jnp.float32),
            "grad_norm": optax.global_norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        if "replaced" in batch:
            metrics["replaced_records"] = batch["replaced"].sum()
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), metrics

    return train_step


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
