"""Semantic segmentation: a class for each pixel, by FCN, DeepLabV3, UPerNet or a linear head on any backbone."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax

from vision_jax.dense.losses import Sums, segmentation_loss
from vision_jax.dense.networks import SEGMENTER_KINDS, Segmenter, create_segmenter
from vision_jax.errors import ConfigError, suggest
from vision_jax.objectives.base import Views, check_ranges
from vision_jax.objectives.dense import Dense


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation(Dense):
    """Cross-entropy of pixels, of the head and of an auxiliary one; see `vision_jax.dense.segmenters`.

    Attributes:
        head: fcn (Long et al. 2015, arXiv:1411.4038), deeplabv3 (Chen et al. 2017, arXiv:1706.05587), upernet (Xiao et
            al. 2018, arXiv:1807.10221) or linear.
        aux: whether there is an auxiliary head, an FCN on the last map but one; None: for all but linear.
        aux_weight: of its loss; 0.5 in torchvision, 0.4 in the recipes of UPerNet.
    """

    dense: ClassVar[str] = "masks"
    metrics: ClassVar = {"loss": False, "out": False, "aux": False}

    head: str = "fcn"
    aux: bool | None = None
    aux_weight: float = 0.5

    def __post_init__(self) -> None:
        if self.head not in SEGMENTER_KINDS:
            raise ConfigError(f"objective.head is {self.head!r}: {suggest(str(self.head), SEGMENTER_KINDS)}")
        if self.aux not in (None, False, True):
            raise ConfigError(f"objective.aux is {self.aux!r}: it is True, False, or None for the head's own choice.")
        check_ranges(self, not_negative=("aux_weight",))
        super().__post_init__()
        if self.network.aux_head is None and self.aux_weight != type(self).aux_weight:
            raise ConfigError(
                f"objective.aux_weight is {self.aux_weight}, and there is no auxiliary head: set objective.aux, or "
                "leave the weight unset."
            )

    @functools.cached_property
    def network(self) -> Segmenter:
        return create_segmenter(
            self.head,
            num_classes=self.num_classes,
            backbone=self.backbone,
            frozen_norms=self.frozen_norms,
            aux=self.aux,
        )

    def sums_of(self, outputs: Any, views: Views, mask: jax.Array | None) -> Sums:
        return segmentation_loss(outputs, views["segmentation"], mask, aux_weight=self.aux_weight)
