"""What a training minimizes: the interface that the step, the loader, the checkpoint and the evaluators know.

A step has three stages, and only the last is differentiated:

    views    keys and rows of the batch -> what the networks see: augmentation, masks; then `mix`, of the whole batch
    targets  teachers, momentum encoders, attacks, matching: once a step, without gradients
    loss     of the parameters that are trained

and `after` moves what no gradient reaches. The backbone is the root of `params`, and heads stand beside its children,
as in `params["projector"]`: rules on the paths of parameters (decay, layers, layouts, export) hold for every objective.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax import augment
from vision_jax.data.views import View

Rows = Mapping[str, jax.Array]
Views = dict[str, jax.Array]
Variables = Mapping[str, Any]

NO_AUGMENTATION = augment.create_augmentation(augment.AugmentConfig())


class Progress(NamedTuple):
    """How far a training is; each () of the step's own kind.

    Attributes:
        step: int32, the updates done.
        epoch: float32, in passes over the data.
        share: float32, from 0 at the beginning to 1 at the end.
    """

    step: jax.Array
    epoch: jax.Array
    share: jax.Array


class Out(NamedTuple):
    """What `Objective.loss` gives: sums and their weights, so that micro-batches, masks and devices add up exactly.

    Attributes:
        loss: () float32, the sum over what counts: examples, pixels, boxes.
        weight: () float32, what the sum is divided by, once, after all micro-batches have been added.
        variables: the collections that the forward pass has moved, as `apply(..., mutable=["batch_stats"])` returns
            them; {} if it moved none.
        metrics: by name, a sum and its weight, each () float32.
        sums: any tree of arrays, added over micro-batches and handed to `after`: the sum of which a center is the mean.
        rows: any tree of arrays with the example as first axis, joined in the batch's order and handed to `after`: the
            keys of a queue.
    """

    loss: jax.Array
    weight: jax.Array
    variables: Mapping[str, Any]
    metrics: dict[str, tuple[jax.Array, jax.Array]]
    sums: Any = ()
    rows: Any = ()


class Constant(NamedTuple):
    """Variables that an objective uses and never changes, such as a teacher's.

    Attributes:
        shapes: `params` and other collections, with shapes and dtypes in place of arrays.
        load: reads them, in the memory of the host; it is called when a run begins.
    """

    shapes: Any
    load: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Ema:
    """How the moving average of parameters and batch statistics moves.

    Attributes:
        decay: average = average + (1 - decay) * (new - average).
        every: the average is updated every so many steps.
        start: updates of the parameters until which the average is a copy.
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
class Setup:
    """What every objective is given besides its own options.

    Attributes:
        model: the backbone; it has `num_classes`, which is 0 where the objective does not use its classifier.
        image_shape: (height, width, channels) of the model's input.
        inputs: what the configuration says is cut out of each image.
        mean, std: normalization; see `augment.normalize`.
        augmentation: what is done to images on the devices, and by mixing to their targets.
        ema: how the moving average moves; None: none is kept.
        steps_per_epoch, total_steps: of the training.
    """

    model: nn.Module
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: augment.Augmentation = NO_AUGMENTATION
    ema: Ema | None = None
    inputs: tuple[View, ...] = (View(),)
    steps_per_epoch: int = 1
    total_steps: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a training minimizes. A subclass is one file; its fields beside `setup` are its options, plain data.

    Attributes:
        setup: see there.
    """

    # Whether a loss is one of single examples: one that couples them (contrastive losses) takes no accumulation.
    couples: ClassVar[bool] = False
    # Whether the model's own classifier learns from labels: evaluated by its accuracy.
    classifies: ClassVar[bool] = False
    # The metrics of `loss`, and whether a higher one is better.
    metrics: ClassVar[Mapping[str, bool]] = {}

    setup: Setup

    def inputs(self) -> tuple[View, ...]:
        """Returns what the loader cuts out of each image; the first is called `image`."""
        return self.setup.inputs

    def init(self, key: jax.Array, inputs: Rows) -> dict[str, Any]:
        """Returns the initial variables: the backbone's, and heads beside its children.

        Args:
            key: decides them.
            inputs: a batch of zeros, as `views` gives it.
        """
        del inputs
        images = jnp.zeros((1, *self.setup.image_shape), jnp.float32)
        return dict(self.setup.model.init(key, images, train=False))

    def init_extra(self, variables: Variables) -> Any:
        """Returns what no gradient reaches, such as a queue or a center: a pytree of arrays; empty for most."""
        del variables
        return {}

    def frozen(self) -> Mapping[str, Constant]:
        """Returns the constants of the objective by name; they are laid out as parameters are."""
        return {}

    def ema_decay(self, progress: Progress) -> jax.Array | float | None:
        """Returns the decay of the moving average in the update that led to `progress`; None: no average is kept.

        A method may make the average its teacher (BYOL, DINO, MoCo v3, mean teacher), which `targets` sees.
        """
        return None if self.setup.ema is None else self.setup.ema.decay_at(progress.step)

    def views(self, keys: jax.Array, rows: Rows) -> Views:
        """Returns what the networks see of some rows of a batch.

        Args:
            keys: (rows,) keys, one an example.
            rows: the batch as the loader describes it, or a part of it; `mask` is 0 in rows that do not count.

        Returns:
            arrays with the example as first axis. Several views of an image are the second axis, which keeps reshaping
            them local to a device. `mask` is handed on.
        """
        raise NotImplementedError

    @property
    def mixes(self) -> bool:
        """Whether `mix` does anything. If not, each micro-batch makes its views when its turn comes."""
        return False

    def mix(self, key: jax.Array, views: Views) -> Views:
        """Returns the views of a whole batch, mixed among each other: Mixup, CutMix."""
        del key
        return views

    def targets(
        self,
        variables: Variables,
        average: Variables | None,
        extra: Any,
        frozen: Mapping[str, Any],
        views: Views,
        key: jax.Array,
        progress: Progress,
    ) -> Any:
        """Returns what `loss` is to reach, or learns from: computed once, and constant for the gradient.

        Args:
            variables: of the model, before the update.
            average: their moving average, if one is kept.
            extra: as `init_extra` and `after` gave it.
            frozen: values of the constants.
            views: of the rows that `loss` will see.
            key: of the step.
            progress: of the step.
        """
        del variables, average, extra, frozen, views, key, progress
        return ()

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        """Returns the loss of some rows, and what follows from the forward pass.

        Args:
            variables: `params`, trained and frozen ones, and `batch_stats`.
            views, targets: of these rows.
            key: of dropout and the like.
            progress: of the step.
            train: False: a validation loss, where rows whose `mask` is 0 do not count.
        """
        raise NotImplementedError

    def after(self, params: Any, extra: Any, sums: Any, rows: Any, progress: Progress) -> Any:
        """Returns the next `extra`, after an update.

        A momentum encoder that is moved before its keys are computed is the same as one that is moved here, with the
        momentum of the next step: the parameters do not change in between.

        Args:
            params: after the update.
            extra: before it.
            sums, rows: of `Out`.
            progress: of the next step.
        """
        del params, sums, rows, progress
        return extra

    def progress(self, step: jax.Array) -> Progress:
        """Returns how far a training is after so many updates."""
        step = jnp.asarray(step, jnp.int32)
        epoch = step.astype(jnp.float32) / self.setup.steps_per_epoch
        return Progress(step, epoch, step.astype(jnp.float32) / self.setup.total_steps)

    def augment(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """Returns augmented and normalized images.

        Args:
            keys: (rows,) keys, one an image.
            images: (rows, height, width, channels) uint8.

        Returns:
            (rows, height, width, channels) float32.
        """
        setup = self.setup
        images = jax.vmap(setup.augmentation.augment_image)(keys, images)
        images = augment.normalize(images, setup.mean, setup.std)
        return jax.vmap(setup.augmentation.after_normalize)(keys, images)


def options_of(kind: type) -> dict[str, dataclasses.Field]:
    """Returns the options of a kind of objective or evaluator: the fields of its dataclass, but not its set-up."""
    return {field.name: field for field in dataclasses.fields(kind) if field.name not in ("setup", "context")}


def total(values: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of one value an example, and how many of them count, each () float32.

    Args:
        values: (rows,).
        mask: (rows,) float32, 0 for rows that do not count, whatever their value, and 1 for others; None: all count, as
            in training, where batches are always full.
    """
    values = values.astype(jnp.float32)
    if mask is None:
        return values.sum(), jnp.asarray(values.size, jnp.float32)
    return jnp.where(mask > 0, values, 0.0).sum(), mask.sum()
