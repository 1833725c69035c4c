"""What the files in `configs/` share."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from ml_collections import ConfigDict

from vision_jax.config import default_config, loading
from vision_jax.errors import ConfigError, suggest

T = TypeVar("T")


def choose(variants: Mapping[str, T], name: str) -> T:
    """Returns the variant of a recipe that is asked for by `--config=configs/FILE.py:NAME`.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in variants:
        raise ConfigError(f"This recipe has no variant {name!r}: {suggest(name, list(variants))}")
    return variants[name]


def load(name: str) -> ConfigDict:
    """Returns the configuration of another recipe, to start from.

    Args:
        name: of a recipe of this package, or the path of a config file; either with a variant, as `resnet50_rsb:a3`.

    Raises:
        ConfigError: if there is none, or it fails.
    """
    return loading.load(name)


def imagenet(model: str) -> ConfigDict:
    """Returns what all recipes for ImageNet begin with: `default_config()` for a model of 1,000 classes."""
    config = default_config()
    config.model.name = model
    config.model.num_classes = 1000
    return config


def digits(model: str) -> ConfigDict:
    """Returns what recipes for scikit-learn's handwritten digits begin with: `default_config()` for a model of them."""
    config = default_config()
    config.dtype = "float32"
    config.model.name = model
    config.data.source = "digits"
    config.data.image_size = 28
    config.data.channels = 1
    config.data.mean = (0.3,)
    config.data.std = (0.35,)
    config.data.crop_scale = (0.6, 1.0)
    config.data.eval_resize = 28
    config.augment.flip = 0.0
    config.eval.batch_size = 128
    return config


def nvidia(
    model: str, epochs: float, *, mixup: float = 0.0, batch_size: int = 2048, weight_decay: float = 1 / 32768
) -> ConfigDict:
    """Returns the recipe of NVIDIA's DeepLearningExamples, PyTorch/Classification/ConvNets, for ResNet and ResNeXt."""
    config = imagenet(model)
    config.batch_size = batch_size
    config.epochs = epochs
    config.label_smoothing = 0.1

    # Batch statistics of an eighth of the batch, as on the 8 GPUs that gave the published results.
    config.model.bn_group_size = batch_size // 8
    config.model.zero_init_last = False

    config.augment.mixup = mixup

    config.optimizer.learning_rate = 0.256
    config.optimizer.learning_rate_batch_size = 256
    config.optimizer.weight_decay = weight_decay
    # As there, by name: so biases of other layers decay, and the norms of the shortcuts, which are not called bn.
    config.optimizer.decay_rule = "all"
    config.optimizer.no_decay = (r"bn\d/",)
    config.optimizer.momentum = 0.875
    config.optimizer.nesterov = False
    config.schedule.by_epoch = True
    config.schedule.warmup_epochs = 8.0
    config.schedule.warmup_factor = 1 / 8
    return config


def deit_augmentation(config: ConfigDict) -> None:
    """Sets the augmentation of DeiT (Touvron et al. 2020, arXiv:2012.12877), which Swin and ConvNeXt took over."""
    config.label_smoothing = 0.1
    config.data.train_filter = "pillow-bicubic"
    config.data.eval_filter = "bicubic"
    config.augment.policy = "rand-m9-mstd0.5-inc1"
    config.augment.erase = 0.25
    config.augment.erase_mode = "pixel"
    config.augment.mixup = 0.8
    config.augment.cutmix = 1.0


def deit_optimizer(config: ConfigDict, learning_rate: float, weight_decay: float) -> None:
    """Sets AdamW and the schedule of DeiT, from 1e-6 to the peak, and down to 1e-5; after `config.batch_size` is set.

    Args:
        config: the configuration.
        learning_rate: for a batch of 512, from which it is scaled linearly.
        weight_decay: of kernels.
    """
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = learning_rate
    config.optimizer.learning_rate_batch_size = 512
    config.optimizer.weight_decay = weight_decay
    config.optimizer.decay_rule = "timm"
    peak = learning_rate * config.batch_size / 512
    config.schedule.warmup_factor = 1e-6 / peak
    config.schedule.end_factor = 1e-5 / peak
    config.schedule.by_epoch = True
    config.schedule.overlap_warmup = True


