"""One-stage detectors: RetinaNet and FCOS, torchvision's and on other backbones."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vision_jax.dense.compose import HEAD, NECK, Network, Trace, check_classes, make_backbone, map_shapes, method_of
from vision_jax.dense.detection_heads import NORM_GROUPS, DetectionHead, HeadOutputs
from vision_jax.errors import ConfigError
from vision_jax.models.layers import ImageModel
from vision_jax.models.pyramid import FeaturePyramid, SimpleFeaturePyramid

STRIDES = (8, 16, 32)  # of the maps that a feature pyramid is made of

# By torchvision's name: the method, the backbone, and options.
DETECTORS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "retinanet_resnet50_fpn": ("retinanet", "resnet50", {"frozen_norms": True}),
    "retinanet_resnet50_fpn_v2": ("retinanet_v2", "resnet50", {}),
    "fcos_resnet50_fpn": ("fcos", "resnet50", {"frozen_norms": True}),
}
# By method, the options of the head and of the pyramid, and the loss of boxes.
_METHODS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], str]] = {
    "retinanet": ({}, {}, "l1"),
    "retinanet_v2": ({"norm": True, "use_bias": False}, {"coarse_from": "c5"}, "giou"),
    "fcos": ({"norm": True, "num_anchors": 1, "centerness": True}, {}, "giou"),
}
DETECTOR_KINDS = tuple(_METHODS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detector(Network):
    """A one-stage detector.

    Attributes:
        neck: from the backbone's maps to the levels of a pyramid.
        head: from the levels to `HeadOutputs`.
        strides: of the maps that the neck is made of; (): the last map.
        box_loss: the loss of boxes that belongs to the method: "l1" of their codes, or "giou" of decoded boxes.
    """

    neck: nn.Module
    head: Any
    strides: tuple[int, ...] = STRIDES
    box_loss: str = "l1"

    def parts(self) -> dict[str, nn.Module]:
        return {NECK: self.neck, HEAD: self.head}

    @property
    def num_anchors(self) -> int:
        """Anchors at each position of each level."""
        return self.head.num_anchors

    def init(self, key: jax.Array, images: jax.Array) -> dict[str, Any]:
        maps, backbone = self.backbone.init_with_output(key, images, train=False, method="feature_maps")
        levels, neck = self._init_part(self.neck, NECK, key, self.selected(maps))
        _, head = self._init_part(self.head, HEAD, key, levels)
        return self._joined(backbone, {NECK: neck, HEAD: head})

    def map_sizes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Returns (rows, columns) of each level for images of a size, the finest first."""
        return _map_sizes(self, height, width)

    def selected(self, maps: Mapping[int, jax.Array]) -> tuple[jax.Array, ...]:
        """Returns the maps that the neck is made of.

        Raises:
            ConfigError: if the backbone does not give them.
        """
        if not self.strides:
            return (maps[max(maps)],)
        if missing := [stride for stride in self.strides if stride not in maps]:
            raise ConfigError(
                f"{self.kind} is made of maps of the strides {', '.join(map(str, self.strides))}, and the backbone has "
                f"none of {missing[0]}, but {', '.join(map(str, sorted(maps)))}: take another backbone, or leave "
                "output_stride unset."
            )
        return tuple(maps[stride] for stride in self.strides)

    def _levels(self, trace: Trace, images: jax.Array) -> tuple[jax.Array, ...]:
        maps = trace.backbone(self.backbone, images, "feature_maps", self.frozen_norms)
        return trace.part(self.neck, NECK, self.selected(maps))

    def _run(self, trace: Trace, images: jax.Array) -> HeadOutputs:
        return trace.part(self.head, HEAD, self._levels(trace, images))


@functools.lru_cache(maxsize=64)
def _map_sizes(detector: Detector, height: int, width: int) -> tuple[tuple[int, int], ...]:
    def levels(images: jax.Array) -> tuple[jax.Array, ...]:
        variables = detector.init(jax.random.key(0), images)
        return detector._levels(Trace(variables, False, None), images)

    images = jax.ShapeDtypeStruct((1, height, width, detector.backbone.in_channels), jnp.float32)
    return tuple(level.shape[1:3] for level in jax.eval_shape(levels, images))


def list_detectors() -> list[str]:
    """Returns the sorted names of detectors that have a backbone of their own; see `DETECTOR_KINDS` for others."""
    return sorted(DETECTORS)


def create_detector(
    name: str,
    *,
    num_classes: int,
    dtype: Any = None,
    backbone: str | ImageModel | None = None,
    frozen_norms: bool | None = None,
    channels: int = 256,
    **options: Any,
) -> Detector:
    """Returns a detector.

    Its pyramid is FPN on the maps of stride 8, 16 and 32, or for backbones with one map, such as vision transformers,
    ViTDet's simple pyramid of that. Where the backbone normalizes its last features only (Swin, ConvNeXt), each map has
    a layer norm of its own in the neck.

    Args:
        name: one of `list_detectors()`, or one of `DETECTOR_KINDS` with a `backbone`.
        num_classes: logits of each anchor. torchvision's weights have 91: COCO's category ids, and 0 for none.
        dtype: what it computes in; None: float32, or what the given module does. Parameters, statistics and outputs are
            float32.
        backbone: for a method, one of `vision_jax.list_models()` or a module without a classifier.
        frozen_norms: see `Detector`; None: as torchvision has it, and False with other backbones.
        channels: of the pyramid, and so of the heads.
        **options: fields of the backbone, such as `in_channels`, `img_size`, `remat`, `bn_group_size`, `output_stride`
            and `norm_epsilon`.

    Raises:
        ConfigError: for an unknown name or option, or a backbone without the maps that the method needs.
    """
    kind, backbone, defaults = method_of(name, backbone, DETECTORS, DETECTOR_KINDS, "detector")
    check_classes(num_classes)
    model, model_name = make_backbone(backbone, dtype, options)
    head_options, neck_options, box_loss = _METHODS[kind]
    if head_options.get("norm") and channels % NORM_GROUPS:
        raise ConfigError(
            f"objective.channels is {channels}, and the heads of {kind} have norms of {NORM_GROUPS} groups: take a "
            "multiple of that."
        )
    maps = map_shapes(model, "feature_maps")
    neck: nn.Module = SimpleFeaturePyramid(channels, dtype=model.dtype)
    if several := len(maps) > 1:
        neck = FeaturePyramid(channels, norm_epsilon=model.map_norm_epsilon, dtype=model.dtype, **neck_options)
    detector = Detector(
        kind=kind,
        backbone=model,
        backbone_name=model_name,
        num_classes=num_classes,
        frozen_norms=defaults.get("frozen_norms", False) if frozen_norms is None else frozen_norms,
        neck=neck,
        head=DetectionHead(num_classes, **head_options, dtype=model.dtype),
        strides=STRIDES if several else (),
        box_loss=box_loss,
    )
    detector.selected(maps)
    return detector
