"""Encoding JPEGs."""

import io

import numpy as np
import PIL.Image


def encode(pixels: np.ndarray, quality: int) -> bytes:
    """Encodes a baseline JPEG with chroma at half the resolution (4:2:0).

    A restart marker after each row of blocks lets a decoder begin in the middle: a crop needs only its own rows.

    Args:
        pixels: (height, width, 3) uint8, RGB.
        quality: libjpeg's, 1 to 100.
    """
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0", restart_marker_rows=1)
    return file.getvalue()
