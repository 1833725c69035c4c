"""ImageNet-C as a whole: its measures, from the accuracies on its corruptions and severities."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax.data import listing
from vision_jax.evaluators import suites
from vision_jax.evaluators.suites import ALEXNET_ERRORS
from vision_jax.suite.find import CORRUPTIONS

_SEVERITIES = ("1", "2", "3", "4", "5")
_Entry = Mapping[str, Any]
_Parts = Mapping[str, Mapping[str, _Entry]]  # by corruption and severity


def corruption_entry(sets: Mapping[str, _Entry]) -> dict[str, Any] | None:
    """Returns the entry of ImageNet-C as a whole, in percent; None: none of its 15 corruptions has been measured.

    Accuracies and `error` are means over these, each a mean over the severities that are there. mCE needs all 75, and
    the relative one also the accuracy on the validation set; of classes that are not ImageNet's there is none.

    Args:
        sets: the entries by row, such as `c/fog/3`; see `results.Results`.
    """
    parts: dict[str, dict[str, _Entry]] = {}
    for row, entry in sets.items():
        if row.startswith("c/"):
            _, corruption, level = row.split("/")
            parts.setdefault(corruption, {})[level] = entry
    counted = {name: parts[name] for name in ALEXNET_ERRORS if name in parts}
    if not counted:
        return None
    inner = [entry for levels in counted.values() for entry in levels.values()]
    clean = sets.get("val")
    lacks = _missing(counted)
    own_classes = any(entry.get("own_classes") for entry in inner)
    measured = {} if lacks or own_classes else _measured(counted, clean)
    if partial := [f"{name}/{level}" for name in counted for level, one in counted[name].items() if one["incomplete"]]:
        lacks.append(f"{len(partial)} of its {len(inner)} parts are incomplete ({listing.shorten(partial, 3)})")
    if "relative_mce" in measured and clean is not None and clean["incomplete"]:
        lacks.append("the relative measures are of an incomplete validation set")
    top1, top5 = (_mean([_mean(_values(levels, kind)) for levels in counted.values()]) for kind in ("top1", "top5"))
    return {
        **{"top1": top1, "top5": top5, "error": 100 - top1},
        **{name: measured[name] for name in ("mce", "relative_mce") if name in measured},
        "count": sum(entry["count"] for entry in inner),
        "expected": len(ALEXNET_ERRORS) * len(_SEVERITIES) * inner[0]["expected"],
        "incomplete": lacks,
        "damaged": sum(entry["damaged"] for entry in inner),
        "rule": inner[0]["rule"],
        **({"own_classes": True} if own_classes else {}),
        "seconds": sum(entry["seconds"] for entry in inner),
        "corruptions": {name: _errors(name, parts[name], measured) for name in CORRUPTIONS if name in parts},
    }


def _missing(parts: _Parts) -> list[str]:
    """Returns in words which of the 15 corruptions, and of their severities, are not there."""
    lacks = []
    if missing := [name for name in ALEXNET_ERRORS if name not in parts]:
        lacks.append(f"{len(missing)} of {len(ALEXNET_ERRORS)} corruptions are missing ({', '.join(missing)})")
    for name, found in parts.items():
        if levels := [level for level in _SEVERITIES if level not in found]:
            lacks.append(f"{name} has no severity {', '.join(levels)}")
    return lacks


def _measured(parts: _Parts, clean: _Entry | None) -> dict[str, float]:
    """Returns the measures of `suites.corruption_errors`; without an entry of the validation set no relative ones."""
    errors = {name: [1 - value / 100 for value in _values(levels, "top1")] for name, levels in parts.items()}
    return suites.corruption_errors(errors, None if clean is None else 1 - clean["top1"] / 100)


def _errors(name: str, levels: Mapping[str, _Entry], measured: Mapping[str, float]) -> dict[str, Any]:
    """Returns the errors of a corruption, and its CE and relative CE if there are."""
    errors = {level: 100 - levels[level]["top1"] for level in sorted(levels)}
    ce = {kind: measured[f"{kind}/{name}"] for kind in ("ce", "relative_ce") if f"{kind}/{name}" in measured}
    return {"error": _mean(list(errors.values())), "severities": errors, **ce}


def _values(levels: Mapping[str, _Entry], kind: str) -> list[float]:
    return [entry[kind] for entry in levels.values()]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
