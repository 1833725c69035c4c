"""Finding damaged images before a run starts: each record of a source is read and decoded once."""

import concurrent.futures
import dataclasses
import functools
import logging
from collections.abc import Callable

from vision_jax.data import decode
from vision_jax.data.pillow import MAX_PIXELS
from vision_jax.data.sources import Source
from vision_jax.errors import DataError, reason

log = logging.getLogger(__name__)

_CHUNK = 64  # records per task of a thread
_NAMED = 10  # damaged records that a message names


@dataclasses.dataclass(frozen=True)
class Damaged:
    """A record that cannot be read or decoded, or whose label is out of range.

    Attributes:
        index: its number in the source.
        name: a description by which people can find it.
        reason: what is wrong with it.
    """

    index: int
    name: str
    reason: str


def find_damaged(
    source: Source,
    *,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    num_threads: int | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> list[Damaged]:
    """Reads and decodes all records of a source completely, as in evaluation.

    Args:
        source: the records.
        channels: 3 for RGB, 1 for grayscale.
        max_pixels: larger images count as damaged.
        num_threads: None: the default of `ThreadPoolExecutor`.
        progress: called from this thread with the number of records that have been checked since its last call.

    Returns:
        the damaged ones, in order.
    """
    check = functools.partial(_check_chunk, source, channels, max_pixels)
    found: list[Damaged] = []
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        firsts = range(0, len(source), _CHUNK)
        for first, damaged in zip(firsts, pool.map(check, firsts), strict=True):
            found += damaged
            progress(min(_CHUNK, len(source) - first))
    return found


def _check_chunk(source: Source, channels: int, max_pixels: int, first: int) -> list[Damaged]:
    indices = range(first, min(first + _CHUNK, len(source)))
    reasons = ((index, _problem(source, index, channels, max_pixels)) for index in indices)
    return [Damaged(index, source.describe(index), reason) for index, reason in reasons if reason is not None]


def _problem(source: Source, index: int, channels: int, max_pixels: int) -> str | None:
    """Returns what is wrong with a record, if anything."""
    try:
        record = source[index]
    except Exception as error:  # whatever a format's reader raises on damage
        return f"it cannot be read: {reason(error)}"
    try:
        decode.decode(record["image"], channels, max_pixels=max_pixels)
    except ValueError as error:
        return str(error)
    label = record["label"]
    if not 0 <= label < source.num_classes:
        return f"it has the label {label}, and there are {source.num_classes} classes, 0 to {source.num_classes - 1}"
    return None


def refuse_damaged(damaged: list[Damaged], num_records: int, allowed: int, split: str) -> None:
    """Warns of damaged records.

    Args:
        damaged: the damaged records.
        num_records: number of records checked.
        allowed: number of damaged records that is tolerated.
        split: of the records.

    Raises:
        DataError: if there are more than `allowed`; the message names the first ones.
    """
    if not damaged:
        return
    names = "".join(f"\n  - {record.name}: {record.reason}" for record in damaged[:_NAMED])
    more = f"\n  and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
    count = f"{len(damaged)} of the {num_records} records of the split {split!r} are damaged"
    if len(damaged) > allowed:
        raise DataError(
            f"{count}:{names}{more}\nRepair or remove them, or leave them out of evaluations with "
            f"data.max_bad_eval_records={len(damaged)}."
        )
    log.warning("%s and will be left out of evaluations:%s%s", count, names, more)
