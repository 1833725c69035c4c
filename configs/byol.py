"""BYOL on ImageNet: ResNet-50 without labels, by predicting what its own average makes of another crop.

Result:   top-1 of a linear classifier on frozen features, as published: 74.0 to 74.5 % in 1000 epochs. The settings for
          40, 100 and 300 epochs come without figures; vturrisi/solo-learn has 68.4 % in 100. We have not run it yet.
Source:   Grill et al. 2020 (arXiv:2006.07733); google-deepmind/deepmind-research f5de0ed, byol: README.md,
          configs/byol.py, byol_experiment.py and utils/.
          Known differences: a crop that does not fit is drawn again, there clipped to the image; OpenCV's bicubic
          filter has a = -0.75, TensorFlow's -0.5, and JPEGs may be decoded at a smaller size; crops and augmented
          images are rounded to 8 bits; the teacher begins as a copy, there as another random network; convolutions are
          initialized by their fan-out, there by their fan-in; features are probed by `config.evals`, there within the
          loss. The last norm scales of blocks begin at 1, as for the paper; in later code, at 0.
Command:  python -m vision_jax.main --config=configs/byol.py:r50_300 --config.data.dir=IMAGENET --workdir=runs/byol
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Epochs, learning rate for a batch of 256, weight decay, momentum of the teacher.
VARIANTS: dict[str, tuple[float, float, float, float]] = {
    "r50_300": (300.0, 0.3, 1e-6, 0.99),
    "r50_40": (40.0, 0.45, 1e-6, 0.97),
    "r50_100": (100.0, 0.45, 1e-6, 0.99),
    "r50_1000": (1000.0, 0.2, 1.5e-6, 0.996),
}


def get_config(variant: str = "r50_300") -> ConfigDict:
    epochs, learning_rate, weight_decay, momentum = recipes.choose(VARIANTS, variant)
    config = recipes.selfsupervised("resnet50", "byol", momentum=momentum)
    config.batch_size = 4096
    config.epochs = epochs
    config.model.zero_init_last = False
    recipes.byol_augmentation(config)
    config.augment.style = "byol"
    config.data.train_filter = "bicubic"
    config.data.eval_filter = "bicubic"
    recipes.lars(config, learning_rate, weight_decay)
    return config
