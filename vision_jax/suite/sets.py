"""How each evaluation set is scored: its images, the preprocessing that is its own, and the rows of the table."""

import dataclasses
import functools
import importlib.resources
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vision_jax import pretrained
from vision_jax.data import listing
from vision_jax.data.sources import digest_of
from vision_jax.data.transforms import EvalTransform
from vision_jax.errors import DataError, reason
from vision_jax.evaluators import suites
from vision_jax.evaluators.suites import IMAGENET_A_CLASSES, IMAGENET_R_CLASSES
from vision_jax.suite.find import V2, Found
from vision_jax.suite.images import Images, corruptions_in, in_class_folders, in_prepared, open_validation

log = logging.getLogger(__name__)

# Images of the whole of each set that count. ReaL: those with a label. ObjectNet: those of the 113 classes.
EXPECTED: Mapping[str, int] = {
    "val": 50_000,
    "real": 46_837,
    **dict.fromkeys(V2, 10_000),
    "a": 7_500,
    "a-clean": 10_000,
    "r": 30_000,
    "r-clean": 10_000,
    "sketch": 50_889,
    "c": 50_000,  # of each corruption at each severity
    "objectnet": 18_574,
}
_ALL = "Arg-max of 1,000 classes."
_WHOLE = "The whole image is resized to the model's size; none of it is cropped."
_CUT = "The logits are cut to the set's 200 classes, then the arg-max is taken."
RULES: Mapping[str, str] = {
    "val": _ALL,
    "real": "A prediction is correct if it is one of the image's labels; images without labels do not count.",
    **dict.fromkeys(V2, f"{_ALL} A class folder's name is the number of its class."),
    "a": _CUT,
    "a-clean": f"The validation images of ImageNet-A's classes. {_CUT}",
    "r": _CUT,
    "r-clean": f"The validation images of ImageNet-R's classes. {_CUT}",
    "sketch": _ALL,
    "c": f"{_ALL} The whole image, of 224 x 224 pixels, is resized to the model's size; none of it is cropped.",
    "objectnet": (
        "The best of 1,000 classes are mapped to ObjectNet's as in its challenge, by 125 ImageNet classes; images of "
        "the 113 classes that these are. A border of 2 pixels is cut off."
    ),
}


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What was computed of a set, one entry an image.

    Attributes:
        label, index, number: (n,) integers; see `images.Images`.
        best, best_a, best_r: (n, 5) integers: the best of the 1,000 classes, of ImageNet-A's and of ImageNet-R's; see
            `suites.top_classes`.
        confidence, confidence_a, confidence_r: (n,) float32, the probability of the first of them, among those that
            compete.
    """

    label: np.ndarray
    index: np.ndarray
    number: np.ndarray
    best: np.ndarray
    best_a: np.ndarray
    best_r: np.ndarray
    confidence: np.ndarray
    confidence_a: np.ndarray
    confidence_r: np.ndarray


@dataclasses.dataclass(frozen=True)
class Score:
    """A row of the table, in percent.

    Attributes:
        top1, top5: of the images that count.
        count: how many count.
        lacks: in which respects the set is not whole, besides the number of images.
    """

    top1: float
    top5: float
    count: int
    lacks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
    """How a row of the table is computed.

    Attributes:
        rule: for a person.
        expected: the number of images of the whole set that count.
        score: None: the set has no image that counts.
        identity: tells what is scored from the same under another rule or with other labels.
        own_classes: the classes are the model's own, not ImageNet's.
    """

    rule: str
    expected: int
    score: Callable[[Outputs], Score | None]
    identity: str
    own_classes: bool = False

    @classmethod
    def of(cls, name: str, score: Callable[[Outputs], Score | None], *more: object) -> "Row":
        kind = name.partition("/")[0]
        return cls(RULES[kind], EXPECTED[kind], score, digest_of(RULES[kind], *more))


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over some images, and the rows of the table that it gives, by name."""

    name: str
    images: Images
    rows: Mapping[str, Row]
    adapt: Callable[[EvalTransform], EvalTransform] = lambda transform: transform


@dataclasses.dataclass(frozen=True)
class Opener:
    """A pass to come: its name, and what opens it."""

    name: str
    open: Callable[[], Pass]


