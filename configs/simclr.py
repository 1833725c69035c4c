"""SimCLR on ImageNet: ResNet-50 without labels, by telling which two crops are of the same image.

Result:   top-1 of a linear classifier on frozen features, as published: version 1 in 100 epochs (r50_100) about 64.5 %,
          its released weights 69.1 %; the released weights of version 2 (r50_800) 71.7 %. We have not run it yet.
Source:   Chen et al. 2020 (arXiv:2002.05709, arXiv:2006.10029); google-research/simclr 383d414: README.md, run.py,
          data_util.py and lars_optimizer.py, which are version 2; version 1 at 0075cc0. The README does not say how
          many epochs the released weights have had.
          Known differences: ratios of crops are drawn log-uniformly, in at most 10 attempts, there evenly, in at most
          100; OpenCV's bicubic filter has a = -0.75, TensorFlow's -0.5, and JPEGs may be decoded at a smaller size;
          crops and augmented images are rounded to 8 bits; convolutions are initialized by their fan-out, there by
          their fan-in; a run has whole epochs of full batches, there a step more than all their examples make.
Command:  python -m vision_jax.main --config=configs/simclr.py:r50_100 --config.data.dir=IMAGENET --workdir=runs/simclr
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Epochs, weight decay, widths of the projector's hidden layers, and style of augmentation.
VARIANTS: dict[str, tuple[float, float, tuple[int, ...], str]] = {
    "r50_100": (100.0, 1e-6, (2048,), "byol"),
    "r50_800": (800.0, 1e-4, (2048, 2048), "simclr"),
}


def get_config(variant: str = "r50_100") -> ConfigDict:
    epochs, weight_decay, hidden, style = recipes.choose(VARIANTS, variant)
    config = recipes.selfsupervised("resnet50", "simclr", hidden=hidden, scale=2.0)
    config.batch_size = 4096
    config.epochs = epochs

    # Pixels from 0 to 1, as they are.
    config.data.mean = (0.0, 0.0, 0.0)
    config.data.std = (1.0, 1.0, 1.0)
    config.data.views = "2x224:0.08-1"
    config.data.train_filter = "bicubic"
    config.data.eval_crop = 0.875
    config.data.eval_filter = "bicubic"
    config.augment.style = style
    config.augment.color_jitter = (0.8, 0.8, 0.8, 0.2)
    config.augment.color_jitter_prob = 0.8
    config.augment.greyscale = 0.2
    config.augment.blur = 0.5

    recipes.lars(config, 0.3, weight_decay)
    config.optimizer.classic_momentum = True
    return config
