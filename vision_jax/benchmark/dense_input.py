"""The input benchmark of images with boxes and masks: `--dense`."""

import dataclasses
import io
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import PIL.Image

from vision_jax.benchmark.common import span
from vision_jax.data.boxes import IGNORED, AnnotatedImages, Objects
from vision_jax.data.decode import image_size
from vision_jax.data.dense import DenseTransform
from vision_jax.data.order import BucketOrder, TrainOrder
from vision_jax.data.resizing import Canvas, Resizing
from vision_jax.data.workers import create_loader

NUM_CLASSES = 80
_BOXES = 7  # of an image, as COCO has on average
_BLOCK = 16  # pixels of a side of what a made-up mask consists of
# By name: how images are resized, their canvases, and whether boxes or masks are learned. What torchvision's references
# and ViTDet do: detection at 800 and 1333 pixels, with several scales, with jitter; segmentation at 480.
KINDS: dict[str, tuple[Resizing, tuple[Canvas, ...], bool]] = {
    "fit": (Resizing(), ((800, 1344), (1344, 800)), True),
    "multiscale": (Resizing(shorter=tuple(range(480, 801, 32))), ((800, 1344), (1344, 800)), True),
    "jitter": (Resizing("jitter"), ((1024, 1024),), True),
    "range": (Resizing("range", (260, 1040), None), ((480, 480),), False),
}


class MadeUp(AnnotatedImages):
    """Images in memory with random boxes, and masks of random blocks.

    Args:
        images: encoded ones.
        seed: of boxes and masks.
        masks: whether records have masks instead of boxes.
    """

    num_classes = NUM_CLASSES
    class_names = ()

    def __init__(self, images: Sequence[bytes], seed: int, *, masks: bool):
        random = np.random.RandomState(seed)
        sizes = [image_size(data) for data in images]
        self._images, self.has_masks = list(images), masks
        self._masks = [_blocks(random, *size) for size in sizes] if masks else []
        objects = None if masks else Objects.join([_boxes(random, *size) for size in sizes])
        super().__init__(np.asarray(sizes), np.arange(len(images)), objects)

    def _image(self, index: int) -> bytes:
        return self._images[index]

    def _mask(self, index: int) -> np.ndarray:
        return self._masks[index]

    def describe(self, index: int) -> str:
        return f"made-up image {index}"

    def fingerprint(self) -> str:
        return "made up"


def _boxes(random: np.random.RandomState, height: int, width: int) -> list[Any]:
    corners = np.sort(random.uniform(size=(_BOXES, 2, 2)), axis=1) * [width - 1, height - 1] + [[[0, 0], [1, 1]]]
    labels = random.randint(0, NUM_CLASSES, _BOXES)
    return [(box, int(label), False, 1.0) for box, label in zip(corners.reshape(-1, 4).tolist(), labels, strict=True)]