def openers(found: Found, wanted: Sequence[str]) -> list[Opener]:
    """Returns the passes over the wanted sets, but for those of ImageNet-C."""
    made: list[Opener] = []
    if "val" in wanted or "real" in wanted:
        made.append(Opener("val", functools.partial(_validation, found, wanted)))
    places = found.places
    for name in (*V2, "a", "r", "sketch", "objectnet"):
        kind = "v2" if name in V2 else name
        if kind in wanted and name in places:
            made.append(Opener(name, functools.partial(_PASSES[kind], name, places[name])))
    return made


def corruption_openers(path: pathlib.Path, own_classes: Sequence[str] | None = None) -> list[Opener]:
    """Returns the passes over a folder or an archive of ImageNet-C, or of other data that is corrupted alike.

    Args:
        path: of it.
        own_classes: the model's, which the images are of; None: they are of ImageNet's.

    Raises:
        DataError: if it cannot be read, or holds none.
    """
    found = [f"{corruption}/{level}" for corruption, level in corruptions_in(path)]
    return [Opener(f"c/{one}", functools.partial(_corruption, f"c/{one}", path, one, own_classes)) for one in found]


def _validation(found: Found, wanted: Sequence[str]) -> Pass:
    assert found.validation is not None  # it would not be wanted
    images = open_validation(found.validation)
    rows = {}
    if "val" in wanted:
        rows["val"] = Row.of("val", _all_classes)
        rows["a-clean"] = Row.of("a-clean", functools.partial(_among, IMAGENET_A_CLASSES, "best_a"))
        rows["r-clean"] = Row.of("r-clean", functools.partial(_among, IMAGENET_R_CLASSES, "best_r"))
    if "real" in wanted:
        assert found.real is not None
        labels = read_real(found.real)
        rows["real"] = Row.of("real", functools.partial(_real, found.real, labels), labels)
    return Pass("val", images, rows)


def _by_wnid(name: str, path: pathlib.Path) -> Pass:
    names = pretrained.imagenet_classes()
    images = in_class_folders(path, {wnid: label for label, wnid in enumerate(names)}, names)
    return Pass(name, images, {name: Row.of(name, _all_classes)})


def _by_number(name: str, path: pathlib.Path) -> Pass:
    names = pretrained.imagenet_classes()
    folders = [str(number) for number in range(len(names))]
    classes = dict(zip(folders, suites.imagenet_v2_classes(folders), strict=True))
    return Pass(name, in_class_folders(path, classes, names), {name: Row.of(name, _all_classes)})


def _of_200(name: str, path: pathlib.Path) -> Pass:
    names = pretrained.imagenet_classes()
    classes = {"a": IMAGENET_A_CLASSES, "r": IMAGENET_R_CLASSES}[name]
    images = in_class_folders(path, {names[number]: number for number in classes}, names)
    return Pass(name, images, {name: Row.of(name, functools.partial(_among, classes, f"best_{name}"))})


def _corruption(name: str, path: pathlib.Path, below: str, own_classes: Sequence[str] | None) -> Pass:
    names = pretrained.imagenet_classes() if own_classes is None else own_classes
    images = None
    if path.is_dir():
        path, below = path / below.partition("/")[2], ""
        images = in_prepared(path, names)
    if images is None:
        images = in_class_folders(path, {folder: label for label, folder in enumerate(names)}, names, below=below)
    row = Row.of(name, _all_classes)
    if own_classes is not None:
        rule = f"Arg-max of the model's {len(names):,} classes. {_WHOLE}"
        row = Row(rule, len(images), functools.partial(_all_classes, names=names), digest_of(rule), own_classes=True)
    return Pass(name, images, {name: row}, _whole_image)


def _objectnet(name: str, path: pathlib.Path) -> Pass:
    folders = objectnet_classes()
    images = in_class_folders(path, {f: label for label, f in enumerate(folders)}, list(folders), partly=True)
    score = functools.partial(_mapped, list(folders), list(folders.values()))
    return Pass(name, images, {name: Row.of(name, score)}, _without_border)


