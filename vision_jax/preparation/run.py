"""The work of `python -m vision_jax prepare`, which has the words for users: input, plan, shards, metadata.

What is needed to go on after a kill is in OUTPUT/incomplete: the plan, the index of the input, and the receipts of the
shards, which `vision_jax.preparation.shards` writes. The manifest comes last: with it the data set is complete.
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from vision_jax.data import prepared, tfds_format
from vision_jax.errors import DataError, reason
from vision_jax.preparation import archives, corrupt, dense, inputs, known, manifest, pixels, recognition
from vision_jax.preparation import shards as shards_lib
from vision_jax.preparation.convert import Conversion
from vision_jax.preparation.description import Known
from vision_jax.preparation.inputs import Index, Input
from vision_jax.preparation.known_input import Choice, KnownInput, pickled_message
from vision_jax.preparation.shards import Receipt, Shard
from vision_jax.runtime.writers import Progress

log = logging.getLogger(__name__)

_WORK = "incomplete"  # the folder in OUTPUT with what is needed to go on
_SHARD_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides the bytes of the result besides the input; the flags say what each is.

    Attributes:
        name: None is what the input is called.
        encoding: None is jpeg, or original where JPEG would harm small images.
        corruption: None: the images are not corrupted.
    """

    name: str | None
    encoding: str | None
    short_side: int
    quality: int
    apply_exif_orientation: bool
    max_pixels: int
    holdout: float
    shards: int | None
    corruption: corrupt.Options | None = None


def prepare(
    where: str,
    output: pathlib.Path,
    options: Options,
    *,
    labels: Mapping[str, str] | None = None,
    skip_corrupt: int = 0,
    workers: int = 1,
    corruptions: corrupt.Corruptions | None = None,
    objects: dense.Options | None = None,
    choice: Choice | None = None,
) -> None:
    """Prepares a data set, or goes on with one.

    Args:
        where: the input, a folder or tfds:NAME.
        output: the folder of the result.
        options: of the result.
        labels: files of labels by split, for folders of images that are not in class folders.
        skip_corrupt: how many images may be left out, because they cannot be decoded.
        workers: processes.
        corruptions: what to make of the images instead of one data set; None: that.
        objects: what is read of a data set with boxes or masks; None: the default.
        choice: what is said of a known data set; None: nothing.

    Raises:
        DataError: if the input or the output cannot be used, or an image cannot be decoded.
    """
    source = open_input(where, options.holdout, labels, objects, choice)
    is_drawn = isinstance(source, KnownInput) and source.is_drawn
    if choice is not None and choice.seed is not None and corruptions is None and not is_drawn:
        raise DataError(
            f"--seed={choice.seed} is for --corrupt=NAME:SEVERITY, and for known data sets that are published without "
            f"splits, and {where} is: {source.kind}. Leave it out."
        )
    if isinstance(source, dense.DenseInput):
        _check_unchanged(where, source, options, corruptions)
        options = dataclasses.replace(options, encoding="original")
    if not isinstance(source, archives.ImageNetArchives) and _is_below(output, where):
        raise DataError(f"{output} is inside {where}, where it would be taken for input: give another OUTPUT.")
    many = {"skip_corrupt": skip_corrupt, "workers": workers}
    if corruptions is None:
        whole = options.encoding or ("original" if isinstance(source, KnownInput) and source.small else "jpeg")
        options = dataclasses.replace(options, name=options.name or source.name, encoding=whole)
        _prepare(where, source, output, options, None, **many)
        return
    for number, (name, severity) in enumerate(corruptions.wanted, 1):
        log.info("%s at severity %d, %d of %d.", name, severity, number, len(corruptions.wanted))
        one = dataclasses.replace(
            options,
            name=f"{options.name or source.name}_{name}_{severity}",
            encoding=options.encoding or "jpeg",
            corruption=corruptions.options(name, severity),
        )
        _prepare(where, source, output / name / str(severity), one, corruptions.frost, **many)


