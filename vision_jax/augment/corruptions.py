"""ImageNet-C's corruptions of one image, on the host (Hendrycks and Dietterich 2019, arXiv:1903.12261).

Constants, formulas, the order of random draws, clipping and rounding are those of hendrycks/robustness (8190fe3), for
images of 224 x 224 pixels. Other sizes are as in bethgelab/imagecorruptions (1.1.2): lengths in pixels stay what they
are, but for the elastic transform, whose lengths are shares of the side. What is approximated is said where it is.

Random numbers come from `numpy.random.RandomState`, whose streams NumPy keeps the same in all versions.
"""

import dataclasses
import functools
import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import PIL.Image
import scipy.fft
import scipy.ndimage
from numpy.random import RandomState

from vision_jax.augment import frost as frost_lib
from vision_jax.errors import ConfigError, suggest

cv2.setNumThreads(1)  # images are corrupted in one process per core: OpenCV's own threads would only interfere

SEVERITIES = (1, 2, 3, 4, 5)
MIN_SIDE = 32  # pixels, below which the constants mean nothing
_PUBLISHED_SIDE = 224


def corrupt(
    image: np.ndarray,
    name: str,
    severity: int,
    random: RandomState,
    *,
    frost: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Corrupts an image.

    Args:
        image: (height, width, 3) uint8, RGB, of at least 32 pixels each way.
        name: of `CORRUPTIONS`.
        severity: 1 to 5.
        random: what the corruption draws from; see `random_state`.
        frost: pictures of frost, (h, w, 3) uint8 each, of which one is drawn; None: made-up ones
            (`vision_jax.augment.frost`).

    Returns:
        (height, width, 3) uint8; the argument is left as it is.

    Raises:
        ConfigError: for an unknown corruption or severity.
        ValueError: if the image is too small, or has another shape or type.
    """
    check(name, severity)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"it is {image.dtype} of shape {image.shape}, not uint8 of (height, width, 3)")
    if min(image.shape[:2]) < MIN_SIDE:
        raise ValueError(
            f"it has {image.shape[1]}x{image.shape[0]} pixels, and corruptions need {MIN_SIDE} each way: enlarge it"
        )
    kind = CORRUPTIONS[name]
    function = functools.partial(_frost, pictures=frost) if name == "frost" else kind.function
    return function(image, kind.constants[severity - 1], random)


def check(name: str, severity: int) -> None:
    """Checks the name of a corruption and its severity.

    Raises:
        ConfigError: for an unknown one.
    """
    if name not in CORRUPTIONS:
        raise ConfigError(f"There is no corruption {name!r}: {suggest(name, CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ConfigError(f"Severity {severity} of {name} is not known: there are 1 to 5.")


def random_state(seed: int, name: str, severity: int, image: bytes) -> RandomState:
    """Returns the random numbers for one image, which depend on nothing else.

    Args:
        seed: of the data set.
        name, severity: of the corruption.
        image: what tells the image from others, such as its file name.
    """
    digest = hashlib.sha256(b"%d\0%s\0%d\0" % (seed, name.encode(), severity) + image).digest()
    return RandomState(np.frombuffer(digest, "<u4"))


def _levels(values: np.ndarray) -> np.ndarray:
    """Returns values from 0 to 1, clipped, as uint8; fractions of a level are cut off, as in the source."""
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)


def _gaussian_noise(image: np.ndarray, scale: float, random: RandomState) -> np.ndarray:
    return _levels(image / 255.0 + random.normal(scale=scale, size=image.shape))


def _shot_noise(image: np.ndarray, photons: float, random: RandomState) -> np.ndarray:
    return _levels(random.poisson(image / 255.0 * photons) / photons)


def _impulse_noise(image: np.ndarray, amount: float, random: RandomState) -> np.ndarray:
    """Sets a share of the values, each channel by itself, to 0 or 255."""
    changed = random.random_sample(image.shape) < amount
    salt = random.random_sample(image.shape) < 0.5
    return np.where(changed, np.where(salt, np.uint8(255), np.uint8(0)), image)


def _speckle_noise(image: np.ndarray, scale: float, random: RandomState) -> np.ndarray:
    values = image / 255.0
    return _levels(values + values * random.normal(scale=scale, size=image.shape))


def _gaussian(values: np.ndarray, sigma: float) -> np.ndarray:
    """Returns values blurred by a Gaussian that is cut off at 4 sigma; beyond the borders are the outermost pixels."""
    weights = _gaussian_weights(sigma, 4.0)
    weights = np.concatenate([weights[:0:-1], weights])
    return cv2.sepFilter2D(values, -1, weights, weights, borderType=cv2.BORDER_REPLICATE)


def _gaussian_weights(sigma: float, truncate: float) -> np.ndarray:
    """Returns the weights at distances 0, 1, …; the sum over both sides is 1."""
    weights = np.exp(-0.5 / sigma**2 * np.arange(int(truncate * sigma + 0.5) + 1) ** 2)
    return weights / (2 * weights.sum() - weights[0])


def _gaussian_blur(image: np.ndarray, sigma: float, random: RandomState) -> np.ndarray:
    return _levels(_gaussian(image / 255.0, sigma))


def _glass_blur(image: np.ndarray, constants: tuple[float, int, int], random: RandomState) -> np.ndarray:
    """Blurs, replaces pixels by neighbors, and blurs again.

    The source means to swap neighbors, from the last pixel to the first, but assigns views of the same array: the
    pixel becomes a copy of its neighbor, which stays. So what counts is where each pixel comes from in the end, which
    is found for all of them at once, by following the copies.
    """
    sigma, reach, iterations = constants
    pixels = _levels(_gaussian(image / 255.0, sigma))
    height, width = image.shape[:2]
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    here = (rows[:, None] * width + columns).ravel()
    everywhere = np.arange(height * width)
    for _ in range(iterations):
        shifts = random.randint(-reach, reach, size=(len(here), 2))
        target = here + shifts[:, 1] * width + shifts[:, 0]
        origin = everywhere.copy()
        origin[here] = target
        # What comes later in memory was replaced before; the borders never are.
        replaced = np.zeros(height * width, bool)
        replaced[here] = target > here
        following = np.where(replaced, origin, everywhere)  # the pixel whose origin is this one's
        while True:
            further = following[following]
            if np.array_equal(further, following):
                break
            following = further
        pixels = pixels.reshape(-1, 3)[origin[following]].reshape(image.shape)
    return _levels(_gaussian(pixels / 255.0, sigma))


def _defocus_blur(image: np.ndarray, constants: tuple[int, float], random: RandomState) -> np.ndarray:
    return _levels(cv2.filter2D(image / 255.0, -1, _disk(*constants)))


@functools.cache
def _disk(radius: int, sigma: float) -> np.ndarray:
    """Returns a disk whose edge is softened by a Gaussian, float32."""
    reach = max(8, radius)
    size = (3, 3) if radius <= 8 else (5, 5)
    distance = np.arange(-reach, reach + 1) ** 2
    disk = (distance[:, None] + distance <= radius**2).astype(np.float32)
    disk /= disk.sum()
    return cv2.GaussianBlur(disk, ksize=size, sigmaX=sigma)


def _motion_blur(image: np.ndarray, constants: tuple[int, float], random: RandomState) -> np.ndarray:
    radius, sigma = constants
    return _along_a_line(image, radius, sigma, random.uniform(-45, 45))


def _along_a_line(image: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Blurs an image to one side along a line, as ImageMagick's motion blur does.

    Pixel p becomes the sum of exp(-i^2 / 2 sigma^2) image[p + i (sin angle, cos angle)], i from 0 to 2 radius, divided
    by that of the weights; the places are rounded to pixels, and beyond the borders are the outermost ones. The sum is
    rounded to 16 bits, of which 8 are kept.

    Args:
        image: (height, width, ...) uint8.
        radius, sigma: in pixels.
        angle: in degrees.
    """
    distance = np.arange(2 * radius + 1)
    weights = np.exp(-(distance**2) / (2.0 * sigma**2))
    weights /= weights.sum()
    direction = math.radians(angle)
    reach = 2 * radius
    rows = np.ceil(distance * math.sin(direction) - 0.5).astype(int) + reach
    columns = np.ceil(distance * math.cos(direction) - 0.5).astype(int) + reach
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, reach, reach, reach, reach, cv2.BORDER_REPLICATE).astype(np.float64)
    total = np.zeros(image.shape)
    for weight, row, column in zip(weights, rows, columns, strict=True):
        cv2.scaleAdd(padded[row : row + height, column : column + width], weight, total, dst=total)
    return (np.floor(257 * total + 0.5) / 257).astype(np.uint8)


