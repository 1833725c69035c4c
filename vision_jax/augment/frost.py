"""Pictures of frost for the corruption of that name: the published ones from a folder, or made-up ones.

The published pictures are photographs that are not part of this package. What is made up has the means and deviations
of theirs, and about their share of fine detail, but not their shapes: an approximation.
"""

import hashlib
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
import PIL.Image
import scipy.fft
from numpy.random import RandomState

from vision_jax.errors import DataError, reason

COUNT = 5  # pictures that are drawn from; the source has a sixth, which it never draws
# Mean and deviation of red, green and blue of the five published pictures.
_COLORS = (
    ((78, 149, 166), (27, 16, 15)),
    ((201, 205, 214), (21, 22, 23)),
    ((201, 205, 214), (21, 22, 23)),
    ((138, 153, 165), (28, 28, 30)),
    ((112, 123, 135), (44, 43, 42)),
)
# Of what is made up: how the amplitude of noise falls with the frequency; and bundles of needles.
_DECAY = 1.3
_PIXELS_OF_A_BUNDLE = 160
_NEEDLES = 5
_LENGTH = 16.0  # pixels, on average
_ENLARGE = 1.1  # of a picture that is smaller than the image, beyond its size


def read_pictures(directory: pathlib.Path) -> tuple[list[np.ndarray], str]:
    """Reads the published pictures, frost1 to frost5 of hendrycks/robustness.

    Returns:
        the pictures, (height, width, 3) uint8 each; and a digest of them.

    Raises:
        DataError: if the folder has not each of them once, or one cannot be read.
    """
    if not directory.is_dir():
        raise DataError(f"--frost is {directory}, which is no folder: give the one with frost1.png to frost5.jpg.")
    pictures = []
    digest = hashlib.sha256()
    for number in range(1, COUNT + 1):
        found = [path for suffix in ("png", "jpg", "jpeg") for path in directory.glob(f"frost{number}.{suffix}")]
        if len(found) != 1:
            raise DataError(
                f"{directory} has {len(found)} pictures frost{number}.png or .jpg, and one is needed. frost1 to frost5 "
                "are in ImageNet-C/create_c of hendrycks/robustness, and in the package imagecorruptions."
            )
        try:
            with PIL.Image.open(found[0]) as image:
                picture = np.asarray(image.convert("RGB"))
        except (OSError, ValueError) as error:
            raise DataError(f"{found[0]} cannot be read: {reason(error)}.") from error
        pictures.append(picture)
        digest.update(repr(picture.shape).encode() + picture.tobytes())
    return pictures, digest.hexdigest()


def enlarged(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns a picture that is larger than an image each way, in its own proportions.

    One that is large enough stays as it is, as for all images of 224 x 224 pixels.
    """
    scale = max((height + 1) / picture.shape[0], (width + 1) / picture.shape[1])
    if scale <= 1:
        return picture
    size = [int(np.ceil(side * scale * _ENLARGE)) for side in (picture.shape[1], picture.shape[0])]
    return cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)


def made_up(random: RandomState, height: int, width: int) -> np.ndarray:
    """Makes up a picture of frost: bundles of bright needles on noise, in the colors of one of the published pictures.

    Returns:
        (height, width, 3) float64, from 0 to 255.
    """
    mean, deviation = (np.asarray(values, float) for values in _COLORS[random.randint(COUNT)])
    frost = _noise(random, height, width) + _needles(random, height, width)
    frost = (frost - frost.mean()) / frost.std()
    return np.clip(mean + deviation * frost[:, :, None], 0, 255)


def _noise(random: RandomState, height: int, width: int) -> np.ndarray:
    """Returns noise whose amplitude falls with the frequency, with a deviation of 1."""
    waves = scipy.fft.rfft2(random.normal(size=(height, width)))
    frequency = np.hypot(scipy.fft.fftfreq(height)[:, None], scipy.fft.rfftfreq(width))
    frequency[0, 0] = 1
    waves /= frequency**_DECAY
    waves[0, 0] = 0
    noise = scipy.fft.irfft2(waves, (height, width))
    return noise / noise.std()


def _needles(random: RandomState, height: int, width: int) -> np.ndarray:
    """Returns lines in bundles, each around a point and a direction of its own, with a deviation of about 1."""
    bundles = max(1, height * width // _PIXELS_OF_A_BUNDLE)
    points = random.uniform(0, 1, size=(bundles, 1, 2)) * (width, height)
    angles = random.uniform(0, 2 * np.pi, size=(bundles, 1)) + random.normal(scale=0.3, size=(bundles, _NEEDLES))
    lengths = random.exponential(_LENGTH, size=(bundles, _NEEDLES))
    ends = points + lengths[:, :, None] * np.stack((np.cos(angles), np.sin(angles)), -1)
    levels = random.randint(40, 256, size=(bundles, _NEEDLES))
    drawn = np.zeros((height, width), np.uint8)
    for point, bundle, shades in zip(points[:, 0].round().astype(int), ends.round().astype(int), levels, strict=True):
        for end, shade in zip(bundle, shades, strict=True):
            cv2.line(drawn, point.tolist(), end.tolist(), int(shade), 1, cv2.LINE_AA)
    return (drawn - drawn.mean()) / max(drawn.std(), 1)


def remark(pictures: Sequence[np.ndarray] | None) -> str:
    """Returns what a person should know of the frost; empty: nothing, it is the published one."""
    if pictures is not None:
        return ""
    return (
        "The frost is made up, with the colors of the published pictures, but not their shapes: errors under it are "
        "not those of ImageNet-C. --frost=DIR takes the published pictures."
    )
