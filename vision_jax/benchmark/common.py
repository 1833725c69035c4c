"""What the benchmarks share: flags, versions, and numbers in tables."""

import contextlib
import importlib.metadata
import math
from collections.abc import Iterable, Sequence
from typing import Any


def positive(kind: type) -> Any:
    """Returns a function that reads a positive, finite number of this type from a flag."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < math.inf:
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"  # argparse's message names it
    return parse


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Returns the versions of those packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def span(values: Sequence[float], digits: int) -> str:
    """Returns the least and the largest of some values, such as (1.5-2.0)."""
    return f"({min(values):.{digits}f}-{max(values):.{digits}f})"
