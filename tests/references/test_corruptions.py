"""Corruptions against corruption.*: one test for each image, corruption and severity; see README.md."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.random import RandomState
from references import common

from vision_jax.augment import corruptions
from vision_jax.augment.corruptions import CORRUPTIONS, corrupt

DRAWS = 8
# The frost of `corruption.seeded.npz`, instead of photographs.
ROWS, COLUMNS = np.indices((300, 420))
FROST = [
    np.stack([(ROWS * (3 + number) + COLUMNS * (5 + channel)) % 256 for channel in range(3)], -1).astype(np.uint8)
    for number in range(5)
]


def read_cases() -> dict[str, tuple[str, Any]]:
    """Returns (kind, case) by FILE:KEY; of a file of an unknown kind, one case."""
    found: dict[str, tuple[str, Any]] = {}
    for path in common.files("eval", "corruption.*"):
        kind = path.name.split(".")[1]
        if kind == "photo":
            continue
        if kind == "random":
            found |= {f"{path.name}:{key}": (kind, (key, case)) for key, case in json.loads(path.read_text()).items()}
        elif kind == "seeded":
            file = np.load(path)
            stride = json.loads(str(file["meta"]))["stride"]
            found |= {f"{path.name}:{key}": (kind, (key, stride, file[key])) for key in file.files if key != "meta"}
        elif kind in CORRUPTIONS:
            file = np.load(path)
            for key in [name for name in file.files if name.count("/") == 1]:
                case = {name: file[f"{key}/{name}"] for name in ("mean", "std")} | {"part": file[key]}
                found[f"{path.name}:{key}"] = ("deterministic", (f"{kind}/{key}", case | {"crop": file["crop"]}))
        else:
            found[path.name] = (kind, ())
    return dict(sorted(found.items()))


def split(key: str) -> tuple[np.ndarray, str, int]:
    """Returns the photo, the corruption and the severity that a key names."""
    name, photo, severity = key.split("/")
    (path,) = common.files("eval", f"corruption.photo.{photo}.npz")
    return np.load(path)["image"], name, int(severity)


CASES = read_cases()


def check_deterministic(key: str, expected: dict[str, np.ndarray]) -> None:
    image, name, severity = split(key)
    corrupted = corrupt(image, name, severity, RandomState(0)).astype(int)
    top, bottom, left, right = expected["crop"]
    difference = np.abs(corrupted[top:bottom, left:right] - expected["part"])
    if name == "jpeg_compression":  # decoders differ
        assert difference.mean() <= 2
    else:
        assert (difference <= 1).mean() >= 0.99
    np.testing.assert_allclose(corrupted.mean((0, 1)), expected["mean"], atol=0.5)
    np.testing.assert_allclose(corrupted.std((0, 1)), expected["std"], atol=0.5)


def check_random(key: str, expected: dict[str, float]) -> None:
    """Compares means over some draws; frost is the made-up one."""
    image, name, severity = split(key)
    draws = []
    for seed in range(DRAWS):
        if name == "elastic_transform":  # with the constants of imagecorruptions, which the references have
            alpha = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[severity - 1] * 0.005 * image.shape[0]
            corrupted = corruptions._elastic(image, alpha, 0.01 * image.shape[0], 0, RandomState(seed))
        else:
            corrupted = corrupt(image, name, severity, RandomState(seed))
        draws.append(corrupted.astype(int) - image)
    for measure, found in (
        ("mean", [draw.mean() for draw in draws]),
        ("std", [draw.std() for draw in draws]),
        ("mean_abs", [np.abs(draw).mean() for draw in draws]),
    ):
        spread = expected.get(f"{measure}_spread", max(expected["mean_spread"], expected["std_spread"]))
        tolerance = 4 * spread + 0.05 * abs(expected[measure])
        assert abs(np.mean(found) - expected[measure]) <= tolerance, measure


def check_seeded(key: str, stride: int, expected: np.ndarray) -> None:
    """Compares single values: the same random numbers are drawn for the same."""
    image, name, severity = split(key)
    corrupted = corrupt(image, name, severity, RandomState(100 + severity), frost=FROST)
    difference = np.abs(corrupted.reshape(-1)[severity::stride].astype(int) - expected)
    assert difference.max() <= (8 if name == "jpeg_compression" else 1)
    assert difference.mean() <= (1 if name == "jpeg_compression" else 0.01)


READERS: dict[str, Callable[..., None]] = {
    "deterministic": check_deterministic,
    "random": check_random,
    "seeded": check_seeded,
}


@pytest.mark.parametrize("name", CASES)
def test_corruptions_agree_with_the_references(name: str):
    kind, case = CASES[name]
    assert kind in READERS, f"there is no reader for the kind {kind} of {name}"
    READERS[kind](*case)
