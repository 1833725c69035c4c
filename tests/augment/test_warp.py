"""Motions against bilinear interpolation as it is written down, at any angle; `test_ops` compares them with Pillow."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_ops import QUICK

from vision_jax.augment import warp
from vision_jax.augment.warp import Motion

COUNT = 60


def sampled(image: np.ndarray, values: dict[str, float], fill: float, interpolation: str) -> np.ndarray:
    """Returns a moved image, pixel by pixel in float64."""
    height, width = image.shape
    motion = dict.fromkeys(Motion._fields, 0.0) | values
    y, x = np.mgrid[:height, :width] + 0.5
    cos, sin = math.cos(math.radians(motion["degrees"])), math.sin(math.radians(motion["degrees"]))
    from_center_x, from_center_y = x - width / 2, y - height / 2
    source_x = cos * from_center_x - sin * from_center_y + width / 2 + motion["shear_x"] * y + motion["left"]
    source_y = sin * from_center_x + cos * from_center_y + height / 2 + motion["shear_y"] * x + motion["up"]
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)

    def pixel(column: np.ndarray, row: np.ndarray) -> np.ndarray:
        return image[np.clip(row, 0, height - 1).astype(int), np.clip(column, 0, width - 1).astype(int)].astype(float)

    if interpolation == "nearest":
        found = pixel(np.floor(source_x), np.floor(source_y))
    else:
        left, top = np.floor(source_x - 0.5), np.floor(source_y - 0.5)
        share_x, share_y = source_x - 0.5 - left, source_y - 0.5 - top
        upper = pixel(left, top) * (1 - share_x) + pixel(left + 1, top) * share_x
        lower = pixel(left, top + 1) * (1 - share_x) + pixel(left + 1, top + 1) * share_x
        found = np.floor(upper * (1 - share_y) + lower * share_y)
    return np.where(inside, found, fill)


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("shape", [(37, 37), (20, 45), (41, 16), (1, 9)])
def test_every_motion(shape: tuple[int, int], interpolation: str):
    """On noise, where a pixel that is taken from beside its place is another value altogether."""
    height, width = shape
    image = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    ranges = {"degrees": 180.0, "shear_x": 1.0, "shear_y": 1.0, "left": width, "up": height}
    moved = jax.jit(
        jax.vmap(lambda motion: warp.warp(jnp.uint32(image), 1, motion, fill=(99,), interpolation=interpolation)),
        compiler_options=QUICK,
    )
    random = np.random.RandomState(1)
    for name, largest in ranges.items():
        values = np.concatenate([random.uniform(-largest, largest, COUNT - 7), np.linspace(-largest, largest, 7)])
        motion = {field: values if field == name else np.zeros(COUNT) for field in Motion._fields}
        results = np.asarray(moved(Motion(**{field: jnp.float32(x) for field, x in motion.items()}))).astype(int)
        expected = [sampled(image, {name: float(np.float32(x))}, 99, interpolation) for x in values]
        off = np.abs(results - np.stack(expected))
        # float32 decides otherwise where an exact value is an integer: a step of one, or at the edge of two pixels.
        assert (off > 1).mean() < (0.002 if interpolation == "bilinear" else 0.01), name
        assert (off > 0).mean() < 0.02, name


def test_small_rotations_are_the_same_without_quarter_turns():
    words = jnp.uint32(np.random.RandomState(0).randint(0, 2**24, (24, 33)))
    zero = jnp.zeros(())
    for degrees in (-45, -30, 0, 7, 45):
        motion = Motion(jnp.float32(degrees), zero, zero, zero, zero)
        results = [np.asarray(warp.warp(words, 3, motion, most_degrees=most)) for most in (45, 180)]
        assert (results[0] == results[1]).all()


def test_what_cannot_be_moved():
    motion = Motion(*(jnp.zeros(()) for _ in Motion._fields))
    with pytest.raises(ValueError, match="the image is 4x5000; it can be moved up to 4096 pixels a side"):
        jax.eval_shape(lambda: warp.warp(jnp.zeros((4, 5000), jnp.uint32), 3, motion))
