"""Writing shards in many processes, each of which may be killed at any time.

A shard is written under a temporary name, and gets its own when it is whole and on disk. Then comes its receipt, a
small JSON file in the work folder. A shard with a receipt is finished; any other is written again, to the same bytes.
"""

import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, MutableSequence, Sequence
from typing import Any

import numpy as np

from vision_jax.data import prepared, tfds_format
from vision_jax.errors import DataError, reason
from vision_jax.preparation.convert import Conversion
from vision_jax.preparation.inputs import Original, Reader


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard to be written.

    Attributes:
        file: its name.
        split: it is a part of.
        records: (n,) rows of an input's index.
    """

    file: str
    split: str
    records: np.ndarray


@dataclasses.dataclass(frozen=True)
class Receipt:
    """A shard that is finished.

    Attributes:
        file: its name.
        split: it is a part of.
        examples: how many it has.
        example_bytes: their length when serialized, without what the file adds.
        file_bytes: length of the file.
        sha256: of the file.
        skipped: name of each image that was left out, and why.
        labels: of the examples; of those with boxes or masks, their numbers in the split of the input.
    """

    file: str
    split: str
    examples: int
    example_bytes: int
    file_bytes: int
    sha256: str
    skipped: Sequence[tuple[str, str]]
    labels: Sequence[int] = ()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Receipt":
        return cls(**{**values, "skipped": [(name, reason) for name, reason in values["skipped"]]})


@dataclasses.dataclass(frozen=True)
class Job:
    """What all shards have in common.

    Attributes:
        directory: where the shards go.
        work: where temporary files and receipts go; on the same file system.
        reader, conversion: of the images.
        skip_corrupt: how many images may be left out in all, because they cannot be read or converted.
    """

    directory: pathlib.Path
    work: pathlib.Path
    reader: Reader
    conversion: Conversion
    skip_corrupt: int

    def receipt(self, shard: Shard) -> Receipt | None:
        """Returns the receipt of a shard if it is finished, with the labels that older versions did not note."""
        path = self._receipt_path(shard)
        if not path.exists():
            return None
        receipt = Receipt.from_json(json.loads(path.read_text()))
        target = self.directory / shard.file
        if len(receipt.labels) != receipt.examples or not target.exists():
            return None
        return receipt if target.stat().st_size == receipt.file_bytes else None

    def _receipt_path(self, shard: Shard) -> pathlib.Path:
        return self.work / f"{shard.file}.json"

    def _read(self, record: np.void) -> Original:
        name = os.fsdecode(bytes(record["name"]))
        try:
            return self.reader.read(record)
        except DataError:
            raise
        except OSError as error:
            raise DataError(f"Cannot read {name}: {reason(error)}.") from error
        except Exception as error:  # a damaged record: whatever its format's reader raises
            raise _UnreadableError(name, f"it cannot be read: {type(error).__name__}: {reason(error)}") from error

    def _convert(self, original: Original) -> bytes:
        try:
            return self.conversion(original.data, original.file_name)
        except ValueError as error:
            raise _UnreadableError(os.fsdecode(original.file_name), str(error)) from error

    def write(self, shard: Shard, count: Callable[[], None]) -> Receipt:
        """Writes a shard and its receipt.

        Args:
            shard: which.
            count: called after each image; what it raises ends the work.

        Raises:
            DataError: if more images than may be left out cannot be read or converted.
        """
        temporary = self.work / f"{shard.file}.{os.getpid()}.tmp"
        skipped: list[tuple[str, str]] = []
        labels: list[int] = []
        example_bytes = 0
        writer = tfds_format.open_shard(temporary)
        for record in shard.records:
            try:
                original = self._read(record)
                image = self._convert(original)
            except _UnreadableError as error:
                skipped.append((error.name, str(error)))
                check_skipped(skipped, self.skip_corrupt)
            else:
                if original.dense is not None:
                    example = prepared.serialize({**original.dense, "image": image}, original.file_name)
                else:
                    example = tfds_format.serialize_example(image, original.label, original.file_name)
                with _naming_the_disk(self.directory):
                    writer.write(example)
                labels.append(original.label)
                example_bytes += len(example)
            count()
        with _naming_the_disk(self.directory):
            writer.close()
        sha256 = flush_and_hash(temporary)
        size = temporary.stat().st_size
        temporary.replace(self.directory / shard.file)
        flush_directory(self.directory)
        receipt = Receipt(shard.file, shard.split, len(labels), example_bytes, size, sha256, skipped, labels)
        write_json(self._receipt_path(shard), dataclasses.asdict(receipt))
        return receipt


class _UnreadableError(Exception):
    """An image cannot be read or decoded.

    Attributes:
        name: of the image.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(reason)
        self.name = name


