import io
import math
import re
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest
import simplejpeg
from conftest import encode, picture

from vision_jax import config as config_lib
from vision_jax.build import make_eval_transform
from vision_jax.data import decode, jpeg, order
from vision_jax.data.crops import random_crops
from vision_jax.data.transforms import EvalTransform, TrainTransform
from vision_jax.data.views import View
from vision_jax.preparation import convert


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


@pytest.mark.parametrize("share", [0.8, 1.0])
def test_crops_of_the_ratio_of_the_image(share: float):
    """A window of a square that the image is squeezed into, as BiT crops: 128 of 160 pixels; and all of it."""
    random = np.random.RandomState(0)
    sizes = random.randint(30, 500, (200, 2))
    crops = random_crops(sizes[:, 0], sizes[:, 1], random.uniform(size=(200, 22)), (share**2, share**2), ())
    np.testing.assert_array_equal(crops[:, 2:], np.rint(share * sizes))
    room = sizes - crops[:, 2:]
    assert (crops[:, :2] >= 0).all()
    assert (crops[:, :2] <= room).all()
    if share < 1:
        where = crops[room.min(1) > 20, :2] / room[room.min(1) > 20]
        assert where.min() < 0.1
        assert where.max() > 0.9
        assert np.abs(where.mean(0) - 0.5).max() < 0.1


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


def test_whole_images_become_squares():
    """As by torchvision's Resize((36, 36)) and CenterCrop(32)."""
    data = encode(picture(50, 90), quality=95)
    image = PIL.Image.open(io.BytesIO(data)).resize((36, 36), PIL.Image.Resampling.BILINEAR).crop((2, 2, 34, 34))
    config = config_lib.default_config()
    config.data.update({"image_size": 32, "eval_resize": 36, "eval_square": True})
    mine = make_eval_transform(config)
    assert np.abs(run(mine, [data])[0] - np.asarray(image, int)).max() <= 1
    config.data.eval_square = False
    assert make_eval_transform(config) != mine


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


