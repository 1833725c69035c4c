"""Pictures of boxes and masks, for people: colors by class, boxes with names, and overlays."""

import colorsys
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from vision_jax.errors import one_line

_LEAST_SIDE = 480  # smaller pictures are enlarged, so that text fits into them
_OPACITY = 0.55  # of a mask over its image


def palette() -> np.ndarray:
    """Returns the color map of PASCAL VOC, (256, 3) uint8: the bits of a class's number are spread over the colors.

    Source: `VOClabelcolormap` of the development kit of the VOC2012 challenge.
    """
    numbers = np.arange(256, dtype=np.int64)
    colors = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((numbers >> channel) & 1) << (7 - bit)
        numbers >>= 3
    return colors.astype(np.uint8)


def to_image(pixels: np.ndarray) -> PIL.Image.Image:
    """Returns pixels, (height, width, 3) uint8, as an image."""
    return PIL.Image.fromarray(pixels)


def palette_image(mask: np.ndarray) -> PIL.Image.Image:
    """Returns a mask (height, width) uint8 as an image with a palette, as VOC's are: its pixels are classes."""
    image = PIL.Image.fromarray(np.ascontiguousarray(mask))
    image.putpalette(palette().reshape(-1).tolist())  # gray levels become numbers of colors
    return image


def overlay(pixels: np.ndarray, mask: np.ndarray, *, clear: Sequence[int] = ()) -> np.ndarray:
    """Returns an image with the colors of a mask over it.

    Args:
        pixels: (height, width, 1 or 3) uint8.
        mask: (height, width) uint8.
        clear: classes that are left as they are, such as the background.

    Returns:
        (height, width, 3) uint8.
    """
    image = np.broadcast_to(pixels, (*mask.shape, 3)).astype(np.float32)
    colored = (1 - _OPACITY) * image + _OPACITY * palette()[mask]
    kept = np.isin(mask, np.asarray(clear, np.int64))[..., None]
    return np.rint(np.where(kept, image, colored)).astype(np.uint8)


def draw_boxes(
    pixels: np.ndarray, boxes: np.ndarray, labels: np.ndarray, texts: Sequence[str], *, least_side: int = _LEAST_SIDE
) -> np.ndarray:
    """Returns an image with boxes and a text for each.

    A box has its class's color with a dark rim, and its text is on that color, so that both are seen on any background.
    Small images are enlarged by a whole number.

    Args:
        pixels: (height, width, 1 or 3) uint8.
        boxes: (n, 4), x1, y1, x2, y2 in its pixels; the last is drawn over the others.
        labels: (n,) integers, which choose the colors.
        texts: one for each box; "": none.
        least_side: pixels that the longer side has at least, after it is enlarged.

    Returns:
        (height, width, 3) uint8.
    """
    height, width = pixels.shape[:2]
    factor = max(1, -(-least_side // max(height, width)))
    image = np.broadcast_to(pixels, (height, width, 3)).repeat(factor, 0).repeat(factor, 1)
    picture = PIL.Image.fromarray(np.ascontiguousarray(image))
    draw = PIL.ImageDraw.Draw(picture)
    line = max(2, round(max(picture.size) / 400))
    font = PIL.ImageFont.load_default(max(12, round(max(picture.size) / 45)))
    for box, label, text in zip(boxes, labels, texts, strict=True):
        color = box_color(int(label))
        corners = _corners(np.asarray(box, np.float64) * factor, picture.size)
        draw.rectangle(corners, outline="black", width=line + 2)
        inner = (
            corners[0] + 1,
            corners[1] + 1,
            max(corners[0] + 1, corners[2] - 1),
            max(corners[1] + 1, corners[3] - 1),
        )
        draw.rectangle(inner, outline=color, width=line)
        if text:
            _write(draw, one_line(text), corners, color, font, picture.size)
    return np.asarray(picture)


def box_color(label: int) -> tuple[int, int, int]:
    """Returns the color of a class of boxes: bright, and of another hue than those of the classes beside it."""
    hue = label * 0.618034 % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.5 if label % 2 else 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _corners(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns the outermost pixels of a box, within a picture of (width, height)."""
    width, height = size
    x1, y1 = (min(max(int(np.floor(side)), 0), most - 1) for side, most in zip(box[:2], size, strict=True))
    x2, y2 = (int(np.ceil(side)) - 1 for side in box[2:])
    return x1, y1, min(max(x2, x1), width - 1), min(max(y2, y1), height - 1)


def _write(
    draw: PIL.ImageDraw.ImageDraw,
    text: str,
    corners: tuple[int, int, int, int],
    color: tuple[int, int, int],
    font: "PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont",
    size: tuple[int, int],
) -> None:
    """Writes a text above a box, or within it where there is no room above, on the box's color."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    wide, high = round(right - left) + 6, round(bottom - top) + 6
    x = max(0, min(corners[0], size[0] - wide))
    y = corners[1] - high if corners[1] >= high else min(corners[1], size[1] - high)
    draw.rectangle((x, y, x + wide - 1, y + high - 1), fill=color, outline="black")
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 128
    draw.text((x + 3 - left, y + 3 - top), text, fill="black" if bright else "white", font=font)
