"""ResNeXt-101 32x4d, plain and with squeeze and excitation, on ImageNet in 90 or 250 epochs.

Result:   published top-1 at 224 pixels, in mixed precision on 8 A100 of 80 GB: resnext101_90 79.47 +- 0.03 %,
          resnext101_250 80.19 +- 0.08 %, seresnext101_90 80.03 +- 0.11 % in about 6 hours, seresnext101_250
          80.9 +- 0.08 %. We have not run it yet.
Source:   NVIDIA DeepLearningExamples, PyTorch/Classification/ConvNets: README.md of resnext101-32x4d and
          se-resnext101-32x4d, configs.yml, and in image_classification optimizers.py and models/resnet.py. Known
          differences: those of configs/resnet50.py, which it shares its recipe with; and squeezes are to a sixteenth of
          the channels, and there to 16 in every block.
Command:  python -m vision_jax.main --config=configs/resnext101.py:resnext101_90 --config.data.dir=IMAGENET
          --workdir=runs/resnext101
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Model, epochs, and alpha of mixup.
VARIANTS: dict[str, tuple[str, float, float]] = {
    "resnext101_90": ("resnext101_32x4d", 90.0, 0.0),
    "resnext101_250": ("resnext101_32x4d", 250.0, 0.2),
    "seresnext101_90": ("seresnext101_32x4d", 90.0, 0.0),
    "seresnext101_250": ("seresnext101_32x4d", 250.0, 0.2),
}


def get_config(variant: str = "resnext101_90") -> ConfigDict:
    name, epochs, mixup = recipes.choose(VARIANTS, variant)
    return recipes.nvidia(name, epochs, mixup=mixup, batch_size=1024, weight_decay=1 / 16384)
