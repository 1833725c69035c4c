"""Vision transformers of MoCo v3, fine-tuned on ImageNet and other data sets, by the code of DeiT.

Result:   top-1 published after 300 epochs of pre-training: on ImageNet vit_s 81.4 %, vit_b 83.2; of ViT-B cifar10 98.9,
          cifar100 90.5, oxford_flowers102 97.7, oxford_iiit_pet 93.2. We have not run it yet.
Source:   Chen, Xie and He 2021 (arXiv:2104.02057); facebookresearch/moco-v3 c349e6e: README.md, CONFIG.md and
          transfer/README.md; the defaults of facebookresearch/deit, main.py.
          Known differences: those of configs/deit.py. Batches of other data sets are those of the commands, 128 on each
          of 8 GPUs; of the flowers, training and validation split are one there.
Command:  python -m vision_jax.main --config=configs/finetune_mocov3.py:vit_b --config.data.dir=IMAGENET
              --config.model.pretrained=WORKDIR|FILE --workdir=runs/finetune_mocov3
          For other data sets, the folder is the one that tfds or `python -m vision_jax prepare --dataset=NAME` wrote.
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Weight decay, mixup, CutMix, random erasing and drop path.
DATA_SETS: dict[str, tuple[float, float, float, float, float]] = {
    "cifar10": (0.1, 0.8, 1.0, 0.0, 0.1),
    "cifar100": (0.1, 0.5, 1.0, 0.0, 0.1),
    "oxford_flowers102": (0.3, 0.0, 0.0, 0.25, 0.1),
    "oxford_iiit_pet": (0.1, 0.8, 0.0, 0.0, 0.0),
}
VARIANTS: dict[str, object] = {"vit_b": "base", "vit_s": "small", **DATA_SETS}


def get_config(variant: str = "vit_b") -> ConfigDict:
    recipes.choose(VARIANTS, variant)
    config = recipes.imagenet("vit_small_patch16_224" if variant == "vit_s" else "vit_base_patch16_224")
    recipes.deit_augmentation(config)
    config.model.pretrained = "runs/mocov3"
    config.model.pretrained_average = False  # the network that is trained, not its teacher
    config.batch_size = 1024
    config.augment.mix_group = 128  # the batch of one GPU
    if variant == "vit_s":
        config.model.num_heads = 12
    if variant not in DATA_SETS:
        config.epochs = 150.0
        config.data.repeats = 3
        config.model.drop_path_rate = 0.1
        recipes.deit_optimizer(config, 5e-4, weight_decay=0.05)
        return config
    weight_decay, mixup, cutmix, erase, drop_path_rate = DATA_SETS[variant]
    config.epochs = 100.0
    config.eval.every_epochs = 10.0
    config.model.num_classes = None  # as many as the data have
    config.model.drop_path_rate = drop_path_rate
    config.augment.mixup, config.augment.cutmix, config.augment.erase = mixup, cutmix, erase
    config.data.train_split = "train+validation" if variant == "oxford_flowers102" else "train"
    config.data.val_split = "test"
    recipes.deit_optimizer(config, 3e-4, weight_decay)
    config.schedule.warmup_epochs = 3.0
    return config
