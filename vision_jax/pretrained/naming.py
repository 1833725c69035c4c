"""Finds a model's tensors among the names of a file, whatever wrappers have put before these."""

import collections
import dataclasses
import logging
import re
from collections.abc import Container, Iterable, Mapping, Sequence

log = logging.getLogger(__name__)

# What torch stores beside weights: functions of the architecture, and counters that nothing reads.
NO_WEIGHTS = re.compile(
    r"(^|\.)(num_batches_tracked|relative_position_index|relative_coords_table|attn_mask|total_ops|total_params)$"
)
# First parts of the names of what trainings keep beside the model: losses, optimizers, queues, decoders, projections.
_COMPANIONS = re.compile(
    r"(criterion|loss(_fn|_func|_fun|_function)?|optim(izers?)?|(lr_)?schedulers?|(amp_|grad_)?scaler|args|epoch|step"
    r"|iteration|global_step|n_averaged|queue(_ptr)?|center|decoder(_\w+)?|mask_token|projector|projection(_head)?"
    r"|predictor|prototypes|metrics?)(\.|$)"
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the tensors of a model are in a file.

    Attributes:
        library: whose names they have.
        prefix: what comes before each name, with the dot at its end.
        copies: prefixes of other sets of tensors of the same model.
        matches: how many of the model's names are there.
    """

    library: str
    prefix: str
    copies: tuple[str, ...]
    matches: int


def find(names: Iterable[str], expected: Mapping[str, Sequence[str]]) -> Place:
    """Returns where most of a model's names are.

    A name of the model may follow any prefix that ends with a dot, such as `state_dict_ema.module._orig_mod.`; the one
    that makes the most names fit is taken. Of several that do, as in a checkpoint with the weights and their moving
    average, it is that of the average (a part of the name is `ema`), else that of a `teacher`, else the first one that
    is neither a `student` nor a momentum encoder.

    Args:
        names: of the file.
        expected: the model's names, by the library that calls them so. The first one is preferred.
    """
    order = list(expected)
    libraries = {library: frozenset(own) for library, own in expected.items()}
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for name in names:
        parts = name.split(".")
        for i in range(len(parts)):
            rest = ".".join(parts[i:])
            for library, own in libraries.items():
                if rest in own:
                    counts[library, "".join(f"{part}." for part in parts[:i])] += 1
    if not counts:
        return Place(order[0], "", (), 0)
    most = max(counts.values())
    best = [place for place, count in counts.items() if count == most]  # in the order of the file
    library, prefix = min(best, key=lambda place: (order.index(place[0]), _rank(place[1])))
    copies = tuple(p for (lib, p), count in counts.items() if lib == library and p != prefix and count > most // 2)
    return Place(library, prefix, copies, most)


def _rank(prefix: str) -> int:
    words = re.split(r"[._]", prefix.lower())
    # MoCo's features are those of the network that is trained, and not of its momentum encoder, `encoder_k`.
    last = "student" in words or "momentum" in words or "encoder_k" in prefix.split(".")
    return 0 if "ema" in words else 1 if "teacher" in words else 3 if last else 2


def unwrapped(name: str) -> str:
    """Returns a name without what torch's wrappers put into it, wherever it is."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def within(name: str, part: str) -> bool:
    """Returns whether a name, or what is behind some prefix of it that ends with a dot, begins with `part`."""
    return name.startswith(part) or f".{part}" in name


def some(items: Sequence[str], separator: str = ", ", shown: int = 4) -> str:
    """Returns a few of the items, and how many more there are."""
    if not items:
        return "none"
    rest = len(items) - shown
    return separator.join(items[:shown]) + (f"{separator}and {rest} more" if rest > 0 else "")


def differences(missing: Sequence[str], left_over: Sequence[str], of_another_shape: Sequence[str]) -> list[str]:
    """Returns what does not fit, one text for each kind of which there is something: "2 missing (a; b)"."""
    kinds = (("missing", missing), ("left over", left_over), ("of another shape", of_another_shape))
    return [f"{len(items)} {title} ({some(items, '; ')})" for title, items in kinds if items]


def relative_names(names: Iterable[str], place: Place, expected: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Returns the names at a place without their prefix, with those in the file, and what the file has beside them.

    A name that is missing there is also looked for further up, as is the classifier of `backbone.conv1.weight` and
    `head.fc.weight`, or `backbone.conv1.weight` and `fc.weight`.

    Args:
        names: of the file.
        place: of the model's tensors.
        expected: the model's names in `place.library`.
    """
    names, own = list(names), set(expected)
    others = tuple(copy for copy in place.copies if copy.startswith(place.prefix))  # copies within the place
    found = {
        name.removeprefix(place.prefix): name
        for name in names
        if name.startswith(place.prefix) and not (others and name.startswith(others))
    }
    there = {name for name in names if not is_copy(name, place, own)}
    parts = place.prefix.split(".")[:-1]
    for missing in own - found.keys():
        for i in range(len(parts)):
            above = "".join(f"{part}." for part in parts[:i])
            for name in (f"{above}{missing}", f"{above}head.{missing}"):
                if name in there:
                    found[missing] = name
    found = {rest: name for rest, name in found.items() if rest in own or not _COMPANIONS.match(rest)}
    taken = set(found.values())
    return found, [name for name in names if name not in taken]


def is_copy(name: str, place: Place, expected: Container[str]) -> bool:
    """Returns whether a tensor is the model's, but of another set of weights than those at its place."""
    return any(name.startswith(copy) and name.removeprefix(copy) in expected for copy in place.copies)


def report(label: str, place: Place, beside: Sequence[str], expected: Container[str]) -> None:
    """Logs which of several sets of weights is read, and what is left out of the file."""
    if place.copies:
        log.info(
            "%s: the weights under %r are read; there are others under %s.",
            label,
            place.prefix,
            ", ".join(repr(copy) for copy in place.copies),
        )
    rest = [name for name in beside if not is_copy(name, place, expected)]
    if rest:
        roots = list(dict.fromkeys(name.split(".")[0] for name in rest))
        shown = ", ".join(roots[:8]) + (", ..." if len(roots) > 8 else "")
        log.info("%s: %d entries beside the model's weights are left out: %s.", label, len(rest), shown)