def _prepare(
    where: str,
    source: Input,
    output: pathlib.Path,
    options: Options,
    frost: Sequence[np.ndarray] | None,
    *,
    skip_corrupt: int,
    workers: int,
) -> None:
    """Prepares one data set; arguments as for `prepare`, with all options filled in."""
    start = time.monotonic()
    plan = {"options": dataclasses.asdict(options), "input": source.identity()}
    with _exclusive(output):
        if _is_finished(output, plan):
            log.info("%s is complete already, with the same options; --verify checks it.", output)
            shutil.rmtree(output / _WORK, ignore_errors=True)
            return
        log.info("Input: %s (%s).", where, source.kind)
        plan["versions"] = _versions(options)
        work = output / _WORK
        _continue_or_start(work, plan)
        index = _list(source, work, options)
        shards = plan_shards(index, options)
        log.info("Images: %s. Classes: %d.", _counts(index.splits), len(index.class_names))
        receipts, new = _write(output, work, index, shards, options, frost, skip_corrupt=skip_corrupt, workers=workers)
        _finish(output, work, plan, index, [receipts[shard.file] for shard in shards])
    _summarize(output, new, time.monotonic() - start)


def _check_unchanged(where: str, source: Input, options: Options, corruptions: corrupt.Corruptions | None) -> None:
    """Checks that images in whose pixels there are boxes or masks are to stay as they are."""
    changes = {
        f"--encoding={options.encoding}": options.encoding not in (None, "original"),
        "--apply_exif_orientation": options.apply_exif_orientation,
        "--corrupt": corruptions is not None,
    }
    for flag, given in changes.items():
        if given:
            raise DataError(
                f"{flag} changes images, and {where} is: {source.kind}, whose boxes and masks are in their pixels. "
                "Leave it out: the images keep their bytes."
            )


def open_input(
    where: str,
    holdout: float,
    labels: Mapping[str, str] | None = None,
    objects: dense.Options | None = None,
    choice: Choice | None = None,
) -> Input:
    """Finds out what kind of input it is.

    Raises:
        DataError: if it is none that can be prepared.
    """
    source: Input
    if where.startswith("tfds:"):
        source = inputs.TfdsInput(inputs.download_with_tfds(where.removeprefix("tfds:")))
    else:
        directory = pathlib.Path(where).expanduser()
        if not directory.is_dir():
            raise DataError(f"{directory} is not a folder. Give the folder with the images, archives or data set.")
        if choice is not None and choice.dataset in ("imagenet", archives.ImageNetArchives.name):
            if not archives.ImageNetArchives.found_in(directory):
                raise DataError(f"{directory} has neither {archives.TRAIN} nor {archives.VALIDATION}, as downloaded.")
            source = archives.ImageNetArchives(directory)
        elif choice is not None and choice.dataset is not None:
            source = KnownInput(directory, known.get(choice.dataset), choice)
        elif archives.ImageNetArchives.found_in(directory):
            source = archives.ImageNetArchives(directory)
        elif tfds_format.has_dataset(directory):
            source = inputs.TfdsInput(tfds_format.find_dataset(directory))
        elif (description := _describe(directory)) is not None:
            source = KnownInput(directory, description, choice or Choice())
        elif layout := dense.layout_of(directory):
            source = dense.DenseInput(directory, layout, objects or dense.Options())
        else:
            source = inputs.FolderInput(directory, holdout, labels)
    if objects is not None and not isinstance(source, dense.DenseInput):
        raise DataError(
            f"--masks, --categories and the like are for data sets with boxes or masks, and {where} is: {source.kind}."
        )
    if choice is not None and choice.subset and not isinstance(source, KnownInput):
        raise DataError(f"--subset is for known data sets as they are downloaded, and {where} is: {source.kind}.")
    if isinstance(source, inputs.FolderInput):
        return source
    if holdout:
        raise DataError(f"--holdout={holdout} is for folders of classes, but {where} is: {source.kind}.")
    if labels:
        raise DataError(f"--labels is for folders of images in train/ and val/, but {where} is: {source.kind}.")
    return source


