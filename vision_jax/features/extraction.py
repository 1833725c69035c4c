"""Computes the features of images and writes them: a pass over the images for each shard, so that memory is bounded."""

import dataclasses
import functools
import importlib.metadata
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import vision_jax
from vision_jax import augment, build
from vision_jax.build import TrainedModel
from vision_jax.data.images import ImageSource
from vision_jax.data.sources import Record, RelabeledSource, Source, SubsetSource, TfdsSource
from vision_jax.data.transforms import LABEL, Copied
from vision_jax.data.views import Field
from vision_jax.devices import distributed, sharding
from vision_jax.errors import ConfigError, DataError
from vision_jax.evaluators.base import Context, collect
from vision_jax.features.files import COMPLETE, About, ShardWriter
from vision_jax.runtime import writers
from vision_jax.runtime.watchdog import Watchdog

log = logging.getLogger(__name__)

DTYPES = ("float16", "float32")
_NAME_BYTES = 256  # of file names that travel with the batch; longer ones are read again
_NUMBER: Copied = (("number", Field((), np.dtype(np.int32))),)
_NAME: Copied = (("name", Field((_NAME_BYTES,), np.dtype(np.uint8))),)
_SPLITS = {"train": "train", "validation": "val", "val": "val"}  # which field of `data` says what they are


@dataclasses.dataclass(frozen=True)
class Options:
    """How features are computed and written.

    Attributes:
        dtype: of the files, "float16" or "float32".
        shard_size: records of each shard. One is held in memory at once.
        batch_size: images that are computed at once, in all processes together.
        max_bad: number of damaged images that are left out; one more is an error.

    Raises:
        ConfigError: if one of them cannot be.
    """

    dtype: str = "float16"
    shard_size: int = 16384
    batch_size: int = 128
    max_bad: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype is {self.dtype!r}: give {' or '.join(DTYPES)}.")
        for name in ("shard_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}: give 1 or more.")
        if self.max_bad < 0:
            raise ConfigError(f"--max_bad is {self.max_bad}: give 0 or more.")


@dataclasses.dataclass(frozen=True)
class Extracted:
    """What `extract` did.

    Attributes:
        rows: images that have features.
        damaged: how many have none.
        shards: how many there are.
        made: how many of these had to be made.
        dim: features of each image.
    """

    rows: int
    damaged: int
    shards: int
    made: int
    dim: int


@dataclasses.dataclass(frozen=True)
class Computed:
    """The features of some images, those that are damaged left out.

    Attributes:
        features: (rows, dim) float.
        numbers: (rows,) integers, of the images in their source, ascending.
        labels: (rows,) int32; None: they have none.
        names: of the images.
        damaged: numbers of the images that were left out.
    """

    features: np.ndarray
    numbers: np.ndarray
    labels: np.ndarray | None
    names: list[str]
    damaged: list[int]


@dataclasses.dataclass(frozen=True)
class _Span:
    """Some consecutive records of a source, which know their number in it, and in `name` the name of their file."""

    source: Source
    numbers: range
    num_classes: int
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Record:
        record = self.source[self.numbers[index]]
        name = record.get("file_name", b"")
        name = name if len(name) <= _NAME_BYTES else b""
        return {
            **record,
            "number": self.numbers[index],
            "name": np.frombuffer(name.ljust(_NAME_BYTES, b"\0"), np.uint8),
        }

    def describe(self, index: int) -> str:
        return self.source.describe(self.numbers[index])

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint()}, {self.numbers}"