def _zoom_blur(image: np.ndarray, zooms: np.ndarray, random: RandomState) -> np.ndarray:
    values = (image / 255.0).astype(np.float32)
    total = np.zeros_like(values)
    for zoom in zooms:
        total += _zoomed(values, zoom)
    return _levels((values + total) / (len(zooms) + 1))


def _zoomed(values: np.ndarray, zoom: float) -> np.ndarray:
    """Returns the middle of an array enlarged to its size, by linear interpolation between centers of pixels."""
    for axis in (0, 1):
        size = values.shape[axis]
        cut = math.ceil(size / float(zoom))
        enlarged = round(cut * zoom)
        place = np.arange(size) + (enlarged - size) // 2
        place = place * ((cut - 1) / (enlarged - 1)) if enlarged > 1 else np.zeros(size)
        below = np.minimum(place.astype(int), cut - 2)
        share = place - below
        # Where rounding leads beyond the last pixel, scipy, which the source uses, leaves black.
        inside = place <= cut - 1
        weights = [((1 - share) * inside).astype(values.dtype), (share * inside).astype(values.dtype)]
        shape = (-1, *(1,) * (values.ndim - 1 - axis))
        below += (size - cut) // 2
        low, high = (weight.reshape(shape) for weight in weights)
        values = low * values.take(below, axis) + high * values.take(below + 1, axis)
    return values


