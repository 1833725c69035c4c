"""Linear classifiers of ImageNet on the frozen features of self-supervised methods, each as its authors train it.

Result:   published top-1, and epochs of pre-training: mae (ViT-B) 68.0 % (1600), mae_vit_l 75.8, mae_vit_h 76.6;
          dino (ViT-S/16) 77.0 % by the released weights (76.0 in 300 epochs, 74.0 in 100), dino_vit_b16 78.2, dino_r50
          75.3; mocov3 (ResNet-50) 74.6 % (1000; 72.8 in 300, 68.9 in 100), mocov3_vit_s 73.2, mocov3_vit_b 76.7 (300);
          mocov2 71.1 % (800; 67.7 in 200); simclr 69.1 % by the released weights; byol 74.0 to 74.5 % (1000); simsiam
          68.1 % (100); barlow_twins 73.5 and vicreg 73.2 % (1000); swav 75.3 % (800). We have not run it yet.
Source:   the READMEs of the methods' code; main_linprobe.py (mae), eval_linear.py (dino, swav), main_lincls.py (moco,
          moco-v3, simsiam), byol/eval_experiment.py, and evaluate.py (barlowtwins, vicreg).
          Known differences: MAE and BYOL draw crops once, not until one fits; BYOL chooses the best of five learning
          rates, and its classifier begins with truncated normal weights.
Command:  python -m vision_jax.main --config=configs/linear_probe.py:mocov3 --config.data.dir=IMAGENET
          --config.model.pretrained=WORKDIR|FILE --workdir=runs/linear_mocov3
"""

from ml_collections import ConfigDict

from vision_jax import recipes

SMALL, BASE, LARGE = (f"vit_{size}_patch16_224" for size in ("small", "base", "large"))
HUGE, R50 = "vit_huge_patch14_224", "resnet50"
# Model, workdir, epochs, batch, learning rate for a batch of 256, and decay and deviation of the initial weights.
VARIANTS: dict[str, tuple[str, str, float, int, float, float, float]] = {
    "mae": (BASE, "mae_vit_b", 90.0, 16384, 0.1, 0.0, 0.01),
    "mae_vit_l": (LARGE, "mae_vit_l", 50.0, 16384, 0.1, 0.0, 0.01),
    "mae_vit_h": (HUGE, "mae_vit_h", 50.0, 16384, 0.1, 0.0, 0.01),
    "dino": (SMALL, "dino", 100.0, 1024, 0.001, 0.0, 0.01),
    "dino_vit_b16": (BASE, "dino", 100.0, 1024, 0.001, 0.0, 0.01),
    "dino_r50": (R50, "dino", 100.0, 1024, 0.001, 0.0, 0.01),
    "mocov3": (R50, "mocov3", 90.0, 1024, 0.1, 0.0, 0.01),
    "mocov3_vit_s": (SMALL, "mocov3", 90.0, 1024, 3.0, 0.0, 0.01),
    "mocov3_vit_b": (BASE, "mocov3", 90.0, 1024, 3.0, 0.0, 0.01),
    "mocov2": (R50, "mocov2", 100.0, 256, 30.0, 0.0, 0.01),
    "simclr": (R50, "simclr", 90.0, 4096, 0.1, 1e-6, 0.0),
    "byol": (R50, "byol", 80.0, 4096, 0.2, 0.0, 2048**-0.5),
    "simsiam": (R50, "simsiam", 90.0, 4096, 0.1, 0.0, 0.01),
    "barlow_twins": (R50, "barlow_twins", 100.0, 256, 0.3, 1e-6, 0.01),
    "vicreg": (R50, "vicreg", 100.0, 256, 0.02, 1e-6, 0.01),
    "swav": (R50, "swav", 100.0, 256, 0.3, 1e-6, 0.01),
}


def get_config(variant: str = "mae") -> ConfigDict:
    model, workdir, epochs, batch_size, *numbers = recipes.choose(VARIANTS, variant)
    method = workdir.partition("_vit")[0]
    config = recipes.linear_probe(model, *numbers)
    config.epochs, config.batch_size = epochs, batch_size
    config.model.pretrained = f"runs/{workdir}"
    if method in ("mocov2", "mocov3", "byol"):
        config.model.pretrained_average = False  # the network that is trained, not its teacher
    if method in ("mae", "byol", "simclr"):
        config.data.train_filter = "pillow-bicubic" if method == "mae" else "bicubic"
        config.schedule.by_epoch = False
    if method in ("mae", "byol", "simclr", "dino"):
        config.data.eval_filter = "bicubic"

    match method:
        case "mae":
            config.model.norm_before_head = True
            config.optimizer.name, config.optimizer.by_rank = "lars", True
            config.schedule.warmup_epochs = 10.0
        case "dino" if model == BASE:
            config.model.global_pool = "token+avg"
        case "dino" if model == SMALL:
            config.model.feature_blocks = 4
        case "mocov2":
            config.schedule.name, config.schedule.milestone_epochs, config.schedule.factor = "step", (60.0, 80.0), 0.1
        case "mocov3" if model == SMALL:
            config.model.num_heads = 12
        case "simsiam":
            config.optimizer.name = "lars"  # apex's LARC without clipping
        case "simclr" | "byol":
            config.optimizer.nesterov = True
    if method == "simclr":
        config.data.mean, config.data.std, config.data.eval_crop = (0.0,) * 3, (1.0,) * 3, 0.875
        config.optimizer.decay_rule = "kernels"
    elif method == "swav":
        config.data.std = (0.228, 0.224, 0.225)  # as there
    return config
