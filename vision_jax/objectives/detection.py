"""Detection: RetinaNet (Lin et al. 2017, arXiv:1708.02002) and FCOS (Tian et al. 2019, arXiv:1904.01355).

The backbone's maps become a pyramid, and each position of each level says of its anchors what there is and where. The
losses, the anchors and what becomes of the outputs are torchvision's; see `vision_jax.dense`.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import numpy as np

from vision_jax.dense import anchors as anchor_sets
from vision_jax.dense import postprocess
from vision_jax.dense.anchors import Anchors
from vision_jax.dense.losses import Sums, fcos_loss, retinanet_loss
from vision_jax.dense.networks import Detector, create_detector
from vision_jax.dense.postprocess import Detections, Selection
from vision_jax.errors import ConfigError
from vision_jax.objectives.base import Rows, Variables, Views, check_ranges
from vision_jax.objectives.dense import Dense, predictor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection(Dense):
    """What detectors of one stage share.

    Attributes:
        anchor_scale: times the published sizes of the anchors, which are 32 pixels and more for RetinaNet: below 1
            where objects are smaller.
        channels: of the pyramid and the heads.
    """

    dense: ClassVar[str] = "boxes"

    anchors: ClassVar[Anchors]
    selected: ClassVar[Selection]

    anchor_scale: float = 1.0
    channels: int = 256

    def __post_init__(self) -> None:
        check_ranges(self, positive=("anchor_scale", "channels"))
        super().__post_init__()

    @property
    def kind(self) -> str:
        """The method; see `create_detector`."""
        raise NotImplementedError

    @functools.cached_property
    def network(self) -> Detector:
        return create_detector(
            self.kind,
            num_classes=self.num_classes,
            backbone=self.backbone,
            frozen_norms=self.frozen_norms,
            channels=self.channels,
        )

    @property
    def selection(self) -> Selection:
        """Says what is taken for a detection."""
        return self.selected

    def levels(self, height: int, width: int) -> tuple[np.ndarray, ...]:
        """Returns the anchors of each level of the pyramid for a canvas; see `Anchors.levels`."""
        sizes = tuple(tuple(self.anchor_scale * size for size in level) for level in self.anchors.sizes)
        return Anchors(sizes, self.anchors.ratios).levels(self.network.map_sizes(height, width), (height, width))

    def detect(self, variables: Variables, rows: Rows) -> Detections:
        """Returns what is found in images, in pixels of these as they are stored.

        Args:
            variables: `params` and `batch_stats`.
            rows: `image` (rows, height, width, channels) uint8; `size` and `original` (rows, 2), height and width of
                each on the canvas, and as it is stored.
        """
        images = self.normalized(rows)
        outputs = predictor(self, variables)(images)
        found = postprocess.detections(self.selection, outputs, self.levels(*images.shape[1:3]), rows["size"])
        return found._replace(boxes=postprocess.to_original(found.boxes, rows["size"], rows["original"]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetinaNet(Detection):
    """RetinaNet: nine anchors a position, and the focal loss.

    Attributes:
        version: 1: torchvision's retinanet_resnet50_fpn; 2: its second version, with group norms in the heads and the
            GIoU loss of boxes.
    """

    metrics: ClassVar = {"loss": False, "classification": False, "bbox_regression": False}
    anchors: ClassVar[Anchors] = anchor_sets.RETINANET
    selected: ClassVar[Selection] = postprocess.RETINANET

    version: int = 1

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise ConfigError(f"objective.version is {self.version!r}: RetinaNet has the versions 1 and 2.")
        super().__post_init__()

    @property
    def kind(self) -> str:
        return "retinanet" if self.version == 1 else "retinanet_v2"

    def sums_of(self, outputs: Any, views: Views, mask: jax.Array | None) -> Sums:
        levels = self.levels(*views["image"].shape[1:3])
        loss = self.network.box_loss
        return retinanet_loss(outputs, levels, views["boxes"], views["box_labels"], mask, regression=loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fcos(Detection):
    """FCOS: no anchors but points, each of which learns the distances to the sides of the box that it is in."""

    metrics: ClassVar = {"loss": False, "classification": False, "bbox_regression": False, "bbox_ctrness": False}
    anchors: ClassVar[Anchors] = anchor_sets.FCOS
    selected: ClassVar[Selection] = postprocess.FCOS

    @property
    def kind(self) -> str:
        return "fcos"

    def sums_of(self, outputs: Any, views: Views, mask: jax.Array | None) -> Sums:
        return fcos_loss(outputs, self.levels(*views["image"].shape[1:3]), views["boxes"], views["box_labels"], mask)
