"""Which self-supervised method a checkpoint of its authors is of, as the names of its tensors tell.

Read in facebookresearch's moco (builder.py), moco-v3 c349e6e (moco/builder.py), simsiam a7bc177 (simsiam/builder.py),
swav 06b1b7c (src/resnet50.py), dino 7c446df (main_dino.py, utils.py), barlowtwins 8e8d284 (main.py), vicreg 4e12602
(main_vicreg.py) and mae efb2a80 (models_mae.py), and in microsoft's SimMIM d3e29bc (models/simmim.py).
"""

import dataclasses
from collections.abc import Iterable

from vision_jax.pretrained import naming


@dataclasses.dataclass(frozen=True)
class Method:
    """What the checkpoints of a method are recognized by.

    Files of a backbone alone have the names of a classifier without its last layer, and are of no method.

    Attributes:
        title: what it is called.
        objective: the name of the objective, as in `config.objective.name`.
        marks: beginnings of names, behind any prefix and without `module.`, each of which is one of some tensor's.
        projector: beginnings of names within the network of what is in the place of its classifier.
    """

    title: str
    objective: str
    marks: tuple[str, ...]
    projector: tuple[str, ...] = ()


METHODS = (
    Method("MoCo", "mocov2", ("encoder_q.",), ("fc.",)),
    Method("MoCo v3", "mocov3", ("base_encoder.",), ("fc.", "head.")),
    Method("SimSiam", "simsiam", ("encoder.fc.6.", "predictor."), ("fc.",)),
    Method("SwAV", "swav", ("projection_head.", "prototypes.weight")),
    Method("DINO", "dino", ("student.", "teacher.", "head.last_layer.weight_v")),
    Method("Barlow Twins", "barlow_twins", ("backbone.", "projector.0.weight", "bn.running_mean")),
    Method("VICReg", "vicreg", ("backbone.", "projector.0.weight", "projector.0.bias")),
    Method("MAE", "mae", ("mask_token", "decoder_embed.weight")),
    Method("SimMIM", "simmim", ("encoder.mask_token", "decoder.0.weight")),
)


def method_of(names: Iterable[str]) -> Method | None:
    """Returns the method that a checkpoint is of; None: of none of these, or of its backbone alone.

    Args:
        names: of its tensors.
    """
    known = [naming.unwrapped(name) for name in names]
    for method in METHODS:
        if all(any(naming.within(name, mark) for name in known) for mark in method.marks):
            return method
    return None
