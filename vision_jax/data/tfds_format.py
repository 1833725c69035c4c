"""tensorflow_datasets' layout on disk: examples, shards, and the metadata by which tfds and this package read them.

A data set is a folder with `features.json`, `dataset_info.json`, the class names, and ArrayRecord files named
`NAME-SPLIT.array_record-00000-of-00008`. A record is a serialized tf.train.Example.
"""

import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vision_jax.errors import DataError, reason, suggest

# Groups of one record make access at random cost one record. Compressing JPEG a second time gains nothing.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_VERSION = "1.0.0"

_importing = threading.Lock()


def import_tfds() -> Any:
    """Returns tensorflow_datasets, imported with its protos, which takes most of a second; one thread at a time.

    Its modules import each other in circles: threads that begin with different ones, or while another is importing,
    deadlock, or find a module without its contents.
    """
    with _importing:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.proto import tf_example_generated_pb2, tf_feature_generated_pb2  # noqa: F401

        _ = tfds.features  # which is imported when it is first asked for
    return tfds


def example_parser() -> Callable[[bytes], Any]:
    """Returns what reads a serialized tf.train.Example."""
    import_tfds()
    from tensorflow_datasets.proto import tf_example_generated_pb2

    return tf_example_generated_pb2.Example.FromString


def serialize_example(image: bytes, label: int, file_name: bytes | None = None) -> bytes:
    """Returns a tf.train.Example of an encoded image, its label and, if there is one, the name of its file."""
    names = {} if file_name is None else {"file_name": [file_name]}
    return serialize({"image": [image], "label": [label], **names})


def serialize(values: Mapping[str, Sequence[bytes] | Sequence[int] | Sequence[float]]) -> bytes:
    """Returns a tf.train.Example of lists of bytes, integers or floats; an empty one has no type."""
    import_tfds()
    from tensorflow_datasets.proto import tf_example_generated_pb2, tf_feature_generated_pb2

    def feature(items: Sequence[Any]) -> Any:
        if not len(items):
            return tf_feature_generated_pb2.Feature()
        if isinstance(items[0], bytes):
            return tf_feature_generated_pb2.Feature(bytes_list=tf_feature_generated_pb2.BytesList(value=items))
        if isinstance(items[0], int):
            return tf_feature_generated_pb2.Feature(int64_list=tf_feature_generated_pb2.Int64List(value=items))
        return tf_feature_generated_pb2.Feature(float_list=tf_feature_generated_pb2.FloatList(value=items))

    features = {name: feature(items) for name, items in values.items()}
    example = tf_example_generated_pb2.Example(features=tf_feature_generated_pb2.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def shard_name(name: str, split: str, index: int, num_shards: int) -> str:
    """Returns the file name of a shard."""
    return f"{name}-{split}.array_record-{index:05d}-of-{num_shards:05d}"


def labels_path(directory: pathlib.Path, split: str) -> pathlib.Path:
    """Returns the file with the labels of a split, (n,) int32 in the order of its records, for sampling by class.

    It is this package's own: tfds does not know it.
    """
    return directory / f"labels-{split}.npy"


def open_shard(path: pathlib.Path) -> Any:
    """Returns a writer with `write(bytes)` and `close()`. The bytes of the file depend on the records alone."""
    from array_record.python.array_record_module import ArrayRecordWriter

    return ArrayRecordWriter(os.fspath(path), _WRITER_OPTIONS)


def write_metadata(
    directory: pathlib.Path,
    name: str,
    shard_lengths: Mapping[str, Sequence[int]],
    num_bytes: Mapping[str, int],
    class_names: Sequence[str],
    *,
    image_format: str = "jpeg",
    file_names: bool = False,
    features: Mapping[str, Any] | None = None,
) -> None:
    """Writes what tfds needs besides the shards, without a time or a path, so that equal data sets are equal files.

    Args:
        directory: where the files go; the shards need not be there.
        name: of the data set.
        shard_lengths: examples in each shard, by split.
        num_bytes: length of all serialized examples, by split.
        class_names: in the order of the labels.
        image_format: in which tfds would encode images, "jpeg" or "png"; decoding goes by the image itself.
        file_names: the examples have a `file_name`.
        features: of tfds, in place of image and label, for examples that have others.
    """
    tfds = import_tfds()

    features = dict(features or {}) or {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format=image_format),
        "label": tfds.features.ClassLabel(names=list(class_names)),
    }
    if file_names:
        features["file_name"] = tfds.features.Text()
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name, version=tfds.core.Version(_VERSION), data_dir=os.fspath(directory), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory,
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        dataset_name=name,
        filetype_suffix="array_record",
    )
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=list(lengths),
            num_bytes=num_bytes[split],
            filename_template=template.replace(split=split),
        )
        for split, lengths in shard_lengths.items()
    ]
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(directory)