def noisy(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture with detail in every block, so that the code of each takes some bytes."""
    noise = np.random.RandomState(seed).randint(-40, 40, (height, width, 3))
    return np.clip(picture(height, width, seed) + noise, 0, 255).astype(np.uint8)


def jpegs(height: int, width: int) -> dict[str, bytes]:
    """JPEGs of all kinds."""
    pixels = noisy(height, width)
    cmyk = io.BytesIO()
    PIL.Image.fromarray(pixels).convert("CMYK").save(cmyk, "JPEG")
    return {
        "baseline": encode(pixels),
        "progressive": encode(pixels, progressive=True),
        "444": encode(pixels, subsampling="4:4:4"),
        "restarts": encode(pixels, restart_marker_blocks=1),
        "ours": jpeg.encode(PIL.Image.fromarray(pixels), 90),
        "grey": encode(pixels[:, :, 0]),
        "cmyk": cmyk.getvalue(),
    }


def everywhere(data: bytes) -> list[np.ndarray]:
    """The whole image as evaluation, training and `prepare` decode it.

    Raises:
        ValueError, DecodeError: if one of them refuses it, after checking that all do.
    """
    size = 64

    def of_prepare(encoding: str) -> np.ndarray:
        fields = {"quality": 90, "short_side": 0, "apply_exif_orientation": False, "max_pixels": 10**6}
        return decode.decode(convert.Conversion(encoding=encoding, **fields)(data), 3)

    ways = [
        lambda: decode.decode(data, 3),
        lambda: run(EvalTransform(size=size, resize=size, channels=3), [data])[0],
        lambda: run(transform(size=size, scale=(1.0, 1.0), ratio=(1.0, 1.0)), [data])[0],
        lambda: of_prepare("original"),
        lambda: of_prepare("raw"),
    ]
    results, errors = [], []
    for way in ways:
        try:
            results.append(way())
        except (ValueError, decode.DecodeError) as error:
            errors.append(error)
    assert not (results and errors), errors
    if errors:
        raise errors[0]
    return results


@pytest.mark.parametrize("kind", jpegs(64, 64))
def test_truncated_jpegs_with_an_end_marker_are_refused(kind: str):
    """libjpeg fills what is missing with grey and merely warns."""
    data = jpegs(64, 64)[kind]
    whole = everywhere(data)
    refused = []
    for cut in np.random.RandomState(0).randint(2, len(data) - 2, 30).tolist():
        try:
            mine = everywhere(data[:cut] + data[-2:])
        except (ValueError, decode.DecodeError) as error:
            refused.append(str(error))
        else:
            assert all((a == b).all() for a, b in zip(mine, whole, strict=True))
    assert len(refused) >= 28
    assert all(re.search("damaged|cut off", message) for message in refused)


@pytest.mark.parametrize("kind", jpegs(64, 64))
def test_flipped_bits_that_libjpeg_notices_are_refused(kind: str):
    data = jpegs(64, 64)[kind]
    whole, colorspace = decode.decode(data, 3), "CMYK" if kind == "cmyk" else "RGB"
    random = np.random.RandomState(1)
    noticed = 0
    for position in random.randint(len(data) // 3, len(data) - 2, 300).tolist():
        flipped = bytearray(data)
        flipped[position] ^= 1 << random.randint(8)
        try:
            simplejpeg.decode_jpeg(bytes(flipped), colorspace)
            continue
        except ValueError as error:
            if "before marker 0xd9" in str(error):
                continue  # as in files that are merely untidy
        noticed += 1
        try:
            mine = decode.decode(bytes(flipped), 3)
        except ValueError:
            continue
        assert (mine == whole).all()
    assert noticed >= 1


def test_oddities_that_change_no_pixel_are_read():
    data = encode(noisy(64, 64))
    scan = data.index(b"\xff\xda")
    odd = {
        "before the end": data[:-2] + bytes(1503) + data[-2:],
        "behind the end": data + b"thumbnail",
        "no end": data[:-2],
        "revision": data.replace(b"JFIF\0\x01\x01", b"JFIF\0\x02\x01"),
        "revision 0": data.replace(b"JFIF\0\x01\x01", b"JFIF\0\x00\x00"),
        "parameters of the scan": data[: scan + 11] + bytes(3) + data[scan + 14 :],
        "between segments": data[:20] + b"\0\0" + data[20:],
        "fill bytes": data[:20] + b"\xff\xff" + data[20:],
    }
    whole = everywhere(data)
    for name, changed in odd.items():
        assert changed != data
        assert all((a == b).all() for a, b in zip(everywhere(changed), whole, strict=True)), name
        # Of its first warning libjpeg tells, and of no other: damage behind an oddity is found all the same.
        if name not in ("before the end", "behind the end", "no end"):
            with pytest.raises((ValueError, decode.DecodeError), match="damaged"):
                everywhere(changed[: len(changed) * 2 // 3] + data[-2:])
    with pytest.raises(ValueError, match="damaged"):
        decode.decode(encode(noisy(64, 64), progressive=True)[:-20], 3)


def test_unusual_sampling_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("tjDecompressHeader3(): Could not determine subsampling level of JPEG image")

    data = encode(noisy(64, 64))
    whole = decode.decode(data, 3)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)
    assert (decode.decode(data, 3) == whole).all()
    for cut in (len(data) // 2, len(data) - 300):
        with pytest.raises(ValueError, match="ends too early"):
            decode.decode(data[:cut] + data[-2:], 3)


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "TGA"])
def test_truncated_files_of_other_formats_are_refused(image_format: str):
    data = encode(noisy(40, 40), image_format)
    whole = decode.decode(data, 3)
    refused = []
    for cut in np.random.RandomState(0).randint(0, len(data), 20).tolist():
        try:
            mine = decode.decode(data[:cut], 3)
        except ValueError as error:
            refused.append(str(error))
        else:
            assert (mine == whole).all()
    assert all(refused)
    assert len(refused) >= 18


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_one_limit_of_pixels(image_format: str, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch):
    data = encode(picture(40, 50), image_format)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)  # a program's own setting neither matters nor changes
    message = r"50x40 pixels, more than data\.max_pixels=1999: raise that"
    with pytest.raises(ValueError, match=message):
        decode.decode(data, 3, max_pixels=1999)
    for mine in (transform(max_pixels=1999), EvalTransform(size=32, resize=36, channels=3, max_pixels=1999)):
        with pytest.raises(decode.DecodeError, match=message):
            run(mine, [data])
    assert decode.decode(data, 3, max_pixels=2000).shape == (40, 50, 3)
    assert run(transform(max_pixels=2000), [data]).shape == (1, 32, 32, 3)
    assert PIL.Image.MAX_IMAGE_PIXELS == 1000
    assert not recwarn.list


def claiming(height: int, width: int) -> dict[str, bytes]:
    """Small files whose headers claim a size."""
    plain, png = encode(picture(40, 50)), bytearray(encode(picture(40, 50), "PNG"))
    frame = jpeg.read_header(plain).frame
    struct.pack_into(">II", png, 16, width, height)
    struct.pack_into(">I", png, 29, zlib.crc32(png[12:29]))
    huge = plain[: frame + 5] + struct.pack(">HH", height, width) + plain[frame + 9 :]
    return {"JPEG": huge, "PNG": bytes(png), "PPM": b"P6 %d %d 255\n" % (width, height)}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PPM"])
def test_images_that_claim_to_be_huge_take_no_memory(kind: str):
    data = claiming(20_000, 20_000)[kind]
    ways = [
        lambda: decode.decode(data, 3),
        lambda: run(transform(), [data]),
        lambda: run(EvalTransform(size=32, resize=32, channels=3), [data]),
    ]
    tracemalloc.start()
    try:
        for way in ways:
            with pytest.raises((ValueError, decode.DecodeError), match="20000x20000 pixels, more than") as caught:
                way()
            assert "DOS" not in str(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_threads_keep_no_large_memory():
    assert decode._scratch(1000) is decode._scratch(1000)
    kept = decode._local.buffer.size
    assert decode._scratch((64 << 20) + 1).size > 64 << 20
    assert decode._local.buffer.size == kept


@pytest.mark.parametrize("channels", [3, 1])
def test_transparent_palettes_warn_of_nothing(channels: int, recwarn: pytest.WarningsRecorder):
    palette = PIL.Image.fromarray(picture(32, 32)).quantize(64)
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=bytes(range(0, 256, 4)))
    expected = np.asarray(palette.convert("RGB" if channels == 3 else "L")).reshape(32, 32, channels)
    assert (decode.decode(file.getvalue(), channels) == expected).all()
    assert not recwarn.list
