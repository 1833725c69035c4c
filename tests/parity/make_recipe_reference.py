"""Writes recipes.json: what the published recipes come to, computed by torch, torchvision and timm.

    python tests/parity/make_recipe_reference.py    (torch 2.13.0, torchvision 0.28.0, timm 1.0.31)

Nothing here knows of vision_jax or configs/. Each entry states the arguments of the source it names; learning rates,
losses and numbers of parameters then come from the libraries that the source used, or from its formula where it has
its own. In all of them an epoch is floor(examples / batch) steps; sources that fill up the last batch have one more.

A key that an entry lacks is one that the source does not settle.
"""

import functools
import json
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from torch.optim import lr_scheduler

IMAGENET = 1_281_167
IMAGENET_99 = 1_268_355  # tfds: the closest to 99 % of it
LABELS = torch.tensor([3, 141, 592, 653])
LOGITS = torch.sin(1 + torch.arange(4 * 1000, dtype=torch.float64).reshape(4, 1000)) * 3
RECIPES: dict[str, dict[str, Any]] = {}
Rate = Callable[[int], float]  # of a step or an epoch


# Learning rates


def _optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def torchvision_rate(lr: float, epochs: int, *, sched: str = "step", step: int = 30, gamma: float = 0.1,
                     warmup: int = 0, warmup_decay: float = 0.01, lr_min: float = 0.0) -> Rate:  # fmt: skip
    """Of an epoch, as references/classification/train.py chains torch's schedulers."""
    optimizer = _optimizer(lr)
    if sched == "step":
        main = lr_scheduler.StepLR(optimizer, step_size=step, gamma=gamma)
    else:
        main = lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs - warmup, eta_min=lr_min)
    if warmup:
        first = lr_scheduler.LinearLR(optimizer, start_factor=warmup_decay, total_iters=warmup)
        main = lr_scheduler.SequentialLR(optimizer, schedulers=[first, main], milestones=[warmup])
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        main.step()
    return rates.__getitem__


def timm_cosine_rate(lr: float, length: int, warmup: int, warmup_lr: float, lr_min: float) -> Rate:
    """Of an epoch or a step, whichever `length` and `warmup` count."""
    scheduler = CosineLRScheduler(
        _optimizer(lr), t_initial=length, lr_min=lr_min, warmup_t=warmup, warmup_lr_init=warmup_lr, cycle_limit=1
    )
    return lambda t: scheduler._get_lr(t)[0]


def timm_step_rate(lr: float, decay_epochs: float, rate: float, warmup: int, warmup_lr: float) -> Rate:
    """Of an epoch. Without warmup_prefix, as timm's create_scheduler has it, and as it was before there was one."""
    scheduler = StepLRScheduler(
        *(_optimizer(lr), decay_epochs, rate), warmup_t=warmup, warmup_lr_init=warmup_lr, warmup_prefix=False
    )
    return lambda t: scheduler._get_lr(t)[0]


def nvidia_cosine_rate(lr: float, warmup: int, epochs: int) -> Rate:
    """Of an epoch: DeepLearningExamples, ConvNets/image_classification/optimizers.py, lr_cosine_policy."""

    def rate(epoch: int) -> float:
        if epoch < warmup:
            return lr * (epoch + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) * lr

    return rate


def warmup_cosine_rate(lr: float, warmup: int, total: int) -> Rate:
    """Of a step: flax, and AlgoPerf's cosine_warmup.py, optax.join_schedules of linear and cosine; composer,
    CosineAnnealingWithWarmupScheduler; big_vision, utils.create_learning_rate_schedule with decay_type cosine; scenic,
    lr_schedules.py with constant * cosine_decay * linear_warmup."""

    def rate(step: int) -> float:
        if step < warmup:
            return lr * step / warmup
        return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    return rate


def big_vision_linear_rate(lr: float, warmup: int, total: int, linear_end: float) -> Rate:
    """Of a step: create_learning_rate_schedule has base 1 there, and config.lr multiplies it from outside, so that
    linear_end is a share of the peak; the warm-up multiplies the decay, which begins behind it."""

    def rate(step: int) -> float:
        progress = min(max((step - warmup) / (total - warmup), 0), 1)
        return lr * (linear_end + (1 - linear_end) * (1 - progress)) * min(1, step / warmup)

    return rate


def mlperf_rate(lr: float, warmup: int, decay_steps: int, end: float = 1e-4) -> Rate:
    """Of a step: mlcommons/training, image_classification/tensorflow2/lars_util.py, PolynomialDecayWithWarmup, whose
    decay ends one step behind the training; here with it."""

    def rate(step: int) -> float:
        if step <= warmup:
            return lr * step / warmup
        return (lr - end) * (1 - min(step - warmup, decay_steps) / decay_steps) ** 2 + end

    return rate


def ffcv_rate(lr: float, epochs: int, peak: int, steps_per_epoch: int) -> Rate:
    """Of a step: train_imagenet.py, get_cyclic_lr, interpolated once more within the epoch."""

    def at(epoch: int) -> float:
        return float(np.interp([epoch], [0, peak, epochs], [1e-4 * lr, lr, 0])[0])

    def rate(step: int) -> float:
        epoch, i = divmod(step, steps_per_epoch)
        return float(np.interp(i, [0, steps_per_epoch], [at(epoch), at(epoch + 1)]))

    return rate


def algoperf_linear_rate(lr: float, warmup: int, step_hint: int, decay_factor: float, end_factor: float) -> Rate:
    """Of a step: target_setting_algorithms/jax_momentum.py, create_lr_schedule_fn."""
    decay_steps = int((step_hint - warmup) * decay_factor)

    def rate(step: int) -> float:
        if step < warmup:
            return lr * step / warmup
        left = 1 - min(step - warmup, decay_steps) / decay_steps
        return (lr - lr * end_factor) * left + lr * end_factor

    return rate