def _describe(directory: pathlib.Path) -> Known | None:
    """Returns which known data set lies in a folder as it was downloaded, if any.

    Raises:
        DataError: if it is CIFAR's pickled version.
    """
    description = recognition.recognize(directory) or recognition.idx_files(directory)
    if description is None and (pickled := pixels.pickled_cifar(directory)):
        raise DataError(pickled_message(directory, pickled, known.get("cifar100" if "100" in pickled else "cifar10")))
    if description is not None and description.name == "idx":
        log.info(
            "The names of the files do not tell which data set it is: --dataset=mnist or another names its classes."
        )
    return description


def _list(source: Input, work: pathlib.Path, options: Options) -> Index:
    """Returns the records that are to be prepared; of those that are corrupted, ImageNet's training archive is left."""
    if options.corruption is None:
        return source.index(work)
    if isinstance(source, archives.ImageNetArchives):
        validation = source.index(work, train_split=False)
        index = validation if validation.splits else source.index(work)
    else:
        index = source.index(work)
    return dataclasses.replace(index, splits=corrupt.evaluated(index.splits))


def _is_below(path: pathlib.Path, where: str) -> bool:
    directory = pathlib.Path(where).expanduser().resolve()
    return path.resolve() != directory and path.resolve().is_relative_to(directory)


