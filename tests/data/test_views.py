import io

import cv2
import numpy as np
import PIL.Image
import pytest
import simplejpeg
from conftest import encode, picture
from test_decode import RATIO, SCALE, crop_of_one

from vision_jax.data import crops, decode, jpeg, order
from vision_jax.data.transforms import LABEL, TrainTransform
from vision_jax.data.views import Field, View, parse_views
from vision_jax.errors import ConfigError

DINO = "2x24:0.14-1,8x12:0.05-0.14"
UINT8, FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)


def run(transform: TrainTransform, images: list[bytes], numbers: np.ndarray, visit: int = 0) -> dict[str, np.ndarray]:
    """Returns the rows that a transform makes of images, with noise before in them."""
    out = {}
    for name, field in transform.fields().items():
        out[name] = np.full((len(images), *field.shape), 77, field.dtype)
    records = [{"image": data, "label": row, "weight": row / 2} for row, data in enumerate(images)]
    transform(records, numbers, np.full(len(images), visit), out)
    return out


def make(text: str = DINO, **fields: object) -> TrainTransform:
    return TrainTransform(parse_views(text), 3, **{"seed": 5, "scaled_decoding": False, **fields})


def test_parse_views():
    two, eight = parse_views(DINO, ratio=(0.5, 2.0))
    assert two == View("image", size=24, count=2, scale=(0.14, 1.0), ratio=(0.5, 2.0))
    assert eight == View("view1", size=12, count=8, scale=(0.05, 0.14), ratio=(0.5, 2.0))
    assert parse_views("1x8, target=1x4 ,1x2", scale=(0.5, 0.6)) == (
        View("image", size=8, scale=(0.5, 0.6)),
        View("target", size=4, scale=(0.5, 0.6)),
        View("view2", size=2, scale=(0.5, 0.6)),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"'' in '': It is not of the form"),
        ("2x24,", r"'' in '2x24,': It is not of the form"),
        ("2x24:0.5", r"'2x24:0\.5' in .*not of the form"),
        ("2x24,8y12", r"'8y12' in '2x24,8y12': It is not of the form"),
        ("2x24,8x1.5:0.1-1", r"'8x1\.5:0\.1-1' in .*: SIZE is '1\.5': it takes an integer"),
        ("ax24", r"COUNT is 'a': it takes an integer"),
        ("2x24:small-1", r"MIN is 'small': it takes a number"),
        ("2x24:0.1-", r"MAX is '': it takes a number"),
        ("2x24:0.5-0.1", r"scale \(0\.5, 0\.1\)"),
        ("2x24:0-0.1", r"scale \(0\.0, 0\.1\)"),
        ("2x24:0.1-nan", r"scale \(0\.1, nan\)"),
        ("0x24", r"count 0 and size 24"),
        ("mask=1x24", r"has the name 'mask'"),
        ("a b=1x24", r"has the name 'a b'"),
        ("view1=1x24,1x12", r"Two views write 'view1'"),
    ],
)
def test_what_is_wrong_with_views_is_named(text: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_views(text)
    assert "\n" not in str(caught.value)


def test_views_that_cannot_be():
    with pytest.raises(ConfigError, match="did you mean resize"):
        View(kind="resized")
    with pytest.raises(ConfigError, match=r"ratio \(2, 1\)"):
        View(ratio=(2, 1))
    with pytest.raises(ConfigError, match="Two views write 'a_box'"):
        TrainTransform((View("a", geometry=True), View("a_box")), 3, 0)
    with pytest.raises(ConfigError, match="There are no views"):
        TrainTransform((), 3, 0)
    with pytest.raises(
        ConfigError, match=r"Progressive sizes are those of the view 'image', and the views are \['a'\]"
    ):
        TrainTransform((View("a"),), 3, 0, sizes=((0, 8),))


def test_fields_describe_the_batch():
    views = (View("image", size=24, count=2, geometry=True), View("small", size=12, geometry=True), View("b", count=3))
    assert TrainTransform(views, 1, 0).fields() == {
        "image": Field((2, 24, 24, 1), UINT8),
        "image_box": Field((2, 4), FLOAT32),
        "small": Field((12, 12, 1), UINT8),
        "small_box": Field((4,), FLOAT32),
        "b": Field((3, 224, 224, 1), UINT8),
        "label": Field((), np.dtype(np.int32)),
    }


def independent_crop(height: int, width: int, number: int, visit: int, view: int, scale: tuple[float, float]):
    """The crop of one view of one image, by its key as it is documented."""
    key = (1, 5, visit, number, np.arange(22))
    uniforms = order.random_uniform(*key) if view == 0 else order.random_uniform(*key, view)
    return crop_of_one(height, width, uniforms.tolist(), scale, RATIO)


@pytest.mark.parametrize("kind", ["restart", "plain", "progressive", "png", "ppm"])
def test_each_view_is_its_own_crop_of_the_decoded_image(kind: str):
    """However little is decoded: one view of each image, then eight of another scale, which span a part of it."""
    pixels = [picture(90 + i, 130 - i, seed=i) for i in range(6)]
    images = {
        "restart": lambda p: jpeg.encode(PIL.Image.fromarray(p), 90),
        "plain": lambda p: encode(p, quality=90),
        "progressive": lambda p: encode(p, quality=90, progressive=True),
        "png": lambda p: encode(p, "PNG"),
        "ppm": lambda p: b"P6\n%d %d\n255\n" % (p.shape[1], p.shape[0]) + p.tobytes(),
    }[kind]
    images = [images(p) for p in pixels]
    if "p" not in kind or kind in ("plain", "progressive"):
        pixels = [simplejpeg.decode_jpeg(data, "RGB") for data in images]
    numbers = np.arange(40, 46)
    for text in ("1x24:0.14-1,8x12:0.05-0.14", "2x12:0.05-0.06"):
        views = parse_views(text)
        rows = run(make(text), images, numbers, visit=3)
        number = 0
        for view in views:
            for k in range(view.count):
                for row, whole in enumerate(pixels):
                    height, width = whole.shape[:2]
                    top, left, h, w = independent_crop(height, width, 40 + row, 3, number, view.scale)
                    expected = cv2.resize(whole[top : top + h, left : left + w], (view.size, view.size))
                    mine = rows[view.name][row] if view.count == 1 else rows[view.name][row, k]
                    np.testing.assert_array_equal(mine, expected, err_msg=f"{view.name}, {k} of image {row}")
                number += 1


def test_further_views_change_nothing_of_the_first():
    images = [jpeg.encode(PIL.Image.fromarray(picture(90, 130, seed=i)), 90) for i in range(6)]
    alone = run(make("1x24"), images, np.arange(6))
    together = run(make("1x24,3x12:0.05-0.14,other=1x20"), images, np.arange(6))
    assert (alone["image"] == together["image"]).all()
    assert (together["label"] == np.arange(6)).all()
    assert all((together["view1"][:, 0] != together["view1"][:, k]).any() for k in (1, 2))


def test_an_image_is_decoded_once(monkeypatch: pytest.MonkeyPatch):
    calls = []
    whole = simplejpeg.decode_jpeg
    monkeypatch.setattr(decode.simplejpeg, "decode_jpeg", lambda *a, **k: calls.append(1) or whole(*a, **k))
    images = [jpeg.encode(PIL.Image.fromarray(picture(300, 400, seed=i)), 90) for i in range(5)]
    rows = run(make(DINO, scaled_decoding=True), images, np.arange(5))
    assert len(calls) == 5
    assert (rows["image"].shape, rows["view1"].shape) == ((5, 2, 24, 24, 3), (5, 8, 12, 12, 3))


def test_large_crops_beside_small_ones_are_antialiased():
    """Of fine noise bilinear resizing alone keeps the contrast, and an antialiasing filter hardly any."""
    random = np.random.RandomState(0)
    for image_format, bound in (("PNG", 6), ("JPEG", 6)):
        data = encode(random.randint(0, 256, (512, 512, 3)).astype(np.uint8), image_format)
        rows = run(make("1x32:1-1,1x64:0.05-0.05", scaled_decoding=True), [data], np.arange(1))
        aliased = run(make("1x32:1-1,1x64:0.05-0.05"), [data], np.arange(1))
        expected = np.asarray(PIL.Image.open(io.BytesIO(data)).resize((32, 32), PIL.Image.Resampling.BILINEAR), int)
        assert np.abs(rows["image"][0] - expected).mean() < bound
        assert np.abs(aliased["image"][0] - expected).mean() > 3 * bound
        assert (rows["view1"] == aliased["view1"]).all()  # where nothing is to be reduced


def test_crops_that_are_all_large_are_reduced_while_they_are_decoded(monkeypatch: pytest.MonkeyPatch):
    sizes = []
    part = TrainTransform._decode
    monkeypatch.setattr(TrainTransform, "_decode", lambda *a: sizes.append(part(*a)) or sizes[-1])
    data = encode(picture(400, 400), quality=95)
    rows = run(make("2x32:0.5-1", scaled_decoding=True), [data], np.arange(1))
    assert sizes[0].pixels.shape[0] <= 400 * 2 / 8  # the decoder's 1/8 or 2/8
    exact = run(make("2x32:0.5-1"), [data], np.arange(1))
    assert np.abs(rows["image"].astype(int) - exact["image"]).mean() < 3


def test_boxes_are_shares_of_the_image():
    views = (
        View("image", size=8, geometry=True),
        View("all", kind="resize", size=16, geometry=True),
        View("local", size=8, count=3, scale=(0.05, 0.14), geometry=True),
    )
    pixels = picture(60, 90)
    data = encode(pixels, "PNG")
    rows = run(TrainTransform(views, 3, 5, scaled_decoding=False), [data, data], np.array([7, 8]), visit=1)
    assert (rows["all"][1] == cv2.resize(pixels, (16, 16))).all()
    assert rows["all_box"].tolist() == [[0, 0, 1, 1]] * 2
    for row, number in enumerate((7, 8)):
        for boxes, first, scale in (([rows["image_box"][row]], 0, SCALE), (rows["local_box"][row], 2, (0.05, 0.14))):
            for k, box in enumerate(boxes):
                top, left, h, w = independent_crop(60, 90, number, 1, first + k, scale)
                np.testing.assert_allclose(box, [top / 60, left / 90, (top + h) / 60, (left + w) / 90], rtol=1e-6)


def test_progressive_sizes_are_those_of_the_image():
    transform = make("local=2x12,image=1x24", sizes=((0, 8), (4, 20), (6, 16)))
    fields = [transform.at(step).fields() for step in (0, 5, 9)]
    shapes = [{name: step[name].shape[-2] for name in ("local", "image")} for step in fields]
    assert shapes == [{"local": 12, "image": size} for size in (8, 20, 16)]
    assert transform.largest().fields()["image"].shape == (20, 20, 3)
    assert make("1x24").at(100) == make("1x24").largest() == make("1x24")


def test_what_else_a_record_has_can_be_a_field():
    transform = make("1x8", copied=(*LABEL, ("weight", Field((), FLOAT32))))
    rows = run(transform, [encode(picture(20, 20))] * 3, np.arange(3))
    assert rows["weight"].tolist() == [0, 0.5, 1]
    assert rows["label"].tolist() == [0, 1, 2]


def test_chosen_crops_fit_images_of_all_sizes():
    sizes = np.random.RandomState(0).randint(1, 300, (200, 2))
    chosen = crops.choose_crops(parse_views(DINO), 0, np.arange(200), np.zeros(200, int), sizes)
    assert chosen.shape == (200, 10, 4)
    assert (chosen[..., 2:] > 0).all()
    assert (chosen[..., :2] >= 0).all()
    assert (chosen[..., :2] + chosen[..., 2:] <= sizes[:, None]).all()
