"""MoCo v3 on ImageNet: ResNet-50 and vision transformers without labels, by contrast with a momentum encoder.

Result:   top-1 of a linear classifier on frozen features, as published: ResNet-50 68.9 % in 100 epochs, 72.8 % in 300,
          74.6 % in 1000; in 300 epochs vit_s 73.2 % and vit_b 76.7 %, which fine-tuned have 81.4 and 83.2 %. We have
          not run it yet.
Source:   Chen, Xie and He 2021 (arXiv:2104.02057); facebookresearch/moco-v3 c349e6e: CONFIG.md, main_moco.py, vits.py,
          moco/optimizer.py and moco/builder.py.
          Known differences: JPEGs may be decoded at a smaller size; bfloat16 has the place of float16 and loss scaling.
Command:  python -m vision_jax.main --config=configs/mocov3.py:r50_300 --config.data.dir=IMAGENET --workdir=runs/mocov3
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Epochs, learning rate for a batch of 256, weight decay, momentum of the encoder.
RESNETS: dict[str, tuple[float, float, float, float]] = {
    "r50_300": (300.0, 0.3, 1e-6, 0.99),
    "r50_100": (100.0, 0.6, 1e-6, 0.99),
    "r50_1000": (1000.0, 0.3, 1.5e-6, 0.996),
}
TRANSFORMERS = {"vit_s": "vit_small_patch16_224", "vit_b": "vit_base_patch16_224"}
VARIANTS: dict[str, object] = {**RESNETS, **TRANSFORMERS}


def get_config(variant: str = "r50_300") -> ConfigDict:
    recipes.choose(VARIANTS, variant)
    if variant in RESNETS:
        epochs, learning_rate, weight_decay, momentum = RESNETS[variant]
        config = recipes.selfsupervised("resnet50", "mocov3", momentum=momentum)
        recipes.lars(config, learning_rate, weight_decay)
    else:
        epochs = 300.0
        options = {"hidden": (4096, 4096), "predictor_norm": True, "temperature": 0.2}
        config = recipes.selfsupervised(TRANSFORMERS[variant], "mocov3", **options)
        _transformer(config)
    config.batch_size = 4096
    config.epochs = epochs
    recipes.byol_augmentation(config)
    config.data.views = "2x224:0.2-1" if variant in RESNETS else "2x224:0.08-1"
    config.data.train_filter = "pillow-bilinear"
    return config


def _transformer(config: ConfigDict) -> None:
    """Sets what differs for vision transformers: both have 12 heads, and the projection of patches stays random."""
    config.model.num_heads = 12
    config.model.positions = "mocov3"
    config.model.weight_init = "mocov3"
    config.optimizer.frozen = (r"^pos_embed$", r"^patch_embed/")
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.learning_rate_batch_size = 256
    config.optimizer.weight_decay = 0.1
    config.optimizer.decay_rule = "all"
    config.schedule.warmup_epochs = 40.0
