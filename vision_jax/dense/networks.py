"""Detectors and segmenters by name.

A name is that of a network of torchvision, such as `fcn_resnet50`, or of a method, such as `fcn`, for which a backbone
is to be given.
"""

from vision_jax.dense.compose import Network, backbone_variables, norm_paths
from vision_jax.dense.detection_heads import HeadOutputs
from vision_jax.dense.detectors import DETECTOR_KINDS, Detector, create_detector, list_detectors
from vision_jax.dense.segmenters import SEGMENTER_KINDS, Segmenter, create_segmenter, list_segmenters

__all__ = [
    "DETECTOR_KINDS",
    "SEGMENTER_KINDS",
    "Detector",
    "HeadOutputs",
    "Network",
    "Segmenter",
    "backbone_variables",
    "create_detector",
    "create_segmenter",
    "list_detectors",
    "list_segmenters",
    "norm_paths",
]
