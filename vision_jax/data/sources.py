"""Where records come from. A source answers `len`, `source[i] -> (encoded bytes, label)`, `num_classes`, `describe(i)`.

Access is at random and safe from many threads; a source has no order of its own.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import PIL.Image
import simplejpeg
from ml_collections import ConfigDict

from vision_jax.config import closest
from vision_jax.data import digits, order
from vision_jax.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"})


class Source(Protocol):
    """Encoded images with labels, at random access."""

    @property
    def num_classes(self) -> int:
        """Labels are 0 to num_classes - 1."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """One for each label; empty if unknown."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, int]: ...

    def describe(self, index: int) -> str:
        """Returns words by which a person finds the record."""
        ...


def cache_dir() -> pathlib.Path:
    """Returns $XDG_CACHE_HOME/vision_jax, or ~/.cache/vision_jax; it is made on first use, private to the user."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = pathlib.Path(root).expanduser() / "vision_jax"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"Cannot make the cache {path}: {error}. Point XDG_CACHE_HOME at another folder.") from error
    return path


def create_source(config: ConfigDict, *, train: bool) -> Source:
    """Returns the training or validation source that `config.data` names.

    Raises:
        DataError: if it is missing, empty or malformed.
    """
    data = config.data
    split = data.train_split if train else data.val_split
    match data.source:
        case "synthetic":
            examples = data.synthetic_train_examples if train else data.synthetic_val_examples
            size = data.image_size if train else data.eval_resize
            return SyntheticSource(examples, config.model.num_classes or 1000, size, seed=config.seed)
        case "folder":
            return FolderSource(pathlib.Path(data.dir).expanduser(), split)
        case "tfds":
            return TfdsSource(pathlib.Path(data.dir).expanduser(), split)
        case "digits":
            root = pathlib.Path(data.dir).expanduser() if data.dir else cache_dir()
            try:
                directory = digits.prepare(root)
            except OSError as error:
                raise DataError(
                    f"Cannot write the digits to {root}: {error}. Set data.dir to another folder."
                ) from error
            return TfdsSource(directory, split)
    raise DataError(f"data.source is {data.source!r}, which is unknown.")


class TfdsSource:
    """A split of an ArrayRecord data set in tfds' layout, with one image and one class label an example.

    Args:
        directory: the folder with features.json, or one above it that holds no second data set.
        split: a split's name, or a slice such as `train[:99%]`.

    Raises:
        DataError: if there is no such data set or split, or it is empty or in another file format.
    """

    def __init__(self, directory: pathlib.Path, split: str):
        import tensorflow_datasets as tfds  # here, because it takes most of a second
        from tensorflow_datasets.proto import tf_example_generated_pb2

        self.directory = _find_tfds(directory)
        self.split = split
        try:
            builder = tfds.builder_from_directory(os.fspath(self.directory))
        except Exception as error:  # whatever its parsers raise: the files are to blame
            raise DataError(f"The metadata in {self.directory} cannot be read: {error}. Prepare it again.") from error
        self._image_key, self._label_key = _image_and_label(builder.info.features, self.directory)
        self.num_classes = builder.info.features[self._label_key].num_classes
        self.class_names = builder.info.features[self._label_key].names or ()
        if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise DataError(
                f"{self.directory} holds {builder.info.file_format.value} files. Random access needs ArrayRecord: "
                "prepare the data set again with `tfds build --file_format=array_record`."
            )
        for part in split.split("+"):
            if (name := part.partition("[")[0].strip()) not in builder.info.splits:
                raise DataError(f"{self.directory} has no split {name!r}: {closest(name, list(builder.info.splits))}")
        try:
            # Only the wrapping of tf.train.Example is taken off here: tfds' decoding costs more than reading.
            raw_bytes = tfds.decode.DeserializeMethod.RAW_BYTES
            self._records = builder.as_data_source(split, deserialize_method=raw_bytes)
        except Exception as error:  # as above: a slice that is empty or misspelt, files that are gone
            raise DataError(f"{self.directory} cannot give the split {split!r}: {error}.") from error
        self._parse = tf_example_generated_pb2.Example.FromString

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        features = self._parse(self._records[int(index)]).features.feature
        return features[self._image_key].bytes_list.value[0], features[self._label_key].int64_list.value[0]

    def describe(self, index: int) -> str:
        return f"record {index} of the split {self.split!r} in {self.directory}"


def _find_tfds(directory: pathlib.Path) -> pathlib.Path:
    """Returns the one folder with features.json at or up to three levels (name/config/version) below `directory`."""
    if (directory / "features.json").is_file():
        return directory
    found: list[pathlib.Path] = []
    for depth in ("*", "*/*", "*/*/*"):
        found += sorted(path.parent for path in directory.glob(f"{depth}/features.json"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(
            f"{directory} holds no prepared data set: there is no features.json in it or below. Point data.dir at the "
            "folder that tfds wrote, or use data.source=folder for DIR/SPLIT/CLASS/IMAGE."
        )
    raise DataError(f"{directory} holds several data sets, point data.dir at one of: {', '.join(map(str, found))}")


def _image_and_label(features: Any, directory: pathlib.Path) -> tuple[str, str]:
    """Returns the keys of the only image and the only class label of a tfds data set."""
    import tensorflow_datasets as tfds

    keys = []
    for kind in (tfds.features.Image, tfds.features.ClassLabel):
        matching = [key for key, feature in features.items() if isinstance(feature, kind)]
        if len(matching) != 1:
            raise DataError(f"{directory} has {len(matching)} features of type {kind.__name__} ({matching}), not one.")
        keys.append(matching[0])
    return keys[0], keys[1]


class FolderSource:
    """Images in class folders, as DIR/SPLIT/CLASS/IMAGE. Labels number the class names in sorted order.

    Raises:
        DataError: if the split or its classes are missing or empty.
    """

    def __init__(self, directory: pathlib.Path, split: str):
        root = directory / split
        if not root.is_dir():
            there = sorted(path.name for path in directory.iterdir() if path.is_dir())
            raise DataError(
                f"{root} does not exist. A folder data set is DIR/SPLIT/CLASS/IMAGE; in {directory} there are the "
                f"folders {there}. Set data.dir, data.train_split and data.val_split accordingly."
            )
        self.class_names = sorted(path.name for path in root.iterdir() if path.is_dir())
        self.num_classes = len(self.class_names)
        self._paths: list[pathlib.Path] = []
        labels: list[int] = []
        for label, name in enumerate(self.class_names):
            paths = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not paths:
                raise DataError(f"{root / name} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
            self._paths += paths
            labels += [label] * len(paths)
        if not self._paths:
            raise DataError(f"{root} holds no class folders.")
        self._labels = np.asarray(labels, np.int32)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self._paths[index].read_bytes(), int(self._labels[index])

    def describe(self, index: int) -> str:
        return str(self._paths[index])


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Made-up JPEGs that need no data: a few smooth random pictures, of which each record is one.

    A picture and its label go together, the same in training and validation, so a model can learn them. Decoding costs
    what it costs for real images of this size.

    Attributes:
        num_examples: length of the source.
        num_classes: number of labels.
        size: height and width of the images.
        seed: decides the pictures and which record is which.
        num_pictures: how many there are.
    """

    num_examples: int
    num_classes: int
    size: int
    seed: int
    num_pictures: int = 64
    class_names: Sequence[str] = ()

    @functools.cached_property
    def _pictures(self) -> list[bytes]:
        random = np.random.RandomState(self.seed)
        coarse = random.randint(0, 256, (self.num_pictures, 8, 8, 3)).astype(np.uint8)
        images = [PIL.Image.fromarray(c).resize((self.size, self.size), PIL.Image.Resampling.BICUBIC) for c in coarse]
        return [simplejpeg.encode_jpeg(np.asarray(image), quality=90, colorsubsampling="420") for image in images]

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        picture = int(order.random_bits(2, self.seed, index)[0] % np.uint64(self.num_pictures))
        return self._pictures[picture], picture % self.num_classes

    def describe(self, index: int) -> str:
        return f"synthetic record {index}"
