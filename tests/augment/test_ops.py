"""Every operation against Pillow."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest
from conftest import picture

from vision_jax.augment import ops, warp

HEIGHT, WIDTH = 48, 56
FILL = (124, 116, 104)
QUICK = {"xla_backend_optimization_level": 0}  # seconds less of compilation

Image = PIL.Image.Image


def sample_image() -> np.ndarray:
    """A picture with noise, and with all 256 values in a corner."""
    noise = np.random.RandomState(1).randint(-30, 31, (HEIGHT, WIDTH, 3))
    pixels = np.clip(20 + picture(HEIGHT, WIDTH) * 0.8 + noise, 0, 255).astype(np.uint8)
    pixels[:16, :16] = np.arange(256).reshape(16, 16, 1)
    return pixels


IMAGE = sample_image()


@pytest.fixture(scope="module")
def apply() -> Callable[..., np.ndarray]:
    """(name, argument, image) -> image, compiled once."""
    compiled = jax.jit(lambda *a: ops.apply_operation(*a, fill=FILL), compiler_options=QUICK)
    return lambda name, argument, image=IMAGE: np.asarray(compiled(image, ops.OPERATIONS.index(name), float(argument)))


def difference(result: np.ndarray, expected: Image) -> np.ndarray:
    return np.abs(result.astype(int) - np.asarray(expected).reshape(result.shape).astype(int))


def solarize_add(image: Image, addend: int) -> Image:
    return image.point([min(255, i + addend) if i < 128 else i for i in range(256)] * 3)


def posterize(image: Image, bits: int) -> Image:
    """Pillow's, and black for 0 bits, which older versions of it allow and timm's highest levels ask for."""
    return PIL.ImageOps.posterize(image, bits) if bits else PIL.Image.new("RGB", image.size)


POINTWISE: dict[str, tuple[Callable[[Image, float], Image], tuple[float, ...]]] = {
    "identity": (lambda image, _: image, (0,)),
    "autocontrast": (lambda image, _: PIL.ImageOps.autocontrast(image), (0,)),
    "equalize": (lambda image, _: PIL.ImageOps.equalize(image), (0,)),
    "invert": (lambda image, _: PIL.ImageOps.invert(image), (0,)),
    "posterize": (lambda image, bits: posterize(image, int(bits)), (0, 1, 4, 7, 8)),
    "solarize": (PIL.ImageOps.solarize, (0, 100, 226.7, 256)),
    "solarize_add": (lambda image, addend: solarize_add(image, int(addend)), (0, 33, 110)),
    "contrast": (lambda image, factor: PIL.ImageEnhance.Contrast(image).enhance(factor), (0, 0.1, 0.55, 1, 1.9)),
    "brightness": (lambda image, factor: PIL.ImageEnhance.Brightness(image).enhance(factor), (0, 0.1, 0.55, 1, 1.9)),
    "color": (lambda image, factor: PIL.ImageEnhance.Color(image).enhance(factor), (0, 0.1, 0.55, 1, 1.9)),
    "sharpness": (lambda image, factor: PIL.ImageEnhance.Sharpness(image).enhance(factor), (0, 0.1, 0.55, 1, 1.9)),
}
# The matrices are those of timm's and torchvision's policies.
GEOMETRIC: dict[str, tuple[Callable[[Image, float, int], Image], tuple[float, ...]]] = {
    "shear_x": (lambda image, f, how: affine(image, (1, f, 0, 0, 1, 0), how), (-0.3, 0.15, 0.99)),
    "shear_y": (lambda image, f, how: affine(image, (1, 0, 0, f, 1, 0), how), (-0.3, 0.15, 0.99)),
    "translate_x": (lambda image, f, how: affine(image, (1, 0, f, 0, 1, 0), how), (-8, 10.3)),
    "translate_y": (lambda image, f, how: affine(image, (1, 0, 0, 0, 1, f), how), (-8, 10.3)),
    "rotate": (lambda image, f, how: image.rotate(f, resample=how, fillcolor=FILL), (-30, 3, 44, 130)),
}


def affine(image: Image, matrix: tuple[float, ...], how: int) -> Image:
    return image.transform(image.size, PIL.Image.Transform.AFFINE, matrix, resample=how, fillcolor=FILL)


def test_every_operation_is_compared():
    assert {*POINTWISE, *GEOMETRIC} == {*ops.OPERATIONS}


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_operations_are_pillows(apply: Callable, name: str):
    pillow, arguments = POINTWISE[name]
    for argument in arguments:
        off = difference(apply(name, argument), pillow(PIL.Image.fromarray(IMAGE), argument))
        assert off.max() <= 1, argument
        assert off.mean() < 0.05, argument  # and mostly the same


@pytest.mark.parametrize("name", GEOMETRIC)
def test_bilinear_warps_are_pillows(apply: Callable, name: str):
    pillow, arguments = GEOMETRIC[name]
    for argument in arguments:
        expected = pillow(PIL.Image.fromarray(IMAGE), argument, PIL.Image.Resampling.BILINEAR)
        off = difference(apply(name, argument), expected)
        assert off.mean() < 0.05, argument
        assert (off > 1).mean() < 0.002, argument
        assert (apply(name, argument) != IMAGE).mean() > 0.3, argument


def test_nearest_warps_are_pillows():
    compiled = jax.jit(
        lambda *a: ops.apply_operation(IMAGE, *a, fill=FILL, interpolation="nearest"), compiler_options=QUICK
    )
    for name, (pillow, arguments) in GEOMETRIC.items():
        for argument in arguments:
            expected = pillow(PIL.Image.fromarray(IMAGE), argument, PIL.Image.Resampling.NEAREST)
            result = np.asarray(compiled(ops.OPERATIONS.index(name), float(argument)))
            assert (difference(result, expected) > 0).mean() < 0.002, (name, argument)


@pytest.mark.parametrize(
    "values",
    [
        [7],  # one value
        [0, 255],
        [100] * 2587 + list(range(101)) * 1,  # so few others that no step is left
        [255] * 2300 + list(range(97, 97 + 97)) * 4,  # steps of one pixel, beyond 255 before they are cut off
        [3, 4, 5, 200] * 9 + [6],
    ],
)
def test_histograms_at_their_limits(apply: Callable, values: list[int]):
    image = np.resize(np.array(values, np.uint8), (HEIGHT, WIDTH, 1)).repeat(3, axis=-1)
    image[..., 1] = 255 - image[..., 1]
    for name in ("equalize", "autocontrast", "contrast"):
        off = difference(apply(name, 0.5, image), POINTWISE[name][0](PIL.Image.fromarray(image), 0.5))
        assert off.max() <= (0 if name == "equalize" else 1), name


def test_neutral_arguments_change_no_bit(apply: Callable):
    neutral = {"posterize": 8, "solarize": 256, "contrast": 1, "brightness": 1, "color": 1, "sharpness": 1}
    zero = ("identity", "solarize_add", "shear_x", "shear_y", "translate_x", "translate_y", "rotate")
    for name, argument in {**neutral, **dict.fromkeys(zero, 0)}.items():
        assert (apply(name, argument) == IMAGE).all(), name


def test_greyscale_images(apply: Callable):
    grey = IMAGE[..., :1]
    compiled = jax.jit(lambda *a: ops.apply_operation(grey, *a, fill=(9,)), compiler_options=QUICK)
    for name, argument in (("equalize", 0), ("contrast", 0.3), ("sharpness", 1.8), ("color", 0.2), ("rotate", 20)):
        result = np.asarray(compiled(ops.OPERATIONS.index(name), float(argument)))
        if name == "rotate":
            bilinear = PIL.Image.Resampling.BILINEAR
            expected = PIL.Image.fromarray(grey[..., 0]).rotate(argument, resample=bilinear, fillcolor=9)
        else:
            expected = POINTWISE[name][0](PIL.Image.fromarray(grey[..., 0]), argument)
        assert difference(result, expected).max() <= 1, name


def test_both_ways_to_count_agree():
    images = np.stack([IMAGE, 255 - IMAGE, np.full_like(IMAGE, 255)])
    for image in images:
        expected = [np.bincount(image[..., c].ravel(), minlength=256) for c in range(3)]
        words = warp.pack(list(jnp.moveaxis(image, -1, 0)))
        assert (np.asarray(ops._histograms_by_scatter(words, 3)) == expected).all()
        assert (np.asarray(ops._histograms_by_matmul(words, 3)) == expected).all()


def test_other_images_are_refused():
    for image in (IMAGE.astype(np.float32), IMAGE[..., :2], IMAGE[..., 0]):
        with pytest.raises(ValueError, match="uint8"):
            jax.eval_shape(lambda image: ops.apply_operation(image, 0, 0.0), image)
    with pytest.raises(ValueError, match="fill"):
        jax.eval_shape(lambda: ops.apply_operation(IMAGE, 0, 0.0, fill=(1, 2)))
    with pytest.raises(ValueError, match="cubic"):
        jax.eval_shape(lambda: ops.apply_operation(IMAGE, 0, 0.0, interpolation="cubic"))
