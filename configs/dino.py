"""DINO on ImageNet: a vision transformer or ResNet-50 without labels, taught by its own average.

Result:   top-1 of 20 nearest neighbors / of a linear classifier on the teacher's features, as published: vit_s16 73.3 /
          76.0 % in 300 epochs, vit_s16_100 69.3 / 74.0 % in 100; the released weights vit_s16_800 74.5 / 77.0 % and
          r50_800 67.5 / 75.3 %. The command for 100 epochs of ResNet-50 (r50) comes without. We have not run it yet.
Source:   Caron et al. 2021 (arXiv:2104.14294); facebookresearch/dino, README.md, main_dino.py, and the arguments of the
          released weights, as copies of their args.txt have them: six small crops for r50_800, and eight for r50.
          Known differences: JPEGs may be decoded at a smaller size; the class token begins near zero, there like the
          positions; bfloat16 has the place of float16 and loss scaling; r50_800's last layer is normalized by weight.
Command:  python -m vision_jax.main --config=configs/dino.py:vit_s16 --config.data.dir=IMAGENET --workdir=runs/dino
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Epochs, batch, the last learning rate, and the crops of each image.
VARIANTS: dict[str, tuple[float, int, float, str]] = {
    "vit_s16": (300.0, 1024, 1e-6, "2x224:0.4-1,8x96:0.05-0.4"),
    "vit_s16_100": (100.0, 512, 1e-6, "2x224:0.4-1,8x96:0.05-0.4"),
    "vit_s16_800": (800.0, 1024, 1e-5, "2x224:0.25-1,10x96:0.05-0.25"),
    "r50": (100.0, 512, 1e-6, "2x224:0.14-1,8x96:0.05-0.14"),
    "r50_800": (800.0, 4080, 0.0048, "2x224:0.14-1,6x96:0.05-0.14"),
}


def get_config(variant: str = "vit_s16") -> ConfigDict:
    epochs, batch_size, last_rate, views = recipes.choose(VARIANTS, variant)
    config = recipes.imagenet("resnet50" if variant.startswith("r50") else "vit_small_patch16_224")
    config.batch_size = batch_size
    config.epochs = epochs
    config.objective = recipes.objective("dino")
    if variant in ("vit_s16", "vit_s16_800", "r50_800"):
        config.objective.norm_last_layer = variant == "r50_800"
        config.objective.teacher_temperature = 0.07
        config.objective.teacher_temperature_epochs = 50 if variant == "r50_800" else 30

    config.data.train_filter = "pillow-bicubic"
    config.data.eval_filter = "bicubic"
    config.data.views = views
    config.augment.color_jitter = (0.4, 0.4, 0.2, 0.1)
    config.augment.color_jitter_prob = 0.8
    config.augment.greyscale = 0.2
    config.augment.crops = "blur=1|blur=0.1,solarize=0.2|blur=0.5"

    # Only vectors do not decay: classes, positions and the last layer do.
    config.optimizer.decay_rule = "all"
    config.optimizer.no_decay = (r"/(bias|scale)$",)
    config.optimizer.clip_parameter_norm = None if variant.endswith("_800") else 3.0
    config.optimizer.frozen_until = ((r"^projector/last_layer/", 1.0),)
    config.optimizer.learning_rate_batch_size = 256
    if variant.startswith("vit"):
        config.model.interpolate_positions = True
        config.model.drop_path_rate = 0.1
        config.optimizer.name = "adamw"
        config.optimizer.learning_rate = 5e-4
        config.optimizer.weight_decay = 0.04
        config.optimizer.weight_decay_end = 0.4
    elif variant == "r50":
        config.optimizer.name = "sgd"
        config.optimizer.momentum = 0.9
        config.optimizer.learning_rate = 0.03
        config.optimizer.weight_decay = 1e-4
    else:
        config.objective.update({"hidden": (4096,), "head_norm": True, "out": 60_000})
        recipes.lars(config, 0.3, 1e-6)
    if variant.startswith("r50"):
        config.model.zero_init_last = False
    config.schedule.warmup_epochs = 10.0
    config.schedule.warmup_reaches_peak = True
    config.schedule.end_factor = last_rate / (config.optimizer.learning_rate * batch_size / 256)
    recipes.neighbors(config, 10.0)
    config.checkpoint.best_metric = "knn/ema_top1"
    return config