def selfsupervised(model: str, name: str, **options: object) -> ConfigDict:
    """Returns what recipes without labels begin with: `imagenet` for an objective with these options, and `neighbors`.

    The best checkpoint is that of the best features: a loss is lowest where a method has collapsed.
    """
    config = imagenet(model)
    config.objective = objective(name, **options)
    config.checkpoint.best_metric = "knn/top1"
    neighbors(config, 10.0)
    return config


def linear_probe(model: str, learning_rate: float, weight_decay: float, head_std: float) -> ConfigDict:
    """Returns what linear probes begin with: SGD for the classifier, on crops by Pillow, on a half cosine of epochs.

    Args:
        model: whose classifier is trained, and which is else as in evaluation.
        learning_rate: for a batch of 256, from which it is scaled linearly.
        weight_decay: of the classifier, biases too.
        head_std: standard deviation of its initial weights.
    """
    config = imagenet(model)
    config.objective.name = "linear_probe"
    config.model.head_std = head_std
    config.data.train_filter = "pillow-bilinear"
    config.optimizer.momentum = 0.9
    config.optimizer.learning_rate = learning_rate
    config.optimizer.learning_rate_batch_size = 256
    config.optimizer.weight_decay = weight_decay
    config.optimizer.decay_rule = "all"
    config.schedule.warmup_epochs = 0.0
    config.schedule.by_epoch = True
    return config


def neighbors(config: ConfigDict, every_epochs: float) -> None:
    """Adds the evaluation `knn` of the features, by the neighbors among at most 100,000 training examples.

    Args:
        config: the configuration.
        every_epochs: epochs between evaluations, each of which costs a forward pass over these and the validation
            split.
    """
    with config.unlocked():
        config.evals.knn = ConfigDict({"kind": "knn", "every_epochs": every_epochs, "train_examples": 100_000})


def robustness(
    config: ConfigDict,
    attack: str,
    eps: str,
    *,
    norm: str = "linf",
    examples: int = 1000,
    every_epochs: float | None = None,
) -> None:
    """Adds the evaluation `robust` of the accuracy under an attack.

    Args:
        config: the configuration.
        attack, eps, norm, examples: see `evaluators.Adversarial`.
        every_epochs: epochs between evaluations; None: as often as the others.
    """
    options = {"attack": attack, "eps": eps, "norm": norm, "examples": examples}
    with config.unlocked():
        config.evals.robust = ConfigDict({"kind": "adversarial", "every_epochs": every_epochs, **options})


def mocov2_augmentation(config: ConfigDict) -> None:
    """Sets the two crops of MoCo v2 (Chen et al. 2020, arXiv:2003.04297), which are alike; SimSiam took them over."""
    config.data.views = "2x224:0.2-1"
    config.data.train_filter = "pillow-bilinear"
    config.augment.color_jitter = (0.4, 0.4, 0.4, 0.1)
    config.augment.color_jitter_prob = 0.8
    config.augment.greyscale = 0.2
    config.augment.blur = 0.5


def byol_augmentation(config: ConfigDict) -> None:
    """Sets the color augmentation of BYOL's two crops (Grill et al. 2020, arXiv:2006.07733), which many took over."""
    config.data.views = "2x224:0.08-1"
    config.augment.color_jitter = (0.4, 0.4, 0.2, 0.1)
    config.augment.color_jitter_prob = 0.8
    config.augment.greyscale = 0.2
    config.augment.crops = "blur=1|blur=0.1,solarize=0.2"


def lars(config: ConfigDict, learning_rate: float, weight_decay: float) -> None:
    """Sets LARS as MoCo v3, BYOL, Barlow Twins, VICReg and SimCLR have it: biases and norms neither decay nor adapt.

    Args:
        config: the configuration.
        learning_rate: for a batch of 256, from which it is scaled linearly. It rises in ten epochs, and falls on a half
            cosine.
        weight_decay: of kernels.
    """
    config.optimizer.name = "lars"
    config.optimizer.by_rank = True
    config.optimizer.momentum = 0.9
    config.optimizer.learning_rate = learning_rate
    config.optimizer.learning_rate_batch_size = 256
    config.optimizer.weight_decay = weight_decay
    config.schedule.warmup_epochs = 10.0


