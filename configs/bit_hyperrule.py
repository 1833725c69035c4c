"""BiT-HyperRule: pretrained weights on any data set, by settings that follow from its size; and on those of VTAB-1k.

Result:   top-1 published for BiT-M (ResNets of ImageNet-21k): resnetv2_50x1_bit on imagenet 80.68 %, and with batches
          of 128 and a learning rate of 0.001 cifar10 97.4, cifar100 86.6; resnetv2_152x2_bit on imagenet 85.15. The
          mean over 19 tasks of VTAB-1k: resnetv2_101x3_bit 72.65, resnetv2_152x4_bit 73.51. We have not run it yet.
Source:   Kolesnikov et al. 2019 (arXiv:1912.11370); google-research/big_transfer 140de6e, bit_hyperrule.py, README.md
          and bit_pytorch/train.py; the splits of VTAB-1k of google-research/task_adaptation.
          Known differences: partners of mixup are those in the opposite order, as in bit_jax, there in a random one. A
          few of VTAB's tasks have labels that are made of other annotations, and are not here: see recipes.VTAB.
Command:  python -m vision_jax.main --config=configs/bit_hyperrule.py:cifar10 --config.data.dir=DIR --workdir=runs/bit
              --config.model.pretrained=hf://timm/resnetv2_50x1_bit.goog_in21k
          where DIR is the folder that tfds or `python -m vision_jax prepare --dataset=NAME` wrote. For a folder with
          train/CLASS/IMAGE and val/CLASS/IMAGE: small (fewer than 20,000 examples), medium (than 500,000) or large, and
          small_128, medium_128 or large_128 for images of less than 96 x 96 pixels. Tasks of VTAB-1k: vtab_cifar100 and
          so on. To choose settings for one, train on its first 800 examples (--config.data.train_split=train[:800]) and
          evaluate on the 200 others. Other models: --config.model.name=NAME, with weights of that model or a WORKDIR.
"""

from typing import Any

from ml_collections import ConfigDict

from vision_jax import recipes

# By size of the data set: end of the warm-up, three decays, the end; and mixup. Steps are those of the old rate.
RULES: dict[str, tuple[tuple[int, ...], float]] = {
    "small": ((100, 200, 300, 400, 500), 0.0),
    "medium": ((500, 3_000, 6_000, 9_000, 10_000), 0.1),
    "large": ((500, 6_000, 12_000, 18_000, 20_000), 0.1),
}
FOLDER = {"source": "folder", "val_split": "val"}
# The rule, whether images are small, and where the data are, as fields of config.data.
VARIANTS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "cifar10": ("medium", True, {"train_split": "train[:98%]", "val_split": "test"}),
    "cifar100": ("medium", True, {"train_split": "train[:98%]", "val_split": "test"}),
    "imagenet": ("large", False, {"train_split": "train[:99%]", "val_split": "validation"}),
    "oxford_iiit_pet": ("small", False, {"val_split": "test"}),
    "oxford_flowers102": ("small", False, {"val_split": "test"}),
    **{rule: (rule, False, FOLDER) for rule in RULES},
    **{f"{rule}_128": (rule, True, FOLDER) for rule in RULES},
    **{f"vtab_{task}": ("small", splits.small, {}) for task, splits in recipes.VTAB.items()},
}


def get_config(variant: str = "cifar10") -> ConfigDict:
    rule, small, data = recipes.choose(VARIANTS, variant)
    (warmup, *decays, end), mixup = RULES[rule]
    config = recipes.imagenet("resnetv2_50x1_bit")
    config.model.num_classes = None  # as many as the data have
    recipes.transfer(config, learning_rate=0.003, steps=end, warmup_steps=warmup, batch_size=512)
    config.schedule.name, config.schedule.factor = "step", 0.1
    config.schedule.milestone_steps = tuple(step + 1 for step in decays)
    config.augment.mixup = mixup
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    recipes.squeezed(config, *((160, 128) if small else (512, 480)))
    if variant.startswith("vtab_"):
        recipes.vtab_data(config, variant.removeprefix("vtab_"))
    config.data.update(data)
    return config
