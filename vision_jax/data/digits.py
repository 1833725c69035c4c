"""Scikit-learn's handwritten digits as a data set in tfds' layout: real images that need no download."""

import io
import pathlib

import numpy as np
import PIL.Image

from vision_jax.data.cache import write_once
from vision_jax.data.tfds_format import write_dataset

VERSION = "1.0.0"


def prepare(root: pathlib.Path) -> pathlib.Path:
    """Writes the digits as JPEG into an ArrayRecord data set, unless it is there already.

    The 1,797 images (Alpaydin and Kaynak 1998, the test set of UCI's optdigits) have 8x8 pixels of 17 gray levels. They
    are enlarged to 32x32. `train` has 1,437 of them and `validation` a stratified 360.

    Args:
        root: where `digits/1.0.0` is or will be. Several processes may ask for it at once.

    Returns:
        the folder of the data set.
    """

    def write(folder: pathlib.Path) -> None:
        write_dataset(folder, "digits", _splits(), class_names=[str(digit) for digit in range(10)])

    return write_once(root / "digits" / VERSION, write)


def _splits() -> dict[str, list[tuple[bytes, int]]]:
    """Returns the encoded images and labels of each split."""
    from sklearn.datasets import load_digits  # here, because it takes two seconds
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    indices = np.arange(len(labels))
    train, validation = train_test_split(indices, test_size=360, stratify=labels, random_state=0)
    return {
        name: [(_encode(images[i].reshape(8, 8)), int(labels[i])) for i in split]
        for name, split in (("train", train), ("validation", validation))
    }


def _encode(levels: np.ndarray) -> bytes:
    """Encodes (8, 8) levels from 0 to 16 as a 32x32 grayscale JPEG."""
    image = PIL.Image.fromarray(np.rint(levels * (255 / 16)).astype(np.uint8))
    encoded = io.BytesIO()
    image.resize((32, 32), PIL.Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=95)
    return encoded.getvalue()
