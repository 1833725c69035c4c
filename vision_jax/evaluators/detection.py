"""Average precision of a detector, as COCO or PASCAL VOC define it."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from vision_jax.dense.average_precision import (
    Found,
    Truth,
    coco_average_precision,
    to_xywh,
    voc_average_precision,
)
from vision_jax.devices import distributed
from vision_jax.errors import ConfigError, suggest
from vision_jax.evaluators.base import Prefixed, Step, Table, collect
from vision_jax.evaluators.dense import DenseEvaluator
from vision_jax.evaluators.per_class import class_names
from vision_jax.objectives.base import Objective

MEASURES = ("coco", "voc")
COCO_STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DetectionEvaluator(DenseEvaluator):
    """COCO's twelve numbers (-1 where there is no object), or VOC's two means; and a table of the classes.

    Detections are brought to process 0, which has all annotations, crowds too. Damaged images that are left out count
    in neither.

    Attributes:
        measure: coco (by pycocotools), or voc: `mAP`, the mean area under the precision-recall curves, and `mAP07`, at
            eleven recalls, as in 2007.
        detections: most boxes of an image that are kept; COCO counts a hundred. None: as many as the objective says.
    """

    dense: ClassVar[str] = "boxes"
    metrics: ClassVar[Mapping[str, bool]] = dict.fromkeys((*COCO_STATS, "mAP", "mAP07"), True)

    measure: str = "coco"
    detections: int | None = None

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ConfigError(f"measure is {self.measure!r}: {suggest(str(self.measure), MEASURES)}")
        if self.detections is not None and self.detections < 1:
            raise ConfigError(f"detections is {self.detections}: give 1 or more, or leave it unset.")

    def make_step(self, objective: Any) -> Step:
        """Returns (variables by prefix, batch) -> `index`, and `Detections` of each image by prefix + name."""

        def step(variables: Prefixed, batch: Any) -> dict[str, jax.Array]:
            rows = {"index": batch["index"]}
            for prefix, values in variables.items():
                found = objective.detect(values, batch)
                rows |= {prefix + name: value[:, : self.detections] for name, value in found._asdict().items()}
            return rows

        return step

    def __call__(self, objective: Objective, variables: Prefixed) -> dict[str, float | Table]:
        variables = dict(variables)
        parts = []
        for evaluator, indices in self.by_canvas:
            compiled = evaluator.compiled(objective, self.make_step, variables)
            if (rows := collect(evaluator.context, compiled, variables, description="evaluate")) is not None:
                parts.append({**rows, "index": indices[rows["index"]]})
        # Process 0 has the rows, and what goes wrong there is to be known to all.
        with self.context.watchdog.suspended():
            return distributed.from_first(functools.partial(self._results, parts, tuple(variables)))

    def _results(self, parts: Sequence[Mapping[str, np.ndarray]], prefixes: Sequence[str]) -> dict[str, float | Table]:
        """Returns the metrics and tables of rows that `make_step` has given, with the numbers of images as `index`."""
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        results: dict[str, float | Table] = {"count": self.check_count(len(rows["index"]))}
        truth = self._truth(np.sort(rows["index"]))
        for prefix in prefixes:
            found = _found(rows, prefix)
            results |= {prefix + name: value for name, value in self._measure(truth, found).items()}
        return results

    def _truth(self, images: np.ndarray) -> Truth:
        """Returns the annotations of images, by their numbers."""
        source: Any = self.context.source
        annotations = [source.annotations(index) for index in images.tolist()]
        counts = [len(record["boxes"]) for record in annotations]

        def joined(name: str, empty: np.ndarray) -> np.ndarray:
            return np.concatenate([empty, *(record[name] for record in annotations)])

        return Truth(
            np.repeat(images, counts),
            joined("box_labels", np.zeros(0, np.int32)),
            to_xywh(joined("boxes", np.zeros((0, 4), np.float32))),
            joined("crowd", np.zeros(0, bool)),
            joined("area", np.zeros(0, np.float64)) if self.measure == "coco" else None,
        )

    def _measure(self, truth: Truth, found: Found) -> dict[str, float | Table]:
        source: Any = self.context.source
        classes = range(source.num_classes)
        names = class_names(source.class_names, source.num_classes)
        if self.measure == "coco":
            coco = coco_average_precision(truth, found, classes)
            rows: Mapping[int, Mapping[str, Any]] = coco.per_category
            results: dict[str, float | Table] = dict(coco.stats)
        else:
            voc = voc_average_precision(truth, found, classes)
            rows = voc.per_category
            means = {"mAP": voc.mean_ap, "mAP07": voc.mean_ap11}
            results = {name: float("nan") if value is None else value for name, value in means.items()}
        columns = {name: [rows[number][name] for number in classes] for name in rows[0]}
        return {**results, "classes": {"classes": names, **columns}}


def _found(rows: Mapping[str, np.ndarray], prefix: str) -> Found:
    """Returns the detections of all images, in the order of their numbers."""
    order = np.argsort(rows["index"], kind="stable")
    labels = rows[f"{prefix}labels"][order]
    valid = labels >= 0
    return Found(
        np.repeat(rows["index"][order], valid.sum(1)),
        labels[valid],
        to_xywh(rows[f"{prefix}boxes"][order][valid]),
        rows[f"{prefix}scores"][order][valid],
    )
