"""SimMIM: pre-training of transformers on ImageNet without labels, by predicting the pixels of hidden patches.

Result:   published top-1 after fine-tuning: Swin-B, 100 epochs at 192 pixels, 82.8 % at 192 and 83.5 % at 224 pixels;
          ViT-B, 800 epochs, 83.8 % at 224. We have not run it yet.
Source:   Xie et al. 2021 (arXiv:2111.09886); microsoft/SimMIM, configs/ and main_simmim.py.
          Known differences: the initial weights of the ViT are timm's, there truncated at one standard deviation and
          smaller in later blocks, as in BEiT; its classes begin near zero; keys have a bias, which attention does not
          see. Official weights of Swin can be read, and those of the ViT cannot.
Command:  python -m vision_jax.main --config=configs/simmim.py:swin_b --config.data.dir=IMAGENET
          --workdir=runs/simmim_swin_b
"""

from ml_collections import ConfigDict

from vision_jax import recipes

VARIANTS: dict[str, str] = {"swin_b": "swin_base_patch4_window7_224", "vit_b": "vit_base_patch16_224"}


def get_config(variant: str = "swin_b") -> ConfigDict:
    config = recipes.imagenet(recipes.choose(VARIANTS, variant))
    config.objective = recipes.objective("simmim")
    config.batch_size = 2048
    config.eval.every_epochs = 10.0
    config.checkpoint.best_metric = "val/loss"
    recipes.neighbors(config, 10.0)
    config.data.crop_scale = (0.67, 1.0)
    config.data.train_filter = "pillow-bilinear"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate_batch_size = 512
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_global_norm = 5.0
    config.schedule.warmup_epochs = 10.0
    config.schedule.warmup_factor = 5e-3
    if variant == "swin_b":
        config.epochs = 100.0
        config.data.image_size, config.data.eval_resize = 192, 219
        config.model.window_size = 6
        config.optimizer.decay_rule = "timm"
        config.optimizer.no_decay = ("mask_token$",)
        config.optimizer.learning_rate = 2e-4
        config.schedule.end_factor = 0.05
        config.schedule.overlap_warmup = True
    else:
        config.epochs = 800.0
        config.model.positions = "relative"
        config.model.layer_scale = 0.1
        config.model.drop_path_rate = 0.1
        # Of matrices and tables, all but the class token decay.
        config.optimizer.decay_rule = "all"
        config.optimizer.no_decay = (r"/(bias|scale|gamma)$", "^cls_token$")
        config.optimizer.learning_rate = 1e-4
        config.schedule.name = "step"
        config.schedule.factor = 0.1
        config.schedule.milestone_epochs = (700.0,)
    return config
