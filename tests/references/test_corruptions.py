"""Corruptions against corruption.*: one test for each image, corruption and severity; see README.md."""

import json
import pathlib
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
    """Returns (kind, what is expected) by FILE:PHOTO/SEVERITY or FILE:CORRUPTION/PHOTO/SEVERITY."""
    found: dict[str, tuple[str, Any]] = {}
    for path in common.files("eval", "corruption.*"):
        of = path.name.split(".")[1]
        if of == "photo":
            continue
        if path.suffix == ".json":
            cases = json.loads(path.read_text())
            found |= {f"{path.name}:{key}": (of, (*split(key), case)) for key, case in cases.items()}
            continue
        file = np.load(path)
        if of == "seeded":
            stride = json.loads(str(file["meta"]))["stride"]
            for key in file.files:
                if key != "meta":
                    photo, name, severity = key.split("/")
                    found[f"{path.name}:{name}/{photo}/{severity}"] = (of, (photo, name, int(severity), stride, file[key]))
            continue
        for key in file.files:
            if key.count("/") == 1:
                photo, severity = key.split("/")
                values = {what: file[f"{key}/{what}"] for what in ("mean", "std")}
                kind = "deterministic" if of in CORRUPTIONS else of
                case = (photo, of, int(severity), {"part": file[key], "crop": file["crop"], **values})
                found[f"{path.name}:{key}"] = (kind, case)
    return dict(sorted(found.items()))


def split(key: str) -> tuple[str, str, int]:
    name, photo, severity = key.split("/")
    return photo, name, int(severity)


def read_photo(name: str) -> np.ndarray:
    (path,) = common.files("eval", f"corruption.photo.{name}.npz")
    return np.load(path)["image"]


CASES = read_cases()


def check_deterministic(photo: str, name: str, severity: int, expected: dict[str, np.ndarray]) -> None:
    corrupted = corrupt(read_photo(photo), name, severity, RandomState(0)).astype(int)
    top, bottom, left, right = expected["crop"]
    difference = np.abs(corrupted[top:bottom, left:right] - expected["part"])
    if name == "jpeg_compression":  # decoders differ
        assert difference.mean() <= 2
    else:
        assert (difference <= 1).mean() >= 0.99
    np.testing.assert_allclose(corrupted.mean((0, 1)), expected["mean"], atol=0.5)
    np.testing.assert_allclose(corrupted.std((0, 1)), expected["std"], atol=0.5)


def check_random(photo: str, name: str, severity: int, expected: dict[str, float]) -> None:
    """Compares means over some draws; frost is the made-up one."""
    image = read_photo(photo)
    function: Callable[[RandomState], np.ndarray] = lambda random: corrupt(image, name, severity, random)  # noqa: E731
    if name == "elastic_transform":  # the references have imagecorruptions' constants
        alpha = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[severity - 1] * 0.005 * image.shape[0]
        function = lambda random: corruptions._elastic(image, alpha, 0.01 * image.shape[0], 0, random)  # noqa: E731
    draws = [function(RandomState(seed)).astype(int) - image for seed in range(DRAWS)]
    for measure, found in (
        ("mean", [draw.mean() for draw in draws]),
        ("std", [draw.std() for draw in draws]),
        ("mean_abs", [np.abs(draw).mean() for draw in draws]),
    ):
        spread = expected.get(f"{measure}_spread", max(expected["mean_spread"], expected["std_spread"]))
        tolerance = 4 * spread + 0.05 * abs(expected[measure])
        assert abs(np.mean(found) - expected[measure]) <= tolerance, measure


def check_seeded(photo: str, name: str, severity: int, stride: int, expected: np.ndarray) -> None:
    """Compares single values: the same random numbers are drawn for the same."""
    corrupted = corrupt(read_photo(photo), name, severity, RandomState(100 + severity), frost=FROST)
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
    assert kind in READERS, f"there is no reader for {pathlib.Path(name).name}"
    READERS[kind](*case)
