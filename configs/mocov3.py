"""MoCo v3 on ImageNet: ResNet-50 without labels, by contrast with a momentum encoder.

Result:   top-1 of a linear classifier on frozen features, as published: 68.9 % in 100 epochs, 72.8 % in 300, 74.6 % in
          1000. We have not run it yet.
Source:   Chen, Xie and He 2021 (arXiv:2104.02057); facebookresearch/moco-v3 c349e6e: CONFIG.md, main_moco.py,
          moco/optimizer.py and moco/builder.py.
          Known differences: JPEGs may be decoded at a smaller size; bfloat16 has the place of float16 and loss scaling.
Command:  python -m vision_jax.main --config=configs/mocov3.py:r50_300 --config.data.dir=IMAGENET --workdir=runs/mocov3
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Epochs, learning rate for a batch of 256, weight decay, momentum of the encoder.
VARIANTS: dict[str, tuple[float, float, float, float]] = {
    "r50_300": (300.0, 0.3, 1e-6, 0.99),
    "r50_100": (100.0, 0.6, 1e-6, 0.99),
    "r50_1000": (1000.0, 0.3, 1.5e-6, 0.996),
}


def get_config(variant: str = "r50_300") -> ConfigDict:
    epochs, learning_rate, weight_decay, momentum = recipes.choose(VARIANTS, variant)
    config = recipes.selfsupervised("resnet50", "mocov3", momentum=momentum)
    config.batch_size = 4096
    config.epochs = epochs
    recipes.byol_augmentation(config)
    config.data.views = "2x224:0.2-1"
    config.data.train_filter = "pillow-bilinear"
    recipes.lars(config, learning_rate, weight_decay)
    return config