_PASSES: Mapping[str, Callable[[str, pathlib.Path], Pass]] = {
    "v2": _by_number,
    "a": _of_200,
    "r": _of_200,
    "sketch": _by_wnid,
    "objectnet": _objectnet,
}


def _whole_image(transform: EvalTransform) -> EvalTransform:
    return dataclasses.replace(transform, resize=transform.size)


def _without_border(transform: EvalTransform) -> EvalTransform:
    return dataclasses.replace(transform, border=2)


def _all_classes(outputs: Outputs, names: Sequence[str] | None = None) -> Score:
    names = pretrained.imagenet_classes() if names is None else names
    return _score(suites.accuracy(outputs.best, outputs.label), _missing(outputs.label, range(len(names)), names))


def _among(classes: Sequence[int], best: str, outputs: Outputs) -> Score | None:
    """Scores what is of some classes, among these."""
    position = {number: place for place, number in enumerate(classes)}
    rows = [row for row, label in enumerate(outputs.label.tolist()) if label in position]
    if not rows:
        return None
    labels = outputs.label[rows]
    measured = suites.accuracy(getattr(outputs, best)[rows], [position[label] for label in labels.tolist()])
    return _score(measured, _missing(labels, classes, pretrained.imagenet_classes()))


def _real(path: pathlib.Path, labels: Sequence[Sequence[int]], outputs: Outputs) -> Score:
    """Scores the validation images by ReaL's labels, which are in the order of the images' numbers.

    Raises:
        DataError: if the number of an image is unknown, or there is none for it.
    """
    if unknown := int((outputs.number < 1).sum()):
        raise DataError(
            f"{unknown} of {len(outputs.number)} validation images are not called ILSVRC2012_val_NNNNNNNN.JPEG, by "
            "which ReaL's labels are found: use a validation set that has kept the names of the files."
        )
    if (last := int(outputs.number.max())) > len(labels):
        raise DataError(f"{path} has labels of {len(labels)} images, and none of ILSVRC2012_val_{last:08d}.")
    given = [labels[number - 1] for number in outputs.number.tolist()]
    return _score(suites.multi_label_accuracy(outputs.best, given), ())


def _mapped(folders: Sequence[str], groups: Sequence[Sequence[int]], outputs: Outputs) -> Score:
    best = suites.mapped_classes(outputs.best, groups)
    return _score(suites.accuracy(best, outputs.label), _missing(outputs.label, range(len(folders)), folders))


def _score(measured: Mapping[str, float], lacks: tuple[str, ...]) -> Score:
    return Score(100 * measured["top1"], 100 * measured["top5"], int(measured["count"]), lacks)


def _missing(labels: np.ndarray, classes: Sequence[int], names: Sequence[str]) -> tuple[str, ...]:
    """Returns in words which classes no image is of; empty: none."""
    there = set(labels.tolist())
    missing = [names[number] for number in classes if number not in there]
    if not missing:
        return ()
    return (f"{len(missing)} of {len(classes)} classes are missing ({listing.shorten(missing, 3)})",)


def read_real(path: pathlib.Path) -> list[list[int]]:
    """Reads ReaL's labels (google-research/reassessed-imagenet): for each validation image a list, perhaps empty.

    Raises:
        DataError: if the file is not such a list.
    """
    try:
        labels = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error
    is_list = isinstance(labels, list) and all(isinstance(one, list) for one in labels)
    if not is_list or not all(type(n) is int and 0 <= n < 1000 for one in labels for n in one):
        raise DataError(f"{path} is no file of ReaL's labels, a list with a list of numbers from 0 to 999 per image.")
    return labels


@functools.cache
def objectnet_classes() -> dict[str, list[int]]:
    """Returns the folders of ObjectNet's classes that ImageNet has too, sorted, and ImageNet's classes for each.

    They are joined from the `mappings` of ObjectNet's archive (folder_to_objectnet_label.json,
    objectnet_to_imagenet_1k.json, imagenet_to_label_2012_v2, pytorch_to_imagenet_2012_id.json), and are the groups of
    the challenge's imagenet_pytorch_id_to_objectnet_id.json.
    """
    file = importlib.resources.files("vision_jax.suite") / "objectnet_classes.json"
    return json.loads(file.read_text("utf-8"))
