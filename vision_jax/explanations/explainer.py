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
from vision_jax.explain.curves import deletion, insertion
from vision_jax.explanations.faithfulness import RANDOM, Curves
from vision_jax.predict import Class, Predictor

DEFAULT = "gradcam"
PREDICTED = -1  # in place of a class: the one that the model predicts


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """What a model says of an image, and what it has looked at.

    Attributes:
        path: of the image, or what else tells people which one it is.
        image: (height, width, channels) uint8, what the model saw.
        classes: the most probable ones, the best first. Empty, as are `maps`, if there is an `error`.
        target: the class that is explained; None: there is none.
        score: its logit, which is what the methods explain.
        maps: by method, (height, width) float32.
        curves: by method, what deletion and insertion give, and by `RANDOM` what they would without a map; {}: they
            were not computed.
        label: the class that would be right, by name; None: it is unknown.
        error: what is wrong with the image, or with what the model makes of it; None: nothing.
    """

    path: str
    image: np.ndarray
    classes: tuple[Class, ...] = ()
    target: Class | None = None
    score: float = float("nan")
    maps: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, Curves] = dataclasses.field(default_factory=dict)
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
        curves: also compute deletion and insertion curves; see `explain.curves`.
        curve_step: pixels that are replaced at once; None: as many as a row has.

    Attributes:
        predictor: as given.
        methods: as given; where one needs a layer and none is named, with that of the model.
        batch_size: of the batches.

    Raises:
        ConfigError: if one of the methods cannot explain this model.
    """

    def __init__(
        self,
        predictor: Predictor,
        methods: Mapping[str, Method],
        *,
        batch_size: int = 16,
        seed: int = 0,
        curves: bool = False,
        curve_step: int | None = None,
    ):
        self.predictor = predictor
        self.methods = {name: _with_layer(method, predictor.model) for name, method in methods.items()}
        self.batch_size = predictor.round_up(batch_size)
        transform = predictor.preprocessing.transform
        self._shape = (transform.size, transform.size, transform.channels)
        self._mean, self._std = predictor.preprocessing.mean, predictor.preprocessing.std
        self._seed, self._curve_step = seed, curve_step
        for method in self.methods.values():
            explain.check(predictor.model, method, self._shape)
        self._predict = self._compile(self._logits)
        integers = jax.ShapeDtypeStruct((self.batch_size,), np.int32)
        self._explain = {
            name: self._compile(self._maps(method), integers, integers) for name, method in self.methods.items()
        }
        of_maps = jax.ShapeDtypeStruct((self.batch_size, *self._shape[:2]), np.float32)
        self._replace = self._compile(self._scores, integers, of_maps) if curves else None

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
            yield from self.batch(self._place(batch), paths[rows], targets[rows], first)

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
        placed = self._place(chosen), self._place(numbers)
        started = [step(self.predictor.variables, images, *placed) for step in self._explain.values()]
        maps = dict(zip(self.methods, jax.device_get(started), strict=True))
        curves = self._curves(images, placed[0], maps, numbers)
        return [
            self._explanation(
                Explanation(
                    path,
                    pixels[row],
                    maps={name: values[row] for name, values in maps.items()},
                    curves={name: Curves(*(each[row] for each in both)) for name, both in curves.items()},
                ),
                logits[row],
                int(chosen[row]),
            )
            for row, path in enumerate(paths)
        ]

    def _curves(
        self, images: jax.Array, targets: jax.Array, maps: Mapping[str, np.ndarray], numbers: np.ndarray
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns what deletion and insertion by each map, and in random order, give; {}: they are not wanted."""
        if self._replace is None:
            return {}
        draws = [np.random.default_rng((self._seed, n)).random(self._shape[:2], np.float32) for n in numbers.tolist()]
        ranked = {**maps, RANDOM: np.stack(draws)}
        variables = self.predictor.variables
        found = [self._replace(variables, images, targets, self._place(each)) for each in ranked.values()]
        return dict(zip(ranked, jax.device_get(found), strict=True))

    def _place(self, values: np.ndarray) -> jax.Array:
        return sharding.place(values, sharding.along_batch(self.predictor.mesh))

    def _explanation(self, found: Explanation, logits: np.ndarray, target: int) -> Explanation:
        """Returns an explanation with what the logits say, or with what is wrong."""
        undefined = [name for name, values in found.maps.items() if not np.isfinite(values).all()]
        if undefined or not np.isfinite(logits).all():
            what = f"the map of {undefined[0]} is" if np.isfinite(logits).all() else "the model's logits are"
            return Explanation(found.path, found.image, error=f"{what} not finite")
        shifted = np.exp(logits.astype(np.float64) - logits.max())
        probabilities = shifted / shifted.sum()
        best = np.argsort(-logits, kind="stable")[: self.predictor.topk]  # of equal ones the lower number, as `top_k`

        def describe(number: int) -> Class:
            return Class(number, self.predictor.class_names[number], float(probabilities[number]))

        classes = tuple(map(describe, best.tolist()))
        return dataclasses.replace(found, classes=classes, target=describe(target), score=float(logits[target]))

    def _logits(self, variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the images as they are, for every process, and their logits, float32."""
        normalized = augment.normalize(images, self._mean, self._std)
        logits = self.predictor.model.apply(variables, normalized, train=False)
        return images, logits.astype(jnp.float32)

    def _scores(
        self, variables: Any, images: jax.Array, targets: jax.Array, maps: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the deletion and insertion curves of a batch, (batch, points) each."""
        network = explain.Network(self.predictor.model, variables, self._mean, self._std)
        arguments = (network.apply, images.astype(jnp.float32) / 255, maps, targets)
        deleted = deletion(*arguments, step=self._curve_step, baseline=np.asarray(self._mean, np.float32))
        return deleted.scores, insertion(*arguments, step=self._curve_step).scores

    def _maps(self, method: Method) -> Callable[..., jax.Array]:
        """Returns what explains the images of a batch by a method."""
        explainer = explain.make_explainer(self.predictor.model, method, mean=self._mean, std=self._std)

        def step(variables: Any, images: jax.Array, targets: jax.Array, numbers: jax.Array) -> jax.Array:
            keys = numbered_keys(jax.random.key(self._seed), numbers)
            return explainer(variables, images.astype(jnp.float32) / 255, targets, keys)

        return step

    def _compile(self, step: Callable[..., Any], *more: Any) -> Any:
        """Compiles a function of variables, images and `more` arrays; every process gets its results."""
        mesh, size = self.predictor.mesh, self.batch_size
        images = jax.ShapeDtypeStruct((size, *self._shape), np.uint8)
        batch = sharding.abstract((images, *more), sharding.along_batch(mesh))
        jitted = jax.jit(step, out_shardings=sharding.replicated(mesh))
        return sharding.compile_on(mesh, jitted, self.predictor.variables, *batch)


def _with_layer(method: Method, model: Any) -> Method:
    """Returns a method with the model's layer, if it needs one and none is named.

    Raises:
        ConfigError: if the model has none of its own.
    """
    if getattr(method, "layer", "") is not None:
        return method
    try:
        layer = model.gradcam_layer
    except NotImplementedError as error:
        raise ConfigError(
            f"{method} needs a layer, and the model, a {type(model).__name__}, has no default: give one, as in "
            f"{method}:layer=NAME."
        ) from error
    return dataclasses.replace(method, layer=layer)  # type: ignore[call-arg]
