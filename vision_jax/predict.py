"""Classes of images of one's own, by a trained model; damaged images are told, and the others predicted."""

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vision_jax import augment, pretrained
from vision_jax.build import TrainedModel
from vision_jax.data.images import ImageSource
from vision_jax.data.loader import Loader, Prefetcher, Transform, batch_fields
from vision_jax.data.order import EvalOrder
from vision_jax.data.sources import Source
from vision_jax.data.transforms import EvalTransform, Preprocessing
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError
from vision_jax.models import registry

log = logging.getLogger(__name__)

_AHEAD = 4  # batches that may be in flight on the devices


def published_preprocessing(model: nn.Module) -> Preprocessing:
    """Returns the preprocessing that published weights of a module's architecture expect, as timm has it.

    Raises:
        ConfigError: if that is not known.
    """
    given: Any = model
    spec = registry.input_of(model)
    size = getattr(given, "img_size", None) or spec.size
    resize = math.floor(size / spec.crop_pct)
    return Preprocessing(
        EvalTransform(size, resize, given.in_channels, spec.interpolation, copied=()), spec.mean, spec.std
    )


class Class(NamedTuple):
    """A class of an image.

    Attributes:
        number: of the class, from 0.
        name: of the class; its number where names are unknown.
        probability: of the softmax over all classes.
    """

    number: int
    name: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model says of an image.

    Attributes:
        path: of the image; within an archive, ARCHIVE/MEMBER.
        classes: the most probable ones, the best first; of equally probable ones, the lower number. Empty if the image
            is damaged.
        error: why there are no classes; None: there are.
    """

    path: str
    classes: tuple[Class, ...]
    error: str | None = None


def load_batches(
    source: Source, transform: Transform, mesh: Mesh, size: int, num_threads: int | None
) -> Generator[tuple[dict[str, jax.Array], dict[int, str]], None, None]:
    """Yields batches on the devices, and what was wrong with the images so far, by their numbers.

    Args:
        source: the images; batch `n` has those from `n * size`, and rows of zeros where there are no more.
        transform: makes rows of them.
        mesh: of the devices.
        size: of the batches, which divides over the devices.
        num_threads: that decode; None: one for each core.
    """
    order = EvalOrder(len(source), size)
    with (
        Loader(
            source,
            order,
            transform,
            sharding.local_rows(mesh, size),
            num_threads,
            max_bad_records=len(source),
            leave_out=True,
        ) as loader,
        Prefetcher(loader, range(order.num_batches), sharding.batch_placer(mesh, size), depth=2) as batches,
    ):
        for batch in batches:
            yield batch, loader.problems


class Predictor:
    """Predicts the classes of image files.

    Images are preprocessed as in evaluation: the shorter side is resized, the center cropped, then normalized.

    Args:
        model: the module; see `vision_jax.create_model`.
        variables: its `params` and `batch_stats`; if a mesh is given, on its devices.
        class_names: one for each class; empty: their numbers.
        preprocessing: of the images; None: what the published weights of this architecture expect, if it has one of
            timm's names. A model with another `img_size` gets images of that size.
        topk: how many classes of each image are told.
        batch_size: images that are computed at once; fewer if there are fewer.
        flip: average the logits with those of the mirrored image.
        num_threads: that decode; None: one for each core.
        mesh: of the devices; None: of all that this process has.

    Attributes:
        model, variables, mesh, preprocessing: as above; the variables are on the devices.
        class_names: what to call each class before a person.
        topk: how many classes of each image are told.
        given_names: what the model's classes are called; empty: unknown.

    Raises:
        ConfigError: if it is not known what images the model expects, it has no classifier, or names do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping[str, Any],
        *,
        class_names: Sequence[str] = (),
        preprocessing: Preprocessing | None = None,
        topk: int = 5,
        batch_size: int = 128,
        flip: bool = False,
        num_threads: int | None = None,
        mesh: Mesh | None = None,
    ):
        num_classes = getattr(model, "num_classes", 0)
        if not num_classes:
            raise ConfigError(f"The model, a {type(model).__name__}, has no classifier: it cannot tell classes apart.")
        if class_names and len(class_names) != num_classes:
            raise ConfigError(
                f"There are {len(class_names)} names of classes, and the model has {num_classes} classes."
            )
        if topk < 1 or batch_size < 1:
            raise ConfigError(f"topk is {topk} and batch_size {batch_size}: give 1 or more.")
        self.preprocessing = preprocessing or published_preprocessing(model)
        self.given_names = tuple(class_names)
        self.class_names = pretrained.display_names(class_names) or [str(n) for n in range(num_classes)]
        self.topk, self.flip = min(topk, num_classes), flip
        self.model: Any = model
        self._batch_size, self._num_threads = batch_size, num_threads
        if mesh is None:
            mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1}, jax.local_devices())
            variables = sharding.place(dict(variables), sharding.replicated(mesh))
        self.mesh, self.variables = mesh, dict(variables)
        self._compiled: dict[int, Any] = {}

    @classmethod
    def of(cls, trained: TrainedModel, **options: Any) -> "Predictor":
        """Returns the predictor of a trained model; `options` are other arguments of `Predictor`."""
        return cls(
            trained.model,
            trained.variables,
            class_names=trained.class_names,
            preprocessing=trained.preprocessing,
            flip=trained.config.eval.flip,
            mesh=trained.mesh,
            **{"num_threads": trained.config.data.num_threads, **options},
        )

    def predict(self, paths: Iterable[str | os.PathLike[str]]) -> list[Prediction]:
        """Returns the predictions of images, one for each in their order.

        Args:
            paths: of images, of folders (everything below counts, sorted) and of archives; see `ImageSource.find`.

        Raises:
            DataError: if one does not exist, or holds no image.
        """
        return list(self.stream(ImageSource.find(list(paths))))

    def stream(self, source: ImageSource) -> Iterator[Prediction]:
        """Yields the predictions of a source's images in their order, as they are computed."""
        size = self.round_up(min(self._batch_size, len(source)))
        step = self._compile(size)
        pending: list[tuple[Any, Any, int]] = []
        with contextlib.closing(self.batches(source, size)) as batches:
            for number, (batch, problems) in enumerate(batches):
                pending.append((step(self.variables, batch), problems, number))
                if len(pending) > _AHEAD:
                    yield from self._take(source, size, *pending.pop(0))
            for entry in pending:
                yield from self._take(source, size, *entry)

    def classify(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the most probable classes of preprocessed images, the best first.

        Batches are padded to a power of two, or to what divides over the devices, so that few programs are compiled.

        Args:
            images: (batch, size, size, channels) uint8, by `preprocessing.transform`.

        Returns:
            probabilities, (batch, topk) float32, and numbers of classes, (batch, topk) int32.
        """
        size = self.round_up(1 << (len(images) - 1).bit_length())
        rows = {
            name: np.zeros((size, *field.shape), field.dtype)
            for name, field in batch_fields(self.preprocessing.transform).items()
        }
        rows["image"][: len(images)] = images
        best = self._compile(size)(self.variables, sharding.batch_placer(self.mesh, size)(rows))
        probabilities, classes = (np.asarray(values) for values in jax.device_get(best))
        return probabilities[: len(images)], classes[: len(images)]

    def round_up(self, size: int) -> int:
        """Returns the least number of images, not below `size`, that can be divided over the devices."""
        shards = sharding.batch_shards(self.mesh)
        return -(-size // shards) * shards

    def batches(
        self, source: ImageSource, size: int
    ) -> Generator[tuple[dict[str, jax.Array], dict[int, str]], None, None]:
        """Yields batches on the devices, and what was wrong with the images so far, by their numbers.

        Args:
            source: the images; batch `n` has those from `n * size`, and rows of zeros where there are no more.
            size: of the batches; see `round_up`.
        """
        return load_batches(source, self.preprocessing.transform, self.mesh, size, self._num_threads)

    def _take(
        self, source: ImageSource, size: int, best: Any, problems: Mapping[int, str], number: int
    ) -> Iterator[Prediction]:
        """Yields the predictions of a batch, once they have been computed."""
        probabilities, classes = (np.asarray(values) for values in jax.device_get(best))
        first = number * size
        for index in range(first, min(first + size, len(source))):
            error = problems.get(index)
            row = index - first
            if error is None and not np.isfinite(probabilities[row]).all():
                error = "the model's logits are not finite"
            if error is not None:
                yield Prediction(source.describe(index), (), error)
                continue
            pairs = zip(classes[row].tolist(), probabilities[row].tolist(), strict=True)
            found = tuple(Class(c, self.class_names[c], probability) for c, probability in pairs)
            yield Prediction(source.describe(index), found)

    def _compile(self, size: int) -> Any:
        """Returns the compiled step for batches of `size`: probabilities and numbers of the best classes."""
        if size not in self._compiled:

            def step(variables: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
                images = augment.normalize(batch["image"], self.preprocessing.mean, self.preprocessing.std)
                logits = self.model.apply(variables, images, train=False)
                if self.flip:
                    logits = (logits + self.model.apply(variables, images[:, :, ::-1], train=False)) / 2
                return jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32)), self.topk)

            batch = sharding.abstract_batch(self.mesh, size, batch_fields(self.preprocessing.transform))
            jitted = jax.jit(step, out_shardings=sharding.replicated(self.mesh))
            self._compiled[size] = sharding.compile_on(self.mesh, jitted, self.variables, batch)
        return self._compiled[size]
