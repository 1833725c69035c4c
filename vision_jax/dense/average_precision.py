"""Average precision (AP) of detections: COCO's twelve numbers, by pycocotools, and that of PASCAL VOC.

Both are pure functions of arrays, for all images of a split at once: whoever has the detections of several processes
brings them together first. Nothing is read from files, and nothing is printed.
"""

import contextlib
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vision_jax.errors import ConfigError

# Sides of squares in pixels: an object is small up to an area of 32², and large from 96².
_AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}


@dataclasses.dataclass(frozen=True)
class Truth:
    """The annotated boxes of a split.

    Attributes:
        image: (n,) ids of images, integers or texts.
        label: (n,) integers.
        xywh: (n, 4) float64, left, top, width and height in pixels of the original image, as COCO's files have them.
        crowd: (n,) bool: COCO's `iscrowd`, or VOC's `difficult`.
        area: (n,) float64, in pixels; None: width times height. In COCO it is that of the object's outline.
    """

    image: Sequence[Any] | np.ndarray
    label: Sequence[int] | np.ndarray
    xywh: np.ndarray
    crowd: Sequence[bool] | np.ndarray
    area: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Found:
    """The detections in a split. Of equal scores in an image the first counts as better.

    Attributes:
        image: (n,) ids of images, integers or texts.
        label: (n,) integers.
        xywh: (n, 4) float64, left, top, width and height in pixels of the original image.
        score: (n,).
    """

    image: Sequence[Any] | np.ndarray
    label: Sequence[int] | np.ndarray
    xywh: np.ndarray
    score: Sequence[float] | np.ndarray


@dataclasses.dataclass(frozen=True)
class CocoAP:
    """COCO's measures; -1 where there is no object.

    Attributes:
        stats: AP (mean over IoUs of .5 to .95), AP50, AP75, APs, APm and APl (of small, medium and large objects), AR1,
            AR10 and AR100 (recall with so many detections in an image), ARs, ARm and ARl.
        per_category: AP, AP50, AP75 and AR100 of each category, by its number.
        per_threshold: AP at IoUs of .5, .55, ... .95.
    """

    stats: dict[str, float]
    per_category: dict[int, dict[str, float]]
    per_threshold: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class VocAP:
    """VOC's measures; None where there is no object.

    Attributes:
        mean_ap, mean_ap11: the means over categories with objects.
        per_category: positives (objects that are not difficult), AP (the area under the curve of precision, since 2010)
            and AP11 (at eleven recalls, 2007) of each category, by its number.
    """

    mean_ap: float | None
    mean_ap11: float | None
    per_category: dict[int, dict[str, float | int | None]]


def to_xywh(boxes: np.ndarray) -> np.ndarray:
    """Returns boxes x1 y1 x2 y2 (n, 4) as left, top, width and height, float64."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


def coco_average_precision(truth: Truth, found: Found, categories: Sequence[int]) -> CocoAP:
    """Returns COCO's measures of boxes.

    Args:
        truth: the annotated boxes.
        found: the detections.
        categories: numbers of all classes.

    Raises:
        ConfigError: if pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ConfigError(
            "COCO's average precision is computed by pycocotools: pip install 'vision_jax[detection]'."
        ) from error
    categories = sorted({int(number) for number in categories})
    if not categories:
        raise ConfigError("There is no category whose average precision could be computed: give all classes' numbers.")
    # In the order of their ids, as pycocotools takes them, which decides between equal scores of two images.
    ids = np.unique(np.concatenate([np.asarray(of.image) for of in (truth, found) if len(of.image)] or [np.zeros(0)]))
    boxes = _rows(found.image, found.label, found.xywh, ids)
    for row, score in zip(boxes, found.score, strict=True):
        row.update(score=float(score), area=row["bbox"][2] * row["bbox"][3], iscrowd=0)
    objects = _rows(truth.image, truth.label, truth.xywh, ids)
    for number, row in enumerate(objects):
        of_box = row["bbox"][2] * row["bbox"][3]
        row.update(iscrowd=int(truth.crowd[number]), area=of_box if truth.area is None else float(truth.area[number]))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_dataset(COCO, objects, categories, ids), _dataset(COCO, boxes, categories, ids), "bbox")
        evaluation.params.areaRng = [list(limits) for limits in _AREAS.values()]
        evaluation.params.areaRngLbl = list(_AREAS)
        # Without any image there is nothing to go through; one without boxes changes no number.
        evaluation.params.imgIds = list(range(1, len(ids) + 1)) or [1]
        evaluation.evaluate()
        evaluation.accumulate()
    return _summarize(evaluation.eval["precision"], evaluation.eval["recall"], categories)


def _rows(images: Any, labels: Any, xywh: np.ndarray, ids: np.ndarray) -> list[dict[str, Any]]:
    # An id of 0 would be taken for «not matched».
    places = np.searchsorted(ids, np.asarray(images)) + 1
    boxes = np.asarray(xywh, np.float64).reshape(-1, 4).tolist()
    return [
        {"id": number, "image_id": int(place), "category_id": int(label), "bbox": box}
        for number, (place, label, box) in enumerate(zip(places, labels, boxes, strict=True), 1)
    ]