def plan_shards(index: Index, options: Options) -> list[Shard]:
    """Divides the records of each split into shards, as a function of the input and the options alone.

    A shard is meant to have 256 MiB: as many bytes as the originals, or less if images of `short_side` with an aspect
    ratio of 4:3 need less (3 bytes per pixel raw, about half a byte as JPEG). There are at least 16 of 64 images or
    more, so that several processes have work.
    """
    name = options.name
    assert name is not None  # the input's has been filled in
    shards = []
    for split, records in index.splits.items():
        if not index.in_random_order:
            records = inputs.in_order_of_hash(records, split)
        num_bytes = int(records["size"].sum())
        pixels = len(records) * options.short_side**2 * 4 // 3
        if options.corruption is not None and options.corruption.crop:
            pixels = len(records) * options.corruption.crop**2
        if options.encoding == "raw":
            num_bytes = 3 * pixels if pixels else 20 * num_bytes
        elif options.encoding == "jpeg" and pixels:
            num_bytes = min(num_bytes, pixels // 2)
        count = options.shards or max(-(-num_bytes // _SHARD_BYTES), min(16, len(records) // 64), 1)
        count = min(count, len(records))
        bounds = [round(len(records) * i / count) for i in range(count + 1)]  # as tfds divides
        for i in range(count):
            file = tfds_format.shard_name(name, split, i, count)
            shards.append(Shard(file, split, records[bounds[i] : bounds[i + 1]]))
    return shards


def _versions(options: Options) -> dict[str, str]:
    """Returns the versions of what decides the bytes of an image."""
    corrupting = () if options.corruption is None else ("opencv-python-headless", "scipy")
    return {package: version(package) for package in ("array-record", "numpy", "pillow", "simplejpeg", *corrupting)}


@contextlib.contextmanager
def _exclusive(output: pathlib.Path) -> Iterator[None]:
    """Makes the folder of the result, and keeps other runs out of it.

    Raises:
        DataError: if that is not possible, or it holds something else.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = os.open(output, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"Cannot use {output}: {reason(error, path=True)}. Give another OUTPUT.") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"Another run is writing to {output}: wait for it, or give another OUTPUT.") from error
        except OSError as error:  # some network file systems have no locks
            log.warning("%s cannot be locked (%s): make sure that no other run uses it.", output, reason(error))
        yield
    finally:
        os.close(lock)


def _is_finished(output: pathlib.Path, plan: dict[str, Any]) -> bool:
    """Returns whether the data set is complete.

    Raises:
        DataError: if it is another one, or the folder holds something else.
    """
    if (output / manifest.FILE_NAME).exists():
        written = manifest.read(output)
        _check_same(output, written, plan, "was prepared from other input or with other options")
        if lacking := manifest.lacking_files(output, written):
            raise DataError(
                f"{output} is not as it was written: {', '.join(lacking[:3])}{' and more' if lacking[3:] else ''}. "
                "Delete the folder and prepare it again, or copy these files from another copy of it."
            )
        return True
    if not (output / _WORK).exists() and (there := sorted(os.listdir(output))):
        raise DataError(f"{output} is not empty ({', '.join(there[:5])}): give a new or an empty folder as OUTPUT.")
    return False


def _continue_or_start(work: pathlib.Path, plan: dict[str, Any]) -> None:
    """Checks that what has been written so far is of the same plan, and clears away what a killed run left.

    Raises:
        DataError: if it is of another plan.
    """
    path = work / "plan.json"
    finished = {receipt.name.removesuffix(".json") for receipt in work.glob("*.array_record-*.json")}
    if path.exists() and finished:
        _check_same(work.parent, json.loads(path.read_text()), plan, "was begun with other input or options")
        log.info("Going on with %s.", work.parent)
    work.mkdir(exist_ok=True)
    shards = [shard for shard in work.parent.glob("*.array_record-*") if shard.name not in finished]
    for leftover in (*work.glob("*.tmp"), *shards):
        leftover.unlink()
    shards_lib.write_json(path, plan)


def _check_same(output: pathlib.Path, old: dict[str, Any], new: dict[str, Any], what: str) -> None:
    before, now = _flatten({key: old.get(key) for key in new}), _flatten(new)
    changed = [
        f"\n  - {key}: {before.get(key)} -> {now.get(key)}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    ]
    if changed:
        more = f"\n  and {len(changed) - 20} more" if len(changed) > 20 else ""
        raise DataError(
            f"{output} {what}:{''.join(changed[:20])}{more}\n"
            "Give the same ones to go on, or another OUTPUT, or remove this one."
        )


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dictionaries by their paths."""
    if not isinstance(value, dict):
        return {path: value}
    leaves: dict[str, Any] = {}
    for key, child in value.items():
        leaves |= _flatten(child, f"{path}.{key}" if path else key)
    return leaves


def _write(
    output: pathlib.Path,
    work: pathlib.Path,
    index: Index,
    shards: Sequence[Shard],
    options: Options,
    frost: Sequence[np.ndarray] | None,
    *,
    skip_corrupt: int,
    workers: int,
) -> tuple[dict[str, Receipt], int]:
    """Writes the shards that are not there yet.

    Returns:
        the receipts of all, by file, and how many images were read for them now.
    """
    assert options.encoding is not None  # it has been filled in
    conversion = Conversion(
        encoding=options.encoding,
        short_side=options.short_side,
        quality=options.quality,
        apply_exif_orientation=options.apply_exif_orientation,
        max_pixels=options.max_pixels,
        corrupter=None if options.corruption is None else corrupt.Corrupter(options.corruption, frost),
    )
    job = shards_lib.Job(output, work, index.reader, conversion, skip_corrupt)
    receipts = {shard.file: receipt for shard in shards if (receipt := job.receipt(shard)) is not None}
    todo = [shard for shard in shards if shard.file not in receipts]
    new = sum(len(shard.records) for shard in todo)
    total = sum(len(shard.records) for shard in shards)

    def check() -> None:
        shards_lib.check_skipped([item for receipt in receipts.values() for item in receipt.skipped], skip_corrupt)

    check()
    workers = min(workers, len(todo))
    if not todo:
        return receipts, new
    log.info("Writing %d of %d shards in %d processes.", len(todo), len(shards), workers)
    with Progress(total, initial=total - new, description="images") as bar:
        start, shown = time.monotonic(), 0

        def progress(done: int) -> None:
            nonlocal shown
            rate = {"images/s": f"{done / max(time.monotonic() - start, 1e-3):.0f}"}
            for _ in range(done - shown):
                bar.update(rate)
            shown = done

        with contextlib.closing(shards_lib.write_shards(job, todo, workers, progress)) as written:
            for receipt in written:
                receipts[receipt.file] = receipt
                check()
    return receipts, new


def _finish(
    output: pathlib.Path, work: pathlib.Path, plan: dict[str, Any], index: Index, receipts: Sequence[Receipt]
) -> None:
    """Writes the metadata and, last of all, the manifest, and removes the work folder."""
    lengths: dict[str, list[int]] = {}
    num_bytes: dict[str, int] = {}
    for receipt in receipts:
        lengths.setdefault(receipt.split, []).append(receipt.examples)
        num_bytes[receipt.split] = num_bytes.get(receipt.split, 0) + receipt.example_bytes
    for split, counts in lengths.items():
        if not sum(counts):
            raise DataError(f"No image of the split {split} can be decoded.")
    metadata = work / "metadata"
    shutil.rmtree(metadata, ignore_errors=True)
    metadata.mkdir()
    tfds_format.write_metadata(
        metadata,
        plan["options"]["name"],
        lengths,
        num_bytes,
        index.class_names,
        image_format="png" if plan["options"]["encoding"] == "raw" else "jpeg",
        file_names=True,
        features=prepared.features(next(iter(index.tables.values()))) if index.tables else None,
    )
    for split in lengths:
        given = [label for receipt in receipts if receipt.split == split for label in receipt.labels]
        labels = np.asarray(given, np.int32)
        if index.tables:
            index.tables[split].take(labels).write(prepared.objects_path(metadata, split))
        else:
            np.save(tfds_format.labels_path(metadata, split), labels, allow_pickle=False)
    if index.display_names:
        shards_lib.write_json(metadata / "class_names.json", dict(index.display_names))
    files = sorted(metadata.iterdir())
    content = manifest.make({**plan, "num_classes": len(index.class_names)}, receipts, files)
    for path in files:
        shards_lib.flush_and_hash(path)
        path.replace(output / path.name)
    shards_lib.flush_directory(output)
    shards_lib.write_json(output / manifest.FILE_NAME, content)
    shutil.rmtree(work)


def _summarize(output: pathlib.Path, new: int, seconds: float) -> None:
    content = manifest.read(output)
    splits = content["splits"]
    num_bytes = sum(shard["bytes"] for values in splits.values() for shard in values["shards"])
    log.info(
        "Prepared %s: %s in %d shards, %.2f GB, in %.0f s (%.0f images/s).",
        output,
        ", ".join(f"{split} {values['examples']:,}" for split, values in splits.items()),
        sum(len(values["shards"]) for values in splits.values()),
        num_bytes / 1e9,
        seconds,
        new / seconds,
    )
    for line in (*remarks(content), *manifest.imagenet_problems(content), *manifest.published_problems(content)):
        log.warning("%s", line)


def remarks(content: dict[str, Any]) -> list[str]:
    """Returns what a user should know about a data set that is whole."""
    remarks = []
    for split, values in content["splits"].items():
        remarks += [f"Left out of {split}: {item['file_name']}: {item['reason']}" for item in values["skipped"]]
    if content["input"].get("subset"):
        remarks.append("This is what there was of the data set, by --subset, and perhaps not the whole.")
    if manifest.is_part_of_imagenet(content):
        remarks.append(
            f"This is a part of ImageNet: {content['num_classes']} of {archives.NUM_CLASSES:,} classes; the whole has "
            + " and ".join(f"{count:,} {split}" for split, count in archives.EXAMPLES.items())
            + " images."
        )
    return remarks


def _counts(splits: Any) -> str:
    return ", ".join(f"{split} {len(records):,}" for split, records in splits.items())
