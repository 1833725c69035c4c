"""Barlow Twins on ImageNet: ResNet-50 without labels, by embeddings with the identity for correlations.

Result:   top-1 of a linear classifier on frozen features after 1000 epochs, as published: 73.5 %. We have not run it
          yet.
Source:   Zbontar et al. 2021 (arXiv:2103.03230); facebookresearch/barlowtwins 8e8d284: README.md and main.py.
          Known differences: gradients are those of the global batch, there those divided by the number of GPUs, which
          LARS does not see but in biases and norms, whose rate was tuned there; JPEGs may be decoded at a smaller size;
          bfloat16 has the place of float16 and loss scaling.
Command:  python -m vision_jax.main --config=configs/barlow_twins.py --config.data.dir=IMAGENET
          --workdir=runs/barlow_twins
"""

from ml_collections import ConfigDict

from vision_jax import recipes


def get_config() -> ConfigDict:
    config = recipes.selfsupervised("resnet50", "barlow_twins")
    config.batch_size = 2048
    config.epochs = 1000.0
    recipes.byol_augmentation(config)
    config.data.train_filter = "pillow-bicubic"
    recipes.lars(config, 0.2, 1e-6)
    config.optimizer.multipliers = ((r"/(bias|scale)$", 0.0048 / 0.2),)
    config.schedule.end_factor = 1e-3
    return config
