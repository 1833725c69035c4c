"""ConvNeXt and ViT on ImageNet by adversarial training with two steps of APGD and heavy augmentation.

Result:   published top-1 of clean images, and under AutoAttack at 4/255 (5,000 images), of the moving average:
              convnext_tiny (300 epochs)  72.4, 48.6     convnext_base (50 epochs)  75.6, 54.3
              vit_small (300 epochs)      69.2, 44.0     vit_base (50 epochs)       73.3, 50.0
          We have not run it yet.
Source:   Singh et al. 2023, arXiv:2303.01870; nmndeep/revisiting-at, main.py, parserr.py, autopgd_train_clean.py and
          run_train.sh. Its better models have a stem of convolutions, which is not here. Known differences: the number
          of GPUs is not published, and the batch that of eight here; images are normalized here, as the weights expect
          that training begins with.
Command:  python -m vision_jax.main --config=configs/revisiting_at.py:convnext_tiny --config.data.dir=IMAGENET
          --workdir=runs/robust_convnext_tiny
          Training begins with weights of clean training: --config.model.pretrained=FILE for others.
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Model, weights, epochs.
VARIANTS: dict[str, tuple[str, str, float]] = {
    "convnext_tiny": ("convnext_tiny", "hf://timm/convnext_tiny.fb_in1k", 300.0),
    "convnext_base": ("convnext_base", "hf://timm/convnext_base.fb_in1k", 50.0),
    "vit_small": ("vit_small_patch16_224", "hf://timm/deit_small_patch16_224.fb_in1k", 300.0),
    "vit_base": ("vit_base_patch16_224", "hf://timm/deit_base_patch16_224.fb_in1k", 50.0),
}


def get_config(variant: str = "convnext_tiny") -> ConfigDict:
    model, weights, epochs = recipes.choose(VARIANTS, variant)
    config = recipes.imagenet(model)
    recipes.deit_augmentation(config)
    config.model.pretrained = weights
    config.batch_size = 8 * 80
    config.epochs = epochs
    config.ema_decay = 0.9999
    # From the image, in evaluation mode; the attack has the mixed and smoothed targets.
    config.objective = recipes.objective("adversarial", eps=4 / 255, attack="apgd", steps=2)

    config.augment.mix_group = 80
    config.model.drop_path_rate = 0.0

    config.optimizer.name = "adamw"
    config.optimizer.b2 = 0.95
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    # As there, by name: so ConvNeXt's norms and layer scales decay, and ViT's position embedding and class token.
    config.optimizer.decay_rule = "all"
    config.optimizer.no_decay = (r"bias$",) if model.startswith("convnext") else (r"bias$", r"scale$")
    config.schedule.warmup_epochs = 20.0 if epochs > 100 else 10.0
    config.schedule.warmup_factor = 1e-4

    recipes.robustness(config, "pgd-20", "4/255", every_epochs=10.0)
    config.checkpoint.best_metric = "robust/ema_robust_top1"
    return config
