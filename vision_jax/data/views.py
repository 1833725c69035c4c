"""What a batch consists of: its fields, and the views that are cropped from each image.

A batch is a dict of arrays; its transform describes it by a `Field` for each name. A view is one field of images, which
are all cropped from one decoded image. A view with a count above 1 (DINO's crops) has a second axis for them, so that a
batch is sharded over the devices along its first axis only.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vision_jax.errors import ConfigError, suggest

KINDS = ("random_resized", "resize")
# What the loader and the record itself write; see `loader.batch_fields`.
_RESERVED = frozenset({"label", "mask", "replaced"})
_PART = re.compile(r"(?:(?P<name>[^=]*)=)?(?P<count>[^x:]*)x(?P<size>[^:]*)(?::(?P<min>[^-]*)-(?P<max>.*))?")


class Field(NamedTuple):
    """Describes one row of an array of a batch.

    Attributes:
        shape: of a row.
        dtype: of its values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes per row."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class View:
    """One or more crops of each image.

    Attributes:
        name: of its field in the batch.
        kind: random_resized: a random crop, see `crops.random_crops`; resize: the whole image, whatever its aspect
            ratio.
        size: height and width of the result, in pixels.
        count: number of crops, each drawn independently.
        scale: minimum and maximum share of the image's area.
        ratio: minimum and maximum ratio of width to height; (): that of the image.
        geometry: also write where each crop lies, as the field NAME_box: top, left, bottom and right as shares of the
            image's height and width, float32. Flips are done on the devices and are not included.

    Raises:
        ConfigError: for invalid values.
    """

    name: str = "image"
    kind: str = "random_resized"
    size: int = 224
    count: int = 1
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    geometry: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name in _RESERVED:
            reserved = ", ".join(sorted(_RESERVED))
            raise ConfigError(f"A view has the name {self.name!r}: it takes a word that is not one of {reserved}.")
        if self.kind not in KINDS:
            raise ConfigError(f"The view {self.name!r} is of the kind {self.kind!r}: {suggest(self.kind, KINDS)}")
        if self.size < 1 or self.count < 1:
            raise ConfigError(
                f"The view {self.name!r} has count {self.count} and size {self.size}: both must be positive."
            )
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(
                f"The view {self.name!r} has the scale {tuple(self.scale)}: it takes the minimum and maximum share of "
                "the area, above 0 and at most 1."
            )
        if self.ratio and (len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf):
            raise ConfigError(
                f"The view {self.name!r} has the ratio {tuple(self.ratio)}: it takes (minimum, maximum), positive, or "
                "() for that of the image."
            )

    def fields(self, channels: int) -> dict[str, Field]:
        """Returns the fields that it writes: (size, size, channels) uint8, preceded by `count` if that is above 1."""
        several = () if self.count == 1 else (self.count,)
        fields = {self.name: Field((*several, self.size, self.size, channels), np.dtype(np.uint8))}
        if self.geometry:
            fields[f"{self.name}_box"] = Field((*several, 4), np.dtype(np.float32))
        return fields


def check_names(views: Sequence[View]) -> None:
    """Checks that no two views write the same field.

    Raises:
        ConfigError: if two do, or there are none.
    """
    if not views:
        raise ConfigError("There are no views: a batch needs at least one, such as 1x224.")
    names = [name for view in views for name in view.fields(channels=1)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"Two views write {name!r}: give them different names.")


def parse_views(
    text: str, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, ...] = (3 / 4, 4 / 3)
) -> tuple[View, ...]:
    """Reads views such as DINO's "2x224:0.14-1,8x96:0.05-0.14".

    Args:
        text: one or more of [NAME=]COUNTxSIZE[:MIN-MAX], separated by commas: the number of crops, their height and
            width in pixels, and their share of the area. Unnamed views are called image, view1, view2 and so on.
        scale: the share of the area if none is given.
        ratio: of all of them, minimum and maximum ratio of width to height; (): that of the image.

    Raises:
        ConfigError: if a part is malformed; the message says which.
    """
    views = []
    for number, part in enumerate(text.split(",")):
        try:
            views.append(_parse_view(part.strip(), f"view{number}" if number else "image", scale, ratio))
        except ConfigError as error:
            raise ConfigError(f"{part.strip()!r} in {text!r}: {error}") from error
    try:
        check_names(views)
    except ConfigError as error:
        raise ConfigError(f"{text!r}: {error}") from error
    return tuple(views)


def _parse_view(text: str, name: str, scale: tuple[float, float], ratio: tuple[float, ...]) -> View:
    """Reads one part of what `parse_views` reads."""
    match = _PART.fullmatch(text)
    if match is None:
        raise ConfigError("It is not of the form [NAME=]COUNTxSIZE[:MIN-MAX], such as 2x224:0.14-1.")

    def number(group: str, kind: type) -> Any:
        try:
            return kind(match[group])
        except ValueError:
            what = "an integer" if kind is int else "a number"
            raise ConfigError(f"{group.upper()} is {match[group]!r}: it takes {what}.") from None

    if match["min"] is not None:
        scale = (number("min", float), number("max", float))
    if match["name"] is not None:
        name = match["name"]
    return View(name, size=number("size", int), count=number("count", int), scale=scale, ratio=ratio)
