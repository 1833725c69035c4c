"""FCN with a dilated ResNet on COCO's images with the classes of Pascal VOC, as torchvision trains it.

Result:   mean IoU (accuracy of pixels) on val2017, published: resnet50 60.5 (91.4), resnet101 63.7 (91.9). We have not
          run it yet.
Source:   Long et al. 2015 (arXiv:1411.4038); pytorch/vision, references/segmentation: README.md, train.py, presets.py
          and coco_utils.py, and the metadata of fcn_resnet50 and fcn_resnet101 in torchvision 0.29. Published on 8 V100
          with four images each. Known differences: images twice as long as high are made smaller in evaluation; see
          `recipes.coco_segmentation`.
Command:  python -m vision_jax.main --config=configs/fcn.py:resnet50 --config.data.dir=COCO
          --config.model.pretrained=hf://timm/resnet50.tv_in1k --workdir=runs/fcn
"""

from ml_collections import ConfigDict

from vision_jax import recipes

VARIANTS = {"resnet50": "resnet50", "resnet101": "resnet101"}


def get_config(variant: str = "resnet50") -> ConfigDict:
    return recipes.coco_segmentation(recipes.choose(VARIANTS, variant), "fcn")
