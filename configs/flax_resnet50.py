"""ResNet-50 on ImageNet by Flax's example.

Result:   published top-1 at 224 pixels: 76.37 % in 4.4 hours on a TPU v3-8; 76.5 to 76.7 % on other devices. 100
          epochs. We have not run it yet.
Source:   google/flax, examples/imagenet: README.md, train.py, models.py and input_pipeline.py. Known differences: its
          bicubic filter is not antialiased, and its crops for evaluation are taken before, not after resizing.
Command:  python -m vision_jax.main --config=configs/flax_resnet50.py --config.data.dir=IMAGENET
          --workdir=runs/flax_resnet50
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Epochs.
VARIANTS: dict[str, float] = {"100": 100.0}


def get_config(variant: str = "100") -> ConfigDict:
    config = recipes.imagenet("resnet50")
    config.epochs = recipes.choose(VARIANTS, variant)
    config.batch_size = 1024
    # Each of the 8 cores has its own batch statistics.
    config.model.bn_group_size = 128
    config.data.train_filter = "pillow-bicubic"
    config.data.eval_filter = "bicubic"
    config.optimizer.learning_rate = 0.1
    config.optimizer.learning_rate_batch_size = 256
    config.optimizer.weight_decay = 1e-4
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    return config