def _dataset(kind: Any, rows: list[dict[str, Any]], categories: Sequence[int], ids: np.ndarray) -> Any:
    dataset = kind()
    dataset.dataset = {
        "images": [{"id": number} for number in range(1, len(ids) + 1)],
        "annotations": rows,
        "categories": [{"id": number, "name": str(number)} for number in categories],
    }
    dataset.createIndex()
    return dataset


def _summarize(precision: np.ndarray, recall: np.ndarray, categories: Sequence[int]) -> CocoAP:
    """Takes (thresholds, recalls, categories, areas, limits) and (thresholds, categories, areas, limits)."""

    def mean(values: np.ndarray) -> float:
        known = values[values > -1]
        return float(known.mean()) if known.size else -1.0

    areas = list(_AREAS)
    stats = {"AP": mean(precision[..., 0, 2]), "AP50": mean(precision[0, ..., 0, 2])}
    stats["AP75"] = mean(precision[5, ..., 0, 2])
    stats |= {f"AP{area}": mean(precision[..., number, 2]) for number, area in enumerate(areas) if area}
    stats |= {f"AR{limit}": mean(recall[..., 0, number]) for number, limit in enumerate((1, 10, 100))}
    stats |= {f"AR{area}": mean(recall[..., number, 2]) for number, area in enumerate(areas) if area}
    per_category = {
        category: {
            "AP": mean(precision[:, :, number, 0, 2]),
            "AP50": mean(precision[0, :, number, 0, 2]),
            "AP75": mean(precision[5, :, number, 0, 2]),
            "AR100": mean(recall[:, number, 0, 2]),
        }
        for number, category in enumerate(categories)
    }
    return CocoAP(stats, per_category, tuple(mean(row[..., 0, 2]) for row in precision))


def voc_average_precision(truth: Truth, found: Found, categories: Sequence[int], *, threshold: float = 0.5) -> VocAP:
    """Returns PASCAL VOC's measures (Everingham et al. 2010).

    A detection, best first, is right if the object with which it has the highest IoU is not found yet, and the IoU is
    above `threshold`. One whose object is difficult counts neither way; a second one of an object is wrong.

    Args:
        truth: the annotated boxes; `crowd` says which are difficult.
        found: the detections.
        categories: numbers of all classes.
        threshold: of the IoU.
    """
    per_category: dict[int, dict[str, float | int | None]] = {}
    for category in categories:
        right, wrong, positives = _outcomes(truth, found, category, threshold)
        measures: Mapping[str, float | None] = {"AP": None, "AP11": None}
        if positives:
            recall = np.cumsum(right) / positives
            precision = np.cumsum(right) / np.maximum(np.cumsum(right) + np.cumsum(wrong), 1)
            measures = {"AP": area_under_curve(recall, precision), "AP11": eleven_points(recall, precision)}
        per_category[int(category)] = {"positives": positives, **measures}

    def mean(name: str) -> float | None:
        values = [row[name] for row in per_category.values() if row[name] is not None]
        return float(np.mean(np.array(values, np.float64))) if values else None

    return VocAP(mean("AP"), mean("AP11"), per_category)


def area_under_curve(recall: np.ndarray, precision: np.ndarray) -> float:
    """Returns the area under the precision, made monotone from the right, of detections in order (n,)."""
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    """Returns the mean, at recalls of 0, .1, ... 1, of the highest precision from there on, of detections in order."""
    # 3 / 10 and not 3 * .1, which is more than the recall of 6 objects of 20.
    best = [precision[recall >= tenths / 10].max(initial=0.0) for tenths in range(11)]
    return float(np.mean(best))


def _outcomes(truth: Truth, found: Found, category: int, threshold: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns whether each detection of a category is right, and whether it is wrong, best first, and the positives."""
    of_category = np.flatnonzero(np.asarray(truth.label) == category)
    objects: dict[Any, list[int]] = {}
    for number in of_category.tolist():
        objects.setdefault(truth.image[number], []).append(number)
    chosen = np.flatnonzero(np.asarray(found.label) == category)
    chosen = chosen[np.argsort(-np.asarray(found.score, np.float64)[chosen], kind="stable")]
    right, wrong = np.zeros(len(chosen), bool), np.zeros(len(chosen), bool)
    taken = set()
    for place, number in enumerate(chosen.tolist()):
        candidates = objects.get(found.image[number], [])
        overlaps = _iou_xywh(found.xywh[number], truth.xywh[candidates]) if candidates else np.zeros(1)
        best = int(np.argmax(overlaps))
        if overlaps[best] <= threshold:
            wrong[place] = True
        elif not truth.crowd[candidates[best]]:
            (wrong if candidates[best] in taken else right)[place] = True
            taken.add(candidates[best])
    positives = sum(not truth.crowd[number] for number in of_category.tolist())
    return right, wrong, positives


def _iou_xywh(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[:2] + box[2:], others[:, :2] + others[:, 2:])
    common = np.prod(np.maximum(high - low, 0.0), 1)
    return common / np.maximum(box[2] * box[3] + others[:, 2] * others[:, 3] - common, np.finfo(np.float64).tiny)