def mmengine_rate(lr: float, start_factor: float, warmup: int, epochs: int, eta_min: float, per_epoch: int) -> Rate:
    """Of a step: LinearLR in steps, which is at the peak in the last of them, then CosineAnnealingLR in epochs."""

    def rate(step: int) -> float:
        if step < warmup * per_epoch:
            return lr * (start_factor + (1 - start_factor) * step / (warmup * per_epoch - 1))
        share = (step // per_epoch - warmup) / (epochs - warmup)
        return eta_min + (lr - eta_min) * (1 + math.cos(math.pi * share)) / 2

    return rate


# Losses, in float64: of labels that are mixed with those of the images in the opposite order


def targets(smoothing: float, share: float) -> torch.Tensor:
    """timm.data.Mixup; torch.nn.CrossEntropyLoss's label_smoothing comes to the same, which is checked below."""
    return mixup_target(LABELS, 1000, lam=share, smoothing=smoothing).double()


def softmax(smoothing: float, share: float) -> float:
    mixed = targets(smoothing, share)
    labels = share * F.one_hot(LABELS, 1000) + (1 - share) * F.one_hot(LABELS.flip(0), 1000)
    loss = F.cross_entropy(LOGITS, labels.double(), label_smoothing=smoothing).item()
    np.testing.assert_allclose(SoftTargetCrossEntropy()(LOGITS, mixed).item(), loss, rtol=1e-6)
    return loss


def timm_bce(smoothing: float, threshold: float | None, share: float) -> float:
    """timm/train.py with --bce-loss and mixup, which smooths the targets."""
    return BinaryCrossEntropy(target_threshold=threshold)(LOGITS, targets(smoothing, share)).item()


def deit_bce(share: float) -> float:
    """deit/engine.py with --bce-loss: targets.gt(0.0), and BCEWithLogitsLoss, a mean over classes."""
    return torch.nn.BCEWithLogitsLoss()(LOGITS, targets(0.0, share).gt(0.0).double()).item()


def summed_bce(smoothing: float, share: float) -> float:
    """composer/loss/loss.py, binary_cross_entropy_with_logits: the sum over classes, divided by the batch; targets of
    composer's LabelSmoothing, which is (1 - s) * target + s / K. big_vision's sigmoid_xent is this unsmoothed."""
    smooth = targets(0.0, share) * (1 - smoothing) + smoothing / 1000
    return F.binary_cross_entropy_with_logits(LOGITS, smooth, reduction="sum").item() / 4


def both(loss: Callable[..., float], *arguments: Any) -> dict[str, float]:
    return {"loss": loss(*arguments, 1.0), "mixed_loss": loss(*arguments, 0.85)}


# What decays


@functools.cache
def model(library: str, name: str, **options: Any) -> torch.nn.Module:
    # RegNets of torchvision look at values while they are built.
    with torch.device("cpu" if name.startswith("regnet_") else "meta"):
        if library == "torchvision":
            return getattr(torchvision.models, name)(**options)
        return timm.create_model(name, **options)


def _count(model: torch.nn.Module, decayed: Iterable[torch.nn.Parameter]) -> dict[str, int]:
    number, total = sum(p.numel() for p in decayed), sum(p.numel() for p in model.parameters())
    return {"decayed": number, "undecayed": total - number}


def decays_all(model: torch.nn.Module) -> dict[str, int]:
    """torch's default: one group."""
    return _count(model, model.parameters())


def decays_torchvision(model: torch.nn.Module, spared: Iterable[str] = ()) -> dict[str, int]:
    """torchvision with --norm-weight-decay 0, as references/classification/utils.py, set_weight_decay, splits
    parameters; `spared` are its custom keys."""
    norms = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.LayerNorm, torch.nn.GroupNorm)
    return _count(
        model,
        [
            parameter
            for module in model.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if name not in spared and not isinstance(module, norms)
        ],
    )


def decays_timm(model: torch.nn.Module) -> dict[str, int]:
    """timm's param_groups_weight_decay, which DeiT, Swin and ConvNeXt have too: no vectors, no biases, and what the
    model names."""
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    _, decayed = param_groups_weight_decay(model, 0.1, no_weight_decay_list=spared)
    return _count(model, decayed["params"])


def decays_unless_bn_in_name(model: torch.nn.Module) -> dict[str, int]:
    """FFCV's train_imagenet.py and NVIDIA's optimizers.py ask for "bn" in the name: in ResNets the norms of the
    shortcuts, downsample.1, do not have it, so that they decay; biases do everywhere."""
    return _count(model, [p for name, p in model.named_parameters() if "bn" not in name])


def decays_kernels(model: torch.nn.Module) -> dict[str, int]:
    """big_vision: `.*/kernel$`; flax's ImageNet example: ndim > 1; MLPerf: no batch_normalization, no bias."""
    tokens = ("pos_embed", "cls_token")
    return _count(model, [p for n, p in model.named_parameters() if p.ndim > 1 and not n.endswith(tokens)])


