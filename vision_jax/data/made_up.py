"""Made-up images with boxes and masks, which need no data and teach nothing: for dry runs and for measuring steps."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import PIL.Image
import simplejpeg

from vision_jax.data.order import random_bits, random_uniform
from vision_jax.data.sources import Record, digest_of

_PICTURES, _BOXES, _SIDES, _LABELS = 6, 7, 8, 9  # streams of random numbers
_SIZES = ((480, 640), (640, 480))  # the most frequent ones of COCO
_DIFFERENT = 16  # pictures of each size
_MOST = 8  # boxes of an image


@dataclasses.dataclass(frozen=True)
class MadeUpSource:
    """Smooth random pictures with up to eight boxes; see `vision_jax.data.boxes` for the records.

    Attributes:
        num_examples: length of the source.
        num_classes: of boxes, or of masks with the background.
        seed: of all.
        masks: whether records have a mask, in which each box is filled with its class.
    """

    num_examples: int
    num_classes: int
    seed: int
    masks: bool = False
    class_names: Sequence[str] = ()

    has_boxes = True

    @property
    def has_masks(self) -> bool:
        return self.masks

    @functools.cached_property
    def _pictures(self) -> tuple[list[bytes], ...]:
        """The encoded pictures of each size."""
        random = np.random.RandomState(self.seed)

        def encode(height: int, width: int) -> bytes:
            coarse = PIL.Image.fromarray(random.randint(0, 256, (8, 8, 3)).astype(np.uint8))
            image = coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)
            return simplejpeg.encode_jpeg(np.asarray(image), quality=90, colorsubsampling="420")

        return tuple([encode(*size) for _ in range(_DIFFERENT)] for size in _SIZES)

    def __len__(self) -> int:
        return self.num_examples

    def _bits(self, index: int) -> int:
        return int(random_bits(_PICTURES, self.seed, index)[0])

    @property
    def sizes(self) -> np.ndarray:
        """See `vision_jax.data.boxes.DenseSource`."""
        bits = random_bits(_PICTURES, self.seed, np.arange(self.num_examples))
        return np.asarray(_SIZES, np.int32)[bits % np.uint64(len(_SIZES))]

    def image_size(self, index: int) -> tuple[int, int]:
        """See `vision_jax.data.boxes.DenseSource`."""
        return _SIZES[self._bits(index) % len(_SIZES)]

    def annotations(self, index: int) -> Record:
        """See `vision_jax.data.boxes.DenseSource`."""
        height, width = self.image_size(index)
        count = self._bits(index) // len(_SIZES) % (_MOST + 1)
        places = random_uniform(_BOXES, self.seed, index, np.arange(2 * count)).reshape(count, 2)
        sides = 0.1 + 0.4 * random_uniform(_SIDES, self.seed, index, np.arange(2 * count)).reshape(count, 2)
        sides *= (width, height)
        begins = places * ((width, height) - sides)
        first = 1 if self.masks else 0
        labels = random_bits(_LABELS, self.seed, index, np.arange(count)) % np.uint64(max(1, self.num_classes - first))
        return {
            "image_id": index,
            "size": (height, width),
            "boxes": np.concatenate([begins, begins + sides], axis=1).astype(np.float32),
            "box_labels": labels.astype(np.int32) + first,
            "crowd": np.zeros(count, bool),
            "area": sides.prod(axis=1),
        }

    def __getitem__(self, index: int) -> Record:
        bits = self._bits(index)
        picture = self._pictures[bits % len(_SIZES)][bits // 1024 % _DIFFERENT]
        record = {"image": picture, **self.annotations(index)}
        if self.masks:
            record["mask"] = np.zeros(record["size"], np.uint8)
            for (x1, y1, x2, y2), label in zip(record["boxes"].astype(int), record["box_labels"], strict=True):
                record["mask"][y1:y2, x1:x2] = label
        return record

    def describe(self, index: int) -> str:
        return f"made-up image {index}"

    def fingerprint(self) -> str:
        """See `sources.Source`."""
        return digest_of("made up", dataclasses.astuple(self))
