"""RetinaNet with a ResNet-50 and a feature pyramid on COCO, as torchvision trains it.

Result:   box AP on val2017 at 800 pixels, published: v1 36.4, v2 41.5. We have not run it yet.
Source:   Lin et al. 2017 (arXiv:1708.02002); pytorch/vision, references/detection: README.md, train.py and presets.py,
          and the metadata of retinanet_resnet50_fpn and its _v2 in torchvision 0.29. Published on 8 V100 with two
          images each. Known differences: images are laid into canvases of 800 x 1344 pixels, and not padded to the
          largest of a batch; those of v2 were also trained longer than its command says, which was not readable.
Command:  python -m vision_jax.main --config=configs/retinanet.py:v1 --config.data.dir=COCO
          --config.model.pretrained=hf://timm/resnet50.tv_in1k --workdir=runs/retinanet
"""

from ml_collections import ConfigDict

from vision_jax import recipes

VARIANTS = {"v1": 1, "v2": 2}


def get_config(variant: str = "v1") -> ConfigDict:
    version = recipes.choose(VARIANTS, variant)
    config = recipes.coco_detection("retinanet", version=version)
    if version == 1:
        recipes.frozen_beginning(config)
        config.optimizer.learning_rate = 0.01
        config.optimizer.momentum = 0.9
        config.optimizer.decay_rule = "all"
        return config
    config.optimizer.frozen = (r"^conv1/", r"^bn1/", r"^layer1/")
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay_rule = "not_norms"
    # The images of one GPU.
    config.model.bn_group_size = 2
    config.data.dense.shorter = tuple(range(480, 801, 32))
    return config
