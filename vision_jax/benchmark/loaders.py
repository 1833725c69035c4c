"""The loaders that are compared, ours and others': each decodes, crops and resizes the same boxes of the same bytes.

Each is used as its own users do. What they share: the boxes, the cores, the batch size, uint8 output in NumPy's memory,
records in the page cache. Each function yields (records, crops) without end: the numbers of the records, (batch,), and
for each crop, (batch, size, size, 3) uint8, valid until the next ones are asked for.
"""

import collections
import dataclasses
import importlib.util
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vision_jax.benchmark import photos

Batches = Iterator[tuple[np.ndarray, photos.Crops]]


@dataclasses.dataclass(frozen=True)
class Job:
    """What every loader is given.

    Attributes:
        dataset: the pictures, and what is cut out of them; their number is a multiple of the batch size.
        batch_size: images per batch.
        threads: decoding threads or processes.
        seed: of the crops.
        filter: bilinear or bicubic.
    """

    dataset: photos.Dataset
    batch_size: int
    threads: int
    seed: int
    filter: str = "bilinear"

    @property
    def size(self) -> int:
        """Height and width of the crops, for loaders that take one of each image."""
        return self.dataset.views[0].size

    @property
    def boxes(self) -> np.ndarray:
        """The crops, for loaders that take one of each image: (n, 4) int64, top, left, height, width."""
        return self.dataset.boxes[:, 0]


@dataclasses.dataclass(frozen=True)
class Loader:
    """One line of the table.

    Attributes:
        open: starts it.
        module: what it imports.
        packages: names under which that is distributed; the first is the one to install.
        summary: where it reads from, and what it does.
        single_core: it uses one core, whatever `threads` is.
        encodings: of `photos.ENCODINGS`, those that it can decode.
        all_views: whether it can cut several crops out of one decoding, with either filter; here, that is.
        augments: whether it changes the pixels of the crops, too, so that they are not compared with Pillow's.
    """

    open: Callable[[Job], Batches]
    module: str
    packages: tuple[str, ...]
    summary: str
    single_core: bool = False
    encodings: tuple[str, ...] = photos.ENCODINGS
    all_views: bool = False
    augments: bool = False

    def is_installed(self) -> bool:
        parent = self.module.rpartition(".")[0]
        if parent and importlib.util.find_spec(parent) is None:  # find_spec raises where the parent is missing
            return False
        return importlib.util.find_spec(self.module) is not None


def our_loader(job: Job, num_workers: int = 0) -> Any:
    """Returns our loader on the ArrayRecord data set; its steps are to stay below `len(job.dataset) / batch_size`."""
    from vision_jax.data import order, sources, transforms, workers

    source = sources.TfdsSource(job.dataset.directory / "array_record", "train")
    transform = transforms.TrainTransform(job.dataset.views, 3, job.seed, filter=job.filter)
    the_order = order.TrainOrder(len(source), job.batch_size, job.seed)
    rows = np.arange(job.batch_size)
    return workers.create_loader(source, the_order, transform, rows, num_workers=num_workers, num_threads=job.threads)


