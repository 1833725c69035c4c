"""torchvision's files of detectors and segmenters: the configuration of the network that one has, and its classes."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vision_jax import pretrained, recipes
from vision_jax.data.boxes import BACKGROUND, UNUSED
from vision_jax.data.voc import VOC_CLASSES
from vision_jax.dense import weights
from vision_jax.dense.detectors import DETECTORS
from vision_jax.dense.segmenters import SEGMENTERS
from vision_jax.objectives import OBJECTIVES

# By the method of a detector, the objective and its options.
_OBJECTIVES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "retinanet": ("retinanet", {}),
    "retinanet_v2": ("retinanet", {"version": 2}),
    "fcos": ("fcos", {}),
}
NAMES = (*DETECTORS, *SEGMENTERS)

# The categories of COCO's `instances_val2017.json`, by their ids from 1; "": no category has it.
_COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,,backpack,umbrella,,,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,,dining table,,,toilet,,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
VOC_NAMES = (BACKGROUND, *VOC_CLASSES)
COCO_NAMES = (BACKGROUND, *(name or UNUSED for name in _COCO.split(",")))


def describe(name: str, path: str) -> tuple[ConfigDict, int, tuple[str, ...]]:
    """Returns the configuration of a file's network, its number of classes, and their names, () where unknown.

    Images become as large as torchvision makes them: the shorter side 800 pixels, or less where the longer one would be
    above 1333; and 520 for segmenters, where the longer one is at most 1040 here.

    Args:
        name: one of `NAMES`.
        path: of the file; see `pretrained.read`.

    Raises:
        DataError: if it cannot be read, or is of no such network.
    """
    file = pretrained.read(path)
    kind, backbone, _ = {**DETECTORS, **SEGMENTERS}[name]
    objective, options = _OBJECTIVES.get(kind, ("segmentation", {"head": kind, "aux": False}))
    config = recipes.dense(backbone, objective, **options)
    config.model.pretrained = path
    config.data.source = "scenes"  # which needs no data: overrides may name some
    logits = weights.count_logits(file)
    if name in SEGMENTERS:
        config.model.output_stride = 8
        config.data.dense.shorter, config.data.dense.longer = (520,), 1040
        config.data.dense.canvases = ((520, 1040), (1040, 520))
        return config, logits, VOC_NAMES if logits == len(VOC_NAMES) else ()
    if kind == "retinanet" and weights.is_old(file):
        config.model.norm_epsilon = 0.0  # with which torchvision computes these weights
    detection: Any = OBJECTIVES[objective]
    classes = logits // (len(detection.anchors.sizes[0]) * len(detection.anchors.ratios))
    return config, classes, COCO_NAMES if classes == len(COCO_NAMES) else ()
