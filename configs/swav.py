"""SwAV on ImageNet: ResNet-50 without labels, by predicting the prototypes that another crop is assigned to.

Result:   top-1 of a linear classifier on frozen features, as published: 75.3 % in 800 epochs, 74.6 % in 400, 73.9 % in
          200, 72.1 % in 100; with batches of 256 74.3 % in 400 epochs (b256_400) and 72.7 % in 200; without small crops
          70.1 % in 400 (two_crops_400). We have not run it yet.
Source:   Caron et al. 2020 (arXiv:2006.09882); facebookresearch/swav, README.md, scripts/ and main_swav.py.
          Known differences: batch norm is over the global batch, there over groups of 8 GPUs if it is apex's; JPEGs may
          be decoded at a smaller size; bfloat16 has the place of float16 and loss scaling.
Command:  python -m vision_jax.main --config=configs/swav.py:ep800 --config.data.dir=IMAGENET --workdir=runs/swav
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Epochs, batch, and views.
SEVERAL, TWO = "2x224:0.14-1,6x96:0.05-0.14", "2x224:0.14-1"
VARIANTS: dict[str, tuple[float, int, str]] = {
    "ep800": (800.0, 4096, SEVERAL),
    "ep400": (400.0, 4096, SEVERAL),
    "ep200": (200.0, 4096, SEVERAL),
    "ep100": (100.0, 4096, SEVERAL),
    "b256_400": (400.0, 256, SEVERAL),
    "b256_200": (200.0, 256, SEVERAL),
    "two_crops_400": (400.0, 4096, TWO),
}


def get_config(variant: str = "ep800") -> ConfigDict:
    epochs, batch_size, views = recipes.choose(VARIANTS, variant)
    small = batch_size == 256
    config = recipes.imagenet("resnet50")
    config.model.zero_init_last = False
    config.batch_size = batch_size
    config.epochs = epochs
    config.objective = recipes.objective("swav", queue=3840 if small else 0)

    config.data.train_filter = "pillow-bilinear"
    config.data.views = views
    config.data.std = (0.228, 0.224, 0.225)  # as there
    config.augment.color_jitter = (0.8, 0.8, 0.8, 0.2)
    config.augment.color_jitter_prob = 0.8
    config.augment.greyscale = 0.2
    config.augment.blur = 0.5

    # apex's LARC without clipping, of all parameters.
    config.optimizer.name = "lars"
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-6
    config.optimizer.decay_rule = "all"
    config.optimizer.learning_rate = 0.6 if small else 4.8
    config.schedule.warmup_epochs = 0.0 if small else 10.0
    config.schedule.warmup_factor = 0.3 / 4.8
    config.schedule.warmup_reaches_peak = True
    config.schedule.end_factor = 1e-3
    # 5005 and 313 updates.
    config.optimizer.frozen_until = ((r"^prototypes/", 5005 / 5004 if small else 313 / 312),)
    recipes.neighbors(config, 10.0)
    config.checkpoint.best_metric = "knn/top1"
    return config
