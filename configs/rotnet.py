"""Rotation prediction (RotNet) on ImageNet: ResNet-50 without labels, by telling by how much images were turned.

Result:   none is published with these settings. Fine-tuned for the 19 tasks of VTAB with 1000 examples each, a
          ResNet-50 that has learned rotations has a mean of 60.4 % (google-research/task_adaptation). We have not run
          it yet.
Source:   Gidaris, Singh and Komodakis 2018 (arXiv:1803.07728), whose network is an AlexNet with batch norm; for
          ResNet-50, facebookresearch/vissl 0e5cc45, configs/config/pretrain/rotnet/rotnet_8gpu_resnet.yaml.
          Known differences: all four rotations of a crop are in a batch, as in the paper, there one of the whole image:
          so a batch is of 64 images, and a fourth of the 105 epochs has as many steps of 256 inputs; JPEGs may be
          decoded at a smaller size.
Command:  python -m vision_jax.main --config=configs/rotnet.py --config.data.dir=IMAGENET --workdir=runs/rotnet
"""

from ml_collections import ConfigDict

from vision_jax import recipes


def get_config() -> ConfigDict:
    config = recipes.selfsupervised("resnet50", "rotation")
    config.batch_size = 64
    config.epochs = 105 / 4
    config.data.train_filter = "pillow-bilinear"

    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.learning_rate = 0.1
    # All but scales and biases of norms decay.
    config.optimizer.decay_rule = "not_norms"
    config.schedule.name = "step"
    config.schedule.milestone_epochs = (30 / 4, 60 / 4, 90 / 4, 100 / 4)
    config.schedule.warmup_epochs = 0.0
    return config
