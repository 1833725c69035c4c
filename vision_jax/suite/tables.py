"""The table of a suite, as CSV and for a terminal."""

import csv
import fractions
import io
from collections.abc import Iterable, Mapping
from typing import Any

from vision_jax.evaluators.suites import ALEXNET_ERRORS
from vision_jax.suite.find import CORRUPTIONS, V2

ROWS = ("val", "real", *V2, "a", "a-clean", "r", "r-clean", "sketch", "c", "objectnet", "adversarial")
_COLUMNS = (
    *("set", "top1", "top5", "count", "expected", "incomplete", "damaged"),
    *("published_top1", "difference_top1", "published_top5", "difference_top5"),
    *("error", "ce", "relative_ce", "mce", "published_mce", "difference_mce", "relative_mce"),
    *("clean", "robust", "after", "warnings", "seconds", "rule"),
)


def in_order(rows: Iterable[str]) -> list[str]:
    """Returns the names of rows in the order of the table; parts of ImageNet-C follow it."""

    def place(row: str) -> tuple[int, float, str]:
        kind, _, part = row.partition("/")
        if kind == "adversarial":  # as in `adversarial/pgd-20 linf 8/255`
            attack, _, radius = part.rpartition(" ")
            return ROWS.index(kind), float(fractions.Fraction(radius)), attack
        if kind == "val":  # as in `val/windows`, another evaluation of a detector or segmenter
            return ROWS.index(kind), 0, part
        return ROWS.index(kind), CORRUPTIONS.index(part.split("/")[0]) if part else -1, part

    return sorted(rows, key=place)


def as_csv(sets: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a line for each row, and each corruption of ImageNet-C; numbers but counts and seconds are percent."""
    file = io.StringIO()
    more = dict.fromkeys(name for entry in sets.values() for name in entry.get("measures", {}))  # AP, miou and so on
    writer = csv.DictWriter(file, (*_COLUMNS, *more), restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row, entry in sets.items():
        cells = {"set": row, **entry, "incomplete": "; ".join(entry["incomplete"])}
        cells |= entry.get("measures", {})
        if "robust" in entry:
            cells |= {"after": _after(entry), "warnings": " ".join(entry["warnings"])}
        for kind in ("published", "difference"):
            cells |= {f"{kind}_{measure}": value for measure, value in entry.get(kind, {}).items()}
        writer.writerow({name: _cell(value) for name, value in cells.items()})
        for name, of in entry.get("corruptions", {}).items():
            writer.writerow({"set": f"c/{name}", **{key: _cell(value) for key, value in of.items()}})
    return file.getvalue()


def _cell(value: Any) -> Any:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else value


def row_text(row: str, entry: Mapping[str, Any]) -> str:
    """Returns a line of the table for a terminal."""
    count, expected = entry["count"], entry["expected"]
    images = f"{count:,}" if count == expected else f"{count:,} of {expected:,}"
    if "robust" in entry:
        name = row.partition("/")[2] + (" *" if entry["incomplete"] else "")
        return f"{name:36}{entry['clean']:8.3f}{entry['robust']:9.3f}{images:>18}"
    if "measures" in entry:
        found = (f"{name} {'-' if value is None else f'{value:.2f}'}" for name, value in entry["measures"].items())
        return f"{row:12}{'  '.join(found)}  ({images} images, in percent)"
    known, difference = entry.get("published", {}).get("top1"), entry.get("difference", {}).get("top1")
    beside = f"{known:10.3f} {difference:+10.3f}" if known is not None else ""
    name = row + (" *" if entry["incomplete"] else "")
    return f"{name:24}{entry['top1']:8.3f}{entry['top5']:9.3f}{images:>24} {beside}".rstrip()


def heading(*, beside: bool) -> str:
    """Returns what stands above the lines of `row_text`; `beside`: something published stands beside them."""
    text = f"{'':24}{'top-1':>8}{'top-5':>9}{'images':>24}"
    return f"{text} {'published':>10} {'difference':>10}" if beside else text


def as_text(sets: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the whole table for a terminal, with what is incomplete, and one of ImageNet-C's corruptions."""
    rows = [row for row in in_order(sets) if "/" not in row]
    lines = []
    if rows:
        beside = any("published" in sets[row] for row in rows)
        lines += [heading(beside=beside), *(row_text(row, sets[row]) for row in rows)]
    if attacked := [row for row in in_order(sets) if "robust" in sets[row]]:
        lines += [*([""] if rows else []), *_attack_lines({row: sets[row] for row in attacked})]
        rows += attacked
    if lacking := [row for row in rows if sets[row]["incomplete"]]:
        lines += ["", "* incomplete:", *(f"  {row}: {'; '.join(sets[row]['incomplete'])}" for row in lacking)]
    if "c" in sets:
        lines += ["", *_corruption_lines(sets["c"])]
    return "\n".join(lines)


def _attack_lines(sets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [f"{'percent of the images':36}{'clean':>8}{'robust':>9}{'images':>18}"]
    for row, entry in sets.items():
        lines.append(row_text(row, entry))
        if len(entry["after"]) > 1:
            lines.append(f"  after {_after(entry)}")
        lines += [f"  warning: {text}" for text in entry["warnings"]]
    return lines


def _after(entry: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in entry["after"].items())


def _corruption_lines(entry: Mapping[str, Any]) -> list[str]:
    levels = ("1", "2", "3", "4", "5")
    lines = [f"{'error by severity':24}{''.join(f'{level:>8}' for level in levels)}{'mean':>9}{'CE':>9}{'rel. CE':>9}"]
    for name, of in entry["corruptions"].items():
        cells = "".join(_number(of["severities"].get(level), 8) for level in levels)
        label = name if name in ALEXNET_ERRORS else f"{name} (extra)"
        more = "".join(_number(of.get(kind), 9) for kind in ("error", "ce", "relative_ce"))
        lines.append(f"{label:24}{cells}{more}".rstrip())
    means = "".join(_number(entry.get(kind), 9) for kind in ("error", "mce", "relative_mce"))
    counted = sum(name in ALEXNET_ERRORS for name in entry["corruptions"])
    lines.append(f"{f'mean of {counted}, mCE':24}{'':40}{means}".rstrip())
    if "mce" in entry.get("published", {}):
        lines.append(f"mCE published: {entry['published']['mce']:g}, difference {entry['difference']['mce']:+.2f}")
    if entry.get("own_classes"):
        lines.append("No mCE: AlexNet's errors, by which it divides, are those on ImageNet.")
    elif "mce" not in entry:
        lines.append("No mCE: it is a mean over 15 corruptions of 5 severities each.")
    elif "relative_mce" not in entry:
        lines.append("No relative mCE: it needs the error on the validation set, which has not been measured.")
    return lines


def _number(value: float | None, width: int) -> str:
    return " " * width if value is None else f"{value:{width}.2f}"
