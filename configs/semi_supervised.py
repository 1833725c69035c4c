"""ResNet-50 of self-supervised methods, fine-tuned on 1 % or 10 % of ImageNet, each as its authors do.

Result:   none is published in the sources. We have not run it yet.
Source:   facebookresearch/barlowtwins 8e8d284, vicreg 4e12602 and swav 06b1b7c: README.md and evaluate.py or
          eval_semisup.py. The images are those of google-research/simclr, imagenet_subsets/1percent.txt and
          10percent.txt, which are to be given.
          Known differences: batch norm is over the global batch, that of Barlow Twins and VICReg over one GPU's there.
Command:  python -m vision_jax.main --config=configs/semi_supervised.py:vicreg_1 --config.data.dir=IMAGENET
              --config.data.train_list=1percent.txt --config.model.pretrained=WORKDIR|FILE --workdir=runs/vicreg_1
          Without the files, --config.data.train_list=None --config.data.train_per_class=13 takes about 1 % of each
          class at random, the same ones in every run; 128 about 10 %. Other figures than those that are published come
          of it.
"""

from ml_collections import ConfigDict

from vision_jax import recipes

# Learning rates of the network and of the classifier, for a batch of 256; the list of the images.
VARIANTS: dict[str, tuple[float, float, str]] = {
    "barlow_twins_1": (0.005, 0.5, "1percent.txt"),
    "vicreg_1": (0.03, 0.08, "1percent.txt"),
    "vicreg_10": (0.01, 0.1, "10percent.txt"),
    "swav_1": (0.02, 5.0, "1percent.txt"),
    "swav_10": (0.01, 0.2, "10percent.txt"),
}


def get_config(variant: str = "vicreg_1") -> ConfigDict:
    learning_rate, of_classifier, train_list = recipes.choose(VARIANTS, variant)
    method = variant.rpartition("_")[0]
    config = recipes.imagenet("resnet50")
    config.model.pretrained = f"runs/{method}"
    config.data.train_list = train_list
    config.data.train_filter = "pillow-bilinear"
    config.batch_size = 256
    config.epochs = 20.0

    config.optimizer.momentum = 0.9
    config.optimizer.learning_rate = learning_rate
    config.optimizer.learning_rate_batch_size = 256
    config.optimizer.multipliers = ((r"^fc/", of_classifier / learning_rate),)
    config.optimizer.weight_decay = 0.0
    config.schedule.warmup_epochs = 0.0
    config.schedule.by_epoch = True
    if method == "swav":
        config.data.std = (0.228, 0.224, 0.225)  # as there
        config.schedule.name, config.schedule.milestone_epochs, config.schedule.factor = "step", (12.0, 16.0), 0.2
    else:
        config.model.head_std = 0.01
    return config
