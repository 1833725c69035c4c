"""Where the reference files are, and the made-up inputs that they name instead of storing them; see README.md."""

import json
import math
import os
import pathlib
import zlib
from collections.abc import Collection
from typing import Any

import numpy as np

# The kinds of the files of dense/, which their names begin with up to the first dot, by the module that reads them.
DENSE_KINDS = {
    "test_clip": {
        "bpe",
        "clip",
        "clip_losses",
        "clip_preprocess",
        "clip_resnet",
        "siglip",
        "siglip_big_vision",
        "siglip_canonical_text",
        "siglip_open_clip",
        "zero_shot",
    },
    "test_dense": {
        "anchors",
        "box_coders",
        "coco_ap",
        "detection",
        "detection_losses",
        "detection_resize",
        "matcher",
        "miou",
        "postprocess",
        "segmentation",
    },
}
NO_DATA = (".md", ".py", ".pyc")


def dense_files(module: str) -> list[tuple[pathlib.Path, str]]:
    """Returns the files of dense/ and their kinds, without those of kinds that another module reads."""
    others = set().union(*(kinds for name, kinds in DENSE_KINDS.items() if name != module))
    found = [(path, path.name.partition(".")[0]) for path in files("dense", "*")]
    return [
        (path, kind)
        for path, kind in found
        if path.is_file() and not path.name.startswith(".") and path.suffix not in NO_DATA and kind not in others
    ]


def read_dense(path: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a file of dense/; of an npz file, texts are JSON."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return {key: json.loads(str(value)) if value.dtype.kind == "U" else value for key, value in arrays.items()}


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


def near_largest(found: object, expected: object, tolerance: float, floor: float = 1e-3) -> None:
    """Asserts that numbers agree, relatively to the largest of them, or to `floor` if that is larger."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    error, largest = np.abs(found - expected).max(), max(np.abs(expected).max(), floor)
    assert error <= tolerance * largest, f"off by {error:.2e}, more than {tolerance} of {largest:.2e}"


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


def fill(name: str, shape: tuple[int, ...], variance: float = 1.0) -> np.ndarray:
    """The tensor that belongs to a name of torch's state dict; `variance` is that of the batch norm that it is of."""
    n = normal(name, tuple(shape))
    last = name.rsplit(".", 1)[-1]
    if last == "running_var":
        return np.float32(variance) * (1 + 0.2 * np.abs(n))
    if last == "running_mean":
        return np.float32(0.02 * math.sqrt(variance)) * n
    if last.endswith("bias"):
        return 0.02 * n
    if len(shape) <= 1:
        return 1 + 0.1 * n
    if last == "weight" or last.endswith("_weight"):
        return n * np.float32(math.sqrt(1.5 / math.prod(shape[1:])))
    return 0.1 * n


def seeded(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 numbers of a seed."""
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)


def check_summaries(
    found: dict[str, Any], expected: dict[str, list[float]], tolerance: float, absent: Collection[str] = ()
) -> None:
    """Compares tensors with the norm of each, and with its product with numbers that belong to its name.

    The latter may be off by more: by as much as the error of a tensor makes of random numbers.
    """
    assert found.keys() == expected.keys() - set(absent)
    largest = max(norm for norm, _ in expected.values())
    for name, value in found.items():
        norm, product = expected[name]
        value = np.asarray(value, np.float64)
        probe = seeded(zlib.crc32(f"probe of {name}".encode()), value.shape)
        assert abs(np.linalg.norm(value) - norm) <= tolerance * largest, name
        assert abs((value * probe).sum() - product) <= 5 * tolerance * largest, name


class Case:
    """A case of an npz file: its description, and its arrays by name."""

    def __init__(self, file: Any, name: str, about: dict[str, Any]):
        self.file, self.name, self.about = file, name, about

    def __getitem__(self, key: str) -> np.ndarray:
        values = self.file[f"{self.name}/{key}"]
        return values.astype(np.int32) if values.dtype.kind in "iu" else values

    def names(self) -> list[str]:
        return [key.removeprefix(f"{self.name}/") for key in self.file.files if key.startswith(f"{self.name}/")]

    def seeded(self, name: str) -> np.ndarray:
        """An input that is not stored, float32."""
        return seeded(*self.about["seeded"][name])

    def state(self, part: str | None = None) -> dict[str, np.ndarray]:
        """The state dict that is not stored, or one of several, float32."""
        about = self.about
        found = {}
        for name, shape in (about["state"] if part is None else about["state"][part]).items():
            if (constant := about.get("constants", {}).get(name)) is not None:
                found[name] = np.full(shape, constant, np.float32)
            else:
                found[name] = fill(name, shape, about.get("variances", {}).get(name.rpartition(".")[0], 1.0))
        return found


def read_cases(folder: str, pattern: str) -> dict[str, Case]:
    """Returns the cases of npz files by FILE:CASE."""
    return {f"{path.name}:{name}": case for path in files(folder, pattern) for name, case in load_cases(path).items()}


def load_cases(path: pathlib.Path) -> dict[str, Case]:
    """Returns the cases of an npz file by name."""
    file = np.load(path)
    return {name: Case(file, name, about) for name, about in json.loads(str(file["cases"])).items()}


def images(seed: int, batch: int, size: int) -> np.ndarray:
    """Pictures (batch, 3, size, size) uint8: colored tiles, a finer pattern of 2 x 2 pixels, and noise."""
    g = np.random.Generator(np.random.PCG64(seed))
    tiles = np.kron(g.random((batch, 3, 8, 8)), np.ones((1, 1, size // 8, size // 8)))
    pattern = np.kron(g.random((batch, 3, size // 2, size // 2)), np.ones((1, 1, 2, 2)))
    noise = g.random((batch, 3, size, size))
    return np.floor(255.99 * (0.55 * tiles + 0.3 * pattern + 0.15 * noise)).astype(np.uint8)


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform float64 numbers in [-1, 1) that belong to `name`."""
    return 2.0 * _generator(name).random(shape) - 1.0


def unpack(file: Any, key: str) -> np.ndarray:
    """An array of an npz file, also one that is stored as integers and their unit."""
    return file[key] * float(file[f"{key}/step"]) if f"{key}/step" in file else file[key]
