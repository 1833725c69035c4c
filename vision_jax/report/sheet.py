"""One picture of many: rows of images, with text above each row and below each image."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from vision_jax.errors import one_line

Row = tuple[str, Sequence[np.ndarray], Sequence[str]]

_MARGIN, _TEXT, _BELOW = 6, 18, 16  # pixels between images, and of the lines above a row and below an image


def contact_sheet(rows: Sequence[Row], size: int, columns: int) -> PIL.Image.Image:
    """Returns a picture with a line of text above each row and below each image that has a label.

    A text that is too long is cut off, with an ellipsis.

    Args:
        rows: of each the title, at most `columns` images, (size, size, 3) uint8, and a label for each of them.
        size: height and width of the images.
        columns: of the picture.
    """
    font = PIL.ImageFont.load_default(12)
    heights = [_TEXT + size + (_BELOW if any(labels) else 0) + _MARGIN for _, _, labels in rows]
    sheet = PIL.Image.new("RGB", (columns * (size + _MARGIN) + _MARGIN, sum(heights) + _MARGIN), "white")
    draw = PIL.ImageDraw.Draw(sheet)

    def fit(text: str, width: int) -> str:
        text = one_line(text)
        if draw.textlength(text, font) <= width:
            return text
        while text and draw.textlength(f"{text}...", font) > width:
            text = text[:-1]
        return f"{text}..."

    top = _MARGIN
    for (title, images, labels), height in zip(rows, heights, strict=True):
        draw.text((_MARGIN, top), fit(title, sheet.width - 2 * _MARGIN), fill="black", font=font)
        for column, (image, label) in enumerate(zip(images, labels, strict=True)):
            left = _MARGIN + column * (size + _MARGIN)
            sheet.paste(PIL.Image.fromarray(np.asarray(image)), (left, top + _TEXT))
            draw.text((left, top + _TEXT + size), fit(label, size), fill="black", font=font)
        top += height
    return sheet
