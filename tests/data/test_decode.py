import io
import math

import cv2
import numpy as np
import PIL.Image
import pytest
import simplejpeg
from conftest import encode, picture

from vision_jax.data import decode, jpeg, order
from vision_jax.data.crops import random_crops
from vision_jax.data.transforms import EvalTransform, TrainTransform
from vision_jax.data.views import View


def crop_of_one(height: int, width: int, uniforms: list[float], scale, ratio) -> tuple[int, int, int, int]:
    """The random resized crop of one image, written as a loop: what `random_crops` must equal."""
    for attempt in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * uniforms[2 * attempt])
        low, high = math.log(ratio[0]), math.log(ratio[1])
        chosen = math.exp(low + (high - low) * uniforms[2 * attempt + 1])
        w, h = round(math.sqrt(area * chosen)), round(math.sqrt(area / chosen))
        if 0 < w <= width and 0 < h <= height:
            return int(uniforms[20] * (height - h + 1)), int(uniforms[21] * (width - w + 1)), h, w
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_random_crops_equal_a_plain_loop(scale: tuple[float, float]):
    random = np.random.RandomState(0)
    sizes = random.randint(30, 500, (500, 2))
    sizes[:50, 0] = 20  # so elongated that often no attempt fits
    uniforms = random.uniform(size=(500, 22))
    ratio = (3 / 4, 4 / 3)
    crops = random_crops(sizes[:, 0], sizes[:, 1], uniforms, scale, ratio)
    expected = [crop_of_one(h, w, u, scale, ratio) for (h, w), u in zip(sizes.tolist(), uniforms.tolist(), strict=True)]
    assert crops.tolist() == [list(crop) for crop in expected]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_crops_of_tiny_images_lie_inside(size: tuple[int, int]):
    heights, widths = np.full(100, size[0]), np.full(100, size[1])
    uniforms = np.random.RandomState(0).uniform(size=(100, 22))
    top, left, height, width = random_crops(heights, widths, uniforms, (0.08, 1.0), (3 / 4, 4 / 3)).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height > 0).all()
    assert (width > 0).all()
    assert (top + height <= heights).all()
    assert (left + width <= widths).all()


SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def transform(size: int = 32, channels: int = 3, scale=SCALE, ratio=RATIO, **fields: object) -> TrainTransform:
    """One view of each image."""
    return TrainTransform((View(size=size, scale=scale, ratio=ratio),), channels, **{"seed": 0, **fields})


def run(transform: TrainTransform | EvalTransform, images: list[bytes], records=None, visit: int = 0):
    records = np.arange(len(images)) if records is None else np.asarray(records)
    out = {name: np.empty((len(images), *field.shape), field.dtype) for name, field in transform.fields().items()}
    transform([{"image": data, "label": 0} for data in images], records, np.full(len(images), visit), out)
    return out["image"]


def test_train_transform_crops_and_resizes_as_pillow():
    """The whole path for JPEGs that are halved while decoding and for those that are not, against Pillow's filters."""
    for height, width in ((60, 80), (300, 260)):
        images = [encode(picture(height, width, seed=i), quality=95) for i in range(16)]
        mine = transform(filter="area")
        uniforms = order.random_uniform(1, 0, 0, np.arange(16)[:, None], np.arange(22)[None, :])
        crops = random_crops(np.full(16, height), np.full(16, width), uniforms, SCALE, RATIO)
        for row, (data, (top, left, h, w)) in enumerate(zip(images, crops.tolist(), strict=True)):
            image = PIL.Image.open(io.BytesIO(data)).crop((left, top, left + w, top + h))
            expected = np.asarray(image.resize((32, 32), PIL.Image.Resampling.BILINEAR), np.float32)
            error = np.abs(run(mine, images)[row] - expected).mean()
            assert error < 2.5, (height, width, row, error)


@pytest.mark.parametrize("channels", [3, 1])
def test_decoding_a_part_changes_no_pixel(channels: int):
    """Whole and then cropped, or only what the crop needs: with restart markers, without, and not sequential."""
    pixels = [picture(100, 130, seed=i) for i in range(8)]
    mine = transform(channels=channels, scaled_decoding=False)
    uniforms = order.random_uniform(1, 0, 0, np.arange(8)[:, None], np.arange(22)[None, :])
    crops = random_crops(np.full(8, 100), np.full(8, 130), uniforms, SCALE, RATIO)
    for images in (
        [jpeg.encode(PIL.Image.fromarray(p), 90) for p in pixels],
        [encode(p, quality=90) for p in pixels],
        [encode(p, quality=90, progressive=True) for p in pixels],
    ):
        results = run(mine, images)
        for row, (data, (top, left, height, width)) in enumerate(zip(images, crops.tolist(), strict=True)):
            whole = simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY")
            expected = cv2.resize(whole[top : top + height, left : left + width], (32, 32))
            assert (results[row] == expected.reshape(32, 32, channels)).all()


def test_faster_ways_to_decode_give_nearly_the_same():
    images = [jpeg.encode(PIL.Image.fromarray(picture(300, 260, seed=i)), 90) for i in range(8)]
    exact = run(transform(scaled_decoding=False), images).astype(int)
    for fields, bound in (({"fast_dct": True}, 2), ({"fast_upsampling": True}, 2), ({"scaled_decoding": True}, 3)):
        other = run(transform(**{"scaled_decoding": False, **fields}), images)
        assert 0 < np.abs(other - exact).mean() < bound, fields


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_pillows_filters_are_pillows(name: str):
    data = encode(picture(90, 120), "PNG")
    mine = transform(filter=f"pillow-{name}", scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3))
    with PIL.Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.resize((32, 32), getattr(PIL.Image.Resampling, name.upper())))
    assert (run(mine, [data])[0] == expected).all()


