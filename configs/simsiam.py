"""SimSiam on ImageNet: ResNet-50 without labels, by predicting what it makes itself of another crop.

Result:   top-1 of a linear classifier on frozen features after 100 epochs, as published: 68.1 % with batches of 512,
          68.3 % with 256. We have not run it yet.
Source:   Chen and He 2020 (arXiv:2011.10566); facebookresearch/simsiam a7bc177: README.md, main_simsiam.py with
          `--fix-pred-lr`, and simsiam/builder.py.
          Known differences: JPEGs may be decoded at a smaller size.
Command:  python -m vision_jax.main --config=configs/simsiam.py:b512 --config.data.dir=IMAGENET --workdir=runs/simsiam
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Batch.
VARIANTS: dict[str, int] = {"b512": 512, "b256": 256}


def get_config(variant: str = "b512") -> ConfigDict:
    batch_size = recipes.choose(VARIANTS, variant)
    config = recipes.selfsupervised("resnet50", "simsiam")
    config.batch_size = batch_size
    config.epochs = 100.0
    recipes.mocov2_augmentation(config)

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.learning_rate = 0.05
    config.optimizer.learning_rate_batch_size = 256
    config.optimizer.constant_rate = (r"^predictor/",)
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_rule = "all"
    config.schedule.warmup_epochs = 0.0
    config.schedule.by_epoch = True
    return config