@contextlib.contextmanager
def _naming_the_disk(directory: pathlib.Path) -> Iterator[None]:
    """Says what ArrayRecord's RuntimeErrors are about."""
    try:
        yield
    except RuntimeError as error:
        raise DataError(f"Cannot write to {directory}: {error}. The same command goes on from here.") from error


def check_skipped(skipped: Sequence[tuple[str, str]], limit: int) -> None:
    """Checks that no more images are left out than may be.

    Raises:
        DataError: if there are; it names them.
    """
    if len(skipped) > limit:
        names = "".join(f"\n  - {name}: {reason}" for name, reason in skipped[:20])
        more = f"\n  and {len(skipped) - 20} more" if len(skipped) > 20 else ""
        raise DataError(
            f"More images cannot be decoded than may be left out (--skip_corrupt={limit}):{names}{more}\n"
            "Replace them, or allow more; the same command goes on from here."
        )


def flush_and_hash(path: pathlib.Path) -> str:
    """Brings a file onto the disk and returns its SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_directory(directory: pathlib.Path) -> None:
    """Brings the names in a folder onto the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file that is, at any moment, whole or not there."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    flush_directory(path.parent)


def write_shards(
    job: Job, shards: Sequence[Shard], num_workers: int, progress: Callable[[int], None]
) -> Generator[Receipt, None, None]:
    """Writes shards in `num_workers` processes and yields their receipts as they are finished.

    No process is left when it ends, in whatever way; should this process be killed, the others end too.

    Args:
        job, shards: what is to be written.
        num_workers: processes.
        progress: called a few times a second with the number of images that are done.

    Raises:
        DataError: if an image cannot be read or converted, or a process was killed.
    """
    context = multiprocessing.get_context("spawn")
    # Each shard counts for itself and no lock is taken: a process that is killed could keep it for ever.
    counts = context.RawArray("q", max(1, len(shards)))
    stop = context.RawValue("b", 0)
    with _interrupts_noted() as raise_interrupt:
        pool = concurrent.futures.ProcessPoolExecutor(num_workers, context, _start_worker, (job, counts, stop))
        try:
            with _interrupts_blocked():
                futures = {pool.submit(_write_in_worker, number, shard) for number, shard in enumerate(shards)}
            while futures:
                done, futures = concurrent.futures.wait(
                    futures, timeout=0.2, return_when=concurrent.futures.FIRST_COMPLETED
                )
                progress(sum(counts))
                for future in done:
                    yield future.result()
                raise_interrupt()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise DataError(
                "A worker process was killed, perhaps for want of memory: run the same command again to go on, with "
                f"fewer than --workers={num_workers} if it happens again."
            ) from error
        finally:
            stop.value = 1
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_noted() -> Iterator[Callable[[], None]]:
    """Notes Ctrl-C; what it yields raises KeyboardInterrupt for it.

    Raised at any other moment, it could leave a lock of the executor taken for ever.
    """
    noted: list[int] = []

    def raise_interrupt() -> None:
        if noted:
            raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield raise_interrupt  # nobody raises it
        return
    signal.signal(signal.SIGINT, lambda number, _: noted.append(number))

    try:
        yield raise_interrupt
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes that are started meanwhile never see Ctrl-C: this one tells them to stop."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


class _Stopped(Exception):
    """The work is given up."""


# What a worker process was started with.
_worker: tuple[Job, MutableSequence[int], Any]


def _start_worker(job: Job, counts: MutableSequence[int], stop: Any) -> None:
    global _worker
    _worker = (job, counts, stop)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # Pillow warns of broken EXIF, of odd palettes and the like in images that it decodes all the same.
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _write_in_worker(number: int, shard: Shard) -> Receipt:
    job, counts, stop = _worker

    def count() -> None:
        counts[number] += 1
        if stop.value:
            raise _Stopped

    return job.write(shard, count)
