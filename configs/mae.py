"""Masked autoencoders (MAE): pre-training of vision transformers on ImageNet without labels.

Result:   after 1600 epochs, published top-1 at 224 pixels: fine-tuned (configs/finetune_mae.py) base 83.6 %, large
          85.9 %, huge 86.9 %; linear probe (configs/linear_probe.py) base 68.0 %, large 75.8 %, huge 76.6 %. After the
          800 epochs here, large fine-tuned 85.5 %; and base, by open-mmlab/mmpretrain, 83.3 %, linear 65.1 %. We have
          not run it yet.
Source:   He et al. 2021 (arXiv:2111.06377); facebookresearch/mae, PRETRAIN.md and main_pretrain.py.
          Known differences: none in the method; which patches are removed depends on the image's place in the batch
          here, and not on the number of devices.
Command:  python -m vision_jax.main --config=configs/mae.py:vit_b --config.data.dir=IMAGENET --workdir=runs/mae_vit_b
          The published epochs: --config.epochs=1600. To go on from official weights: --config.model.pretrained=FILE,
          with or without their decoder.
"""

from ml_collections import ConfigDict

from vision_jax import recipes

VARIANTS: dict[str, str] = {
    "vit_b": "vit_base_patch16_224",
    "vit_l": "vit_large_patch16_224",
    "vit_h": "vit_huge_patch14_224",
}


def get_config(variant: str = "vit_b") -> ConfigDict:
    config = recipes.imagenet(recipes.choose(VARIANTS, variant))
    config.objective = recipes.objective("mae")
    config.batch_size = 4096
    config.epochs = 800.0
    config.eval.every_epochs = 20.0
    config.checkpoint.best_metric = "val/loss"
    recipes.neighbors(config, 20.0)

    config.model.positions = "mae"
    config.data.crop_scale = (0.2, 1.0)
    config.data.train_filter = "pillow-bicubic"
    config.data.eval_filter = "bicubic"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.learning_rate_batch_size = 256
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.05
    # Class and mask token decay; positions are fixed.
    config.optimizer.decay_rule = "all"
    config.optimizer.no_decay = (r"/(bias|scale)$",)
    config.optimizer.frozen = (r"(^|/)pos_embed$",)
    config.schedule.warmup_epochs = 40.0
    return config
