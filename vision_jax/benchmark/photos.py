"""The pictures of the input benchmark: photo-like JPEGs made on the spot, or a sample of a data set, on disk as
ArrayRecord (for our loader and Grain) and as files (for the others), with the same bytes."""

import concurrent.futures
import dataclasses
import io
import pathlib
import random
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageFilter

from vision_jax.data import decode
from vision_jax.data.crops import choose_crops
from vision_jax.data.pillow import MAX_PIXELS
from vision_jax.data.views import View
from vision_jax.errors import DataError, reason

ENCODINGS = ("original", "jpeg256", "plain256", "raw256")

_QUALITY = 90

Example = tuple[bytes, int]  # an encoded image and its label
Crops = tuple[np.ndarray, ...]  # an array for each crop


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Pictures on disk, and the crops of each.

    Attributes:
        directory: holds `array_record/` in tfds' layout with the split `train`, and `files/`.
        files: of the pictures, in the order of the records.
        labels: (n,) int64.
        sizes: (n, 2) int64, heights and widths.
        views: what is cut out of each; there are V in all, each counted `View.count` times.
        boxes: (n, V, 4) int64: top, left, height, width of the random crops that our loader takes in epoch 0.
        kibibytes: mean size of an encoded picture.
    """

    directory: pathlib.Path
    files: list[pathlib.Path]
    labels: np.ndarray
    sizes: np.ndarray
    views: tuple[View, ...]
    boxes: np.ndarray
    kibibytes: float

    def __len__(self) -> int:
        return len(self.files)

    @property
    def crop_sizes(self) -> list[int]:
        """Height and width of each crop."""
        return [view.size for view in self.views for _ in range(view.count)]


def make(count: int, seed: int) -> list[Example]:
    """Makes JPEGs that cost what ImageNet's originals cost: 500x375 pixels and 82 KiB on average, at quality 96.

    They are random crops of scikit-learn's two photographs, enlarged or reduced by up to about two, some mirrored,
    lighter or darker. The label says of which photograph.

    Args:
        count: how many.
        seed: decides them all.
    """
    from sklearn.datasets import load_sample_images  # here, because it takes two seconds

    photos = [PIL.Image.fromarray(photo) for photo in load_sample_images().images]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(lambda i: (_vary(photos[i % 2], np.random.RandomState((seed, i))), i % 2), range(count)))


def _vary(photo: PIL.Image.Image, random: np.random.RandomState) -> bytes:
    """Returns a JPEG of a random part of a photograph."""
    width = random.randint(430, 571)
    height = round(width * 0.75 * random.uniform(0.85, 1.15))
    share = random.uniform(0.55, 1.0)  # of the photograph's sides; the smaller, the smoother and the fewer bytes
    box_width = min(photo.width, photo.height * width / height) * share
    box_height = box_width * height / width
    left, top = random.uniform(0, photo.width - box_width), random.uniform(0, photo.height - box_height)
    box = (left, top, left + box_width, top + box_height)
    image = photo.resize((width, height), PIL.Image.Resampling.BICUBIC, box=box)
    if random.uniform() < 0.5:
        image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    brightness = random.uniform(0.8, 1.2)
    encoded = io.BytesIO()
    image.point(lambda level: level * brightness).save(encoded, "JPEG", quality=96)
    return encoded.getvalue()


def sample(directory: pathlib.Path, split: str, count: int) -> list[Example]:
    """Returns `count` examples of a data set, evenly spaced over the split; all, where it has no more.

    Args:
        directory: a data set in tfds' layout, or a folder DIR/SPLIT/CLASS/IMAGE.
        split: of it.
        count: how many.

    Raises:
        DataError: if there is no such data set or split.
    """
    from vision_jax.data import sources, tfds_format

    if not directory.is_dir():
        raise DataError(f"--data is {directory}, which is no folder: give one with images.")
    source = (sources.TfdsSource if tfds_format.has_dataset(directory) else sources.FolderSource)(directory, split)
    records = [source[int(i)] for i in np.linspace(0, len(source) - 1, min(count, len(source)))]
    return [(record["image"], record["label"]) for record in records]


def encode(example: Example, encoding: str) -> Example:
    """Encodes an example as `python -m vision_jax prepare` does.

    Args:
        example: encoded image and label.
        encoding: original: as it is. jpeg256: a shorter side of 256 pixels, quality 90 and restart markers. plain256:
            the same without restart markers, as most others write JPEGs. raw256: the same pixels as binary PPM.
    """
    from vision_jax.preparation.convert import Conversion

    data, label = example
    if encoding == "original":
        return example
    conversion = Conversion(
        encoding="jpeg" if encoding == "jpeg256" else "raw",
        short_side=256,
        quality=_QUALITY,
        apply_exif_orientation=False,
        max_pixels=MAX_PIXELS,
    )
    converted = conversion(data)
    if encoding == "plain256":
        with PIL.Image.open(io.BytesIO(converted)) as image:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=_QUALITY, subsampling="4:2:0")
        converted = file.getvalue()
    return converted, label


def write(
    directory: pathlib.Path, examples: Sequence[Example], encoding: str, views: tuple[View, ...], seed: int
) -> Dataset:
    """Writes the examples into an empty folder, in an encoding.

    Args:
        directory: is made.
        examples: encoded images and labels.
        encoding: see `encode`.
        views: what is to be cut out of each.
        seed: decides the crops.

    Raises:
        DataError: if one of them cannot be decoded.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        try:
            encoded = list(pool.map(lambda example: encode(example, encoding), examples))
            sizes = np.array([decode.image_size(data) for data, _ in encoded])
        except (ValueError, OSError) as error:  # Pillow's, too
            raise DataError(f"An image of the data cannot be decoded: {reason(error)}. Repair or remove it.") from error
    labels = np.array([label for _, label in encoded])
    (directory / "files").mkdir(parents=True)
    files = []
    for number, (data, _) in enumerate(encoded):
        files.append(directory / "files" / f"{number:06d}{'.ppm' if data[:2] == b'P6' else '.jpg'}")
        files[-1].write_bytes(data)
    _write_array_record(directory / "array_record", encoded, num_classes=int(labels.max()) + 1)
    kibibytes = sum(len(data) for data, _ in encoded) / len(encoded) / 1024
    numbers = np.arange(len(sizes))
    boxes = choose_crops(views, seed, numbers, np.zeros_like(numbers), sizes)
    return Dataset(directory, files, labels, sizes, views, boxes, kibibytes)


