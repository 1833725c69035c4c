"""What is known of a data set that `prepare` can read as it is downloaded; `known` has all of them."""

import dataclasses
from collections.abc import Callable, Mapping

from vision_jax.preparation.downloads import Download
from vision_jax.preparation.layouts import Listing
from vision_jax.preparation.pixels import Arrays
from vision_jax.preparation.tree import Tree


@dataclasses.dataclass(frozen=True)
class Draw:
    """How images are divided that are published without splits, by a seed: so many of each class, or a share of them,
    are for training, and the others for the test."""

    per_class: int | None = None
    share: float = 0.0

    def describe(self) -> str:
        """Returns what it does, in words."""
        return f"{self.share:.0%}" if self.per_class is None else f"{self.per_class} images"


@dataclasses.dataclass(frozen=True)
class Known:
    """A data set.

    Attributes:
        name: as the user calls it.
        title: as its authors call it.
        homepage: where it is published.
        terms: its license, or for what it may be used, as far as the homepage says so.
        downloads: the files.
        layout: finds images and labels in them.
        examples: the published number of images by split; empty: unknown.
        num_classes: None: unknown.
        tops: names of the folder that the archives unpack to, or in which people keep the files.
        class_names: where the files do not name the classes.
        draw: how to divide images that are published without splits, which the layout calls `train`.
        optional: splits that need not be there.
        telling: the names of the files tell the data set, also where they lie unpacked.
        small: the images are so small that they keep their bytes, which JPEG would harm.
        damaged: names of images that are published with damage.
        note: what a user should know, for the documentation.
    """

    name: str
    title: str
    homepage: str
    terms: str
    downloads: tuple[Download, ...]
    layout: Callable[[Tree], Listing | Arrays]
    examples: Mapping[str, int] = dataclasses.field(default_factory=dict)
    num_classes: int | None = None
    tops: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    draw: Draw | None = None
    optional: frozenset[str] = frozenset()
    telling: bool = True
    small: bool = False
    damaged: frozenset[str] = frozenset()
    note: str = ""
