"""A small convolutional network, trained in seconds on digits that lie somewhere on a background of noise."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
import sklearn.datasets

from vision_jax.losses import softmax_cross_entropy
from vision_jax.models.layers import Classifier, Conv, ImageModel, capture, global_mean

MEAN, STD = (0.25,), (0.25,)
SIZE, TRAINING = 16, 1400  # pixels; images, the others are held out


class Shallow(ImageModel, kw_only=True):
    """Three convolutions, whose features are averaged: it does not depend on where a digit is."""

    def setup(self) -> None:
        self.conv1 = Conv(8, 5, use_bias=True)
        self.conv2 = Conv(16, 3, 2, use_bias=True)
        self.conv3 = Conv(32, 3, use_bias=True)
        self.fc = Classifier(self.num_classes)

    @property
    def gradcam_layer(self) -> str:
        return "conv3"

    def feature_maps(self, images: jax.Array, *, train: bool) -> dict[int, jax.Array]:
        x = capture(self, nn.relu(self.conv1(self.prepare(images))), "conv1")
        x = capture(self, nn.relu(self.conv2(x)), "conv2")
        return {2: capture(self, nn.relu(self.conv3(x)), "conv3")}

    def features(self, images: jax.Array, *, train: bool) -> jax.Array:
        return global_mean(self.feature_maps(images, train=train)[2])

    def classify(self, features: jax.Array, *, train: bool) -> jax.Array:
        return self.fc(features)


MODEL = Shallow(num_classes=10, in_channels=1)


class Digits(NamedTuple):
    """Images (n, SIZE, SIZE, 1) float32 in [0, 1], where they have ink, (n, SIZE, SIZE) bool, and labels (n,)."""

    images: np.ndarray
    ink: np.ndarray
    labels: np.ndarray


def place(digits: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Digits:
    """Puts digits, (n, 8, 8) in [0, 1], onto noise of up to a half, anywhere."""
    count = len(digits)
    images, ink = rng.uniform(0, 0.5, (count, SIZE, SIZE)), np.zeros((count, SIZE, SIZE), bool)
    corner = rng.integers(0, SIZE - 7, (2, count, 1))
    rows, columns = corner + np.arange(8)
    where = np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    images[where] = np.maximum(images[where], digits)
    ink[where] = digits > 0.5
    return Digits(images[..., None].astype(np.float32), ink, labels)


def initial(seed: int) -> dict[str, Any]:
    return _initial(jax.random.key(seed))


@jax.jit
def _initial(key: jax.Array) -> dict[str, Any]:
    return MODEL.init(key, np.zeros((1, SIZE, SIZE, 1), np.float32), train=False)


@functools.cache
def trained() -> tuple[dict[str, Any], Digits]:
    """Returns the variables after 300 steps, and the digits that it has not seen."""
    rng, optimizer = np.random.default_rng(0), optax.adam(0.01)
    digits, labels = sklearn.datasets.load_digits(return_X_y=True)
    digits = digits.reshape(-1, 8, 8) / 16

    def loss(variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = MODEL.apply(variables, (images - MEAN[0]) / STD[0], train=True)
        return softmax_cross_entropy(logits, labels).mean()

    def step(variables: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(variables, images, labels), state)
        return optax.apply_updates(variables, updates), state

    # With the optimization that other tests leave out: each step is quicker.
    step = jax.jit(step, compiler_options={"xla_backend_optimization_level": 3})
    variables = initial(0)
    state = optimizer.init(variables)
    for _ in range(300):
        rows = rng.integers(0, TRAINING, 64)
        batch = place(digits[rows], labels[rows], rng)
        variables, state = step(variables, state, batch.images, batch.labels)
    return variables, place(digits[TRAINING:], labels[TRAINING:], rng)