def write_dataset(
    directory: pathlib.Path, name: str, splits: Mapping[str, Iterable[tuple[bytes, int]]], class_names: Sequence[str]
) -> None:
    """Writes a small data set of encoded images and labels, one shard a split.

    Args:
        directory: an empty folder.
        name: of the data set.
        splits: (encoded image, label) pairs, by split.
        class_names: in the order of the labels.
    """
    lengths, sizes = {}, {}
    for split, examples in splits.items():
        writer = open_shard(directory / shard_name(name, split, 0, 1))
        count = num_bytes = 0
        for image, label in examples:
            record = serialize_example(image, label)
            writer.write(record)
            count, num_bytes = count + 1, num_bytes + len(record)
        writer.close()
        lengths[split], sizes[split] = [count], num_bytes
    write_metadata(directory, name, lengths, sizes, class_names)


def find_dataset(directory: pathlib.Path) -> pathlib.Path:
    """Returns the one folder with features.json at or up to three levels (name/config/version) below `directory`.

    Raises:
        DataError: if there is none, or several.
    """
    found = _datasets_in(directory)
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(
            f"{directory} holds no prepared data set: there is no features.json in it or below. Point data.dir at the "
            "folder that tfds wrote, or use data.source=folder for DIR/SPLIT/CLASS/IMAGE."
        )
    raise DataError(f"{directory} holds several data sets, name one of: {', '.join(map(str, found))}")


def has_dataset(directory: pathlib.Path) -> bool:
    """Returns whether `find_dataset` would find one or more."""
    return bool(_datasets_in(directory))


def _datasets_in(directory: pathlib.Path) -> list[pathlib.Path]:
    if (directory / "features.json").is_file():
        return [directory]
    return [path.parent for depth in ("*", "*/*", "*/*/*") for path in sorted(directory.glob(f"{depth}/features.json"))]


def read_metadata(directory: pathlib.Path) -> Any:
    """Returns tfds' builder of a data set on disk; none of its records is read.

    Raises:
        DataError: if the metadata cannot be read.
    """
    tfds = import_tfds()

    try:
        return tfds.builder_from_directory(os.fspath(directory))
    except Exception as error:  # whatever its parsers raise: the files are to blame
        raise DataError(
            f"The metadata in {directory} cannot be read: {reason(error, path=True)}. Prepare it again."
        ) from error


def image_and_label(features: Mapping[str, Any], directory: pathlib.Path, label: str | None = None) -> tuple[str, str]:
    """Returns the keys of the image and the class label among the features of a tfds data set.

    Where there are several, as masks beside images or classes of classes, they are those called `image` and `label`.

    Args:
        features: of the data set.
        directory: for messages.
        label: the name of the class label; None: as above.

    Raises:
        DataError: if it has none of either, or several and none of that name, or no label of the name that is given.
    """
    tfds = import_tfds()

    keys = []
    for kind, usual in ((tfds.features.Image, "image"), (tfds.features.ClassLabel, label or "label")):
        matching = [key for key, feature in features.items() if isinstance(feature, kind)]
        if usual == label and label not in matching:
            raise DataError(f"{directory} has no class label {label!r}: {suggest(label, matching)}")
        matching = [usual] if usual in matching else matching
        if len(matching) != 1:
            raise DataError(f"{directory} has {len(matching)} features of type {kind.__name__} ({matching}), not one.")
        keys.append(matching[0])
    return keys[0], keys[1]
