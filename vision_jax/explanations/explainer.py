"""What a model has looked at in images: their predictions, and maps by one or several methods, batch by batch."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import augment, explain
from vision_jax.attacks.base import numbered_keys
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError
from vision_jax.explain import Method
from vision_jax.predict import Class, Predictor

DEFAULT = "gradcam"
PREDICTED = -1  # in place of a class: the one that the model predicts


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """What a model says of an image, and what it has looked at.

    Attributes:
        path: of the image, or what else tells people which one it is.
        image: (height, width, channels) uint8, what the model saw.
        classes: the most probable ones, the best first. Empty, as are `maps`, if the image is damaged.
        target: the class that is explained; None: there is none, as the image is damaged.
        score: its logit, which is what the methods explain.
        maps: by method, (height, width) float32.
        curves: by method, what deletion and insertion give; {}: they were not computed.
        label: the class that would be right, by name; None: it is unknown.
        error: why there is nothing; None: there is.
    """

    path: str
    image: np.ndarray
    classes: tuple[Class, ...] = ()
    target: Class | None = None
    score: float = float("nan")
    maps: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    label: str | None = None
    error: str | None = None


def parse_methods(text: str) -> dict[str, Method]:
    """Returns methods by how they are written, with commas between them; see `explain.parse_method`.

    Raises:
        ConfigError: if one is unknown or there twice, or there is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"The methods are {text!r}: give one, such as {DEFAULT}, or several with commas.")
    methods: dict[str, Method] = {}
    for name in names:
        method = explain.parse_method(name)
        if method in methods.values():
            raise ConfigError(f"The method {method} is there twice in {text!r}.")
        methods[name] = method
    return methods


class ImageExplainer:
    """Explains batches of images of one size, each method by one compiled function.

    Every image has a random key of its own, made of the seed and the image's number: neither the batch size nor the
    devices change its maps.

    Args:
        predictor: of the model, with the preprocessing of the images. It is not asked to mirror them.
        methods: by how they are written; see `parse_methods`.
        batch_size: images that are computed at once; it is rounded up to what can be divided over the devices.
        seed: of methods that draw random numbers.

    Attributes:
        predictor, methods: as given.
        batch_size: of the batches.

    Raises:
        ConfigError: if one of the methods cannot explain this model.
    """

    def __init__(
        self, predictor: Predictor, methods: Mapping[str, Method], *, batch_size: int = 16, seed: int = 0
    ):
        self.predictor, self.methods = predictor, dict(methods)
        self.batch_size = predictor.round_up(batch_size)
        transform = predictor.preprocessing.transform
        self._shape = (transform.size, transform.size, transform.channels)
        self._key = jax.random.key(seed)
        for method in self.methods.values():
            explain.check(predictor.model, method, self._shape)
        self._predict = self._compile(self._logits)
        integers = jax.ShapeDtypeStruct((self.batch_size,), np.int32)
        self._explain = {
            name: self._compile(self._maps(method), integers, integers) for name, method in self.methods.items()
        }

    def stream(
        self,
        images: Sequence[np.ndarray],
        paths: Sequence[str],
        targets: Sequence[int],
    ) -> Iterator[Explanation]:
        """Yields the explanations of images that have been read already.

        Args:
            images: (height, width, channels) uint8 each, as the model's preprocessing gives them.
            paths: what tells people which ones they are.
            targets: the class of each that is explained; `PREDICTED`: the one that is predicted.
        """
        for first in range(0, len(images), self.batch_size):
            rows = slice(first, min(first + self.batch_size, len(images)))
            batch = np.zeros((self.batch_size, *self._shape), np.uint8)
            batch[: rows.stop - first] = np.stack(images[rows])
            placed = sharding.place(batch, sharding.along_batch(self.predictor.mesh))
            yield from self.batch(placed, paths[rows], targets[rows], first)

    def batch(
        self, images: jax.Array, paths: Sequence[str], targets: Sequence[int], first: int = 0
    ) -> list[Explanation]:
        """Returns the explanations of a batch.

        Args:
            images: (batch_size, height, width, channels) uint8, along the batch on the devices; rows that no path is
                for do not count.
            paths, targets: as for `stream`.
            first: the number of the first image, which with the seed gives its random key; the others follow it.
        """
        pixels, logits = jax.device_get(self._predict(self.predictor.variables, images))
        chosen = np.zeros(self.batch_size, np.int32)
        chosen[: len(targets)] = targets
        chosen = np.where(chosen == PREDICTED, logits.argmax(-1), chosen).astype(np.int32)
        numbers = np.arange(first, first + self.batch_size, dtype=np.int32)
        placed = sharding.place((chosen, numbers), sharding.along_batch(self.predictor.mesh))
        maps = {name: step(self.predictor.variables, images, *placed) for name, step in self._explain.items()}
        maps = jax.device_get(maps)
        return [
            self._explanation(path, pixels[row], logits[row], int(chosen[row]), {n: m[row] for n, m in maps.items()})
            for row, path in enumerate(paths)
        ]

    def _explanation(
        self, path: str, image: np.ndarray, logits: np.ndarray, target: int, maps: Mapping[str, np.ndarray]
    ) -> Explanation:
        if not np.isfinite(logits).all():
            return Explanation(path, image, error="the model's logits are not finite")
        shifted = np.exp(logits.astype(np.float64) - logits.max())
        probabilities = shifted / shifted.sum()
        best = np.argsort(-logits, kind="stable")[: self.predictor.topk]  # of equal ones the lower number, as `top_k`

        def describe(number: int) -> Class:
            return Class(number, self.predictor.class_names[number], float(probabilities[number]))

        classes = tuple(map(describe, best.tolist()))
        return Explanation(path, image, classes, describe(target), float(logits[target]), maps)

    def _logits(self, variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the images as they are, for every process, and their logits, float32."""
        mean, std = self.predictor.preprocessing.mean, self.predictor.preprocessing.std
        logits = self.predictor.model.apply(variables, augment.normalize(images, mean, std), train=False)
        return images, logits.astype(jnp.float32)

    def _maps(self, method: Method) -> Callable[..., jax.Array]:
        """Returns what explains the images of a batch by a method."""
        mean, std = self.predictor.preprocessing.mean, self.predictor.preprocessing.std
        explainer = explain.make_explainer(self.predictor.model, method, mean=mean, std=std)

        def step(variables: Any, images: jax.Array, targets: jax.Array, numbers: jax.Array) -> jax.Array:
            return explainer(
                variables, images.astype(jnp.float32) / 255, targets, numbered_keys(self._key, numbers)
            )

        return step

    def _compile(self, step: Callable[..., Any], *more: Any) -> Any:
        """Compiles a function of variables, images and `more` arrays; every process gets its results."""
        mesh, size = self.predictor.mesh, self.batch_size
        images = jax.ShapeDtypeStruct((size, *self._shape), np.uint8)
        batch = sharding.abstract((images, *more), sharding.along_batch(mesh))
        jitted = jax.jit(step, out_shardings=sharding.replicated(mesh))
        return sharding.compile_on(mesh, jitted, self.predictor.variables, *batch)
