"""Vision transformers from masked autoencoders (MAE), fine-tuned on ImageNet.

Result:   top-1 at 224 pixels from the official weights of 1600 epochs, published: base 83.66 % (four seeds: 83.57 +-
          0.08), large 85.95 % (85.87 +- 0.07), huge 86.93 %. We have not run it yet.
Source:   He et al. 2021 (arXiv:2111.06377); facebookresearch/mae, FINETUNE.md and main_finetune.py.
          Known differences: none that we know of.
Command:  python -m vision_jax.main --config=configs/finetune_mae.py:vit_b --config.data.dir=IMAGENET
          --config.model.pretrained=runs/mae_vit_b --workdir=runs/finetune_mae_vit_b
          The weights are the workdir of configs/mae.py, or an official file, mae_pretrain_vit_base.pth.
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# model, epochs, learning rate for 256 images, its decay by layer, drop_path_rate
VARIANTS: dict[str, tuple[str, float, float, float, float]] = {
    "vit_b": ("vit_base_patch16_224", 100.0, 5e-4, 0.65, 0.1),
    "vit_l": ("vit_large_patch16_224", 50.0, 1e-3, 0.75, 0.2),
    "vit_h": ("vit_huge_patch14_224", 50.0, 1e-3, 0.75, 0.3),
}


def get_config(variant: str = "vit_b") -> ConfigDict:
    model, epochs, learning_rate, layer_decay, drop_path_rate = recipes.choose(VARIANTS, variant)
    config = recipes.imagenet(model)
    recipes.deit_augmentation(config)
    config.model.pretrained = f"runs/mae_{variant}"
    config.batch_size = 1024
    config.epochs = epochs

    config.model.drop_path_rate = drop_path_rate
    config.model.global_pool = "avg"
    config.model.head_std = 2e-5
    config.augment.mix_group = 32  # the batch of one GPU

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = learning_rate
    config.optimizer.learning_rate_batch_size = 256
    config.optimizer.weight_decay = 0.05
    config.optimizer.decay_rule = "timm"
    config.optimizer.layer_decay = layer_decay
    # The last norm counts with the head, whichever features it is of.
    config.optimizer.layers = (r"^(?:cls_token|pos_embed|patch_embed)", r"^blocks/(\d+)/")
    # Down to 1e-6.
    config.schedule.end_factor = 1e-6 / (learning_rate * 1024 / 256)
    return config
