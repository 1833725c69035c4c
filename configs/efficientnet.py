"""EfficientNet-B0 on ImageNet by timm's recipe and by NVIDIA's.

Result:   published top-1 at 224 pixels: b0 77.7 % (450 epochs, 2 GPUs); b0_dle 77.42 +- 0.11 % in mixed precision (400
          epochs, 11 hours on 8 A100 of 80 GB). We have not run it yet.
Source:   b0: huggingface/pytorch-image-models, docs/training_hparam_examples.md, and the defaults of train.py then.
          b0_dle: NVIDIA DeepLearningExamples, PyTorch/Classification/ConvNets: efficientnet/README.md, configs.yml, and
          in image_classification optimizers.py and models/efficientnet.py. Known differences: b0: each training crop
          is resized bicubically, and there bilinearly or bicubically, by chance. b0_dle: batch norm has an epsilon of
          1e-5 and a momentum of 0.9, and there of 1e-3 and 0.99; the learning rate rises by 15/256 of the peak after
          each epoch of the warm-up, and there by 16/256; AutoAugment is timm's.
Command:  python -m vision_jax.main --config=configs/efficientnet.py:b0 --config.data.dir=IMAGENET
          --workdir=runs/efficientnet
"""

from typing import Any

from ml_collections import ConfigDict

from vision_jax import recipes

VARIANTS: dict[str, dict[str, Any]] = {
    "b0": {
        **{"batch_size": 768, "epochs": 450.0, "model.bn_group_size": 384, "model.drop_path_rate": 0.2},
        **{"augment.policy": "rand-m9-mstd0.5", "augment.erase": 0.2, "augment.erase_mode": "pixel"},
        **{"optimizer.name": "rmsprop_tf", "optimizer.learning_rate": 0.048, "optimizer.eps": 0.001},
        **{"optimizer.decay_rule": "timm", "schedule.name": "step", "schedule.every_epochs": 2.4},
        **{"schedule.factor": 0.97, "schedule.warmup_epochs": 3.0, "schedule.warmup_factor": 1e-6 / 0.048},
        **{"data.eval_crop": 0.875, "ema_decay": 0.9999},
    },
    "b0_dle": {
        **{"batch_size": 4096, "epochs": 400.0, "model.bn_group_size": 256},
        **{"augment.policy": "autoaugment", "augment.mixup": 0.2},
        **{"optimizer.name": "rmsprop", "optimizer.learning_rate": 0.08, "optimizer.eps": 0.01},
        **{"optimizer.decay_rule": "not_norms", "schedule.warmup_epochs": 16.0, "schedule.warmup_factor": 1 / 16},
    },
}


def get_config(variant: str = "b0") -> ConfigDict:
    fields = recipes.choose(VARIANTS, variant)
    config = recipes.imagenet("efficientnet_b0")
    config.label_smoothing = 0.1
    config.model.drop_rate = 0.2
    config.data.train_filter = "pillow-bicubic"
    config.data.eval_filter = "bicubic"
    config.optimizer.weight_decay = 1e-5
    config.optimizer.decay = 0.9
    config.optimizer.momentum = 0.9
    config.schedule.by_epoch = True
    config.update_from_flattened_dict(fields)
    return config
