import dataclasses
import io

import numpy as np
import PIL.Image
import pytest
import simplejpeg
from conftest import encode, picture

from vision_jax.data import jpeg


def noisy(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture with detail in every block."""
    noise = np.random.RandomState(seed).randint(-40, 40, (height, width, 3))
    return np.clip(picture(height, width, seed) + noise, 0, 255).astype(np.uint8)


def boxes(height: int, width: int, count: int) -> list[tuple[int, int, int, int]]:
    random = np.random.RandomState(0)
    pairs = [
        (np.sort(random.choice(height + 1, 2, False)), np.sort(random.choice(width + 1, 2, False)))
        for _ in range(count)
    ]
    return [(int(v[0]), int(h[0]), int(v[1]), int(h[1])) for v, h in pairs]


def variants() -> dict[str, bytes]:
    pixels = noisy(83, 101)
    return {
        "ours": jpeg.encode(PIL.Image.fromarray(pixels), 90),
        "plain": encode(pixels, quality=90),
        "rows": encode(pixels, quality=90, restart_marker_rows=1),
        "within rows": encode(pixels, quality=90, restart_marker_blocks=3),
        "444": encode(pixels, quality=90, subsampling="4:4:4", restart_marker_blocks=1),
        "422": encode(pixels, quality=90, subsampling="4:2:2", restart_marker_blocks=1),
        "optimized": encode(pixels, quality=90, optimize=True),
        "grey": encode(pixels[:, :, 0], quality=90, restart_marker_blocks=1),
        "comment": encode(pixels, quality=90, comment=b"\xff\xd9 \xff\xd0" * 50, restart_marker_blocks=1),
    }


@pytest.mark.parametrize("name", variants())
def test_pixels_of_a_part_are_those_of_the_whole(name: str):
    data = variants()[name]
    space = "GRAY" if name == "grey" else "RGB"
    whole = simplejpeg.decode_jpeg(data, space)
    header = jpeg.read_header(data)
    assert (header.height, header.width, header.sequential) == (83, 101, True)
    for top, left, bottom, right in boxes(83, 101, 40):
        piece, box = jpeg.part(data, header, top, left, bottom, right)
        pixels = simplejpeg.decode_jpeg(piece, space, strict=False)
        assert pixels.shape[:2] == (box.bottom - box.top, box.right - box.left)
        mine = pixels[top - box.top : bottom - box.top, left - box.left : right - box.left]
        assert (mine == whole[top:bottom, left:right]).all()


def test_parts_are_small_and_whole_jpegs():
    data = jpeg.encode(PIL.Image.fromarray(noisy(256, 320)), 90)
    piece, box = jpeg.part(data, jpeg.read_header(data), 100, 150, 140, 170)
    assert box == (96, 128, 144, 192)
    assert len(piece) < len(data) / 10
    # The decoder and Pillow find nothing wrong with it.
    pixels = simplejpeg.decode_jpeg(piece, "RGB", strict=True)
    assert np.abs(np.asarray(PIL.Image.open(io.BytesIO(piece)), int) - pixels).max() <= 2
    # Without restart markers only the lower end can be left out.
    plain = encode(noisy(256, 320), quality=90)
    assert jpeg.part(plain, jpeg.read_header(plain), 100, 150, 140, 170)[1] == (0, 0, 144, 320)


def test_restart_markers_that_are_missing_are_noticed():
    data = jpeg.encode(PIL.Image.fromarray(noisy(64, 64)), 90)
    cut = data.replace(b"\xff\xd3", b"", 1)
    assert jpeg.part(cut, jpeg.read_header(cut), 0, 0, 16, 16)[1] == (0, 0, 32, 64)  # as if there were none


@pytest.mark.parametrize("size", [(83, 101), (64, 96), (16, 16), (1, 1), (300, 17)])
def test_the_comment_tells_what_the_file_does(size: tuple[int, int]):
    data = jpeg.encode(PIL.Image.fromarray(noisy(*size)), 90)
    header = jpeg.read_header(data)
    assert header.index
    # Another name hides the comment; the file is read by its markers then.
    plain = jpeg.read_header(data.replace(b"vision_jax", b"vision_any"))
    assert dataclasses.replace(header, index=0) == plain
    starts = jpeg._interval_starts(data, header)
    assert (starts == jpeg._interval_starts(data, plain)).all()
    assert all(data[i] == 0xFF and data[i + 1] & 0xF8 == 0xD0 for i in starts.ravel()[1:-1])


def test_a_comment_that_no_longer_holds_is_ignored():
    data = jpeg.encode(PIL.Image.fromarray(noisy(64, 64)), 90)
    longer = data[:-2] + b"\x00" + data[-2:]
    assert not jpeg.read_header(longer).index
    file = io.BytesIO()
    with PIL.Image.open(io.BytesIO(data)) as image:
        image.save(file, "JPEG", quality=50, comment=image.info["comment"])
    assert not jpeg.read_header(file.getvalue()).index


@pytest.mark.parametrize("width", range(1, 37))
def test_the_right_edge_is_that_of_the_whole(width: int):
    """Where little is left of the last block, colour would be interpolated otherwise."""
    for data in (
        jpeg.encode(PIL.Image.fromarray(noisy(33, width)), 90),
        encode(noisy(33, width), quality=90, subsampling="4:2:2", restart_marker_blocks=1),
    ):
        whole = simplejpeg.decode_jpeg(data, "RGB")
        for left in range(max(0, width - 18), width):
            piece, box = jpeg.part(data, jpeg.read_header(data), 16, left, 33, width)
            pixels = simplejpeg.decode_jpeg(piece, "RGB")
            assert (pixels[16 - box.top :, left - box.left :] == whole[16:33, left:]).all(), left


def test_a_damaged_comment_changes_no_pixel():
    data = jpeg.encode(PIL.Image.fromarray(noisy(48, 64)), 90)
    whole = simplejpeg.decode_jpeg(data, "RGB")
    for position in range(6, jpeg.read_header(data).index + 12):  # six lengths of two bytes
        for bit in (1, 64):
            damaged = bytearray(data)
            damaged[position] ^= bit
            header = jpeg.read_header(bytes(damaged))
            piece, box = jpeg.part(bytes(damaged), header, 17, 17, 30, 40)
            pixels = simplejpeg.decode_jpeg(piece, "RGB")
            assert (pixels[17 - box.top : 30 - box.top, 17 - box.left : 40 - box.left] == whole[17:30, 17:40]).all()
    with pytest.raises(ValueError, match="its header"):
        jpeg.read_header(data[:22])


def test_large_images_have_no_comment_where_it_would_not_fit():
    data = jpeg.encode(PIL.Image.fromarray(np.zeros((2880, 2896, 3), np.uint8)), 50)
    header = jpeg.read_header(data)
    assert (header.height, header.width, header.index) == (2880, 2896, 0)
    assert jpeg.part(data, header, 1000, 1000, 1010, 1010)[1] == (992, 992, 1024, 1024)


def test_headers():
    pixels = noisy(40, 56)
    assert not jpeg.read_header(encode(pixels, progressive=True)).sequential
    assert jpeg.read_header(encode(pixels, subsampling="4:2:0")).block == (16, 16)
    assert jpeg.read_header(encode(pixels, subsampling="4:2:2")).block == (8, 16)
    assert jpeg.read_header(encode(pixels[:, :, 0])).block == (8, 8)
    assert jpeg.read_header(encode(pixels, restart_marker_blocks=5)).restart_interval == 5
    data = encode(pixels)
    filled = data[:2] + b"\xff\xff" + data[2:]  # fill bytes before a marker
    assert (jpeg.read_header(filled).height, jpeg.read_header(filled).width) == (40, 56)
    for bad in (data[:100], b"\xff\xd8", b"\xff\xd8\x00\x00\x00\x00", data[:2] + data[-2:]):
        with pytest.raises(ValueError, match="its header"):
            jpeg.read_header(bad)


def test_encode_is_pillows_jpeg():
    pixels = noisy(50, 70)
    mine, plain = (
        np.asarray(PIL.Image.open(io.BytesIO(data)), int)
        for data in (jpeg.encode(PIL.Image.fromarray(pixels), 90), encode(pixels, quality=90))
    )
    assert (mine == plain).all()
