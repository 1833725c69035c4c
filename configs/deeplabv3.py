"""DeepLabV3 with a dilated ResNet on COCO's images with the classes of Pascal VOC, as torchvision trains it.

Result:   mean IoU (accuracy of pixels) on val2017, published: resnet50 66.4 (92.4), resnet101 67.4 (92.4). We have not
          run it yet.
Source:   Chen et al. 2017 (arXiv:1706.05587); pytorch/vision, references/segmentation: README.md, train.py, presets.py
          and coco_utils.py, and the metadata of deeplabv3_resnet50 and deeplabv3_resnet101 in torchvision 0.29.
          Published on 8 V100 with four images each. Known differences: images twice as long as high are made smaller
          in evaluation; see `recipes.coco_segmentation`.
Command:  python -m vision_jax.main --config=configs/deeplabv3.py:resnet50 --config.data.dir=COCO
          --config.model.pretrained=hf://timm/resnet50.tv_in1k --workdir=runs/deeplabv3
"""

from ml_collections import ConfigDict

from vision_jax import recipes

VARIANTS = {"resnet50": "resnet50", "resnet101": "resnet101"}


def get_config(variant: str = "resnet50") -> ConfigDict:
    return recipes.coco_segmentation(recipes.choose(VARIANTS, variant), "deeplabv3")
