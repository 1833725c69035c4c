"""Attacks on classifiers: pure, compiled functions of (apply, images in [0, 1], labels, key).

`classifier` makes the attacked function of a model; normalization belongs to it, and radii are those of images in
[0, 1]. An image is fooled if its class is another than its label. Images may be divided over devices, and each has its
own random key, so that neither the devices nor the rest of the batch change what is found.

One file a family: `pgd` (FGSM, PGD, MI-FGSM), `apgd`, `fab` and `square`. `stages` has AutoAttack, which is a row of
them, and `evaluation` runs such a row on a whole data set; `signs` says when its result may be too high, and `names`
finds attacks and radii by what a person writes. `ascent` has what a training step attacks with.
"""

from vision_jax.attacks.apgd import apgd, apgd_t
from vision_jax.attacks.base import Apply, Attacked, classifier
from vision_jax.attacks.evaluation import Robustness, autoattack, evaluate_robustness
from vision_jax.attacks.fab import fab, fab_t
from vision_jax.attacks.names import Epsilon, find_stages, parse_epsilon
from vision_jax.attacks.pgd import fgsm, mi_fgsm, pgd
from vision_jax.attacks.square import square
from vision_jax.attacks.stages import Stage, stages_of_autoattack

__all__ = [
    "Apply",
    "Attacked",
    "Epsilon",
    "Robustness",
    "Stage",
    "apgd",
    "apgd_t",
    "autoattack",
    "classifier",
    "evaluate_robustness",
    "fab",
    "fab_t",
    "fgsm",
    "find_stages",
    "mi_fgsm",
    "parse_epsilon",
    "pgd",
    "square",
    "stages_of_autoattack",
]