def _vision_jax(job: Job, num_workers: int = 0) -> Batches:
    from vision_jax.data import order

    loader = our_loader(job, num_workers)
    the_order = order.TrainOrder(len(job.dataset), job.batch_size, job.seed)
    # Epoch 0 again and again: another one has other crops.
    steps = itertools.cycle(range(len(job.dataset) // job.batch_size))
    begun: collections.deque = collections.deque()
    while True:
        while len(begun) < loader.lookahead:
            step = next(steps)
            begun.append((the_order.records(step), loader.start(step)))
        records, wait = begun.popleft()
        batch = wait()
        views = ((view, batch[view.name]) for view in job.dataset.views)
        yield (
            records,
            tuple(crop for view, rows in views for crop in (rows.swapaxes(0, 1) if view.count > 1 else [rows])),
        )
        batch.release()


def _vision_jax_processes(job: Job) -> Batches:
    return _vision_jax(job, num_workers=job.threads)


def _pillow(job: Job) -> Batches:
    for records in _in_order(job):
        crops = tuple(np.empty((len(records), size, size, 3), np.uint8) for size in job.dataset.crop_sizes)
        for row, record in enumerate(records.tolist()):
            for rows, crop in zip(crops, photos.pillow_crops(job.dataset, record, job.filter), strict=True):
                rows[row] = crop
        yield records, crops


def _in_order(job: Job) -> Iterator[np.ndarray]:
    """Yields the records of batch after batch, as stored, without end."""
    return itertools.cycle(np.split(np.arange(len(job.dataset)), len(job.dataset) // job.batch_size))


def _tf_data(job: Job) -> Batches:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(job.threads)
    tf.config.threading.set_inter_op_parallelism_threads(job.threads)
    features = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}

    def load(record: Any, box: Any) -> Any:
        data = tf.io.parse_single_example(record, features)["image"]
        image = tf.io.decode_and_crop_jpeg(data, box, channels=3)
        return tf.cast(tf.image.resize(image, (job.size, job.size), "bilinear"), tf.uint8)

    records = tf.data.TFRecordDataset(os.fspath(_write_tfrecords(job.dataset)))
    boxes = tf.data.Dataset.from_tensor_slices(job.boxes.astype(np.int32))
    images = tf.data.Dataset.zip((records, boxes)).repeat().map(load, num_parallel_calls=job.threads)
    images = images.batch(job.batch_size, drop_remainder=True).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = job.threads
    return _single(job, images.with_options(options).as_numpy_iterator())


def _single(job: Job, batches: Iterator[np.ndarray]) -> Batches:
    """Returns the batches of a loader that takes one crop of each image."""
    return ((records, (images,)) for records, images in zip(_in_order(job), batches, strict=False))


def _write_tfrecords(dataset: photos.Dataset) -> pathlib.Path:
    import tensorflow as tf

    path = dataset.directory / "photos.tfrecord"
    with tf.io.TFRecordWriter(os.fspath(path)) as writer:
        for file, label in zip(dataset.files, dataset.labels.tolist(), strict=True):
            image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[file.read_bytes()]))
            feature = {"image": image, "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))}
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    return path


@dataclasses.dataclass(frozen=True)
class _TorchCrops:
    """A map-style data set of torch: the crops, by record. It is pickled into the workers."""

    dataset: photos.Dataset
    filter: str
    with_torchvision: bool
    augments: bool

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, record: int) -> Any:
        """Returns a list of all crops, (3, size, size) uint8 from torchvision, or (size, size, 3) without it."""
        if not self.with_torchvision:
            change = photos.augment_by_pillow if self.augments else None
            return list(photos.pillow_crops(self.dataset, record, self.filter, change))
        import PIL.Image
        import torchvision.transforms.functional as F

        with PIL.Image.open(self.dataset.files[record]) as file:
            image = file.convert("RGB")
        mode = F.InterpolationMode(self.filter)
        return [
            F.pil_to_tensor(F.resized_crop(image, *box, [size, size], mode))
            for box, size in zip(self.dataset.boxes[record].tolist(), self.dataset.crop_sizes, strict=True)
        ]


class _Endless:
    """A batch sampler of torch that never ends an epoch, since starting one anew empties the workers' queues."""

    def __init__(self, job: Job):
        self.job = job

    def __iter__(self) -> Iterator[list[int]]:
        return (records.tolist() for records in _in_order(self.job))


def _torch(job: Job, augments: bool = False) -> Batches:
    import torch.utils.data

    with_torchvision = importlib.util.find_spec("torchvision") is not None and not augments
    dataset: Any = _TorchCrops(job.dataset, job.filter, with_torchvision, augments)
    sampler: Any = _Endless(job)
    batches = iter(torch.utils.data.DataLoader(dataset, batch_sampler=sampler, num_workers=job.threads))
    for records in _in_order(job):
        crops = next(batches)
        yield records, tuple((crop.permute(0, 2, 3, 1) if with_torchvision else crop).numpy() for crop in crops)


def _torch_augment(job: Job) -> Batches:
    return _torch(job, augments=True)


def _grain(job: Job) -> Batches:
    import cv2
    import grain

    from vision_jax.data import tfds_format

    cv2.setNumThreads(0)  # Grain's threads keep the cores busy
    boxes, parse = job.boxes.tolist(), tfds_format.example_parser()

    def load(index: int, record: bytes) -> np.ndarray:
        data = np.frombuffer(parse(record).features.feature["image"].bytes_list.value[0], np.uint8)
        image: Any = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        top, left, height, width = boxes[index % len(boxes)]  # the index goes on counting in the next epoch
        crop = image[top : top + height, left : left + width]
        resized = cv2.resize(crop, (job.size, job.size), interpolation=cv2.INTER_LINEAR)
        return cv2.cvtColor(resized, cv2.COLOR_BGR2RGB)

    files = sorted(map(os.fspath, (job.dataset.directory / "array_record").glob("*.array_record-*")))
    images = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(files)).map_with_index(load).repeat()
    options = grain.ReadOptions(num_threads=job.threads, prefetch_buffer_size=2 * job.batch_size)
    return _single(job, iter(images.to_iter_dataset(options).batch(job.batch_size)))