def _write_array_record(directory: pathlib.Path, examples: Sequence[Example], num_classes: int) -> None:
    from vision_jax.data import tfds_format  # here, because writing imports tfds

    directory.mkdir()
    tfds_format.write_dataset(directory, "photos", {"train": examples}, [str(label) for label in range(num_classes)])


def reference(dataset: Dataset, records: Sequence[int], filter_name: str) -> Crops:
    """Returns the crops as Pillow makes them, decoded exactly and resized by its antialiased filter.

    Returns:
        for each crop, (len(records), size, size, 3) uint8.
    """
    crops = [pillow_crops(dataset, record, filter_name) for record in records]
    return tuple(np.stack(one) for one in zip(*crops, strict=True))


def pillow_crops(
    dataset: Dataset, record: int, filter_name: str, change: Callable[[PIL.Image.Image], PIL.Image.Image] | None = None
) -> Crops:
    """Does what torchvision's RandomResizedCrop does to a Pillow image, with given crops of one decoding.

    Args:
        dataset: the pictures.
        record: which one.
        filter_name: bilinear or bicubic.
        change: what is done to each crop afterwards.

    Returns:
        for each crop, (size, size, 3) uint8.
    """
    with PIL.Image.open(dataset.files[record]) as file:
        image = file.convert("RGB")
    crops = []
    for (top, left, height, width), size in zip(dataset.boxes[record].tolist(), dataset.crop_sizes, strict=True):
        crop = image.crop((left, top, left + width, top + height))
        crop = crop.resize((size, size), PIL.Image.Resampling[filter_name.upper()])
        crops.append(np.asarray(change(crop) if change else crop))
    return tuple(crops)


def augment_by_pillow(crop: PIL.Image.Image) -> PIL.Image.Image:
    """Does to a crop what MoCo v2, SwAV and DINO do to one in the workers of a data loader, by torchvision with Pillow.

    Flip (probability 0.5), color jitter (0.4, 0.4, 0.2, 0.1; probability 0.8; in random order), grayscale (0.2), and a
    Gaussian blur of radius 0.1 to 2 (0.5, which is nearly what DINO's ten crops have on average).
    """
    if random.random() < 0.5:
        crop = crop.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < 0.8:
        operations = ["Brightness", "Contrast", "Color", "hue"]
        for operation in random.sample(operations, len(operations)):
            if operation == "hue":
                hue, saturation, value = crop.convert("HSV").split()
                # As torchvision does: uint8 that wraps around.
                moved = np.asarray(hue) + np.array(int(random.uniform(-0.1, 0.1) * 255)).astype(np.uint8)
                crop = PIL.Image.merge("HSV", (PIL.Image.fromarray(moved), saturation, value)).convert("RGB")
            else:
                strength = 0.2 if operation == "Color" else 0.4
                crop = getattr(PIL.ImageEnhance, operation)(crop).enhance(random.uniform(1 - strength, 1 + strength))
    if random.random() < 0.2:
        crop = crop.convert("L").convert("RGB")
    if random.random() < 0.5:
        crop = crop.filter(PIL.ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
    return crop
