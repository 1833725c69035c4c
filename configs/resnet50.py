"""ResNet-50 v1.5 on ImageNet in 90 epochs.

Result:   77.1 % top-1 at 224 pixels, published: 77.12 +- 0.11 in mixed precision, in about 3 hours on 8 A100 of 80 GB.
          We have not run it yet.
Source:   NVIDIA DeepLearningExamples, PyTorch/Classification/ConvNets: resnet50v1.5/README.md, configs.yml and
          image_classification/optimizers.py. Known differences: its learning rate changes once an epoch, from an eighth
          of the peak, and here at every step, from zero; its convolutions are initialized by their fan-in, and here by
          their fan-out; it decays the bias of the classifier.
Command:  python -m vision_jax.main --config=configs/resnet50.py --config.data.dir=IMAGENET --workdir=runs/resnet50
          where IMAGENET is what `python -m vision_jax.prepare` or tfds wrote, or, with --config.data.source=folder and
          --config.data.val_split=val, a folder of train/CLASS/IMAGE and val/CLASS/IMAGE.
"""

from ml_collections import ConfigDict

from vision_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.batch_size = 2048
    config.epochs = 90.0
    config.label_smoothing = 0.1

    config.model.name = "resnet50"
    config.model.num_classes = 1000
    # Batch statistics of 256 examples, as on the 8 GPUs of 256 that gave the published result.
    config.model.bn_group_size = 256

    config.optimizer.learning_rate = 0.256
    config.optimizer.learning_rate_batch_size = 256
    config.optimizer.weight_decay = 1 / 32768
    config.optimizer.momentum = 0.875
    config.optimizer.nesterov = False
    config.schedule.warmup_epochs = 8.0
    return config