def rising_sizes(
    size: int, scale: float, start: float, end: float, step: int = 16
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Returns the epochs and sizes of progressive resizing, where the size rises linearly to `size`.

    Args:
        size: the last one, a multiple of `step`.
        scale: the first one as a share of it; rounded to a multiple of 4.
        start: the epoch in which it begins to rise.
        end: the epoch in which it is `size`.
        step: between them there are the multiples of this, each from when the straight line between both passes it.
    """
    first = round(size * scale / 4) * 4
    later = range((first // step + 1) * step, size + 1, step)
    epochs = [start + (end - start) * (x / size - scale) / (1 - scale) for x in later]
    return (0.0, *epochs), (first, *later)


def objective(name: str, **options: object) -> ConfigDict:
    """Returns `config.objective` with all options of an objective, so that flags can set them.

    Args:
        name: of `vision_jax.objectives.OBJECTIVES`.
        **options: those that differ from their defaults.

    Raises:
        ConfigError: if there is no such objective or option.
    """
    from vision_jax.objectives import OBJECTIVES, options_of  # here, because it imports JAX

    if name not in OBJECTIVES:
        raise ConfigError(f"There is no objective {name!r}: {suggest(name, OBJECTIVES)}")
    fields = options_of(OBJECTIVES[name])
    if unknown := sorted(options.keys() - fields.keys()):
        raise ConfigError(f"{unknown[0]!r} is no option of {name}: {suggest(unknown[0], list(fields))}")
    defaults = {key: field.default for key, field in fields.items() if field.default is not dataclasses.MISSING}
    return ConfigDict({"name": name, **defaults, **options})


class VtabTask(NamedTuple):
    """Splits of a task of VTAB (google-research/task_adaptation d7630d3, data/*.py), as tfds names them.

    Attributes:
        validation: the 200 examples that join the first 800 of the split train, to make 1,000.
        trainval: all examples for training.
        test: those that count.
        label: the name of the class label; None: `label`.
        small: the images have less than 96 * 96 pixels.
    """

    validation: str
    trainval: str
    test: str = "test"
    label: str | None = None
    small: bool = False


# Without the tasks whose labels have to be made of other annotations: CLEVR's, KITTI's and dSprites'.
VTAB: dict[str, VtabTask] = {
    "caltech101": VtabTask("train[2753:2953]", "train"),
    "cifar100": VtabTask("train[45000:45200]", "train", small=True),
    "dtd": VtabTask("validation[:200]", "train+validation"),
    "oxford_flowers102": VtabTask("validation[:200]", "train+validation"),
    "oxford_iiit_pet": VtabTask("train[2944:3144]", "train"),
    "svhn_cropped": VtabTask("train[65931:66131]", "train", small=True),
    "sun397": VtabTask("validation[:200]", "train+validation"),
    "patch_camelyon": VtabTask("validation[:200]", "train+validation"),
    "eurosat": VtabTask("train[16200:16400]", "train[:21600]", "train[21600:]", small=True),
    "resisc45": VtabTask("train[18900:19100]", "train[:25200]", "train[25200:]"),
    "diabetic_retinopathy": VtabTask("validation[:200]", "train+validation"),
    "dmlab": VtabTask("validation[:200]", "train+validation"),
    "smallnorb_azimuth": VtabTask("test[:200]", "train+test[:50%]", "test[50%:]", "label_azimuth"),
    "smallnorb_elevation": VtabTask("test[:200]", "train+test[:50%]", "test[50%:]", "label_elevation"),
}


def vtab_data(config: ConfigDict, task: str, *, full: bool = False) -> None:
    """Sets the splits of a task of VTAB: 1,000 examples, or with `full` all, and the test split."""
    splits = choose(VTAB, task)
    config.data.source = "tfds"
    config.data.train_split = splits.trainval if full else f"train[:800]+{splits.validation}"
    config.data.val_split = splits.test
    config.data.label = splits.label


def squeezed(config: ConfigDict, resize: int, size: int) -> None:
    """Sets crops of `size` pixels out of a square of `resize` that the whole image is squeezed into.

    In evaluation the image is squeezed into one of `size`.
    """
    config.data.image_size = config.data.eval_resize = size
    config.data.eval_square = True
    config.data.crop_ratio = ()
    config.data.crop_scale = ((size / resize) ** 2,) * 2
    config.data.train_filter = "pillow-bilinear"


def transfer(config: ConfigDict, learning_rate: float, steps: int, warmup_steps: int, batch_size: int) -> None:
    """Sets what transfers to other data share: SGD with momentum, no weight decay, steps, and a classifier of zeros."""
    config.batch_size = batch_size
    config.total_steps = steps
    config.eval.every_steps = steps
    config.model.head_std = 0.0
    config.optimizer.learning_rate = learning_rate
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.0
    config.schedule.warmup_steps = warmup_steps


def dense(model: str, name: str, **options: object) -> ConfigDict:
    """Returns what recipes of detection and segmentation begin with.

    Args:
        model: the backbone.
        name: of the objective.
        **options: its options that differ from their defaults.
    """
    config = default_config()
    config.model.name = model
    config.objective = objective(name, **options)
    config.checkpoint.best_metric = "val/miou" if name == "segmentation" else "val/AP"
    return config


def coco_detection(name: str, **options: object) -> ConfigDict:
    """Returns what torchvision's recipes for detectors on COCO have in common; the arguments are those of `dense`."""
    config = dense("resnet50", name, **options)
    config.model.zero_init_last = False
    config.data.source = "coco"
    config.data.train_split, config.data.val_split = "train2017", "val2017"
    # The ids of the categories as they are, in 91 classes, as torchvision's weights have them.
    config.data.dense.category_ids = True
    config.data.dense.drop_empty = True
    config.data.dense.skip_bad = True
    config.batch_size = 16
    config.epochs = 26.0
    config.schedule.name = "step"
    config.schedule.milestone_epochs = (16.0, 22.0)
    config.schedule.factor = 0.1
    config.schedule.warmup_steps = 1000
    config.schedule.warmup_factor = 1e-3
    config.schedule.overlap_warmup = True
    config.eval.every_epochs = 2.0
    return config


def frozen_beginning(config: ConfigDict) -> None:
    """Freezes what torchvision's detectors do not train of a ResNet: stem, first stage, and all batch norms."""
    config.objective.frozen_norms = True
    config.optimizer.frozen = (r"^conv1/", r"^bn1/", r"^layer1/", r"^layer\d/.*/(bn\d|downsample/1)/")


def coco_segmentation(model: str, head: str) -> ConfigDict:
    """Returns torchvision's recipe of segmentation of the images of COCO with the classes of Pascal VOC."""
    config = dense(model, "segmentation", head=head)
    config.model.zero_init_last = False
    config.model.output_stride = 8
    config.data.source = "coco"
    config.data.train_split, config.data.val_split = "train2017", "val2017"
    config.data.image_size = 480
    config.data.dense.categories = ("voc",)
    config.data.dense.drop_empty = True
    config.data.dense.skip_bad = True
    config.data.dense.resize = "range"
    config.data.dense.shorter = (260, 1040)
    config.data.dense.canvases = ((480, 480),)
    # Images that are more than twice as long as high, and the other way round, are made smaller.
    config.data.dense.eval_shorter, config.data.dense.eval_longer = 520, 1040
    config.data.dense.eval_canvases = ((520, 704), (704, 520), (520, 1040), (1040, 520))
    config.batch_size = 32
    config.epochs = 30.0
    config.optimizer.learning_rate = 0.02
    config.optimizer.momentum = 0.9
    config.optimizer.decay_rule = "all"
    config.optimizer.multipliers = (("^aux_head/", 10.0),)
    config.schedule.name = "polynomial"
    config.schedule.power = 0.9
    config.schedule.warmup_epochs = 0.0
    config.eval.every_epochs = 5.0
    return config


def scenes(model: str, name: str, **options: object) -> ConfigDict:
    """Returns what recipes for the made-up images with digits begin with; the arguments are those of `dense`."""
    config = dense(model, name, **options)
    config.dtype = "float32"
    config.data.source = "scenes"
    config.data.image_size = 96
    config.data.dense.resize = "squash"
    config.data.dense.canvases = ((96, 96),)
    config.data.dense.max_boxes = 8
    config.augment.flip = 0.0
    config.eval.batch_size = 32
    return config
