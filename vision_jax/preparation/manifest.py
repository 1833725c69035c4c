"""The manifest of a prepared data set: what is in it, how it was made, and whether it still is so."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from vision_jax.errors import DataError, reason
from vision_jax.preparation import archives
from vision_jax.preparation.shards import Receipt

FILE_NAME = "manifest.json"
_HASHING_THREADS = 8


def make(plan: dict[str, Any], receipts: Sequence[Receipt], metadata: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Returns the manifest, as JSON; it holds no time and no path, so that equal data sets have equal ones.

    Args:
        plan: the options, the identity of the input, and the versions of what encoded the images.
        receipts: of all shards, in order.
        metadata: the other files.
    """
    splits: dict[str, Any] = {}
    for receipt in receipts:
        split = splits.setdefault(receipt.split, {"examples": 0, "skipped": [], "shards": []})
        split["examples"] += receipt.examples
        split["skipped"] += [{"file_name": name, "reason": reason} for name, reason in receipt.skipped]
        split["shards"].append(
            {
                "file": receipt.file,
                "examples": receipt.examples,
                "bytes": receipt.file_bytes,
                "sha256": receipt.sha256,
            }
        )
    files = [
        {"file": path.name, "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(metadata)
    ]
    return {**plan, "splits": splits, "metadata": files}


def read(directory: pathlib.Path) -> dict[str, Any]:
    """Returns the manifest of a prepared data set.

    Raises:
        DataError: if there is none, or it is damaged.
    """
    path = directory / FILE_NAME
    if not directory.is_dir():
        raise DataError(f"There is no folder {directory}: give one that `python -m vision_jax prepare` has written.")
    if not path.exists():
        why = (
            "it is not finished: run the command that made it again"
            if (directory / "incomplete").exists()
            else ("it was not made by `python -m vision_jax prepare`, or is not finished")
        )
        raise DataError(f"{directory} has no {FILE_NAME}: {why}.")
    try:
        manifest = json.loads(path.read_text())
        if not isinstance(manifest, dict):
            raise TypeError("it is no manifest")
        if not isinstance(manifest["options"]["name"], str) or not isinstance(manifest["num_classes"], int):
            raise TypeError("it is no manifest")
        for entry in _entries(manifest):
            if not isinstance(entry["bytes"], int) or pathlib.PurePath(entry["file"]).name != entry["file"]:
                raise TypeError(f"it has an entry {entry}")
        for split in manifest["splits"].values():
            sum(shard["examples"] for shard in split["shards"]) + split["examples"] + len(split["skipped"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({reason(error)}): delete {directory} and prepare the data set again, or copy this "
            "file from another copy of it."
        ) from error
    return manifest


def _entries(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns what a manifest says of each file: metadata, then shards."""
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    return [*manifest["metadata"], *shards]


def lacking_files(directory: pathlib.Path, manifest: dict[str, Any]) -> list[str]:
    """Returns which files of a prepared data set are missing or of another size, without reading them."""
    return [problem for entry in _entries(manifest) if (problem := _size_problem(directory, entry))]


def problems(directory: pathlib.Path, manifest: dict[str, Any], progress: Callable[[], None]) -> list[str]:
    """Reads every file of a prepared data set and returns what differs from its manifest.

    Args:
        directory: of the data set.
        manifest: of it.
        progress: called after each file, from this thread.
    """
    expected = _entries(manifest)
    found: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(_HASHING_THREADS) as pool:
        for problem in pool.map(lambda entry: _file_problem(directory, entry), expected):
            found += [problem] if problem else []
            progress()
    known = {entry["file"] for entry in expected}
    found += [
        f"{path.name} does not belong to the data set"
        for path in sorted(directory.glob("*.array_record-*"))
        if path.name not in known
    ]
    for split, values in manifest["splits"].items():
        if (count := sum(shard["examples"] for shard in values["shards"])) != values["examples"]:
            found.append(f"the shards of {split} have {count} examples, but the manifest says {values['examples']}")
    return found + imagenet_problems(manifest) + published_problems(manifest)


def _size_problem(directory: pathlib.Path, entry: dict[str, Any]) -> str | None:
    """Returns whether a file is missing or of another size, in words."""
    path = directory / entry["file"]
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read: {reason(error)}"
    return None if size == entry["bytes"] else f"{path.name} has {size} bytes instead of {entry['bytes']}"


def _file_problem(directory: pathlib.Path, entry: dict[str, Any]) -> str | None:
    """Returns what is wrong with a file, if anything."""
    from array_record.python.array_record_module import ArrayRecordReader

    if problem := _size_problem(directory, entry):
        return problem
    path = directory / entry["file"]
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{path.name} cannot be read: {reason(error)}"
    if digest != entry["sha256"]:
        return f"{path.name} is damaged: its SHA-256 is {digest} instead of {entry['sha256']}"
    if "examples" in entry:
        reader = ArrayRecordReader(os.fspath(path))
        count = reader.num_records()
        reader.close()
        if count != entry["examples"]:
            return f"{path.name} has {count} records instead of {entry['examples']}"
    return None


def is_part_of_imagenet(manifest: dict[str, Any]) -> bool:
    """Returns whether it is ImageNet from its archives, but with other than 1,000 classes or without a split."""
    return _is_imagenet(manifest) and (
        manifest["num_classes"] != archives.NUM_CLASSES or set(manifest["splits"]) != set(archives.EXAMPLES)
    )


def imagenet_problems(manifest: dict[str, Any]) -> list[str]:
    """Returns in which splits ImageNet's images are not all there, apart from those that were left out knowingly.

    It is silent about other data sets, and about fewer classes than ImageNet has.
    """
    if not _is_imagenet(manifest) or manifest["num_classes"] != archives.NUM_CLASSES:
        return []
    found = []
    for split, values in manifest["splits"].items():
        whole, skipped = archives.EXAMPLES.get(split), len(values["skipped"])
        if whole is not None and values["examples"] + skipped != whole:
            found.append(
                f"{split} has {values['examples']:,} examples and {skipped} were left out, but ImageNet has {whole:,}"
            )
    return found


def published_problems(manifest: dict[str, Any]) -> list[str]:
    """Returns in which splits of a known data set there are not as many images as published, apart from those that were
    left out knowingly. It is silent about other data sets, and where the user wanted what there was."""
    source = manifest["input"] if isinstance(manifest.get("input"), dict) else {}
    if source.get("subset") or not isinstance(source.get("published"), dict):
        return []
    found = []
    for split, values in manifest["splits"].items():
        whole, there, skipped = source["published"].get(split), values["examples"], len(values["skipped"])
        if whole is not None and there + skipped != whole and manifest["options"].get("corruption") is None:
            found.append(f"{split} has {there:,} examples and {skipped} were left out, but {whole:,} are published")
    return found


def _is_imagenet(manifest: dict[str, Any]) -> bool:
    return manifest["options"]["name"] == archives.ImageNetArchives.name
