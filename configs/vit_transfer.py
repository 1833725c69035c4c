"""Vision transformers of ImageNet-21k on other data sets, at 384 pixels.

Result:   top-1 published for ViT-B/32 of AugReg, means of five runs: imagenet 83.27 %, cifar10 98.55, cifar100 91.35,
          oxford_iiit_pet 93.78, oxford_flowers102 99.43. We have not run it yet.
Source:   Steiner et al. 2021 (arXiv:2106.10270); google-research/big_vision 0127fb6, configs/transfer.py, with the
          learning rates and crops that are said there to be best. Known differences: crops are resized by Pillow, with
          antialiasing; ratios of crops are drawn log-uniformly, in at most 10 attempts.
Command:  python -m vision_jax.main --config=configs/vit_transfer.py:cifar10 --config.data.dir=DIR
              --config.model.pretrained=hf://timm/vit_base_patch32_224.augreg_in21k --workdir=runs/vit_cifar10
          where DIR is the folder that tfds or `python -m vision_jax prepare --dataset=NAME` wrote. Other models:
          --config.model.name=NAME, with weights or a WORKDIR.
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Learning rate, steps, warm-up, and the splits; the rest of the training split there chose the learning rate.
VARIANTS: dict[str, tuple[float, int, int, str, str]] = {
    "cifar10": (0.003, 10_000, 500, "train[:98%]", "test"),
    "cifar100": (0.01, 10_000, 500, "train[:98%]", "test"),
    "imagenet": (0.03, 20_000, 500, "train[:99%]", "validation"),
    "oxford_iiit_pet": (0.003, 500, 100, "train[:90%]", "test"),
    "oxford_flowers102": (0.003, 500, 100, "train[:90%]", "test"),
}


def get_config(variant: str = "cifar10") -> ConfigDict:
    learning_rate, steps, warmup_steps, train_split, val_split = recipes.choose(VARIANTS, variant)
    config = recipes.imagenet("vit_base_patch32_224")
    config.model.num_classes = None  # as many as the data have
    recipes.transfer(config, learning_rate, steps, warmup_steps, batch_size=512)
    config.optimizer.mu_dtype = "bfloat16"
    config.optimizer.clip_global_norm = 1.0
    config.data.train_split, config.data.val_split = train_split, val_split
    config.data.image_size, config.data.eval_resize = 384, 448
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    config.data.train_filter = "pillow-bilinear"
    if variant.startswith("cifar"):
        # A crop of 384 pixels out of 448: these images are squares.
        config.data.crop_ratio, config.data.crop_scale = (), ((384 / 448) ** 2,) * 2
    else:
        config.data.crop_scale = (0.05, 1.0)
    return config
