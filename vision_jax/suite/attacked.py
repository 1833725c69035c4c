"""What is known of each attacked image, and the file that has it: a line of JSON for each."""

import dataclasses
import json
import logging
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from vision_jax.attacks.signs import CLEAN, NOTHING, Look
from vision_jax.runtime.writers import write_atomically

log = logging.getLogger(__name__)

_SECONDS = 20.0  # between two writes
_CLEAN = "clean"  # in the file, what fooled the model where no attack was needed


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of some images, one entry each; the arrays are changed as attacks go on.

    Attributes:
        index: (n,) integers, their numbers in the set, ascending.
        label, predicted: (n,) integers: the class, and that which the model says without an attack.
        fooled_by: (n,) integers: the number of the attack that fooled the model, `CLEAN` or `NOTHING`.
        passes: (n,) integers: how many are done.
        taken_for: (n,) integers: the class of what fooled the model, or of the last attempt; -1: there was none.
        distance: (n,) float, of the same from the image; 0: there was none.
    """

    index: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    fooled_by: np.ndarray
    passes: np.ndarray
    taken_for: np.ndarray
    distance: np.ndarray

    @classmethod
    def of(cls, index: np.ndarray, label: np.ndarray, seen: Look) -> "Known":
        """Returns what clean images tell."""
        n = len(index)
        fooled_by = np.where(seen.right, NOTHING, CLEAN)
        zeros, none = np.zeros(n, np.int64), np.full(n, -1)
        return cls(index, label, np.asarray(seen.predicted), fooled_by, zeros, none, np.zeros(n))

    def left(self, number: int) -> np.ndarray:
        """Returns which entries, (m,) integers, are not fooled, and have not been through the pass of this number."""
        return np.flatnonzero((self.fooled_by == NOTHING) & (self.passes <= number))

    def note(
        self, rows: np.ndarray, attack: int, number: int, fooled: np.ndarray, taken_for: np.ndarray, far: np.ndarray
    ) -> None:
        """Notes what a pass has found for some entries, (m,) integers."""
        self.passes[rows] = number + 1
        self.taken_for[rows], self.distance[rows] = taken_for, far
        self.fooled_by[rows[fooled]] = attack


class Store:
    """The file with a line for each image.

    Args:
        path: of it.
        attacks: their names; `fooled_by` has numbers of these.
    """

    def __init__(self, path: pathlib.Path, attacks: Sequence[str]):
        self.path, self._attacks = path, list(attacks)
        self._written = -float("inf")

    def read(self, index: Sequence[int]) -> dict[str, list[Any]] | None:
        """Returns `fooled_by`, `passes`, `taken_for` and `distance` of the images of these numbers; None: no file.

        What is no file of this class, or has other images, is not used, which is told.
        """
        if not self.path.is_file():
            return None
        numbers: dict[str | None, int] = {None: NOTHING, _CLEAN: CLEAN}
        numbers |= {name: number for number, name in enumerate(self._attacks)}
        try:
            lines = [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]
            if [line["index"] for line in lines] != list(index):
                raise ValueError("it has other images")
            return {
                "fooled_by": [numbers[line["fooled_by"]] for line in lines],
                "passes": [int(line["passes"]) for line in lines],
                "taken_for": [-1 if line["taken_for"] is None else int(line["taken_for"]) for line in lines],
                "distance": [float(line["distance"] or 0) for line in lines],
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be used (%s: %s): the attack begins anew.", self.path, type(error).__name__, error)
            return None

    def write(self, known: Known, names: Sequence[str], *, now: bool = False) -> None:
        """Writes what is known, unless that was done a moment ago; `now`: in any case.

        Args:
            known: of the images.
            names: of their files.
            now: see above.

        Raises:
            CheckpointError: if the storage fails.
        """
        if not now and time.monotonic() - self._written < _SECONDS:
            return
        of = {NOTHING: None, CLEAN: _CLEAN, **dict(enumerate(self._attacks))}
        rows = zip(names, *(values.tolist() for values in vars(known).values()), strict=True)
        lines = [
            {
                **{"index": index, "image": name, "label": label, "predicted": predicted},
                **{"fooled_by": of[fooled_by], "taken_for": None if taken_for < 0 else taken_for},
                **{"distance": None if taken_for < 0 else round(far, 7), "passes": passes},
            }
            for name, index, label, predicted, fooled_by, passes, taken_for, far in rows
        ]
        self.path.parent.mkdir(exist_ok=True)
        write_atomically(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self._written = time.monotonic()
