"""torchvision's files of detectors and segmenters: the configuration of the network that one has, and its classes."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vision_jax import pretrained, recipes
from vision_jax.data.boxes import BACKGROUND
from vision_jax.data.coco import UNUSED
from vision_jax.data.voc import VOC_CLASSES
from vision_jax.dense import anchors, weights

# By torchvision's name: backbone, objective and its options.
_DETECTORS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "retinanet_resnet50_fpn": ("resnet50", "retinanet", {}),
    "retinanet_resnet50_fpn_v2": ("resnet50", "retinanet", {"version": 2}),
    "fcos_resnet50_fpn": ("resnet50", "fcos", {}),
}
_SEGMENTERS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    f"{head}_{backbone}": (backbone, "segmentation", {"head": head, "aux": False})
    for head in ("fcn", "deeplabv3")
    for backbone in ("resnet50", "resnet101")
}
NAMES = (*_DETECTORS, *_SEGMENTERS)

# The categories of COCO's `instances_val2017.json`, by their ids from 1; "": no category has it.
_COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,,backpack,umbrella,,,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,,dining table,,,toilet,,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
COCO_CLASSES = (BACKGROUND, *(name or UNUSED for name in _COCO.split(",")))


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
    backbone, objective, options = {**_DETECTORS, **_SEGMENTERS}[name]
    config = recipes.dense(backbone, objective, **options)
    config.model.pretrained = path
    config.data.source = "scenes"  # which needs no data: overrides may name some
    logits = weights.count_logits(file)
    if name in _SEGMENTERS:
        config.model.output_stride = 8
        config.data.dense.shorter, config.data.dense.longer = (520,), 1040
        config.data.dense.canvases = ((520, 1040), (1040, 520))
        known = {len(VOC_CLASSES) + 1: (BACKGROUND, *VOC_CLASSES)}
        return config, logits, known.get(logits, ())
    if name == "retinanet_resnet50_fpn" and weights.is_old(file):
        config.model.norm_epsilon = 0.0  # with which torchvision computes these weights
    of = {"retinanet": anchors.RETINANET, "fcos": anchors.FCOS}[objective]
    classes = logits // (len(of.sizes[0]) * len(of.ratios))
    return config, classes, {len(COCO_CLASSES): COCO_CLASSES}.get(classes, ())
