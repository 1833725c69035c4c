"""FCOS with a ResNet-50 and a feature pyramid on COCO, as torchvision trains it.

Result:   box AP on val2017 at 800 pixels, published: 39.2. We have not run it yet.
Source:   Tian et al. 2019 (arXiv:1904.01355); pytorch/vision, references/detection: train.py and presets.py, and the
          metadata of fcos_resnet50_fpn in torchvision 0.29. Published on 8 V100 with two images each. Known
          differences: images are laid into canvases of 800 x 1344 pixels, and not padded to the largest of a batch.
Command:  python -m vision_jax.main --config=configs/fcos.py --config.data.dir=COCO
          --config.model.pretrained=hf://timm/resnet50.tv_in1k --workdir=runs/fcos
"""

from ml_collections import ConfigDict

from vision_jax import recipes


def get_config() -> ConfigDict:
    config = recipes.coco_detection("fcos")
    recipes.frozen_beginning(config)
    config.optimizer.learning_rate = 0.01
    config.optimizer.momentum = 0.9
    config.optimizer.decay_rule = "all"
    return config