def test_raw_pixels_are_read():
    pixels = picture(40, 50)
    data = b"P6\n50 40\n255\n" + pixels.tobytes()
    assert decode.image_size(data) == (40, 50)
    assert (decode.decode(data, 3) == pixels).all()
    expected = np.asarray(PIL.Image.fromarray(pixels).convert("L"), int)
    assert np.abs(decode.decode(data, 1)[:, :, 0] - expected).max() <= 1
    with pytest.raises(decode.DecodeError):
        run(transform(), [data[:-1]])


def test_train_transform_depends_on_seed_visit_and_record_alone():
    images = [encode(picture(60, 80, seed=i)) for i in range(4)]
    first = run(transform(), images, records=[5, 6, 7, 8])
    again = run(transform(), images[::-1], records=[8, 7, 6, 5])[::-1]
    assert (first == again).all()
    assert (first != run(transform(), images, records=[5, 6, 7, 8], visit=1)).any()
    assert (first != run(transform(seed=1), images, records=[5, 6, 7, 8])).any()
    assert (first != run(transform(), images, records=[1, 2, 3, 4])).any()


def test_train_transform_of_greyscale():
    images = [encode(picture(40, 40))]
    mine = transform(channels=1, scale=(1.0, 1.0), ratio=(1.0, 1.0), size=40)
    expected = np.asarray(PIL.Image.open(io.BytesIO(images[0])).convert("L"), int)
    assert np.abs(run(mine, images)[0, :, :, 0] - expected).max() <= 2


@pytest.mark.parametrize("size", [(50, 70), (70, 50), (256, 256), (33, 400), (32, 32)])
@pytest.mark.parametrize("filter_name", ["bilinear", "bicubic"])
def test_eval_transform_equals_pillow(size: tuple[int, int], filter_name: str):
    """torchvision's Resize(36) and CenterCrop(32) on a Pillow image, written out."""
    data = encode(picture(*size), quality=95)
    image = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    height, width = size
    new_width, new_height = (36, int(36 * height / width)) if width <= height else (int(36 * width / height), 36)
    filters = {"bilinear": PIL.Image.Resampling.BILINEAR, "bicubic": PIL.Image.Resampling.BICUBIC}
    image = image.resize((new_width, new_height), filters[filter_name])
    top, left = round((new_height - 32) / 2.0), round((new_width - 32) / 2.0)
    expected = np.asarray(image.crop((left, top, left + 32, top + 32)), int)
    mine = run(EvalTransform(size=32, resize=36, channels=3, filter=filter_name), [data])[0]
    assert np.abs(mine - expected).max() <= 1


def cmyk_jpeg() -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(picture(32, 32)).convert("CMYK").save(file, "JPEG", quality=95)
    return file.getvalue()


def palette_png() -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(picture(32, 32)).quantize(64).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        encode(picture(32, 32), "PNG"),
        encode(np.dstack([picture(32, 32), np.full((32, 32), 255, np.uint8)]), "PNG"),
        encode(picture(32, 32)[:, :, 0], "JPEG", quality=95),
        encode(picture(32, 32), "WEBP", lossless=True),
        cmyk_jpeg(),
        palette_png(),
    ],
    ids=["png", "rgba", "grey-jpeg", "webp", "cmyk-jpeg", "palette-png"],
)
def test_other_formats_become_rgb(data: bytes):
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"), int)
    for mine in (
        run(EvalTransform(size=32, resize=32, channels=3), [data]),
        run(transform(scale=(1.0, 1.0), ratio=(1.0, 1.0)), [data]),
    ):
        assert np.abs(mine[0] - expected).max() <= 2


def test_sixteen_bits_become_eight():
    levels = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    file = io.BytesIO()
    PIL.Image.fromarray(levels).save(file, "PNG")
    mine = run(EvalTransform(size=32, resize=32, channels=1), [file.getvalue()])
    assert (mine[0, :, :, 0] == levels >> 8).all()


def test_floating_point_pixels_are_refused():
    file = io.BytesIO()
    PIL.Image.fromarray(np.ones((8, 8), np.float32)).save(file, "TIFF")
    with pytest.raises(decode.DecodeError, match="32 bits"):
        run(transform(), [file.getvalue()])


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (10, 10_000)])
def test_very_elongated_images_take_no_gigabytes(size: tuple[int, int]):
    data = encode(np.full((*size, 3), 7, np.uint8), "PNG")
    assert (run(EvalTransform(size=224, resize=256, channels=3), [data]) == 7).all()


def test_harmless_damage_is_read_and_real_damage_refused():
    good = encode(picture(64, 64))
    harmless = good[:-2] + b"\x00\x00" + good[-2:]  # bytes before the end marker, as some of ImageNet's files have
    assert run(transform(), [harmless]).shape == (1, 32, 32, 3)
    for bad in (good[: len(good) // 2], b"", b"not an image", b"\xff\xd8\xff"):
        for mine in (transform(), EvalTransform(size=32, resize=32, channels=3)):
            with pytest.raises(decode.DecodeError) as caught:
                run(mine, [good, bad, good])
            assert caught.value.row == 1
            assert "BytesIO" not in str(caught.value)
