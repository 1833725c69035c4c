"""Networks of semantic segmentation: FCN, DeepLabV3, UPerNet and a linear head, on any backbone with their maps."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from vision_jax.dense.compose import (
    AUX_HEAD,
    HEAD,
    NECK,
    Network,
    Trace,
    check_classes,
    make_backbone,
    map_shapes,
    method_of,
)
from vision_jax.dense.segmentation_heads import DeepLabHead, FcnHead, LinearHead, UperHead, small_init
from vision_jax.errors import ConfigError
from vision_jax.models import registry
from vision_jax.models.layers import ImageModel, conv_init
from vision_jax.models.pyramid import MapNorms
from vision_jax.models.upsampling import bilinear

SEGMENTER_KINDS = ("fcn", "deeplabv3", "upernet", "linear")
# By torchvision's name: the method, the backbone, and options.
SEGMENTERS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    f"{kind}_{backbone}": (kind, backbone, {})
    for kind in ("fcn", "deeplabv3")
    for backbone in ("resnet50", "resnet101")
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmenter(Network):
    """A network of semantic segmentation.

    Attributes:
        maps: how many of the backbone's last stages the heads see.
        neck: of these maps; None: they are used as they are.
        head: from maps to logits.
        aux_head: from the same maps to logits that only training needs; None: there is none.
    """

    maps: int
    neck: nn.Module | None = None
    head: nn.Module
    aux_head: nn.Module | None = None

    def parts(self) -> dict[str, nn.Module]:
        parts = {NECK: self.neck, HEAD: self.head, AUX_HEAD: self.aux_head}
        return {name: module for name, module in parts.items() if module is not None}

    def init(self, key: jax.Array, images: jax.Array) -> dict[str, Any]:
        maps, backbone = self.backbone.init_with_output(key, images, train=False, method="stage_maps")
        maps = self.selected(maps)
        parts = {}
        if self.neck is not None:
            maps, parts[NECK] = self._init_part(self.neck, NECK, key, maps)
        for name in (HEAD, AUX_HEAD):
            if (module := self.parts().get(name)) is not None:
                _, parts[name] = self._init_part(module, name, key, maps, False)
        return self._joined(backbone, parts)

    def selected(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Returns the maps that the heads see.

        Raises:
            ConfigError: if the backbone does not give so many.
        """
        if len(maps) < self.maps:
            advice = "take a backbone of four stages" if self.maps > 2 else "set aux to False"
            raise ConfigError(f"{self.kind} needs {self.maps} maps of the backbone, which has {len(maps)}: {advice}.")
        return tuple(maps[-self.maps :])

    def _run(self, trace: Trace, images: jax.Array) -> dict[str, jax.Array]:
        """Returns `out` and, if there is an auxiliary head, `aux`: (batch, height, width, num_classes) float32."""
        maps = self.selected(trace.backbone(self.backbone, images, "stage_maps", self.frozen_norms))
        if self.neck is not None:
            maps = trace.part(self.neck, NECK, maps)
        height, width = images.shape[1:3]
        outputs = {}
        for key, name in (("out", HEAD), ("aux", AUX_HEAD)):
            if (module := self.parts().get(name)) is not None:
                outputs[key] = bilinear(trace.classifier(module, name, maps), height, width)
        return outputs


def list_segmenters() -> list[str]:
    """Returns the sorted names of segmenters that have a backbone of their own; see `SEGMENTER_KINDS` for others."""
    return sorted(SEGMENTERS)


def create_segmenter(
    name: str,
    *,
    num_classes: int,
    dtype: Any = None,
    backbone: str | ImageModel | None = None,
    frozen_norms: bool = False,
    aux: bool | None = None,
    **options: Any,
) -> Segmenter:
    """Returns a network of semantic segmentation.

    The heads see the maps of the backbone's stages, which have a layer norm each in the neck where the backbone
    normalizes its last features only (Swin, ConvNeXt). FCN and DeepLabV3 are made for dilated backbones: ResNets have
    an output stride of 8 there unless `output_stride` says otherwise.

    Args:
        name: one of `list_segmenters()`, or one of `SEGMENTER_KINDS` with a `backbone`.
        num_classes: logits of each pixel.
        dtype: what it computes in; None: float32, or what the given module does. Parameters, statistics and outputs are
            float32.
        backbone: for a method, one of `vision_jax.list_models()` or a module without a classifier.
        frozen_norms: see `Segmenter`.
        aux: an auxiliary head, an FCN on the map of the last stage but one; None: for all methods but linear.
        **options: fields of the backbone, such as `in_channels`, `img_size`, `remat` and `bn_group_size`, which is that
            of the heads too.

    Raises:
        ConfigError: for an unknown name or option, or a backbone without the maps that the method needs.
    """
    kind, backbone, _ = method_of(name, backbone, SEGMENTERS, SEGMENTER_KINDS, "segmenter")
    check_classes(num_classes)
    named = isinstance(backbone, str) and kind in ("fcn", "deeplabv3")
    if named and "output_stride" in registry.option_names(str(backbone)):
        options = {"output_stride": 8, **options}
    model, model_name = make_backbone(backbone, dtype, options)
    aux = kind != "linear" if aux is None else aux
    layers = {"group_size": getattr(model, "bn_group_size", 0), "dtype": model.dtype}
    heads: Mapping[str, Callable[[], nn.Module]] = {
        "fcn": lambda: FcnHead(num_classes, **layers),
        "deeplabv3": lambda: DeepLabHead(num_classes, **layers),
        "upernet": lambda: UperHead(num_classes, **layers),
        "linear": lambda: LinearHead(num_classes),
    }
    of_aux: dict[str, Any] = {}
    if kind == "upernet":  # as mmsegmentation has it; otherwise as torchvision
        of_aux = {"channels": 256, "kernel_init": conv_init, "classifier_init": small_init}
    segmenter = Segmenter(
        kind=kind,
        backbone=model,
        backbone_name=model_name,
        num_classes=num_classes,
        frozen_norms=frozen_norms,
        maps=4 if kind == "upernet" else 2 if aux else 1,
        neck=None if model.map_norm_epsilon is None else MapNorms(model.map_norm_epsilon, model.dtype),
        head=heads[kind](),
        aux_head=FcnHead(num_classes, index=-2, **of_aux, **layers) if aux else None,
    )
    segmenter.selected(map_shapes(model, "stage_maps"))
    return segmenter
