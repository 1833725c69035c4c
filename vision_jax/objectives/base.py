"""Training objectives: the interface that the step, the loader, the checkpoint and the evaluators use.

A step has three stages, of which only the last is differentiated:

    views    keys and rows of the batch -> inputs of the networks: augmentation, masks; then `mix`, over the whole batch
    targets  teachers, momentum encoders, attacks, matching: once per step, without gradients
    loss     of the trained parameters

and `after` updates state without gradients. The backbone is the root of `params`, and heads are next to its children,
as in `params["projector"]`, so that rules on parameter paths (decay, layers, sharding, export) work for every
objective.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import augment, pretrained
from vision_jax.data.views import View
from vision_jax.errors import ConfigError

Rows = Mapping[str, jax.Array]
Views = dict[str, jax.Array]
Variables = Mapping[str, Any]

# The name, in `extra`, of arrays with one row for each example of the batch, which are divided over devices as it is.
ROWS = "rows"

NO_AUGMENTATION = augment.create_augmentation(augment.AugmentConfig())


class Progress(NamedTuple):
    """The progress of a run, as scalars.

    Attributes:
        step: int32, the number of updates done.
        epoch: float32, passes over the data.
        share: float32, from 0 at the start to 1 at the end.
    """

    step: jax.Array
    epoch: jax.Array
    share: jax.Array


class Out(NamedTuple):
    """The result of `Objective.loss`: sums and their weights, so that micro-batches, masks and devices add up exactly.

    Attributes:
        loss: () float32, the sum over examples, pixels or boxes.
        weight: () float32, by which the sum is divided, once, after all micro-batches have been added; where it is 0,
            as of FCOS in a batch without objects, nothing is divided.
        variables: collections updated in the forward pass, as `apply(..., mutable=["batch_stats"])` returns them; {} if
            there are none.
        metrics: by name, a sum and its weight, each () float32.
        sums: any tree of arrays, summed over micro-batches and passed to `after`, such as the sum for a center.
        rows: any tree of arrays with the example as first axis, concatenated in the batch's order and passed to
            `after`, such as the keys of a queue.
        average_stats: batch statistics of the EMA, as its own forward passes of this step have updated them (a teacher
            in training mode); None: they are averaged as the parameters are.
    """

    loss: jax.Array
    weight: jax.Array
    variables: Mapping[str, Any]
    metrics: dict[str, tuple[jax.Array, jax.Array]]
    sums: Any = ()
    rows: Any = ()
    average_stats: Any = None


class Climbed(NamedTuple):
    """What `after` gets as `rows` from an objective that climbs.

    Attributes:
        rows: of `Out`.
        climbed: the gradient of the loss for the targets, of their shapes, up to a factor above 0.
    """

    rows: Any
    climbed: Any


class Constant(NamedTuple):
    """Constant variables of an objective, such as a teacher's.

    Attributes:
        shapes: `params` and other collections, with shapes and dtypes in place of arrays.
        load: reads them into host memory; called when a run starts.
    """

    shapes: Any
    load: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Ema:
    """The exponential moving average (EMA) of parameters and batch statistics.

    Attributes:
        decay: average = average + (1 - decay) * (new - average).
        every: the average is updated every this many steps.
        start: number of parameter updates before averaging starts; until then the average is a copy.
        warmup: limit the decay of the n-th update to (1 + n) / (10 + n), so that initial values are forgotten quickly.
    """

    decay: float
    every: int = 1
    start: int = 0
    warmup: bool = False

    def decay_at(self, step: jax.Array) -> jax.Array | float:
        """Returns the decay after this many parameter updates; 1 if the average is not updated."""
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
    """What every objective gets besides its own options.

    Attributes:
        model: the backbone; its `num_classes` is 0 if the objective does not use its classifier.
        image_shape: (height, width, channels) of the model's input.
        inputs: the configured views of each image.
        mean, std: normalization; see `augment.normalize`.
        augmentation: of images on the devices, and, by mixing, of their targets.
        ema: the EMA; None: there is none.
        steps_per_epoch, total_steps: of the run.
        batch_size: examples of a step, over all devices.
        augmentations: of each crop, where there are several; the last one is that of all that follow. (): all have
            `augmentation`.
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
    batch_size: int = 1
    augmentations: tuple[augment.Augmentation, ...] = ()

    def augmentation_of(self, crop: int) -> augment.Augmentation:
        """Returns the augmentation of a crop, by its number among all of an image."""
        return self.augmentations[min(crop, len(self.augmentations) - 1)] if self.augmentations else self.augmentation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """A training objective. Each subclass has its own file; its fields besides `setup` are its options, plain data.

    Attributes:
        setup: see there.
    """

    # Whether the loss couples examples (contrastive losses), which rules out gradient accumulation.
    couples: ClassVar[bool] = False
    # Whether the model's own classifier learns from labels, and can be evaluated by its accuracy.
    classifies: ClassVar[bool] = False
    # Whether the model's classifier alone is trained, from the beginning, and all else is frozen.
    classifier_alone: ClassVar[bool] = False
    # Whether it uses all views that are configured; otherwise, it takes one crop of each image, `image`.
    crops: ClassVar[bool] = False
    # What dense records it learns from: "boxes" or "masks"; "": from whole images. See `vision_jax.data.boxes`.
    dense: ClassVar[str] = ""
    # Whether the EMA is its teacher, so that `ema_decay` of the configuration is not the user's to set.
    teaches: ClassVar[bool] = False
    # Whether `after` gets the gradient of the loss for the targets too, as `Climbed`, from the same backward pass.
    climbs: ClassVar[bool] = False
    # Options that have fields of their own in the configuration, outside of `config.objective`.
    configured: ClassVar[frozenset[str]] = frozenset()
    # The metrics of `loss`, and whether a higher one is better.
    metrics: ClassVar[Mapping[str, bool]] = {}

    setup: Setup

    @classmethod
    def check_views(cls, views: tuple[View, ...], name: str) -> None:
        """Checks that the configured views are those that it takes; `name` is its own, for the message.

        Raises:
            ConfigError: if not.
        """

    def inputs(self) -> tuple[View, ...]:
        """Returns the views that the loader crops from each image; the first is called `image`."""
        return self.setup.inputs

    def init(self, key: jax.Array, inputs: Rows) -> dict[str, Any]:
        """Returns the initial variables: the backbone's, and heads beside its children.

        Args:
            key: random key.
            inputs: a batch of zeros, as returned by `views`.
        """
        del inputs
        images = jnp.zeros((1, *self.setup.image_shape), jnp.float32)
        return dict(self.setup.model.init(key, images, train=False))

    @property
    def official(self) -> pretrained.OfficialNames:
        """What the files of the method's authors call what it has beside the backbone; by default, that is not read."""
        return pretrained.OfficialNames()

    def from_official(self, given: dict[str, Any], state: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Returns what a run begins with, if it goes on from a file of the method's authors.

        Args:
            given: `params` and `batch_stats`, and in "ema", if there is one, the same of the teacher.
            state: the tensors of `official.state`.

        Returns:
            `given`, and in "extra" what the file has of the state without gradients.

        Raises:
            DataError: if it cannot be used with these options.
        """
        del state
        return given

    def init_extra(self, variables: Variables) -> Any:
        """Returns the initial state without gradients, such as a queue or a center: a pytree; empty for most."""
        del variables
        return {}

    def frozen(self) -> Mapping[str, Constant]:
        """Returns the constants of the objective by name; they are sharded like parameters."""
        return {}

    def ema_decay(self, progress: Progress) -> jax.Array | float | None:
        """Returns the decay of the EMA in the update that led to `progress`; None: there is no EMA.

        The EMA may be a method's teacher (BYOL, DINO, MoCo v3, mean teacher): `targets` gets it.
        """
        return None if self.setup.ema is None else self.setup.ema.decay_at(progress.step)

    def views(self, keys: jax.Array, rows: Rows) -> Views:
        """Returns the inputs of the networks for some rows of a batch.

        Args:
            keys: (rows,) keys, one per example.
            rows: the batch as described by the loader, or a part of it; `mask` is 0 in rows that do not count.

        Returns:
            arrays with the example as first axis, including `mask`. Several views of an image are the second axis, so
            that reshaping them is local to a device.
        """
        raise NotImplementedError

    @property
    def steps_per_batch(self) -> int:
        """In how many steps, one after another, each batch is seen, with the same crops, augmentation and mixing."""
        return 1

    @property
    def mixes(self) -> bool:
        """Whether `mix` does anything. If not, the views of each micro-batch are made when they are needed."""
        return False

    def mix(self, key: jax.Array, views: Views) -> Views:
        """Returns the views of a whole batch, mixed with each other: Mixup, CutMix."""
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
        *,
        train: bool = True,
    ) -> Any:
        """Returns the targets of `loss`: computed once, and constant for the gradient.

        Args:
            variables: of the model, before the update.
            average: their EMA, if there is one.
            extra: as returned by `init_extra` or `after`.
            frozen: values of the constants.
            views: of the rows that `loss` gets.
            key: of the step.
            progress: of the step.
            train: False: those of a validation loss.
        """
        del variables, average, extra, frozen, views, key, progress, train
        return ()

    def loss(
        self, variables: Variables, views: Views, targets: Any, key: jax.Array, progress: Progress, *, train: bool
    ) -> Out:
        """Returns the loss of some rows, and the other results of the forward pass.

        Args:
            variables: `params`, both trained and frozen, and `batch_stats`.
            views, targets: of these rows.
            key: for dropout and the like.
            progress: of the step.
            train: False: a validation loss, where rows whose `mask` is 0 do not count.
        """
        raise NotImplementedError

    def after(self, params: Any, extra: Any, sums: Any, rows: Any, progress: Progress) -> Any:
        """Returns the next `extra`, after an update.

        Updating a momentum encoder before its keys are computed is equivalent to updating it here with the momentum of
        the next step: the parameters do not change in between.

        Args:
            params: after the update.
            extra: before it.
            sums, rows: of `Out`.
            progress: of the next step.
        """
        del params, sums, rows, progress
        return extra

    def constrain(self, params: Any) -> Any:
        """Returns parameters after an update, such as normalized ones: a constraint that the optimizer knows not."""
        return params

    def progress(self, step: jax.Array) -> Progress:
        """Returns the progress of a run after this many updates."""
        step = jnp.asarray(step, jnp.int32)
        epoch = step.astype(jnp.float32) / self.setup.steps_per_epoch
        return Progress(step, epoch, step.astype(jnp.float32) / self.setup.total_steps)

    def augment(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """Returns augmented and normalized images.

        Args:
            keys: (rows,) keys, one per image.
            images: (rows, height, width, channels) uint8.

        Returns:
            (rows, height, width, channels) float32.
        """
        setup = self.setup
        images = jax.vmap(setup.augmentation.augment_image)(keys, images)
        images = augment.normalize(images, setup.mean, setup.std)
        return jax.vmap(setup.augmentation.after_normalize)(keys, images)


def check_ranges(
    objective: Objective,
    *,
    positive: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> None:
    """Checks options that are numbers, or tuples of them.

    Args:
        objective: whose options they are.
        positive, not_negative: names of options.
        shares: names of those that are from 0 to 1.

    Raises:
        ConfigError: for the first that is out of its range.
    """
    ranges: tuple[tuple[Sequence[str], Callable[[float], bool], str], ...] = (
        (positive, lambda x: x > 0, "be positive"),
        (not_negative, lambda x: x >= 0, "not be negative"),
        (shares, lambda x: 0 <= x <= 1, "be between 0 and 1"),
    )
    for names, holds, what in ranges:
        for name in names:
            value = getattr(objective, name)
            several = isinstance(value, tuple | list)
            if not all(holds(x) for x in (value if several else (value,))):
                each = "each of them" if several else "it"
                raise ConfigError(f"objective.{name} is {value}: {each} must {what}.")


def options_of(kind: type) -> dict[str, dataclasses.Field]:
    """Returns the options of an objective or evaluator: the fields of its dataclass except `setup` or `context`.

    Those that have fields of their own in the configuration are left out; see `Objective.configured`.
    """
    others = {"setup", "context", *getattr(kind, "configured", ())}
    return {field.name: field for field in dataclasses.fields(kind) if field.name not in others}


def total(values: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of one value per example, and the number of examples that count, each () float32.

    Args:
        values: (rows,).
        mask: (rows,) float32, 0 for rows that do not count, whatever their value, and 1 for others; None: all count, as
            in training, where batches are always full.
    """
    values = values.astype(jnp.float32)
    if mask is None:
        return values.sum(), jnp.asarray(values.size, jnp.float32)
    return jnp.where(mask > 0, values, 0.0).sum(), mask.sum()