def add(name: str, *, batch: int, epochs: int, rate: Rate, by_epoch: bool, warmup_epochs: float = 0,
        warmup_steps: int | None = None, total: int | None = None, examples: int = IMAGENET,
        ema_decay: float | None = None, **fields: Any) -> None:  # fmt: skip
    """Adds a recipe; `rate` is of an epoch or, without `by_epoch`, of a step. A field that is ... is left out."""
    per_epoch = examples // batch
    total = per_epoch * epochs if total is None else total
    warmup = round(warmup_epochs * per_epoch) if warmup_steps is None else warmup_steps
    steps = {0, per_epoch - 1, per_epoch, warmup // 2, max(warmup - 1, 0), warmup, total // 4, total // 2, total - 1}
    for epoch in (30, 60):
        steps |= {epoch * per_epoch - 1, epoch * per_epoch}
    fields = {"augmentation": "", "mixup": 0.0, "cutmix": 0.0, "erase": 0.0, "train_size": 224, "test_size": 224,
              "test_resize": 256, "clip": None, "drop_path": 0.0, "repeats": 1} | fields  # fmt: skip
    recipe = {
        "examples": examples,
        "batch_size": batch,
        "steps_per_epoch": per_epoch,
        "steps": total,
        "warmup_steps": warmup,
        "learning_rates": {str(s): rate(s // per_epoch if by_epoch else s) for s in sorted(steps) if 0 <= s < total},
        "ema_decay": ema_decay,
        **fields,
    }
    RECIPES[name] = {key: value for key, value in recipe.items() if value is not ...}


def nvidia_resnet50() -> None:
    # DeepLearningExamples/PyTorch/Classification/ConvNets: resnet50v1.5/training/AMP/*_{50,90,250}E.sh. Nothing smooths
    # but --label-smoothing 0.1; only 250 epochs have --mixup 0.2. DALI resizes to 256.
    for epochs in (50, 90, 250):
        add(f"resnet50:{epochs}", batch=2048, epochs=epochs, by_epoch=True, rate=nvidia_cosine_rate(2.048, 8, epochs),
            warmup_epochs=8, optimizer="sgd", momentum=0.875, weight_decay=1 / 32768, decay_form="coupled",
            **decays_unless_bn_in_name(model("torchvision", "resnet50")), mixup=0.2 if epochs == 250 else 0.0,
            **both(softmax, 0.1))  # fmt: skip
    # configs.yml, efficientnet_params and efficientnet_b0_params_4k; efficientnet/README.md: "scale to target image
    # size + 32". No script passes --use-ema. Its squeezes are as wide as timm's, but named so that all norms have "bn".
    add("efficientnet:b0_dle", batch=4096, epochs=400, by_epoch=True, rate=nvidia_cosine_rate(0.08, 16, 400),
        warmup_epochs=16, optimizer="rmsprop", momentum=0.9, decay=0.9, eps=0.01, weight_decay=1e-5,
        decay_form="coupled", **decays_torchvision(model("timm", "efficientnet_b0")), augmentation="autoaugment",
        mixup=0.2, **both(softmax, 0.1))  # fmt: skip


def torchvision_v1() -> None:
    # pytorch/vision references/classification/README.md and the defaults of its train.py: 8 GPUs of --batch-size 32.
    sgd = {"optimizer": "sgd", "momentum": 0.9, "decay_form": "coupled", **both(softmax, 0.0)}
    plain = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    plain += [f"vgg{n}_bn" for n in (11, 13, 16, 19)]
    # The published Wide ResNets had cosines with warm restarts over 256 epochs (vision#912), which no script keeps:
    # here is what train.py does without arguments.
    plain += ["wide_resnet50_2", "wide_resnet101_2"]
    low = ["alexnet", *(f"vgg{n}" for n in (11, 13, 16, 19))]
    table = [(n, 256, 90, 0.1) for n in plain] + [(n, 256, 90, 0.01) for n in low]
    # ResNeXt-101: 64 GPUs of 16, lr 0.4.
    table += [("resnext50_32x4d", 256, 100, 0.1), ("resnext101_32x8d", 1024, 100, 0.4)]
    for name, batch, epochs, lr in table:
        add(f"torchvision_v1:{name}", batch=batch, epochs=epochs, by_epoch=True, rate=torchvision_rate(lr, epochs),
            weight_decay=1e-4, **decays_all(model("torchvision", name)), **sgd)  # fmt: skip
    add("torchvision_v1:mobilenet_v2", batch=256, epochs=300, by_epoch=True,
        rate=torchvision_rate(0.045, 300, step=1, gamma=0.98), weight_decay=4e-5,
        **decays_all(model("torchvision", "mobilenet_v2")), **sgd)  # fmt: skip
    for name in ("mobilenet_v3_large", "mobilenet_v3_small"):
        # train.py: RMSprop with eps=0.0316, alpha=0.9 and --momentum 0.9.
        add(f"torchvision_v1:{name}", batch=1024, epochs=600, by_epoch=True,
            rate=torchvision_rate(0.064, 600, step=2, gamma=0.973), optimizer="rmsprop", momentum=0.9, decay=0.9,
            eps=0.0316, weight_decay=1e-5, decay_form="coupled", **decays_all(model("torchvision", name)),
            augmentation="autoaugment", erase=0.2, **both(softmax, 0.0))  # fmt: skip
    small = [f"regnet_{k}_{size}" for k in "xy" for size in ("400mf", "800mf", "1_6gf")]
    medium = ["regnet_x_3_2gf", "regnet_x_8gf", "regnet_x_16gf", "regnet_y_3_2gf", "regnet_y_8gf"]
    large = ["regnet_x_32gf", "regnet_y_16gf", "regnet_y_32gf"]
    sizes = [(n, 1024, 0.8) for n in small] + [(n, 512, 0.4) for n in medium] + [(n, 256, 0.2) for n in large]
    for name, batch, lr in sizes:
        lr = 0.4 if name == "regnet_y_400mf" else lr
        add(f"torchvision_v1:{name}", batch=batch, epochs=100, by_epoch=True, warmup_epochs=5,
            rate=torchvision_rate(lr, 100, sched="cosine", warmup=5, warmup_decay=0.1), weight_decay=5e-5,
            **decays_all(model("torchvision", name)), **sgd)  # fmt: skip


# Of --bias-weight-decay 0 and --transformer-embedding-decay 0.
SWIN_SPARED = ("bias", "class_token", "position_embedding", "relative_position_bias_table")


def torchvision_ema(batch: int, epochs: int) -> float:
    """train.py: --model-ema-decay 0.99998 adjusted to --model-ema-steps 32."""
    return 1.0 - min(1.0, (1.0 - 0.99998) * batch * 32 / epochs)


def torchvision_v2() -> None:
    # README.md (ShuffleNet V2, EfficientNet-V2, ConvNeXt, SwinTransformer, vit_b_16), vision#3995 and the pull requests
    # with weights: 5201 (ResNet-50 with --ra-reps 4), 5560 (MobileNetV2). WRN-50-2 and ResNeXt-101 have the anchor
    # new-recipe-with-fixres, which trains at 176 without repeated augmentation; ResNeXt-50 has new-recipe, at 224.
    common = {"batch": 1024, "by_epoch": True, "augmentation": "trivialaugment_wide", "erase": 0.1, "mixup": 0.2,
              "cutmix": 1.0, **both(softmax, 0.1), "ema_every": 32, "train_size": 176, "test_resize": 232}  # fmt: skip
    cosine = {"epochs": 600, "warmup_epochs": 5, "ema_start": 5, "ema_decay": torchvision_ema(1024, 600)}
    sgd = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 2e-5, "decay_form": "coupled",
           "rate": torchvision_rate(0.5, 600, sched="cosine", warmup=5)}  # fmt: skip
    variants: dict[str, dict[str, Any]] = {
        "resnet50": {"repeats": 4},
        "wide_resnet50_2": {},
        "resnext50_32x4d": {"train_size": 224},
        "resnext101_32x8d": {},
        "mobilenet_v2": {"repeats": 4},
        # new-recipe-with-reg-tuning: the comment that says what was tuned could not be found.
        "mobilenet_v3_large": dict.fromkeys(("mixup", "cutmix", "erase", "repeats", "train_size", "augmentation"), ...),
        "efficientnet_v2_s": {"repeats": 4, "train_size": 300, "test_size": 384, "test_resize": 384, "drop_path": 0.2},
        "efficientnet_v2_m": {"repeats": 4, "train_size": 384, "test_size": 480, "test_resize": 480, "drop_path": 0.2},
        "shufflenet_v2_x1_5": {"repeats": 4},
        "shufflenet_v2_x2_0": {"repeats": 4},
    }
    for name, fields in variants.items():
        decays = decays_torchvision(model("torchvision", name))
        add(f"torchvision_v2:{name}", **(common | cosine | sgd | decays | fields))
    # stochastic_depth_prob of the builders: 0.1 and 0.2. ConvNeXt's test_resize is that of its weights.
    adamw = {"optimizer": "adamw", "weight_decay": 0.05, "decay_form": "decoupled"}
    add("torchvision_v2:convnext_tiny", **(common | cosine | adamw | {"test_resize": 236}), repeats=4, drop_path=0.1,
        **decays_torchvision(model("torchvision", "convnext_tiny")),
        rate=torchvision_rate(1e-3, 600, sched="cosine", warmup=5))  # fmt: skip
    swin = {"epochs": 300, "warmup_epochs": 20, "ema_start": 20, "ema_decay": torchvision_ema(1024, 300), "mixup": 0.8,
            "erase": 0.25, "train_size": 224, "test_resize": 232}  # fmt: skip
    add("torchvision_v2:swin_t", **(common | adamw | swin), repeats=4, drop_path=0.2, clip=5.0,
        **decays_torchvision(model("torchvision", "swin_t"), SWIN_SPARED),
        rate=torchvision_rate(1e-3, 300, sched="cosine", warmup=20, warmup_decay=0.01, lr_min=1e-5))  # fmt: skip
    # --auto-augment ra is torchvision's RandAugment(2, magnitude=9 of 31), of which timm's notation has no equal;
    # --ra-sampler has 3 repetitions by default; no --norm-weight-decay.
    vit = {"batch": 4096, "epochs": 300, "warmup_epochs": 30, "ema_start": 30, "ema_decay": torchvision_ema(4096, 300),
           "erase": 0.0, "train_size": 224, "test_resize": 256, **both(softmax, 0.11), "weight_decay": 0.3,
           "augmentation": ...}  # fmt: skip
    add("torchvision_v2:vit_b_16", **(common | adamw | vit), repeats=3, clip=1.0,
        **decays_all(model("torchvision", "vit_b_16")),
        rate=torchvision_rate(3e-3, 300, sched="cosine", warmup=30, warmup_decay=0.033))  # fmt: skip


def densenet_and_inception() -> None:
    # Huang et al. 2016, arXiv:1608.06993, section 4.2: 90 epochs, batch 256, 0.1 divided by 10 at epochs 30 and 60,
    # decay 1e-4, Nesterov momentum 0.9; fb.resnet.torch, which it is built on, lets all parameters decay.
    for name in ("densenet121", "densenet169", "densenet201"):
        add(f"densenet:{name}", batch=256, epochs=90, by_epoch=True, rate=torchvision_rate(0.1, 90), optimizer="sgd",
            momentum=0.9, nesterov=True, weight_decay=1e-4, decay_form="coupled",
            **decays_all(model("torchvision", name)), **both(softmax, 0.0))  # fmt: skip
    # Szegedy et al. 2015, arXiv:1512.00567, section 8: 50 replicas of batch 32, 100 epochs, RMSprop with decay 0.9 and
    # eps 1.0, 0.045 times 0.94 every two epochs, gradients clipped at 2.0; label smoothing 0.1. Ambiguous: the replicas
    # did not wait for each other, so that 1,600 are not one batch; the decay of weights is that of its code,
    # tensorflow/models, inception/slim; its averages and the resize are left open.
    add("inception:paper", batch=1600, epochs=100, by_epoch=True,
        rate=torchvision_rate(0.045, 100, step=2, gamma=0.94), optimizer="rmsprop_tf", eps=1.0, decay=0.9,
        weight_decay=4e-5, decay_form="coupled",
        **decays_kernels(model("torchvision", "inception_v3", init_weights=False)), **both(softmax, 0.1),
        clip=2.0, train_size=299, test_size=299, test_resize=..., ema_decay=...)  # fmt: skip


def ffcv() -> None:
    # libffcv/ffcv-imagenet, rn50_configs and rn18_configs: batch_size is that of one GPU of 8, or of 1. Evaluation
    # crops 224/256 of the shorter side to 256 pixels, with mirroring.
    ramps = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}
    networks = (("rn50", "resnet50", 4096, 1.7, 1e-4), ("rn18", "resnet18", 1024, 0.5, 5e-5))
    for prefix, name, batch, lr, decay in networks:
        for epochs, (start, end) in ramps.items():

            def resolution(epoch: int, start: int = start, end: int = end) -> int:
                if epoch <= start:
                    return 160
                if epoch >= end:
                    return 192
                return int(np.round(np.interp([epoch], [start, end], [160, 192])[0] / 32)) * 32

            sizes = [resolution(epoch) for epoch in range(epochs)]
            add(f"ffcv:{prefix}_{epochs}", batch=batch, epochs=epochs, by_epoch=False, warmup_epochs=2,
                rate=ffcv_rate(lr, epochs, 2, IMAGENET // batch), optimizer="sgd", momentum=0.9, weight_decay=decay,
                decay_form="coupled", **decays_unless_bn_in_name(model("torchvision", name)), **both(softmax, 0.1),
                sizes=[[e, s] for e, s in enumerate(sizes) if e == 0 or s != sizes[e - 1]], train_size=192,
                test_size=256, test_resize=math.floor(256 / (224 / 256)), flip=True)  # fmt: skip


def composer() -> None:
    # mosaicml/examples, resnet_imagenet/main.py and its yaml: DecoupledSGDW of all parameters, p *= 1 - lr / lr0 * wd;
    # EMA(half_life='100ba', update_interval='20ba') has 2 ** (-20 / 100).
    for name, epochs, smoothing, extra in (
        ("mild", 36, 0.08, {}),
        ("medium", 135, 0.1, {"mixup": 0.2, "sam": [0.5, 10]}),
        # RandAugment(depth=1, severity=9) has operations of its own, of which timm's notation has no equal.
        ("hot", 270, 0.13, {"mixup": 0.25, "sam": [0.5, 5], "augmentation": ..., "drop_path": 0.1}),
    ):
        per_epoch = IMAGENET // 2048
        add(f"composer:{name}", batch=2048, epochs=epochs, by_epoch=False, warmup_epochs=8,
            rate=warmup_cosine_rate(2.048, 8 * per_epoch, epochs * per_epoch), optimizer="sgd", momentum=0.875,
            weight_decay=5e-4, decay_form="relative", **decays_all(model("torchvision", "resnet50")),
            **both(summed_bce, smoothing), ema_decay=2 ** -(20 / 100), ema_every=20, train_size=176, test_resize=232,
            **extra)  # fmt: skip


def flax_and_mlperf() -> None:
    # google/flax, examples/imagenet: configs/tpu.py and train.py. 125,100 steps, as its README has them.
    per_epoch = IMAGENET // 1024
    add("flax_resnet50:100", batch=1024, epochs=100, by_epoch=False, warmup_epochs=5,
        rate=warmup_cosine_rate(0.1 * 1024 / 256, 5 * per_epoch, 100 * per_epoch), optimizer="sgd", momentum=0.9,
        nesterov=True, weight_decay=1e-4, decay_form="coupled", **decays_kernels(model("torchvision", "resnet50")),
        **both(softmax, 0.0))  # fmt: skip
    # mlcommons/logging, rcp_checker/training_2.0.0/rcps_resnet.json: learning rate, warm-up in epochs, decay, momentum,
    # and the epochs that follow from the steps of the decay. Ambiguous: those are 35.0, 37.0, 42.0, 39.0, 48.0, 58.0
    # and 58.0 epochs, and the runs converge in at most 37, 37, 42, 44, 46, 57 and 86: so they begin behind the warm-up
    # for 1632, 8192 and 65536, and for the others, as far as one can see, with it. Label smoothing 0.1, the power 2 and
    # the end 1e-4 are those of the reference, mlcommons/training, image_classification/tensorflow2.
    table = {
        1632: (7.4, 2, 5e-5, 0.9, 37),
        3264: (10.5, 2, 5e-5, 0.9, 37),
        4096: (10.0, 5, 2e-4, 0.9, 42),
        8192: (17.0, 5, 2e-4, 0.9, 44),
        13056: (12.8, 9, 2.5e-5, 0.9, 48),
        32768: (21.2, 16, 2.5e-5, 0.94, 58),
        65536: (24.699, 31, 1e-4, 0.951807, 89),
    }
    for batch, (lr, warmup, decay, momentum, epochs) in table.items():
        per_epoch = IMAGENET // batch
        add(f"mlperf:{batch}", batch=batch, epochs=epochs, by_epoch=False, warmup_epochs=warmup,
            rate=mlperf_rate(lr, warmup * per_epoch, (epochs - warmup) * per_epoch), optimizer="lars",
            momentum=momentum, weight_decay=decay, decay_form="coupled",
            **decays_kernels(model("torchvision", "resnet50")), **both(softmax, 0.1))  # fmt: skip


def deit() -> None:
    # facebookresearch/deit, main.py: lr 5e-4 * 1024 / 512, and what else is default. It steps its scheduler with the
    # epoch that has just ended, so that each epoch has the rate of the one before; here they have their own. The
    # average (0.99996) that it keeps is never evaluated, so it is left open.
    auto = {"augmentation": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0}
    for name in ("tiny", "small", "base", "tiny_distilled", "small_distilled", "base_distilled"):
        network = model("timm", f"deit_{name}_patch16_224")
        add(f"deit:{name}", batch=1024, epochs=300, by_epoch=True, warmup_epochs=5,
            rate=timm_cosine_rate(1e-3, 300, 5, 1e-6, 1e-5), optimizer="adamw", eps=1e-8, weight_decay=0.05,
            decay_form="decoupled", **decays_timm(network), **auto, erase=0.25, **both(softmax, 0.1), drop_path=0.1,
            repeats=3, ema_decay=...)  # fmt: skip
    # README_revenge.md. FusedLAMB gets --opt-eps 1e-8. Evaluated with --eval-crop-ratio 1.0. Drop-path is the same in
    # every block there (models_v2.py).
    for name, lr, size, drop in (("small", 4e-3, 224, 0.05), ("base", 3e-3, 192, 0.2), ("large", 3e-3, 192, 0.45)):
        network = model("timm", f"deit3_{name}_patch16_224", img_size=size)
        add(f"deit3:{name}", batch=2048, epochs=800, by_epoch=True, warmup_epochs=5,
            rate=timm_cosine_rate(lr, 800, 5, 1e-6, 1e-5), optimizer="lamb", eps=1e-8, weight_decay=0.05,
            decay_form="decoupled", **decays_timm(network), augmentation="3augment", mixup=0.8, cutmix=1.0,
            color_jitter=0.3, **both(deit_bce), drop_path=drop, drop_path_uniform=True, repeats=3,
            train_size=size, test_size=size, test_resize=size, ema_decay=...)  # fmt: skip
    for name, size, drop in (("small", 384, 0.0), ("base", 224, 0.2), ("large", 224, 0.45)):
        network = model("timm", f"deit3_{name}_patch16_{size}")
        add(f"deit3:{name}_finetune", batch=512, epochs=20, by_epoch=True, warmup_epochs=5,
            rate=timm_cosine_rate(1e-5, 20, 5, 1e-6, 1e-5), optimizer="adamw", weight_decay=0.1,
            decay_form="decoupled", **decays_timm(network), **auto, **both(softmax, 0.1), drop_path=drop,
            drop_path_uniform=True, train_size=size, test_size=size, test_resize=size, ema_decay=...)  # fmt: skip
    # microsoft/Swin-Transformer, config.py and configs/swin: by step, BASE_LR 5e-4, WARMUP_LR 5e-7 and MIN_LR 5e-6
    # times 1024 / 512. lr_scheduler.py first had the cosine begin with the training, which the models were trained by;
    # that of today has WARMUP_PREFIX for it.
    per_epoch = IMAGENET // 1024
    for name, drop in (("tiny", 0.2), ("small", 0.3), ("base", 0.5)):
        add(f"swin:{name}", batch=1024, epochs=300, by_epoch=False, warmup_epochs=20,
            rate=timm_cosine_rate(1e-3, 300 * per_epoch, 20 * per_epoch, 1e-6, 1e-5), optimizer="adamw", eps=1e-8,
            weight_decay=0.05, decay_form="decoupled",
            **decays_timm(model("timm", f"swin_{name}_patch4_window7_224")), **auto, erase=0.25, **both(softmax, 0.1),
            drop_path=drop, clip=5.0)  # fmt: skip
    # facebookresearch/ConvNeXt, TRAINING.md, main.py, utils.cosine_scheduler: by step; its warm-up is
    # linspace(0, lr, steps), which is at the peak one step earlier than a warm-up of as many steps: here it is not.
    per_epoch = IMAGENET // 4096
    for name, drop in (("tiny", 0.1), ("small", 0.4), ("base", 0.5), ("large", 0.5)):
        w, total = 20 * per_epoch, 300 * per_epoch

        def rate(step: int, w: int = w, total: int = total) -> float:
            if step < w:
                return 4e-3 * step / w
            return 1e-6 + 0.5 * (4e-3 - 1e-6) * (1 + math.cos(math.pi * (step - w) / (total - w)))

        add(f"convnext:{name}", batch=4096, epochs=300, by_epoch=False, warmup_epochs=20, rate=rate, optimizer="adamw",
            eps=1e-8, weight_decay=0.05, decay_form="decoupled", **decays_timm(model("timm", f"convnext_{name}")),
            **auto, erase=0.25, **both(softmax, 0.1), drop_path=drop, ema_decay=0.9999)  # fmt: skip


def resnet50_rsb() -> None:
    # Wightman et al. 2021, arXiv:2110.00476, table 2, and timm's arguments in scripts that follow it: --sched cosine by
    # epoch, --warmup-lr 1e-4, --min-lr 1e-6, --bce-target-thresh 0.2. Ambiguous: that threshold would make A1's label
    # smoothing void, so A1 has none here, as in mmpretrain's copies; those begin the warm-up at 1e-4 times the peak.
    for name, epochs, lr, decay, magnitude, mixup, repeats, drop, size, loss in (
        ("a1", 600, 5e-3, 0.01, 7, 0.2, 3, 0.05, 224, both(timm_bce, 0.1, None)),
        ("a2", 300, 5e-3, 0.02, 7, 0.1, 3, 0.05, 224, both(timm_bce, 0.0, 0.2)),
        ("a3", 100, 8e-3, 0.02, 6, 0.1, 1, 0.0, 160, both(timm_bce, 0.0, 0.2)),
    ):
        add(f"resnet50_rsb:{name}", batch=2048, epochs=epochs, by_epoch=True, warmup_epochs=5,
            rate=timm_cosine_rate(lr, epochs, 5, 1e-4, 1e-6), optimizer="lamb", eps=1e-6, weight_decay=decay,
            decay_form="decoupled", **decays_timm(model("timm", "resnet50")),
            augmentation=f"rand-m{magnitude}-mstd0.5-inc1", mixup=mixup, cutmix=1.0, **loss, drop_path=drop,
            repeats=repeats, train_size=size, test_resize=math.floor(224 / 0.95))  # fmt: skip


def big_vision() -> None:
    # google-research/big_vision, configs/{vit_s16_i1k,vit_i1k,mlp_mixer_i1k,bit_i1k}.py; optax.py for `wd`, which is
    # multiplied by the schedule, but not by the peak. Its randaug applies each operation that it draws: the probability
    # in pp/archive/autoaugment.py, distort_image_with_randaugment, is not used. rep_size=True adds a hidden layer to
    # its ViTs, which timm's, counted here, lack.
    # Its total is round(epochs * examples / batch), up to an epoch's share more than here.
    examples = {"examples": IMAGENET_99, "by_epoch": False, "warmup_steps": 10_000, "clip": 1.0}
    examples["decay_form"] = "relative"
    adam = {"optimizer": "adam", "weight_decay": 1e-4}
    per_epoch = IMAGENET_99 // 1024
    plain = {"class_token": False, "global_pool": "avg", "pos_embed": "none"}
    for epochs in (90, 300):
        add(f"vit:s16_{epochs}", batch=1024, epochs=epochs, rate=warmup_cosine_rate(1e-3, 10_000, epochs * per_epoch),
            **examples, **adam, **decays_kernels(model("timm", "vit_small_patch16_224", **plain)),
            augmentation="rand-m10-n2-p1", mixup=0.2, **both(softmax, 0.0), mu_dtype="bfloat16")  # fmt: skip
    per_epoch = IMAGENET_99 // 4096
    for name, network in (("s16", "small_patch16"), ("b16", "base_patch16"), ("b32", "base_patch32")):
        add(f"vit:augreg_{name}", batch=4096, epochs=300, rate=warmup_cosine_rate(1e-3, 10_000, 300 * per_epoch),
            **examples, **adam, **decays_kernels(model("timm", f"vit_{network}_224")),
            augmentation="rand-m15-n2-p1-mmax15", mixup=0.5, **both(summed_bce, 0.0), mu_dtype="bfloat16")  # fmt: skip
    for name, epochs in (("b16", 300), ("b16_60", 60)):
        add(f"mixer:{name}", batch=4096, epochs=epochs,
            rate=big_vision_linear_rate(1e-3, 10_000, epochs * per_epoch, 1e-5), **examples, **adam,
            **decays_kernels(model("timm", "mixer_b16_224")), augmentation="rand-m15-n2-p1-mmax15", mixup=0.5,
            **both(summed_bce, 0.0), drop_path=0.1)  # fmt: skip
    add("bit:r50", batch=4096, epochs=90, rate=warmup_cosine_rate(0.1 / 256 * 4096, 1000, 90 * per_epoch),
        **(examples | {"warmup_steps": 1000}), optimizer="sgd", momentum=0.9, mu_dtype="bfloat16",
        weight_decay=1e-4 / 256 * 4096, **decays_kernels(model("timm", "resnetv2_50x1_bit")),
        **both(softmax, 0.0))  # fmt: skip


def timm_mobile() -> None:
    # timm's training scripts: EfficientNet-B0 with RandAugment, 2 GPUs of 384; MobileNetV3-Large-100, 2 of 512. Its
    # rmsproptf has alpha 0.9 and momentum 0.9. Ambiguous: --warmup-epochs was 3 by default then, and is 5 now.
    # MobileNetV3's --lr-noise is left out. Both are evaluated at 224 of 256 (crop 0.875).
    for key, name, batch, epochs, lr, factor in (
        ("efficientnet:b0", "efficientnet_b0", 768, 450, 0.048, 0.97),
        ("mobilenetv3:large", "mobilenetv3_large_100", 1024, 600, 0.064, 0.973),
    ):
        add(key, batch=batch, epochs=epochs, by_epoch=True, warmup_epochs=3,
            rate=timm_step_rate(lr, 2.4, factor, 3, 1e-6), optimizer="rmsprop_tf", momentum=0.9, decay=0.9, eps=1e-3,
            weight_decay=1e-5, decay_form="coupled", **decays_timm(model("timm", name)),
            augmentation="rand-m9-mstd0.5", erase=0.2, **both(softmax, 0.1), drop_path=0.2, drop_rate=0.2,
            ema_decay=0.9999)  # fmt: skip


def nvidia_resnext101() -> None:
    # DeepLearningExamples/PyTorch/Classification/ConvNets: configs.yml, resnet_params_1k, which is that of the A100 for
    # both, and {se-,}resnext101-32x4d/training/AMP/*_{90,250}E.sh: 90 epochs have --mixup 0.0. Parameters are those of
    # timm's network; squeezes in NVIDIA's are to 16 channels everywhere.
    for name in ("resnext101", "seresnext101"):
        for epochs in (90, 250):
            add(f"resnext101:{name}_{epochs}", batch=1024, epochs=epochs, by_epoch=True,
                rate=nvidia_cosine_rate(1.024, 8, epochs), warmup_epochs=8, optimizer="sgd", momentum=0.875,
                nesterov=False, weight_decay=6.103515625e-05, decay_form="coupled",
                **decays_unless_bn_in_name(model("timm", f"{name}_32x4d")), mixup=0.2 if epochs == 250 else 0.0,
                **both(softmax, 0.1))  # fmt: skip


def algoperf() -> None:
    # mlcommons/algorithmic-efficiency, algorithms/target_setting_algorithms: tuning_search_space.json of
    # imagenet_resnet, imagenet_vit and, with the same numbers, imagenet_vit_map; without masks for weight decay; 0.75
    # of the workloads' step_hint, 195,999 and 167,999, which was 186,666 once. ViT: RandAugment of 2 layers at 10, each
    # applied; its network as in big_vision.
    add("algoperf:resnet50", batch=1024, epochs=117, total=int(0.75 * 195_999), by_epoch=False, warmup_steps=6999,
        rate=algoperf_linear_rate(4.131896390902391, 6999, int(0.75 * 195_999), 0.9007765761611038, 0.001),
        optimizer="sgd", momentum=0.9274758113254791, nesterov=False,
        weight_decay=5.6687777311501786e-6, decay_form="coupled", **decays_all(model("torchvision", "resnet50")),
        **both(softmax, 0.2))  # fmt: skip
    plain = {"class_token": False, "global_pool": "avg", "pos_embed": "none"}
    steps = int(0.75 * 167_999)
    add("algoperf:vit_s16", batch=1024, epochs=101, total=steps, by_epoch=False, warmup_steps=6999,
        rate=warmup_cosine_rate(0.0008445074561975979, 6999, steps), optimizer="nadamw", b1=0.8895758153482813,
        b2=0.9978504782314613, eps=1e-8, weight_decay=0.08135402759553023, decay_form="decoupled",
        **decays_all(model("timm", "vit_small_patch16_224", **plain)), augmentation="rand-m10-n2-p1", mixup=0.2,
        **both(softmax, 0.0))  # fmt: skip


def scenic() -> None:
    # google-research/scenic, projects/baselines/configs/imagenet. l2_regularization of what has more than one axis,
    # times 0.5 * l2_decay_factor. Adam with weight_decay is optax.adamw, without a mask. The sigmoid loss is a sum over
    # classes; units that are dropped within blocks (dropout_rate 0.1) are left open.
    per_epoch = IMAGENET // 8192
    add("scenic:resnet50", batch=8192, epochs=90, by_epoch=False, warmup_epochs=7,
        rate=warmup_cosine_rate(0.1 * 8192 / 256, 7 * per_epoch, 90 * per_epoch), optimizer="sgd", momentum=0.9,
        nesterov=False, weight_decay=5e-5, decay_form="coupled", **decays_kernels(model("torchvision", "resnet50")),
        **both(softmax, 0.0))  # fmt: skip
    per_epoch = IMAGENET // 4096
    add("scenic:vit_b16", batch=4096, epochs=300, by_epoch=False, warmup_steps=10_000,
        rate=warmup_cosine_rate(1e-3, 10_000, 300 * per_epoch), optimizer="adamw", b1=0.9, b2=0.999, eps=1e-8,
        weight_decay=0.1, decay_form="decoupled", **decays_all(model("timm", "vit_base_patch16_224")),
        augmentation="rand-m15-n2-p1-mmax15", mixup=0.5, **both(summed_bce, 0.0), drop_path=0.1, clip=1.0)  # fmt: skip


def mmpretrain() -> None:
    # open-mmlab/mmpretrain, configs/_base_/schedules: imagenet_bs256.py (100 epochs, milestones 30, 60 and 90),
    # imagenet_bs256_140e.py (40, 80 and 120), no paramwise_cfg; 8 GPUs of 32.
    for key, epochs, step in (("resnet50", 100, 30), ("resnet50d", 100, 30), ("seresnet50", 140, 40)):
        add(f"mmpretrain:{key}", batch=256, epochs=epochs, by_epoch=True, rate=torchvision_rate(0.1, epochs, step=step),
            optimizer="sgd", momentum=0.9, nesterov=False, weight_decay=1e-4, decay_form="coupled",
            **decays_all(model("timm", key)), **both(softmax, 0.0))  # fmt: skip
    # vision_transformer/vit-base-p16_32xb128-mae_in1k.py, imagenet_bs1024_adamw_swin.py, imagenet_bs64_swin_224.py.
    add("mmpretrain:vit_base", batch=4096, epochs=300, by_epoch=False, warmup_epochs=20,
        rate=mmengine_rate(1e-4 * 4096 / 256, 1e-3, 20, 300, 1e-5, IMAGENET // 4096), optimizer="adamw", b1=0.9,
        b2=0.95, eps=1e-8, weight_decay=0.3, decay_form="decoupled",
        **decays_timm(model("timm", "vit_base_patch16_224")), augmentation="rand-m9-mstd0.5-inc1", mixup=0.8,
        cutmix=1.0, erase=0.25, **both(softmax, 0.1), drop_path=0.1, ema_decay=0.9999)  # fmt: skip


if __name__ == "__main__":
    for recipes in (nvidia_resnet50, torchvision_v1, torchvision_v2, densenet_and_inception, ffcv, composer,
                    flax_and_mlperf, deit, resnet50_rsb, big_vision, timm_mobile,
                    nvidia_resnext101, algoperf, scenic, mmpretrain):  # fmt: skip
        recipes()
    lines = [f"{json.dumps(name)}: {json.dumps(recipe)}" for name, recipe in RECIPES.items()]
    path = pathlib.Path(__file__).parent / "recipes.json"
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{path}: {len(lines)} recipes")
