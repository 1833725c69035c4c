"""VICReg on ImageNet: ResNet-50 without labels, by invariance, variance and covariance of its embeddings.

Result:   top-1 of a linear classifier on frozen features after 1000 epochs, as published: 73.2 %. The command for 100
          epochs (r50_100) comes without a figure. We have not run it yet.
Source:   Bardes, Ponce and LeCun 2021 (arXiv:2105.04906); facebookresearch/vicreg 4e12602: README.md, main_vicreg.py
          and augmentations.py.
          Known differences: JPEGs may be decoded at a smaller size; bfloat16 has the place of float16 and loss scaling.
Command:  python -m vision_jax.main --config=configs/vicreg.py:r50_1000 --config.data.dir=IMAGENET --workdir=runs/vicreg
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Epochs, batch, and learning rate for a batch of 256.
VARIANTS: dict[str, tuple[float, int, float]] = {"r50_1000": (1000.0, 2048, 0.2), "r50_100": (100.0, 512, 0.3)}


def get_config(variant: str = "r50_1000") -> ConfigDict:
    epochs, batch_size, learning_rate = recipes.choose(VARIANTS, variant)
    config = recipes.selfsupervised("resnet50", "vicreg")
    config.batch_size = batch_size
    config.epochs = epochs
    recipes.byol_augmentation(config)
    config.data.train_filter = "pillow-bicubic"
    recipes.lars(config, learning_rate, 1e-6)
    config.schedule.end_factor = 1e-3
    return config
