"""VTAB: pretrained weights on tasks of natural, specialized and structured images, by one setting for all of them.

Result:   none is published for this setting: the means that are, over 19 tasks and for ResNet-50, are of four settings
          each, with the best one by task: with 1,000 examples 66.4 % from ImageNet's labels, 60.4 from rotations, 43.1
          from scratch; with all 89.7, 86.4 and 75.4. We have not run it yet.
Source:   Zhai et al. 2019 (arXiv:1910.04867); google-research/task_adaptation d7630d3: scripts/run_all_tasks.sh (1,000
          examples), README.md (all of them), trainer.py, data_loader.py and docs/data/results.csv.
          Known differences: training images are resized with antialiasing, there without. Here the 1,000 examples are
          the first 800 of the training split and 200 of the validation split, as in the paper; the script takes the
          first 1,000 of both. Five tasks are not here: see recipes.VTAB.
Command:  python -m vision_jax.main --config=configs/vtab.py:dtd --config.data.dir=DIR --workdir=runs/vtab_dtd
              --config.model.pretrained=WORKDIR|FILE
          where DIR is the folder that tfds wrote for the data set of that name: eurosat is eurosat/rgb, sun397 is
          sun397/tfds, diabetic_retinopathy is diabetic_retinopathy_detection/btgraham-300, and both of smallnorb are
          smallnorb. With all examples: dtd_full and so on.
"""

from ml_collections import ConfigDict

from vision_jax import recipes

VARIANTS: dict[str, bool] = {**dict.fromkeys(recipes.VTAB, False), **{f"{task}_full": True for task in recipes.VTAB}}


def get_config(variant: str = "cifar100") -> ConfigDict:
    full = recipes.choose(VARIANTS, variant)
    config = recipes.imagenet("resnet50")
    config.model.num_classes = None  # as many as the data have
    if full:
        recipes.transfer(config, learning_rate=0.01, steps=2_500, warmup_steps=0, batch_size=512)
        config.schedule.milestone_steps = (751, 1_501, 2_251)
    else:
        recipes.transfer(config, learning_rate=0.01, steps=1_000, warmup_steps=80, batch_size=64)
        config.schedule.milestone_steps = (301, 601, 901)
    config.schedule.name, config.schedule.factor = "step", 0.1
    recipes.squeezed(config, 224, 224)
    config.augment.flip = 0.0
    # The range that the script gives to every model is 0 to 1; set what the weights know, such as (0.5, 0.5, 0.5).
    config.data.mean, config.data.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    recipes.vtab_data(config, variant.removesuffix("_full"), full=full)
    return config