def _snow(
    image: np.ndarray, constants: tuple[float, float, float, float, int, float, float], random: RandomState
) -> np.ndarray:
    mean, scale, zoom, threshold, radius, sigma, mix = constants
    values = image.astype(np.float32) / 255
    flakes = _zoomed(random.normal(loc=mean, scale=scale, size=image.shape[:2]), zoom)
    flakes[flakes < threshold] = 0
    flakes = _along_a_line(_levels(flakes), radius, sigma, random.uniform(-135, -45)) / 255.0
    gray = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)[:, :, None]
    whitened = mix * values + (1 - mix) * np.maximum(values, gray * 1.5 + 0.5)
    return _levels(whitened + (flakes + np.rot90(flakes, k=2))[:, :, None])


def _frost(
    image: np.ndarray,
    constants: tuple[float, float],
    random: RandomState,
    pictures: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    height, width = image.shape[:2]
    if pictures is None:
        cut = frost_lib.made_up(random, height, width)
    else:
        picture = frost_lib.enlarged(pictures[random.randint(len(pictures))], height, width)
        top = random.randint(0, picture.shape[0] - height)
        left = random.randint(0, picture.shape[1] - width)
        cut = picture[top : top + height, left : left + width]
    image_weight, frost_weight = constants
    return np.clip(image_weight * image + frost_weight * cut, 0, 255).astype(np.uint8)


def _fog(image: np.ndarray, constants: tuple[float, float], random: RandomState) -> np.ndarray:
    strength, decay = constants
    values = image / 255.0
    brightest = values.max()
    height, width = image.shape[:2]
    values += strength * _plasma(max(height, width), decay, random)[:height, :width, None]
    return _levels(values * brightest / (brightest + strength))


def _plasma(least_side: int, decay: float, random: RandomState) -> np.ndarray:
    """Returns a square of clouds from 0 to 1, by the diamond-square algorithm on a torus.

    Its side is the power of two from `least_side` on. Each level of detail adds noise that is `decay` times weaker.
    """
    side = 1 << (least_side - 1).bit_length()
    field = np.zeros((side, side))
    step, noise = side, 100.0

    def perturbed(sums: np.ndarray) -> np.ndarray:
        return sums / 4 + noise * random.uniform(-noise, noise, sums.shape)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        two = corners + np.roll(corners, -1, 0)
        field[half::step, half::step] = perturbed(two + np.roll(two, -1, 1))
        centers = field[half::step, half::step]
        above = centers + np.roll(centers, 1, 0) + (corners + np.roll(corners, -1, 1))
        field[::step, half::step] = perturbed(above)
        beside = centers + np.roll(centers, 1, 1) + (corners + np.roll(corners, -1, 0))
        field[half::step, ::step] = perturbed(beside)
        step, noise = half, noise / decay
    field -= field.min()
    return field / field.max()


def _spatter(
    image: np.ndarray, constants: tuple[float, float, float, float, float, bool], random: RandomState
) -> np.ndarray:
    mean, scale, sigma, threshold, strength, mud = constants
    values = image.astype(np.float32) / 255
    liquid = _gaussian(random.normal(loc=mean, scale=scale, size=image.shape[:2]), sigma)
    liquid[liquid < threshold] = 0
    if mud:
        cover = _gaussian((liquid > threshold).astype(np.float32), strength)
        cover[cover < 0.8] = 0
        brown = np.array([63, 42, 20]) / 255.0
        return _levels(values * (1 - cover[:, :, None]) + brown * cover[:, :, None])
    # Drops: brighter on one side of their edges.
    drops = (liquid * 255).astype(np.uint8)
    distance = cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    relief = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    shading = cv2.blur(cv2.filter2D(cv2.equalizeHist(distance), cv2.CV_8U, relief), (3, 3))
    cover = drops * shading.astype(np.float32)
    if not cover.any():  # so few drops that none has an edge, in a small image
        return image.copy()
    turquoise = (np.array([175, 238, 238]) / 255.0).astype(np.float32)
    return _levels(values + (cover / cover.max() * np.float32(strength))[:, :, None] * turquoise)


def _brightness(image: np.ndarray, more: float, random: RandomState) -> np.ndarray:
    hue, saturation, value = _to_hsv(image / 255.0)
    return _levels(_from_hsv(hue, saturation, np.clip(value + more, 0, 1)))


def _saturate(image: np.ndarray, constants: tuple[float, float], random: RandomState) -> np.ndarray:
    factor, more = constants
    hue, saturation, value = _to_hsv(image / 255.0)
    return _levels(_from_hsv(hue, np.clip(saturation * factor + more, 0, 1), value))


def _to_hsv(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns hue, saturation and value, from 0 to 1; the hue of grays is 0. Of equal channels, the last is the one."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    value = rgb.max(-1)
    spread = value - rgb.min(-1)
    colored = spread > 0
    divisor = np.where(colored, spread, 1)
    hue = np.where(
        blue == value,
        4 + (red - green) / divisor,
        np.where(green == value, 2 + (blue - red) / divisor, (green - blue) / divisor),
    )
    hue = np.where(colored, hue / 6 % 1, 0)
    return hue, np.where(colored, spread / np.where(colored, value, 1), 0), value


def _from_hsv(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    sector = np.floor(hue * 6)
    part = hue * 6 - sector
    low = value * (1 - saturation)
    falling, rising = value * (1 - part * saturation), value * (1 - (1 - part) * saturation)
    sector = sector.astype(np.uint8) % 6
    red = np.choose(sector, (value, falling, low, low, rising, value))
    green = np.choose(sector, (rising, value, value, falling, low, low))
    blue = np.choose(sector, (low, low, rising, value, value, falling))
    return np.stack((red, green, blue), -1)


def _contrast(image: np.ndarray, factor: float, random: RandomState) -> np.ndarray:
    values = image / 255.0
    means = values.mean((0, 1), keepdims=True)
    return _levels((values - means) * factor + means)


def _elastic_transform(image: np.ndarray, constants: tuple[float, float, float], random: RandomState) -> np.ndarray:
    """Moves three points, and the image with them, by up to `affine`; then each pixel by smooth noise.

    Constants are shares of the shorter side; in the source, which is for 224 pixels, they are multiples of 244.
    """
    side = min(image.shape[:2])
    alpha, sigma, affine = (constant * 244 / _PUBLISHED_SIDE * side for constant in constants)
    return _elastic(image, alpha, sigma, affine, random)


def _elastic(image: np.ndarray, alpha: float, sigma: float, affine: float, random: RandomState) -> np.ndarray:
    """Does what `_elastic_transform` says, with lengths in pixels.

    Args:
        image: (height, width, 3) uint8.
        alpha: the smoothed noise, before that uniform from -1 to 1, is multiplied by it.
        sigma: of the Gaussian that smooths it.
        affine: how far each of the three points moves at most, in x and in y; 0: they do not move.
        random: what draws all that.
    """
    height, width = image.shape[:2]
    values = image.astype(np.float32) / 255
    if affine:
        # The source takes the height for x here, which is the same in squares.
        center, reach = np.array([height // 2, width // 2], np.float32), min(height, width) // 3
        before = np.stack([center + reach, center + np.array([reach, -reach], np.float32), center - reach])
        after = before + random.uniform(-affine, affine, size=before.shape).astype(np.float32)
        matrix = cv2.getAffineTransform(before, after)
        values = np.asarray(cv2.warpAffine(values, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101))
    columns, rows = (
        (_smoothed(random.uniform(-1, 1, size=(height, width)), sigma) * alpha).astype(np.float32) for _ in range(2)
    )
    places = [rows + np.arange(height)[:, None], columns + np.arange(width)]
    channels = [
        scipy.ndimage.map_coordinates(values[:, :, channel], places, order=1, mode="reflect") for channel in range(3)
    ]
    return _levels(np.stack(channels, -1))


def _smoothed(noise: np.ndarray, sigma: float) -> np.ndarray:
    """Returns noise blurred by a Gaussian that is cut off at 3 sigma; beyond the borders it is mirrored.

    With mirrored borders, a blur multiplies each cosine [DCT-II] by a number. That is quicker than a sum over hundreds
    of neighbors.
    """
    weights = _gaussian_weights(sigma, 3.0)
    waves = scipy.fft.dctn(noise)
    for axis in (0, 1):
        phases = np.outer(np.arange(noise.shape[axis]), np.arange(1, len(weights))) * (np.pi / noise.shape[axis])
        factors = weights[0] + 2 * np.cos(phases) @ weights[1:]
        waves *= factors[:, None] if axis == 0 else factors
    return scipy.fft.idctn(waves)


def _pixelate(image: np.ndarray, factor: float, random: RandomState) -> np.ndarray:
    height, width = image.shape[:2]
    small = PIL.Image.fromarray(image).resize((int(width * factor), int(height * factor)), PIL.Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), PIL.Image.Resampling.NEAREST))


def _jpeg_compression(image: np.ndarray, quality: int, random: RandomState) -> np.ndarray:
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(PIL.Image.open(file))


@dataclasses.dataclass(frozen=True)
class Corruption:
    """A kind of corruption.

    Attributes:
        group: the archive of ImageNet-C that it is in; `extra` has no part in mCE.
        function: (image, constants of a severity, random) -> image.
        constants: of the five severities.
    """

    group: str
    function: Callable[[np.ndarray, Any, RandomState], np.ndarray]
    constants: Sequence[Any]


# In the paper's order, with the source's constants for severities 1 to 5.
CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": Corruption("noise", _gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": Corruption("noise", _shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": Corruption("noise", _impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": Corruption("blur", _defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": Corruption("blur", _glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion_blur": Corruption("blur", _motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": Corruption(
        "blur",
        _zoom_blur,
        (
            np.arange(1, 1.11, 0.01),
            np.arange(1, 1.16, 0.01),
            np.arange(1, 1.21, 0.02),
            np.arange(1, 1.26, 0.02),
            np.arange(1, 1.31, 0.03),
        ),
    ),
    "snow": Corruption(
        "weather",
        _snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": Corruption("weather", _frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "fog": Corruption("weather", _fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": Corruption("weather", _brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Corruption("digital", _contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": Corruption(
        "digital",
        _elastic_transform,
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    ),
    "pixelate": Corruption("digital", _pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": Corruption("digital", _jpeg_compression, (25, 18, 15, 10, 7)),
    "speckle_noise": Corruption("extra", _speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian_blur": Corruption("extra", _gaussian_blur, (1, 2, 3, 4, 6)),
    "spatter": Corruption(
        "extra",
        _spatter,
        (
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
    ),
    "saturate": Corruption("extra", _saturate, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))),
}
