"""Corrupted data sets, as ImageNet-C is made: images are resized, cropped, corrupted and encoded again.

The corruptions themselves are in `vision_jax.augment.corruptions`, which is imported where it is used: it brings SciPy.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image

from vision_jax.errors import ConfigError, suggest

QUALITY = 85  # of the JPEGs of ImageNet-C
CROP = 224
_GROUPS = ("noise", "blur", "weather", "digital", "extra")  # ImageNet-C's archives
_ALL = "all"  # those of mCE


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides the bytes of the result.

    Attributes:
        name, severity: of the corruption.
        crop: height and width of the middle that is cut out first; 0: the whole image.
        seed: of the random numbers, together with the name of each image.
        frost: digest of the pictures of frost; None: they are made up, or not used.
    """

    name: str
    severity: int
    crop: int
    seed: int
    frost: str | None


@dataclasses.dataclass(frozen=True)
class Corruptions:
    """What to make of a data set's images.

    Attributes:
        wanted: names and severities.
        crop, seed: see `Options`.
        frost, frost_digest: the pictures; None: they are made up.
    """

    wanted: Sequence[tuple[str, int]]
    crop: int
    seed: int
    frost: Sequence[np.ndarray] | None = None
    frost_digest: str | None = None

    def options(self, name: str, severity: int) -> Options:
        """Returns the options of one of the data sets."""
        return Options(name, severity, self.crop, self.seed, self.frost_digest if name == "frost" else None)


@dataclasses.dataclass(frozen=True)
class Corrupter:
    """Corrupts images, as `options` say; `frost` are the pictures."""

    options: Options
    frost: Sequence[np.ndarray] | None

    def __call__(self, image: PIL.Image.Image, short_side: int, name: bytes) -> PIL.Image.Image:
        """Resizes an image, cuts out its middle and corrupts it.

        Sizes, filter and place of the crop are torchvision's (`Resize`, `CenterCrop`), with which ImageNet-C was made;
        small images are enlarged.

        Args:
            image: RGB.
            short_side: pixels of the shorter side before the crop; 0: the image is not resized.
            name: of the image, which its random numbers depend on.

        Raises:
            ValueError: if the image is too small.
        """
        from vision_jax.augment.corruptions import corrupt, random_state

        options = self.options
        width, height = image.size
        if short_side:
            short = min(width, height)
            width, height = (short_side * side // short for side in (width, height))
            if (width, height) != image.size:
                image = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
        if options.crop:
            if min(width, height) < options.crop:
                raise ValueError(f"it has {width}x{height} pixels, fewer than --crop={options.crop}: lower that")
            left, top = round((width - options.crop) / 2), round((height - options.crop) / 2)
            image = image.crop((left, top, left + options.crop, top + options.crop))
        random = random_state(options.seed, options.name, options.severity, name)
        pixels = corrupt(np.asarray(image), options.name, options.severity, random, frost=self.frost)
        return PIL.Image.fromarray(pixels)


def parse(text: str) -> list[tuple[str, int]]:
    """Reads what --corrupt says: NAME or NAME:SEVERITY, and more behind commas.

    A name may be that of a group of ImageNet-C's corruptions, or `all` for the 15 of mCE; without a severity it is all
    five.

    Returns:
        names and severities, each pair once, in the order of the corruptions.

    Raises:
        ConfigError: for an unknown corruption or severity.
    """
    from vision_jax.augment.corruptions import CORRUPTIONS, SEVERITIES

    found: set[tuple[str, int]] = set()
    for item in text.split(","):
        name, colon, level = item.strip().partition(":")
        if colon and (not level.isascii() or not level.isdigit() or int(level) not in SEVERITIES):
            raise ConfigError(f"--corrupt has {item.strip()!r}: severities are 1 to 5.")
        if name == _ALL:
            names = [one for one, kind in CORRUPTIONS.items() if kind.group != "extra"]
        elif name in _GROUPS:
            names = [one for one, kind in CORRUPTIONS.items() if kind.group == name]
        elif name in CORRUPTIONS:
            names = [name]
        else:
            choices = [*CORRUPTIONS, *_GROUPS, _ALL]
            raise ConfigError(f"--corrupt has {name!r}, which is no corruption: {suggest(name, choices)}")
        found |= {(one, severity) for one in names for severity in ([int(level)] if colon else SEVERITIES)}
    order = list(CORRUPTIONS)
    return sorted(found, key=lambda pair: (order.index(pair[0]), pair[1]))


def read_frost(directory: str | None) -> tuple[list[np.ndarray] | None, str | None]:
    """Returns the pictures of frost in the folder of --frost, and their digest; None: there is no such folder given.

    Raises:
        DataError: if they cannot be read.
    """
    from vision_jax.augment import frost

    return (None, None) if directory is None else frost.read_pictures(pathlib.Path(directory).expanduser())


def evaluated(splits: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Returns the split that is corrupted: for validation, or else for testing; otherwise all."""
    for name in ("validation", "test"):
        if name in splits:
            return {name: splits[name]}
    return splits
