"""Transformers pre-trained by SimMIM, fine-tuned on ImageNet.

Result:   published top-1 at 224 pixels: Swin-B after 100 epochs of pre-training 83.5 % (at 192 pixels 82.8 %), after
          800 epochs 84.0 %; ViT-B after 800 epochs 83.8 %. We have not run it yet.
Source:   Xie et al. 2021 (arXiv:2111.09886); microsoft/SimMIM, configs/*/simmim_finetune__*.yaml, main_finetune.py.
          Known differences: the ViT keeps one table of relative positions for all its blocks, where theirs gets a copy
          for each; for another window, Swin's tables are interpolated linearly, theirs by cubic splines.
Command:  python -m vision_jax.main --config=configs/finetune_simmim.py:swin_b --config.data.dir=IMAGENET
          --config.model.pretrained=runs/simmim_swin_b --workdir=runs/finetune_simmim_swin_b
          The weights are the workdir of configs/simmim.py or, for Swin, an official file.
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# model, size of images, decay of the learning rate by layer
VARIANTS: dict[str, tuple[str, int, float]] = {
    "swin_b": ("swin_base_patch4_window7_224", 224, 0.9),
    "swin_b_192": ("swin_base_patch4_window7_224", 192, 0.9),
    "swin_b_800": ("swin_base_patch4_window7_224", 224, 0.8),
    "vit_b": ("vit_base_patch16_224", 224, 0.65),
}
SWIN_DEPTHS = (2, 2, 18, 2)


def swin_layers() -> tuple[str, ...]:
    """Returns patterns of Swin's layers: each block, and with the last one of a stage the reduction behind it."""
    layers = ["^patch_embed/"]
    for stage, depth in enumerate(SWIN_DEPTHS):
        layers += [f"^layers/{stage}/blocks/{i}/" for i in range(depth)]
        layers[-1] += f"|^layers/{stage + 1}/downsample/"
    return tuple(layers)


def get_config(variant: str = "swin_b") -> ConfigDict:
    model, size, layer_decay = recipes.choose(VARIANTS, variant)
    config = recipes.imagenet(model)
    recipes.deit_augmentation(config)
    config.model.pretrained = "runs/simmim_vit_b" if variant == "vit_b" else "runs/simmim_swin_b"
    config.batch_size = 2048
    config.epochs = 100.0
    config.data.image_size, config.data.eval_resize = size, 256 * size // 224
    config.model.drop_path_rate = 0.1
    config.augment.mix_group = 128  # the batch of one GPU

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1.25e-3
    config.optimizer.learning_rate_batch_size = 512
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_global_norm = 5.0
    config.optimizer.layer_decay = layer_decay
    # From 2.5e-7, and down to it, for a batch of 512; the cosine begins with the training, behind the warm-up.
    config.schedule.warmup_epochs = 20.0
    config.schedule.warmup_factor = config.schedule.end_factor = 2e-4
    config.schedule.overlap_warmup = True
    if variant != "vit_b":
        config.model.window_size = 6 if size == 192 else 7
        config.optimizer.decay_rule = "timm"
        config.optimizer.layers = swin_layers()
        return config
    config.model.global_pool = "avg"
    config.model.positions = "relative"
    config.model.layer_scale = 0.1
    config.model.head_std = 2e-5
    config.optimizer.decay_rule = "all"
    config.optimizer.no_decay = (r"/(bias|scale|gamma)$", "^cls_token$")
    config.optimizer.layers = ("^(?:cls_token|patch_embed/)", r"^blocks/(\d+)/")
    return config