class Extractor:
    """Computes the features of a source's images: what the model has before its classifier.

    Args:
        trained: the model; heads that an objective has beside it are left out.
        source: the images, with labels if it has classes.
        dtype: of the features.
        batch_size: images computed at once; rounded up to a multiple of what the devices share.
        max_bad: number of damaged images that each process may leave out in one call.
        watchdog: told of each batch; None: nobody is.

    Attributes:
        dim: features of each image.
        batch_size: as it was rounded.
    """

    def __init__(
        self,
        trained: TrainedModel,
        source: Source,
        *,
        dtype: str = "float32",
        batch_size: int = 128,
        max_bad: int = 0,
        watchdog: Watchdog | None = None,
    ):
        shards = sharding.batch_shards(trained.mesh)
        self.batch_size = -(-min(batch_size, len(source)) // shards) * shards
        self._source, self._dtype = source, dtype
        preprocessing, data = trained.preprocessing, trained.config.data
        copied = (*_NUMBER, *(LABEL if source.num_classes else ()), *(_NAME if _has_file_names(source) else ()))
        self._context = Context(
            mesh=trained.mesh,
            source=source,
            transform=dataclasses.replace(preprocessing.transform, copied=copied),
            batch_size=self.batch_size,
            mean=preprocessing.mean,
            std=preprocessing.std,
            num_workers=data.num_workers,
            num_threads=data.num_threads,
            prefetch=data.prefetch,
            max_bad_records=max_bad,
            watchdog=watchdog or Watchdog(0),
        )
        self._variables = build.without_heads(trained.objective, trained.variables)
        kept = [name for name, _ in copied]
        model: Any = trained.model

        def step(variables: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            images = augment.normalize(batch["image"], preprocessing.mean, preprocessing.std)
            features = model.apply(variables, images, train=False, method="features")
            features = features.reshape(len(images), -1).astype(jnp.float32)
            return {
                "features": features.astype(dtype),
                "finite": jnp.isfinite(features).all(-1),
                **{name: batch[name] for name in kept},
            }

        abstract = jax.eval_shape(step, self._variables, self._context.abstract_batch())
        self.dim: int = abstract["features"].shape[1]
        self._step = self._context.compile(step, self._variables)

    def compute(self, numbers: range, description: str = "features") -> Computed | None:
        """Returns the features of some of the images in process 0, and None in the others; all must call it.

        Args:
            numbers: of the images, consecutive.
            description: shown in the progress.

        Raises:
            DataError: if an image cannot be read, or too many are damaged; in all processes, if features are not
                finite.
        """
        source = self._source
        span = _Span(source, numbers, source.num_classes, tuple(source.class_names))
        context = dataclasses.replace(self._context, source=span)
        rows = collect(context, self._step, self._variables, description=description)
        distributed.from_first(lambda: None if rows is None else self._check(rows))
        if rows is None:
            return None
        found = rows["number"].tolist()
        return Computed(
            rows["features"],
            rows["number"],
            rows.get("label"),
            [self._name(number, name) for number, name in zip(found, rows.get("name", found), strict=True)],
            sorted(set(numbers) - set(found)),
        )

    def _name(self, number: int, name: "np.ndarray | int") -> str:
        """Returns the name of an image: that of its file, if its record has one."""
        text = name.tobytes().rstrip(b"\0") if isinstance(name, np.ndarray) else b""
        return text.decode(errors="surrogateescape") if text else self._source.describe(number)

    def _check(self, rows: Mapping[str, np.ndarray]) -> None:
        """Checks that features are finite.

        Raises:
            DataError: if not.
        """
        for finite, problem in (
            (rows["finite"], "are not finite: the weights or the compute dtype (--config.dtype) are to blame"),
            (np.isfinite(rows["features"]).all(-1), f"do not fit {self._dtype}: use --dtype=float32"),
        ):
            if not finite.all():
                number = int(rows["number"][np.argmin(finite)])
                raise DataError(
                    f"The features of {self._source.describe(number)} {problem} ({int((~finite).sum())} images of "
                    f"{len(finite)} here)."
                )


def _has_file_names(source: Source) -> bool:
    """Returns whether the records of a source may have a `file_name`."""
    while isinstance(source, SubsetSource | RelabeledSource):
        source = source.source
    return isinstance(source, TfdsSource) and source.has_file_names


@dataclasses.dataclass(frozen=True)
class Images:
    """The images that features are of.

    Attributes:
        source: reads them.
        description: which they are, for people.
        split: of the data set; empty: they are none of one.
    """

    source: Source
    description: str
    split: str = ""

    @classmethod
    def of_split(cls, config: ConfigDict, split: str) -> "Images":
        """Returns those of a split, whose labels number the data's own classes.

        Args:
            config: says where the data are.
            split: "train" or "validation": the splits that the configuration names so; else the name of another one.

        Raises:
            DataError: if there is no such split.
        """
        config = config.copy_and_resolve_references()
        config.model.pretrained = None  # by which labels could become the numbers of the weights' classes
        kind = _SPLITS.get(split)
        if kind is None:
            if config.data.source == "synthetic":
                raise DataError(f"--split is {split!r}, and synthetic data has train and validation alone.")
            config.data.val_split = split
        source = build.create_source(config, train=kind == "train")
        return cls(source, f"the split {split!r} of {config.data.source}", split)

    @classmethod
    def of_paths(cls, paths: Sequence[str]) -> "Images":
        """Returns those of files, folders and archives; they have no labels. Errors are those of `ImageSource.find`."""
        return cls(ImageSource.find(paths), ", ".join(paths))


def extract(
    trained: TrainedModel, images: Images, directory: pathlib.Path, options: Options | None = None
) -> Extracted:
    """Writes the features of a source's images; goes on where an earlier call with the same arguments was ended.

    All processes must call it, and process 0 writes. The files are the same as if it had not been ended, bit by bit,
    and the same on any devices up to rounding.

    Args:
        trained: the model.
        images: whose features they are.
        directory: where the features go. It is made; what is there must be the same features, complete or not.
        options: how.

    Raises:
        ConfigError: if the folder holds anything else.
        CheckpointError: if another process is writing there.
        DataError: if an image cannot be read, too many are damaged, features are not finite, or the storage fails.
    """
    options, source = options or Options(), images.source
    distributed.check_agreement(
        {"the options": dataclasses.asdict(options), "the weights": trained.digest}, {"images": source}
    )
    first = jax.process_index() == 0
    with (
        Watchdog(trained.config.watchdog_seconds, process_index=jax.process_index()) as watchdog,
        writers.open_workdir(directory, enabled=first, flag="--output"),
    ):
        with watchdog.suspended():
            extractor = Extractor(
                trained,
                source,
                dtype=options.dtype,
                batch_size=options.batch_size,
                max_bad=options.max_bad,
                watchdog=watchdog,
            )
            about = _about(trained, images, options, extractor)
            writer = ShardWriter(directory, about)  # of which that of process 0 is used
            missing = distributed.from_first(writer.open)
        if len(missing) < about.num_shards:
            log.info("%d of %d shards are there already.", about.num_shards - len(missing), about.num_shards)
        for shard in missing:
            computed = extractor.compute(about.span(shard), f"shard {shard + 1} of {about.num_shards}")
            with watchdog.suspended():  # storage may be slow
                distributed.from_first(functools.partial(_keep, writer, shard, computed, options.max_bad, source))
        rows, damaged = distributed.from_first(functools.partial(_finish, writer, bool(missing)))
    return Extracted(rows, damaged, about.num_shards, len(missing), about.dim)


def _about(trained: TrainedModel, images: Images, options: Options, extractor: Extractor) -> About:
    source = images.source
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")}
    return About(
        model=trained.name,
        origin=trained.origin,
        digest=trained.digest,
        compute_dtype=str(build.compute_dtype(trained.config)),
        dtype=options.dtype,
        dim=extractor.dim,
        images=images.description,
        split=images.split,
        fingerprint=source.fingerprint(),
        records=len(source),
        num_classes=source.num_classes,
        class_names=tuple(source.class_names),
        shard_size=options.shard_size,
        batch_size=extractor.batch_size,
        versions={"vision_jax": vision_jax.__version__, **versions},
    )


def _keep(writer: ShardWriter, shard: int, computed: Computed | None, max_bad: int, source: Source) -> None:
    """Writes a shard, in process 0.

    Raises:
        DataError: if too many images are damaged by now, or the storage fails.
    """
    assert computed is not None  # in process 0
    if (count := len(writer.damaged) + len(computed.damaged)) > max_bad:
        raise DataError(
            f"{count} images are damaged, such as {source.describe(computed.damaged[-1])}: repair or remove them, or "
            f"raise --max_bad={max_bad} to leave them out."
        )
    writer.write(shard, computed.features, computed.labels, computed.names, computed.damaged)


def _finish(writer: ShardWriter, changed: bool) -> tuple[int, int]:
    """Makes the features complete, and returns how many images have some, and how many are damaged."""
    if changed or not (writer.directory / COMPLETE).is_file():
        writer.finish()
    return sum(shard.rows for shard in writer.shards if shard is not None), len(writer.damaged)
