import io

import numpy as np
import PIL.Image
import pytest
from conftest import encode, picture
from miniature import exif, train_images
from PIL import ImageOps

from vision_jax.data import decode
from vision_jax.preparation import convert

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF")


def conversion(**changes: object) -> convert.Conversion:
    fields = {"encoding": "raw", "short_side": 0, "quality": 90, "apply_exif_orientation": True, "max_pixels": 10**6}
    return convert.Conversion(**{**fields, **changes})


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_if_asked(orientation: int):
    data = encode(picture(30, 50), exif=exif(orientation))
    expected = np.asarray(ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))))
    assert (decode.decode(conversion()(data), 3) == expected).all()
    assert (conversion(encoding="jpeg")(data) == data) == (orientation == 1)
    assert conversion(encoding="jpeg", apply_exif_orientation=False)(data) == data


def test_broken_exif_is_no_exif():
    data = train_images()["n04152593_17460.JPEG"]
    assert (decode.decode(conversion()(data), 3) == np.asarray(PIL.Image.open(io.BytesIO(data)))).all()


def test_damaged_and_huge_images_are_refused():
    whole = encode(picture(200, 200))
    for data in (b"", b"no image", whole[: len(whole) // 2], encode(picture(99, 99), "PNG")[:300]):
        for encoding in ("raw", "jpeg", "original"):
            with pytest.raises(ValueError, match=r"empty|known format|truncated|broken|damaged"):
                conversion(encoding=encoding, apply_exif_orientation=False)(data)
    with pytest.raises(ValueError, match="200x200 pixels, more than --max_pixels=39999"):
        conversion(encoding="original", max_pixels=39_999)(whole)
    # A JPEG that strict decoding warns of is encoded afresh, so that training reads it the fast way.
    extra = whole[:20] + b"\0\0" + whole[20:]
    fresh = conversion(encoding="jpeg")(extra)
    assert fresh != extra
    assert np.abs(decode.decode(fresh, 3).astype(int) - decode.decode(whole, 3)).mean() < 2
