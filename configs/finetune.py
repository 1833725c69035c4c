"""Weights of ImageNet on another data set: CIFAR-10, Oxford's pets, or a folder of your own.

Result:   none is published for this recipe, and we have not run it yet.
Source:   this project's, after common practice: a small learning rate, a larger one for the classifier, which is new,
          and crops that keep more of the image than those for ImageNet.
Command:  python -m vision_jax.main --config=configs/finetune.py:folder --config.data.dir=DIR --workdir=runs/finetune \\
              --config.model.pretrained=hf://timm/resnet50.a1_in1k
          where DIR has train/CLASS/IMAGE and val/CLASS/IMAGE; for `pets` and `cifar10` it is the folder that tfds
          wrote, or `python -m vision_jax prepare --dataset=pets DOWNLOADS DIR`. Other models: --config.model.name=NAME,
          with weights of that model. How transformers are fine-tuned with AdamW is in configs/deit3.py.
"""

from ml_collections import ConfigDict

from vision_jax import recipes
from vision_jax.config import default_config

# Where the data are and what is to be done to them, as fields of config.data, and the epochs.
VARIANTS: dict[str, tuple[dict[str, object], float]] = {
    "cifar10": ({"source": "tfds", "val_split": "test", "crop_scale": (0.5, 1.0)}, 10.0),
    "pets": ({"source": "tfds", "val_split": "test", "crop_scale": (0.25, 1.0)}, 30.0),
    "folder": ({"source": "folder", "val_split": "val", "crop_scale": (0.25, 1.0)}, 30.0),
}


def get_config(variant: str = "cifar10") -> ConfigDict:
    config = default_config()
    data, config.epochs = recipes.choose(VARIANTS, variant)
    config.data.update(data)
    config.batch_size = 128
    config.label_smoothing = 0.1

    config.model.name = "resnet50"
    # Size, normalization and filter are those that the weights know, whichever model is named.
    config.data.model_input = True
    config.data.train_filter = "pillow-bicubic"

    config.optimizer.learning_rate = 0.005
    config.optimizer.weight_decay = 1e-4
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    # As the models call their classifiers.
    config.optimizer.multipliers = ((r"^(fc|head|head_dist|classifier)/", 10.0),)
    config.schedule.warmup_epochs = 1.0

    config.eval.every_epochs = 2.0
    return config
