"""What the classes of weights are called, and which of them the classes of other data are."""

import dataclasses
import functools
import logging
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from vision_jax.errors import ConfigError, DataError, reason, suggest

log = logging.getLogger(__name__)

IMAGENET = "imagenet"
_MOST_LISTED = 20  # classes in a message


@functools.cache
def imagenet_classes() -> tuple[str, ...]:
    """Returns the WordNet ids of the 1,000 classes of ILSVRC 2012, sorted, as published weights number them.

    The list is tensorflow_datasets' (`datasets/imagenet2012/labels.txt`, Apache 2.0).
    """
    return tuple((pathlib.Path(__file__).parent / "imagenet_classes.txt").read_text().split())


@functools.cache
def _imagenet_words() -> dict[str, str]:
    """Returns what each class of ILSVRC 2012 is called, by WordNet id.

    The words are torchvision's (`models/_meta.py`, BSD 3-clause), all of them different.
    """
    words = (pathlib.Path(__file__).parent / "imagenet_words.txt").read_text().splitlines()
    return dict(zip(imagenet_classes(), words, strict=True))


def display_names(names: Sequence[str]) -> list[str]:
    """Returns what to call classes before a person: English words for ImageNet's WordNet ids, else their names."""
    words = _imagenet_words()
    return [words.get(name, name) for name in names]


def find_class(text: str, names: Sequence[str], count: int) -> int:
    """Returns the number of a class that a person names.

    Args:
        text: its name, what `display_names` calls it, in whatever case, or its number, if no class is called so.
        names: of the classes; empty: unknown.
        count: how many there are.

    Raises:
        ConfigError: if there is no such class; it names similar ones.
    """
    shown = display_names(names)
    folded = text.strip().casefold()
    for known in (names, shown, [name.casefold() for name in shown]):
        for wanted in (text, text.strip(), folded):
            if known.count(wanted) == 1:
                return list(known).index(wanted)
    if folded.isascii() and folded.isdigit() and int(folded) < count:
        return int(folded)
    numbers = f"a number from 0 to {count - 1}"
    if not names:
        raise ConfigError(f"There is no class {text!r}, and what the classes are called is unknown: give {numbers}.")
    containing = [name for name in shown if folded and folded in name.casefold()][:3]
    if containing:
        hint = f"did you mean {' or '.join(containing)}?"
    else:
        # Where they are too many for a message, a prediction of any image tells them.
        many = f"give {numbers}, or another name: `predict --topk={count}`"
        number = re.fullmatch(r"-?[0-9]+", folded)  # which resembles names that are numbers, of which none is meant
        hint = suggest("" if number else text, shown, many if count > _MOST_LISTED else None)
    raise ConfigError(f"There is no class {text!r}: {hint}")


def read_class_names(what: str | None) -> tuple[str, ...]:
    """Returns the names of the classes of weights, in the order of their logits.

    Args:
        what: "imagenet", or a text file with one name a line; None: they are unknown.

    Raises:
        DataError: if there is no such file, or a name is there twice.
    """
    if what is None:
        return ()
    if what == IMAGENET:
        return imagenet_classes()
    try:
        lines = pathlib.Path(what).expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The names of the weights' classes cannot be read from {what!r}: {reason(error)}. It is {IMAGENET!r}, or "
            "a text file with one name a line."
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if twice := sorted(name for name in set(names) if names.count(name) > 1):
        raise DataError(f"{what} names the class {twice[0]!r} more than once.")
    return names


def map_classes(data_names: Sequence[str], weight_names: Sequence[str]) -> np.ndarray:
    """Returns which class of the weights each class of the data is, by name.

    Returns:
        (len(data_names),) int32, indices into `weight_names`; -1 where the weights do not have a class.
    """
    places = {name: i for i, name in enumerate(weight_names)}
    return np.array([places.get(name, -1) for name in data_names], np.int32)


@dataclasses.dataclass(frozen=True)
class Classes:
    """What the classes of a model are called, and those of the weights that it starts from.

    Attributes:
        model: a name for each label of the data; empty: unknown.
        weights: a name for each class of the weights; empty: what the file says, or if that says nothing, ImageNet's
            where the weights have 1,000 classes and all of the data's names are WordNet ids among these.
    """

    model: Sequence[str] = ()
    weights: Sequence[str] = ()

    def weight_names(self, count: int, in_file: Sequence[str] = ()) -> Sequence[str]:
        """Returns the names of the classes of weights; empty: unknown.

        Args:
            count: how many classes the weights have.
            in_file: the names that their file has for them.

        Raises:
            DataError: if names are given, and there are not so many.
        """
        if self.weights:
            if len(self.weights) != count:
                raise DataError(
                    f"The weights have {count} classes, and model.pretrained_classes names {len(self.weights)}."
                )
            return self.weights
        if len(in_file) == count:
            return in_file
        ids = imagenet_classes()
        if count == len(ids) and self.model and set(self.model) <= set(ids):
            return ids
        return ()

    def rows(self, count: int, num_classes: int, in_file: Sequence[str] = ()) -> np.ndarray | None:
        """Returns which class of the weights each class of the model is.

        Args:
            count: how many classes the weights have.
            num_classes: how many the model has.
            in_file: the names that the weights' file has for them.

        Returns:
            (num_classes,) int32; None: they are others, or of unknown names and another number.
        """
        names = self.weight_names(count, in_file)
        identity = np.arange(num_classes, dtype=np.int32) if num_classes == count else None
        if not names or not self.model:
            if identity is not None:
                self._warn(count)
            return identity
        rows = map_classes(self.model, names)
        if len(rows) == num_classes and (rows >= 0).all():
            return rows
        # More logits than the data has classes: the labels number the first of them.
        return identity if np.array_equal(rows, np.arange(len(rows))) else None

    def difference(self, count: int, num_classes: int, in_file: Sequence[str] = ()) -> str:
        """Returns in words why there is no row for each class; arguments as for `rows`."""
        names = self.weight_names(count, in_file)
        if not names or not self.model:
            return f"the weights have {count} classes of unknown names, and the model {num_classes}"
        lacking = [name for name in self.model if name not in set(names)]
        if not lacking:
            return f"the data has {len(self.model)} classes, and the model {num_classes}"
        shown = ", ".join(map(repr, lacking[:3])) + (", ..." if len(lacking) > 3 else "")
        return f"of the {len(self.model)} classes of the data, {len(lacking)} are none of the weights': {shown}"

    def _warn(self, count: int) -> None:
        """Warns where labels that are taken for the numbers of the weights' classes are likely others."""
        remedy = "set model.pretrained_classes to a file with the names of the weights' classes, one per line."
        if numbered_as_text(self.model):
            log.warning(
                "*** THE CLASSES ARE NUMBERS, AND SORTED AS TEXT: %s, ... *** This is torchvision's order; weights "
                "that timm trained on such folders have them sorted as numbers. If these are such ones, %s",
                ", ".join(self.model[:3]),
                remedy,
            )
        elif self.model and len(self.model) != count:
            log.warning(
                "*** THE DATA HAS %d CLASSES AND THE WEIGHTS %d, OF UNKNOWN NAMES. *** The labels are taken for the "
                "numbers of the first of them. If they are not, %s",
                len(self.model),
                count,
                remedy,
            )


def numbered_as_text(names: Sequence[str]) -> bool:
    """Returns whether names are whole numbers that are sorted as text, and would be in another order as numbers."""
    if not names or not all(name.isascii() and name.isdigit() for name in names):
        return False
    return list(names) == sorted(names) and list(names) != sorted(names, key=int)
