"""What a batch consists of: its fields, and the views that are cut out of each image.

A batch is a dict of arrays, and its transform says which: a `Field` for each name. A view is one field of images, which
the transform cuts out of what it has decoded once; a view that is wanted several times (DINO's crops) has an axis for
them behind that of the rows, so that a batch stays divided over the devices by its first axis alone.
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
_PART = re.compile(r"(?:(?P<name>[^=]*)=)?(?P<count>[^x:]*)x(?P<size>[^:]*)(?::(?P<least>[^-]*)-(?P<largest>.*))?")


class Field(NamedTuple):
    """One array of a batch, as far as a row of it goes.

    Attributes:
        shape: of a row.
        dtype: of its values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class View:
    """What is cut out of each image, once or several times.

    Attributes:
        name: of its field in the batch.
        kind: random_resized: a random part of the image, see `crops.random_crops`; resize: all of the image, whatever
            its shape.
        size: height and width of the result, in pixels.
        count: so many of them, each with its own random part.
        scale: least and largest share of the area of the image.
        ratio: least and largest ratio of width to height.
        geometry: write where each lies as well, as the field NAME_box: top, left, bottom and right as shares of the
            image's height and width, float32. Mirroring is done on the devices and is not in it.

    Raises:
        ConfigError: for values that cannot be.
    """

    name: str = "image"
    kind: str = "random_resized"
    size: int = 224
    count: int = 1
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
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
                f"The view {self.name!r} has the scale {tuple(self.scale)}: it takes the least and the largest share "
                "of the area, more than 0 and at most 1."
            )
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ConfigError(
                f"The view {self.name!r} has the ratio {tuple(self.ratio)}: it takes (least, largest), positive."
            )

    def fields(self, channels: int) -> dict[str, Field]:
        """Returns what it writes: (size, size, channels) uint8, with `count` in front if that is more than 1."""
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
    text: str, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> tuple[View, ...]:
    """Reads views such as DINO's "2x224:0.14-1,8x96:0.05-0.14".

    Args:
        text: one or more of [NAME=]COUNTxSIZE[:LEAST-LARGEST], separated by commas: how many, of which height and width
            in pixels, and which share of the area. Without names they are image, view1, view2 and so on.
        scale: the share of the area where none is given.
        ratio: of all of them, least and largest ratio of width to height.

    Raises:
        ConfigError: if a part is malformed; it says which.
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


def _parse_view(text: str, name: str, scale: tuple[float, float], ratio: tuple[float, float]) -> View:
    """Reads one part of what `parse_views` reads."""
    match = _PART.fullmatch(text)
    if match is None:
        raise ConfigError("It is not of the form [NAME=]COUNTxSIZE[:LEAST-LARGEST], such as 2x224:0.14-1.")

    def number(group: str, kind: type) -> Any:
        try:
            return kind(match[group])
        except ValueError:
            what = "an integer" if kind is int else "a number"
            raise ConfigError(f"{group.upper()} is {match[group]!r}: it takes {what}.") from None

    if match["least"] is not None:
        scale = (number("least", float), number("largest", float))
    if match["name"] is not None:
        name = match["name"]
    return View(name, size=number("size", int), count=number("count", int), scale=scale, ratio=ratio)
