"""Reading what a run writes while it writes it: the values of one metric in metrics.jsonl."""

import json
import math
import pathlib
from typing import Any, NamedTuple


class Point(NamedTuple):
    """A value of the metric.

    Attributes:
        number: how many values the run has written up to this one, by step.
        step: of the training.
        value: NaN if it is not finite.
    """

    number: int
    step: int
    value: float


class Follower:
    """Reads a metric of a run again and again.

    Args:
        path: of metrics.jsonl; it need not be there yet.
        metric: such as val/top1.
    """

    def __init__(self, path: pathlib.Path, metric: str):
        self._path, self._metric = path, metric
        self._seen: tuple[int, int, int] | None = None
        self.points: list[Point] = []
        self.last_step: int | None = None  # of the last line; None: there is none
        self.metrics: set[str] = set()  # the names of all

    def read(self) -> bool:
        """Reads the file if it has changed, and returns whether it has."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        seen = (found.st_ino, found.st_size, found.st_mtime_ns)
        if seen == self._seen:
            return False
        self._seen = seen
        lines = self._path.read_text(errors="replace").split("\n")[:-1]  # what follows the last one is not complete
        records = [record for line in lines if (record := _parse(line)) is not None and record.get("mode") != "eval"]
        self.last_step = max((record["step"] for record in records), default=None)
        self.metrics = {name for record in records for name in record if "/" in name}
        values = {record["step"]: record[self._metric] for record in records if self._metric in record}
        self.points = [
            Point(number, step, _number(values[step])) for number, step in enumerate(sorted(values), start=1)
        ]
        return True


def read(path: pathlib.Path, metric: str) -> list[Point]:
    """Returns the values of a metric in a metrics.jsonl; none if it is not there."""
    follower = Follower(path, metric)
    follower.read()
    return follower.points


def _parse(line: str) -> dict[str, Any] | None:
    """Returns a line of metrics.jsonl; None if it is damaged, of which the run itself warns."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _number(value: Any) -> float:
    """Returns a value of metrics.jsonl, in which null stands for what is not finite."""
    return float(value) if isinstance(value, int | float) else math.nan
