"""Where the reference files are, and the made-up inputs that they name instead of storing them; see README.md."""

import math
import os
import pathlib
import zlib

import numpy as np


def files(folder: str, pattern: str) -> list[pathlib.Path]:
    """Returns the reference files of a folder: those beside this file, or in $VISION_JAX_REFERENCES if that is set."""
    root = pathlib.Path(os.environ.get("VISION_JAX_REFERENCES") or pathlib.Path(__file__).parent)
    found = sorted((root / folder).glob(pattern))
    if not found:
        raise FileNotFoundError(f"There is no {root / folder / pattern}: set VISION_JAX_REFERENCES to another folder.")
    return found


def near(found: object, expected: object, tolerance: float) -> None:
    """Asserts that numbers agree: absolutely up to 1, relatively above."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    error = np.abs(found - expected) / np.maximum(1, np.abs(expected))
    assert (error <= tolerance).all(), f"off by {error.max():.2e}, more than {tolerance}"


def near_largest(found: object, expected: object, tolerance: float) -> None:
    """Asserts that numbers agree, relatively to the largest of them."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"off by {error:.2e}, more than {tolerance}"


def _generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 numbers that belong to `name`."""
    return _generator(name).standard_normal(shape, dtype=np.float32)


def scores(name: str, n: int, classes: int, absent: int | None = None, never: int | None = None):
    """Logits (n, classes) float32 and labels (n,): about half of the labels get a higher logit.

    No label is `absent`; class `never` is never predicted.
    """
    g = _generator(name + "/labels")
    labels = g.integers(0, classes, n)
    if absent is not None:
        labels[labels == absent] = (absent + 1) % classes
    logits = np.float32(1.5) * normal(name, (n, classes))
    up = g.random(n) < 0.55
    logits[np.arange(n)[up], labels[up]] += np.float32(4.0)
    if never is not None:
        logits[:, never] -= np.float32(8.0)
    return logits, labels


def features(name: str, n: int, dim: int, classes: int):
    """Features (n, dim) float32 around one center a class, and labels (n,)."""
    labels = _generator(name + "/labels").integers(0, classes, n)
    centers = normal(f"centres/{classes}/{dim}", (classes, dim))
    return centers[labels] + np.float32(1.5) * normal(name, (n, dim)), labels


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight or bias of a linear layer that belongs to a name of torch's state dict."""
    n = normal(name, tuple(shape))
    return 0.02 * n if name.endswith("bias") else n * np.float32(math.sqrt(1.5 / math.prod(shape[1:])))