def _blocks(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    coarse = random.randint(0, NUM_CLASSES, (-(-height // _BLOCK), -(-width // _BLOCK))).astype(np.uint8)
    return np.kron(coarse, np.ones((_BLOCK, _BLOCK), np.uint8))[:height, :width]


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured of one way of resizing.

    Attributes:
        rates: images/s of each round.
        pillow: those of a loop over Pillow's functions on one core, in the same rounds.
        padding: share of the pixels of the batches that are padding.
    """

    rates: list[float]
    pillow: list[float]
    padding: float


def measure(
    images: Sequence[bytes], kind: str, *, batch_size: int, threads: int, rounds: int, seconds: float, seed: int
) -> Result:
    """Loads batches of images with boxes or masks for some time.

    Args:
        images: encoded ones, as many as a batch or more.
        kind: one of `KINDS`.
        batch_size: images per batch.
        threads: decoding threads.
        rounds: measurements of our loader and of Pillow in turn, after one that does not count.
        seconds: of each, or longer for the batch or the image that is under way.
        seed: of boxes, masks, order and crops.
    """
    resizing, canvases, boxes = KINDS[kind]
    source = MadeUp(images, seed, masks=not boxes)
    transform = DenseTransform(resizing, canvases, seed=seed, boxes=boxes, masks=not boxes)
    order: Any = TrainOrder(len(source), batch_size, seed)
    if len(canvases) > 1:
        order = BucketOrder(resizing.canvases_of(source.sizes, canvases), canvases, batch_size, seed)
        transform = transform.following(order)
    rates, pillow_rates, valid, whole, step = [], [], 0, 0, 0
    pillow = _pillow(source, kind, seed)
    with create_loader(source, order, transform, np.arange(batch_size), num_threads=threads) as loader:
        for _ in range(rounds + 1):
            begun: list[Any] = []
            start, count = time.perf_counter(), 0
            while (goes_on := time.perf_counter() - start < seconds) or begun:  # all that is begun is waited for
                while goes_on and len(begun) < loader.lookahead:
                    begun.append(loader.start(step))
                    step += 1
                batch = begun.pop(0)()
                count += batch_size
                valid += int(batch["size"].astype(np.int64).prod(axis=1).sum())
                whole += batch["image"].shape[0] * batch["image"].shape[1] * batch["image"].shape[2]
                batch.release()
            rates.append(count / (time.perf_counter() - start))
            start, count = time.perf_counter(), 0
            while (passed := time.perf_counter() - start) < seconds:
                next(pillow)
                count += 1
            pillow_rates.append(count / passed)
    return Result(rates[1:], pillow_rates[1:], 1 - valid / whole)


def _pillow(source: MadeUp, kind: str, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yields images on canvases, and their masks, as a program that uses Pillow would make them."""
    resizing, canvases, _ = KINDS[kind]
    random = np.random.RandomState(seed)
    for index in itertools.cycle(range(len(source))):
        record = source[index]
        image = PIL.Image.open(io.BytesIO(record["image"])).convert("RGB")
        canvas = canvases[resizing.canvas_of(image.height, image.width, canvases)]
        new = resizing.size(image.height, image.width, canvas, random.uniform())
        size = min(new[0], canvas[0]), min(new[1], canvas[1])
        top, left = (random.randint(whole - part + 1) for whole, part in zip(new, size, strict=True))
        across, down = image.width / new[1], image.height / new[0]
        box = left * across, top * down, (left + size[1]) * across, (top + size[0]) * down
        pixels = np.zeros((*canvas, 3), np.uint8)
        pixels[: size[0], : size[1]] = np.asarray(image.resize(size[::-1], PIL.Image.Resampling.BILINEAR, box))
        mask = None
        if source.has_masks:
            mask = np.full(canvas, IGNORED, np.uint8)
            whole_mask = PIL.Image.fromarray(record["mask"])
            mask[: size[0], : size[1]] = np.asarray(whole_mask.resize(size[::-1], PIL.Image.Resampling.NEAREST, box))
        yield pixels, mask


def format_table(results: dict[str, Result], threads: int) -> str:
    """Returns a line for each way of resizing; ratios are of images/s/core within a round."""
    header = (
        f"{'resizing':<12}{'images/s':>9} {'(rounds)':<16}{'/core':>7}{'Pillow':>8}{'ours / its':>12}{'padding':>9}"
    )
    lines = [f"{header}  canvases"]
    for kind, result in results.items():
        rate = float(np.median(result.rates))
        canvases = ", ".join(f"{height}x{width}" for height, width in KINDS[kind][1])
        what = "boxes" if KINDS[kind][2] else "masks"
        lines.append(
            f"{kind:<12}{rate:9.1f} {span(result.rates, 1):<16}{rate / threads:7.1f}{np.median(result.pillow):8.1f}"
            f"{_ratio(result, threads):12.2f}{result.padding:9.1%}  {canvases}; {what}"
        )
    return "\n".join(lines)


def _ratio(result: Result, threads: int) -> float:
    return float(np.median(np.divide(result.rates, result.pillow))) / threads