def _dali(job: Job) -> Batches:
    from nvidia.dali import fn, pipeline_def, types

    def corners() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for records in _in_order(job):
            boxes = job.boxes[records].astype(np.int32)
            yield np.ascontiguousarray(boxes[:, :2]), np.ascontiguousarray(boxes[:, 2:])

    @pipeline_def(batch_size=job.batch_size, num_threads=job.threads, device_id=None, prefetch_queue_depth=2)
    def pipeline() -> Any:
        anchors, shapes = fn.external_source(corners, num_outputs=2)
        data, _ = fn.readers.file(files=[os.fspath(file) for file in job.dataset.files])
        images = fn.decoders.image_slice(data, anchors, shapes, axis_names="HW", output_type=types.RGB)
        size = job.size
        return fn.resize(images, resize_x=size, resize_y=size, interp_type=types.INTERP_LINEAR, antialias=True)

    built = pipeline()
    built.build()
    for records in _in_order(job):
        (images,) = built.run()
        yield records, (np.asarray(images.as_tensor()),)


LOADERS = {
    "vision_jax": Loader(
        _vision_jax,
        "vision_jax",
        ("vision_jax",),
        "ArrayRecord, at random; decodes and resizes on threads",
        all_views=True,
    ),
    "processes": Loader(
        _vision_jax_processes,
        "vision_jax",
        ("vision_jax",),
        "vision_jax with data.num_workers, one per core",
        all_views=True,
    ),
    "tf.data": Loader(
        _tf_data,
        "tensorflow",
        ("tensorflow-cpu", "tensorflow"),
        "TFRecord, in order; decode_and_crop_jpeg, bilinear without antialiasing",
        encodings=("original", "jpeg256", "plain256"),
    ),
    "dali": Loader(
        _dali,
        "nvidia.dali",
        ("nvidia-dali-cuda120", "nvidia-dali-cuda130", "nvidia-dali-cuda110"),
        "files, in order; decoders.image_slice and resize (antialiased) on the CPU",
    ),
    "grain": Loader(
        _grain, "grain", ("grain",), "ArrayRecord, in order; OpenCV's imdecode, bilinear without antialiasing; threads"
    ),
    "torch": Loader(
        _torch,
        "torch",
        ("torch",),
        "files, in order; Pillow, as torchvision's RandomResizedCrop (antialiased); worker processes",
        all_views=True,
    ),
    "torch_augment": Loader(
        _torch_augment,
        "torch",
        ("torch",),
        "torch, and flips, color jitter, grayscale and blur by Pillow in its workers, which ours leaves to the step",
        all_views=True,
        augments=True,
    ),
    "pillow": Loader(
        _pillow,
        "PIL",
        ("pillow",),
        "files, in order; the same in a plain loop on one core",
        single_core=True,
        all_views=True,
    ),
}
