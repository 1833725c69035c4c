"""DeiT on ImageNet in 300 epochs, by itself or with a convolutional teacher.

Result:   top-1 at 224 pixels, published: tiny 72.2 %, small 79.9 %, base 81.8 %; with the teacher and a distillation
          token tiny 74.5 %, small 81.2 %, base 83.4 %. We have not run it yet.
Source:   Touvron et al. 2020 (arXiv:2012.12877); facebookresearch/deit, README_deit.md and main.py (with timm 0.3.2).
          Known differences: there the learning rate of an epoch is what the schedule has for the epoch before, so that
          the warm-up begins with two epochs alike; there a moving average is kept too, which the results are not of.
Command:  python -m vision_jax.main --config=configs/deit.py:small --config.data.dir=IMAGENET --workdir=runs/deit_small
          The distilled variants need the teacher's weights, RegNetY-16GF of DeiT's authors, as the file
          regnety_160.safetensors, or elsewhere: --config.distill.pretrained=hf://timm/regnety_160.deit_in1k
"""

from ml_collections import ConfigDict

from vision_jax import recipes

VARIANTS: dict[str, str] = {
    "small": "deit_small_patch16_224",
    "tiny": "deit_tiny_patch16_224",
    "base": "deit_base_patch16_224",
    "small_distilled": "deit_small_distilled_patch16_224",
    "tiny_distilled": "deit_tiny_distilled_patch16_224",
    "base_distilled": "deit_base_distilled_patch16_224",
}


def get_config(variant: str = "small") -> ConfigDict:
    config = recipes.imagenet(recipes.choose(VARIANTS, variant))
    recipes.deit_augmentation(config)
    config.batch_size = 1024
    config.epochs = 300.0

    config.model.drop_path_rate = 0.1
    config.data.repeats = 3
    # The batch of one GPU.
    config.augment.mix_group = 64 if "base" in variant else 256
    if variant.endswith("_distilled"):
        config.distill.teacher = "regnety_160"
        config.distill.pretrained = "regnety_160.safetensors"
        config.distill.kind = "hard"
        config.distill.weight = 0.5

    recipes.deit_optimizer(config, 5e-4, weight_decay=0.05)
    return config
