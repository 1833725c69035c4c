"""The configuration: every field, its default, what it means, and the checks that need no data.

A file in `configs/` starts from `default_config()` and overrides what differs. The result is locked: a misspelt field
is an error that names the nearest right one. `None` in a field that has it as its default means «decide by itself», as
the comment beside the field says.
"""

import dataclasses
import difflib
import fnmatch
import itertools
import json
import math
import pathlib
from collections.abc import Container, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vision_jax.errors import ConfigError

if TYPE_CHECKING:
    from vision_jax.augment import AugmentConfig

# What `validate` allows; fields that are not set are not checked.
_CHOICES = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "data.source": ("digits", "tfds", "folder", "synthetic"),
    "data.train_filter": ("bilinear", "area", "pillow-bilinear", "pillow-bicubic"),
    "data.eval_filter": ("bilinear", "bicubic"),
    "optimizer.learning_rate_scaling": ("linear", "sqrt"),
    "loss.name": ("softmax", "sigmoid"),
    "distill.kind": ("soft", "hard"),
    "guard.nonfinite": ("stop", "skip", "rewind"),
    "guard.spikes": ("stop", "skip", "rewind"),
    "checkpoint.on_error": ("stop", "continue"),
}
# Patterns (fnmatch) of the fields that do not change what is computed, but to rounding: where and on what, what is
# written when, and what happens when that fails. A run may go on with other values of them. `checkpoint.every_steps` is
# one although `guard.*=rewind` goes back to what it has saved.
_FREE = (
    *("mesh.*", "data.dir", "data.num_threads", "data.num_workers", "data.prefetch", "log.*"),
    *("checkpoint.every_steps", "checkpoint.keep", "checkpoint.on_error", "compilation_cache", "watchdog_seconds"),
)
# What tuples hold that do not hold numbers.
_PATTERNS = ("optimizer.no_decay", "optimizer.no_clip_adaptive", "optimizer.frozen")
_PAIRS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "optimizer.multipliers": (str, "(pattern, factor)"),
    "schedule.points": ((int, float), "(epoch, share of the peak)"),
}
# Fields that hold pairs of strings, and what these are.
_STRING_PAIRS = {"mesh.rules": "(pattern, layout)"}
_POSITIVE = (
    *("batch_size", "epochs", "total_steps", "model.num_classes", "data.image_size", "data.prefetch"),
    *("data.num_threads", "data.synthetic_train_examples", "data.synthetic_val_examples"),
    *("data.train_examples", "data.repeats", "data.eval_size"),
    *("optimizer.sam_rho", "optimizer.sam_every", "optimizer.accumulate", "distill.temperature"),
    *("ema_every_steps", "guard.spike_deviations", "guard.window", "guard.max_skips"),
    *("optimizer.learning_rate", "optimizer.learning_rate_batch_size", "optimizer.clip_global_norm"),
    *("optimizer.clip_value", "optimizer.clip_adaptive", "schedule.every_epochs", "schedule.decay_epochs"),
    *("eval.every_epochs", "eval.every_steps", "eval.batch_size"),
    *("checkpoint.every_steps", "checkpoint.keep", "log.every_steps"),
    *("mesh.fsdp_min_size", "guard.max_rewinds"),
)
_NOT_NEGATIVE = (
    *("seed", "optimizer.weight_decay", "model.bn_group_size", "data.num_workers", "data.max_bad_records"),
    *("schedule.warmup_epochs", "schedule.warmup_steps", "schedule.end_factor", "schedule.warmup_factor"),
    "schedule.cooldown_epochs",
    *("augment.mixup", "augment.cutmix", "augment.cutout", "augment.shift", "augment.col_out"),
    "augment.mix_group",
    *("optimizer.weight_decay_end", "loss.auxiliary_weight", "ema_start_epochs", "watchdog_seconds"),
)
_PROBABILITIES = (
    *("augment.flip", "augment.color_jitter_prob", "augment.greyscale", "augment.solarize", "augment.blur"),
    *("augment.erase", "augment.mix_prob", "augment.mix_switch_prob", "distill.weight"),
)
_BELOW_ONE = (
    "label_smoothing",
    "ema_decay",
    "augment.col_out",
    "schedule.warmup_share",
    *(f"optimizer.{name}" for name in ("momentum", "b1", "b2", "decay")),
)


def default_config() -> ConfigDict:
    """Returns the locked configuration that every file in `configs/` starts from."""
    config = ConfigDict()
    # Decides the initial parameters, the order of the data and every augmentation.
    config.seed = 0
    # Examples a step, over all devices of all processes.
    config.batch_size = 256
    # Length of the training, in passes over the data. An epoch is floor(examples / batch_size) steps.
    config.epochs = 90.0
    # Length of the training in steps; overrides `epochs`.
    config.total_steps = placeholder(int)
    # What the model computes in: float32, bfloat16, float16; auto is bfloat16 on GPU and TPU, float32 on CPU.
    # Parameters, statistics, optimizer state and loss are float32 always.
    config.dtype = "auto"

    config.model = model = ConfigDict()
    # A name of `vision_jax.list_models()`.
    model.name = "resnet50"
    # None: as many as the training data has.
    model.num_classes = placeholder(int)
    # The fields below are passed on where they are set; None leaves them to the model. Not every model has each.
    # Examples that share one set of batch statistics; 0, or more than there are, is the global batch. In torch it is
    # the batch of one GPU, unless norms are synchronized.
    model.bn_group_size = placeholder(int)
    # A 3x3 first convolution of stride 1 without max pooling, for images of about 32 pixels.
    model.small_stem = placeholder(bool)
    # Blur before the image is made smaller: by strided convolutions (conv), or by max pooling too (conv+pool).
    model.blur_pool = placeholder(str)
    # Start the last norm scale of each residual branch at zero, so that a block starts as the identity.
    model.zero_init_last = placeholder(bool)
    # Probability of dropping a unit before the classifier.
    model.drop_rate = placeholder(float)
    # The same behind the dense layers within the blocks of a transformer.
    model.proj_drop_rate = placeholder(float)
    # Probability of dropping an example's last residual branch; earlier ones are dropped less often.
    model.drop_path_rate = placeholder(float)
    # Where the biases of the classifier begin; a large negative one suits a sigmoid for each of many classes.
    model.head_bias = placeholder(float)
    # Train auxiliary classifiers too; `loss.auxiliary_weight` says how much they count.
    model.aux_logits = placeholder(bool)
    # What a transformer makes one vector of: token (the class token) or avg (the average of the others).
    model.global_pool = placeholder(str)
    # What tells a transformer where a patch is: learned, or the fixed sincos2d.
    model.positions = placeholder(str)
    # Whether a transformer has a class token; without it, global_pool is avg.
    model.class_token = placeholder(bool)
    # Where the scales of a transformer's residual branches begin; and whether `drop_path_rate` is that of all blocks.
    model.layer_scale = placeholder(float)
    model.drop_path_uniform = placeholder(bool)
    # Compile one block and loop over the depth, for a shorter compilation.
    model.scan_blocks = placeholder(bool)
    # Compute activations within blocks anew in the backward pass, to save memory: full, or dots, which keeps what
    # matrix products give.
    model.remat = placeholder(str)
    # Weights to start from, or to evaluate: a safetensors or npz file, or hf://timm/resnet50.a1_in1k, as timm or
    # torchvision name their tensors. Another number of classes gets a new classifier; see vision_jax/pretrained.py.
    model.pretrained = placeholder(str)

    config.data = data = ConfigDict()
    # digits: scikit-learn's 1,797 digits. tfds: a data set in tfds' layout, of ArrayRecord files (as prepared by
    # `python -m vision_jax.prepare`) or of TFRecord files. folder: DIR/SPLIT/CLASS/IMAGE. synthetic: made-up JPEGs that
    # need no data.
    data.source = "tfds"
    # tfds: the folder with features.json, or one above it that holds no second data set. folder: DIR as above.
    # digits: where the data set is cached; None: vision_jax's cache.
    data.dir = placeholder(str)
    # Names of the splits; for tfds also slices, such as train[:99%].
    data.train_split = "train"
    data.val_split = "validation"
    # Take image_size, channels, mean, std, eval_crop and eval_filter from what the model's published weights expect (as
    # timm has them), whatever they are set to below.
    data.model_input = False
    # Height and width of the images that the model sees.
    data.image_size = 224
    # The same in evaluation, where models gain from larger ones than in training; None: `image_size`.
    data.eval_size = placeholder(int)
    # 3: RGB, 1: greyscale.
    data.channels = 3
    # Normalization, in units where a pixel is between 0 and 1; one value a channel.
    data.mean = (0.485, 0.456, 0.406)
    data.std = (0.229, 0.224, 0.225)
    # The random resized crop of training: the least and largest share of the area, and of width / height.
    data.crop_scale = (0.08, 1.0)
    data.crop_ratio = (3 / 4, 4 / 3)
    # How training crops are resized. OpenCV's bilinear: fast, no antialiasing beyond the decoder's halvings; area:
    # antialiased. Pillow's, as torchvision and timm train, antialiased: pillow-bilinear, pillow-bicubic.
    data.train_filter = "bilinear"
    # Reduce a JPEG to 1/2, 3/8, 1/4 or 1/8 while it is decoded, where the crop is at least so much larger than
    # `image_size`.
    data.scaled_decoding = True
    # libjpeg-turbo's less exact ways to decode for training; each saves about a twentieth of the time.
    data.fast_dct = False
    data.fast_upsampling = False
    # Train on so many examples alone, chosen at random, the same for every seed; None: on all.
    data.train_examples = placeholder(int)
    # Copies of each example in a batch, each cropped and augmented anew (repeated augmentation).
    data.repeats = 1
    # See every class equally often: those with few examples come around more often.
    data.balanced = False
    # Progressive resizing: from these epochs on training images have these sizes; (): `image_size` throughout.
    # All sizes are compiled before the training begins.
    data.progressive_epochs = ()
    data.progressive_sizes = ()
    # Evaluation: the shorter side is resized to this, then the centre is cropped.
    data.eval_resize = 256
    # The share of the resized shorter side that is cropped, as timm states it; overrides `eval_resize`.
    data.eval_crop = placeholder(float)
    # How evaluation images are resized: Pillow's antialiased bilinear or bicubic.
    data.eval_filter = "bilinear"
    # Damaged training records that each process may replace by others before that is an error.
    data.max_bad_records = 0
    # Threads that decode, for each process of the training; None: one a core.
    data.num_threads = placeholder(int)
    # Other processes that these threads are in, for each process of the training; 0: none. Python's lock keeps one
    # process from using more than a few cores; see docs/benchmarks.md.
    data.num_workers = 0
    # Global batches kept ready on the devices.
    data.prefetch = 2
    # Sizes of the splits of the synthetic source.
    data.synthetic_train_examples = 1_281_167
    data.synthetic_val_examples = 1_000

    # What is done to training images on the devices; see vision_jax/augment/pipeline.py for the order.
    config.augment = augment = ConfigDict()
    # Probability of mirroring left to right.
    augment.flip = 0.5
    # A policy such as rand-m9-mstd0.5-inc1, autoaugment, trivialaugment_wide, augmix-m3-w3 or 3augment; "": none. All
    # are in vision_jax/augment/notation.py.
    augment.policy = ""
    # Strengths of random brightness, contrast, saturation and, if there is a fourth, hue (at most 0.5); (): none.
    augment.color_jitter = ()
    augment.color_jitter_prob = 1.0
    # Probabilities of removing the colours, of inverting values from 128 on, of a Gaussian blur (sigma 0.1 to 2).
    augment.greyscale = 0.0
    augment.solarize = 0.0
    augment.blur = 0.0
    # Random erasing after the normalization: its probability; const (the mean) or pixel (noise); the most rectangles.
    augment.erase = 0.0
    augment.erase_mode = "const"
    augment.erase_count = 1
    # Height and width of Cutout's square, in pixels; 0: none.
    augment.cutout = 0
    # Move images by up to so many pixels in each direction: the random crop of small images, for which data.crop_scale
    # and crop_ratio are to be (1, 1). What moves in is black (constant), or the image mirrored (reflect).
    augment.shift = 0
    augment.shift_mode = "constant"
    # Share of rows and columns that is left out, the same in a whole batch (ColOut); 0: none.
    augment.col_out = 0.0
    # Alpha of mixup and of CutMix; 0: off. Where both are on, CutMix has the probability `mix_switch_prob`.
    augment.mixup = 0.0
    augment.cutmix = 0.0
    augment.mix_prob = 1.0
    augment.mix_switch_prob = 0.5
    # What shares one choice and one share of the mixture: batch, pair or elem.
    augment.mix_mode = "batch"
    # Examples that are mixed among themselves, such as the batch of one GPU elsewhere; 0, or more than there are: the
    # whole batch.
    augment.mix_group = 0

    config.optimizer = optimizer = ConfigDict()
    # A name that `vision_jax.optim.create_optimizer` knows.
    optimizer.name = "sgd"
    # The peak learning rate, for `learning_rate_batch_size` examples a step, or for any where that is None.
    optimizer.learning_rate = 0.1
    # Scales the learning rate by batch_size / learning_rate_batch_size (linear), or by its square root (sqrt).
    optimizer.learning_rate_batch_size = placeholder(int)
    optimizer.learning_rate_scaling = "linear"
    optimizer.weight_decay = 1e-4
    # What it comes to at the end, on half a cosine over the whole training; None: it stays.
    optimizer.weight_decay_end = placeholder(float)
    # How it acts: coupled (added to the gradient), decoupled (times the learning rate), relative (times its share of
    # the peak); None: as the optimizer of this name has it. The formulas are in vision_jax/optim/optimizers.py.
    optimizer.decay_form = placeholder(str)
    # What decays: kernels, all, timm (no vectors, positions or tokens) or not_norms.
    optimizer.decay_rule = "kernels"
    # Regular expressions, found anywhere in paths such as layer1/0/conv1/kernel: what does not decay although the rule
    # says so, and what keeps its value; and pairs of such a pattern and a factor of the learning rate.
    optimizer.no_decay = ()
    optimizer.frozen = ()
    optimizer.multipliers = ()
    # The learning rate of a layer as a share of that of the next one; None: all have the same.
    optimizer.layer_decay = placeholder(float)
    # Limits on gradients; None: none. clip_global_norm rescales them where their global norm is larger.
    optimizer.clip_value = placeholder(float)
    optimizer.clip_adaptive = placeholder(float)
    # What is not clipped adaptively: as a rule, the classifier.
    optimizer.no_clip_adaptive = (r"^(head|head_dist|fc|classifier)/",)
    optimizer.clip_global_norm = placeholder(float)
    # Arguments of the optimizer, in optax's names; None leaves them to it, and not every one has each. `decay` is
    # RMSprop's alpha, and `mu_dtype` what the first moment is kept in.
    optimizer.momentum = placeholder(float)
    optimizer.nesterov = placeholder(bool)
    optimizer.b1 = placeholder(float)
    optimizer.b2 = placeholder(float)
    optimizer.eps = placeholder(float)
    optimizer.decay = placeholder(float)
    optimizer.mu_dtype = placeholder(str)
    # Sharpness-aware minimization: how far up the loss is looked, and every how many steps; None: not at all.
    optimizer.sam_rho = placeholder(float)
    optimizer.sam_every = 1
    # Parts that a batch is computed in, one after another, to save memory; one update follows from all of them. Batch
    # norm sees each part by itself.
    optimizer.accumulate = 1

    config.schedule = schedule = ConfigDict()
    # cosine, linear, polynomial, step, exponential, rsqrt, piecewise, wsd or constant; the formulas are in
    # vision_jax/optim/schedules.py.
    schedule.name = "cosine"
    # The learning rate rises linearly for so long, from `warmup_factor` times the peak.
    schedule.warmup_epochs = 5.0
    # The same in steps, or as a share of the whole training; either overrides `warmup_epochs`.
    schedule.warmup_steps = placeholder(int)
    schedule.warmup_share = placeholder(float)
    schedule.warmup_factor = 0.0
    # Where it ends, as a share of the peak; and the last epochs, during which it falls to zero whatever it was.
    schedule.end_factor = 0.0
    schedule.cooldown_epochs = 0.0
    # The decay begins with the training, behind the warm-up, as timm has it; False: after the warm-up.
    schedule.overlap_warmup = False
    # It changes at the beginning of epochs alone, as where torch's schedulers are stepped after each epoch.
    schedule.by_epoch = False
    # Arguments of the schedule; None leaves them to it, and not every one has each. Points are (epoch, share of peak).
    schedule.power = placeholder(float)
    schedule.factor = placeholder(float)
    schedule.every_epochs = placeholder(float)
    schedule.milestone_epochs = placeholder(tuple)
    schedule.points = placeholder(tuple)
    schedule.timescale = placeholder(float)
    schedule.decay_epochs = placeholder(float)

    # Share of the target that is spread evenly over all classes.
    config.label_smoothing = 0.0
    config.loss = loss = ConfigDict()
    # softmax: the cross-entropy of one choice; sigmoid: the binary one of each class.
    loss.name = "softmax"
    # sigmoid: targets above this are one, all others zero; None: they stay as smoothing and mixing made them.
    loss.threshold = placeholder(float)
    # sigmoid: the sum over the classes; False: their mean.
    loss.sum_classes = False
    # What a target counts, one value a class; (): all count 1.
    loss.class_weights = ()
    # What the loss of each auxiliary classifier counts; see model.aux_logits.
    loss.auxiliary_weight = 0.3

    # Learning from another model's logits for the same images too.
    config.distill = distill = ConfigDict()
    # A name of `vision_jax.list_models()`, and its weights, as in model.pretrained; None: no teacher.
    distill.teacher = placeholder(str)
    distill.pretrained = placeholder(str)
    # It sees images normalized as its published weights expect (as timm has them); False: as the model that learns.
    distill.model_input = False
    # soft: towards its probabilities at a temperature; hard: towards its best class. A model with a distillation token
    # learns this by that token's classifier, every other one by the same as the labels.
    distill.kind = "soft"
    distill.temperature = 1.0
    # What this counts; the loss of the labels counts one minus it.
    distill.weight = 0.5

    # Decay, an update, of the moving average of parameters and batch statistics; None: no average is kept.
    config.ema_decay = placeholder(float)
    # Steps between its updates.
    config.ema_every_steps = 1
    # Until then it is the parameters and statistics themselves.
    config.ema_start_epochs = 0.0
    # In update n thereafter, the decay is at most (1 + n) / (10 + n).
    config.ema_warmup = False

    config.guard = guard = ConfigDict()
    # A step whose loss or gradients are not finite: stop ends the training, skip leaves all but the step counter alone,
    # rewind goes back to the last good checkpoint and on from there with the batches after this one.
    guard.nonfinite = "stop"
    # The same for a step whose loss or norm of gradients is so many standard deviations above the mean of the last
    # `window` steps that were not skipped; None: no step is.
    guard.spikes = "skip"
    guard.spike_deviations = placeholder(float)
    guard.window = 128
    # So many skipped steps in a row end the training, and so does the need to go back once more than this.
    guard.max_skips = 20
    guard.max_rewinds = 3

    config.eval = evaluation = ConfigDict()
    # Epochs between evaluations; there is always one at the end. The state is saved before each.
    evaluation.every_epochs = 1.0
    # The same in steps; overrides `every_epochs`.
    evaluation.every_steps = placeholder(int)
    # Examples a batch, over all devices of all processes; None: config.batch_size.
    evaluation.batch_size = placeholder(int)
    # Average the logits with those of the mirrored image.
    evaluation.flip = False

    config.checkpoint = checkpoint = ConfigDict()
    # Steps between checkpoints, besides those before evaluations and at the end; None: only those.
    checkpoint.every_steps = placeholder(int)
    # How many of the latest are kept.
    checkpoint.keep = 2
    # The one that is best by this metric is kept too. Losses are best low, all else high.
    checkpoint.best_metric = "val/top1"
    # When the storage fails (it is full, read-only or gone): stop ends the training; continue warns and tries again at
    # the next checkpoint. A run whose last checkpoint cannot be saved fails in either case.
    checkpoint.on_error = "stop"

    config.log = log = ConfigDict()
    # Steps between lines of metrics.jsonl.
    log.every_steps = 50
    # Write TensorBoard events too.
    log.tensorboard = True
    # (first, last) of the steps that are profiled, into WORKDIR/profile; (): none. SIGUSR1 profiles the next ten.
    log.profile_steps = ()

    # Where compiled programs are kept between runs; None: vision_jax's cache. An empty string: nowhere.
    config.compilation_cache = placeholder(str)

    # End the process, with the stacks of all its threads, when no step ends for so long; compiling does not count.
    # 0: never.
    config.watchdog_seconds = 900.0

    # Devices along each axis of the mesh; one of them may be -1: what is left. Batches are divided over data and fsdp.
    config.mesh = mesh = ConfigDict()
    mesh.data = -1
    # Parameters, their averages and the optimizer's state are divided over this axis, if they have at least so many
    # elements, along the largest dimension that it divides.
    mesh.fsdp = 1
    mesh.fsdp_min_size = 2**16
    # Heads and hidden units of transformers are divided over this axis.
    mesh.tensor = 1
    # Pairs of a regular expression, found anywhere in paths such as blocks/0/mlp/fc1/kernel, and the layout of the
    # last dimensions of such an array: axes, + between those of one dimension, - for one that is whole, as in
    # "fsdp,tensor" or "-,fsdp+tensor". They go before the rules above; the first that fits counts.
    mesh.rules = ()

    return config.lock()


# Fields of config.model that are passed to the model where they are set.
MODEL_OPTIONS = (
    *("bn_group_size", "small_stem", "blur_pool", "zero_init_last", "drop_rate", "proj_drop_rate"),
    *("drop_path_rate", "drop_path_uniform", "layer_scale", "head_bias", "aux_logits"),
    *("global_pool", "positions", "class_token", "scan_blocks", "remat"),
)


def model_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of the model that `config` sets, besides its name, classes, channels and dtype."""
    return {name: config.model[name] for name in MODEL_OPTIONS if config.model[name] is not None}


# Fields of config.optimizer that are passed to the optimizer where they are set.
OPTIMIZER_OPTIONS = ("momentum", "nesterov", "b1", "b2", "eps", "decay", "mu_dtype")


def optimizer_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of the optimizer that `config` sets, besides those that each of them has."""
    return {name: config.optimizer[name] for name in OPTIMIZER_OPTIONS if config.optimizer[name] is not None}


# Fields of config.schedule that are passed to the schedule where they are set, and what they are called there.
SCHEDULE_OPTIONS = {
    **{"power": "power", "factor": "factor", "timescale": "timescale", "points": "points"},
    **{"every_epochs": "every", "milestone_epochs": "milestones", "decay_epochs": "decay_steps"},
}


def schedule_options(config: ConfigDict, steps_per_epoch: int) -> dict[str, Any]:
    """Returns the arguments of the schedule that `config` sets, besides those that each of them has; in steps."""
    options: dict[str, Any] = {}
    for field, name in SCHEDULE_OPTIONS.items():
        value = config.schedule[field]
        if value is None:
            continue
        if field == "points":
            value = tuple((epoch * steps_per_epoch, share) for epoch, share in value)
        elif field == "milestone_epochs":
            value = tuple(epoch * steps_per_epoch for epoch in value)
        elif field in ("every_epochs", "decay_epochs"):
            value = value * steps_per_epoch
        options[name] = value
    return options


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns the configuration with what `data.model_input` asks for filled in; a copy.

    Raises:
        ConfigError: if there is no such model.
    """
    config = config.copy_and_resolve_references()
    if config.data.model_input:
        from vision_jax.models import registry  # here, because it imports JAX

        spec = registry.entry(config.model.name).input
        config.data.update(
            {"image_size": spec.size, "channels": spec.channels, "mean": spec.mean, "std": spec.std}
            | {"eval_crop": spec.crop_pct, "eval_filter": spec.interpolation}
        )
    return config


def augmentation_fields(config: ConfigDict) -> "AugmentConfig":
    """Returns what `config` says of augmentation."""
    from vision_jax.augment import AugmentConfig  # here, because it imports JAX

    return AugmentConfig(
        **config.augment, mean_color=tuple(min(255, max(0, round(255 * mean))) for mean in config.data.mean)
    )


def closest(value: str, choices: Iterator[str] | list[str] | tuple[str, ...], listed_by: str | None = None) -> str:
    """Returns a phrase that helps whoever wrote `value` for one of `choices`.

    `listed_by` is where all of them are to be found, if they are too many for a message.
    """
    choices = list(choices)
    if near := difflib.get_close_matches(value, choices, n=3, cutoff=0.5):
        return f"did you mean {' or '.join(near)}?"
    return f"there are: {', '.join(choices)}." if listed_by is None else f"{listed_by} lists them all."


def to_json(config: ConfigDict) -> str:
    """Returns the configuration as JSON, sorted and indented, with null for what is not set."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_dict(fields: dict) -> ConfigDict:
    """Returns the configuration of which `to_json` wrote `fields`.

    Raises:
        ConfigError: if there is a field that this version does not have.
    """
    config = default_config()
    known = dict(flatten(config))
    values = dict(flatten(fields))
    if unknown := sorted(values.keys() - known.keys()):
        raise ConfigError(f"The stored configuration has fields that this version does not know: {', '.join(unknown)}.")
    for path, value in values.items():
        node, name = _parent(config, path)
        node[name] = _as(tuple, value)
    return config


def _as(kind: type, value: object) -> Any:
    """Returns lists and tuples, also those within others, as `kind`; all else as it is."""
    return kind(_as(kind, v) for v in value) if isinstance(value, list | tuple) else value


def _parent(config: ConfigDict, path: str) -> tuple[ConfigDict, str]:
    """Returns what holds the field at a path such as `data.image_size`, and the field's name there."""
    *parents, name = path.split(".")
    for parent in parents:
        config = config[parent]
    return config, name


def flatten(config: ConfigDict | dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields (path, value) for every field, with paths such as `data.image_size`."""
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict | dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _as(list, value)


def differences(old: ConfigDict | dict, new: ConfigDict | dict) -> tuple[list[str], list[str]]:
    """Returns a line `field: old -> new` for each field that differs.

    A field that `old` lacks has its default there: an older version did not know it.

    Returns:
        the lines of the fields that change what is computed, and those of the fields that do not.
    """
    before, after = dict(flatten(default_config())) | dict(flatten(old)), dict(flatten(new))
    lines: tuple[list[str], list[str]] = ([], [])
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            free = any(fnmatch.fnmatchcase(path, pattern) for pattern in _FREE)
            lines[free].append(f"{path}: {before.get(path)!r} -> {after.get(path)!r}")
    return lines


def validate(config: ConfigDict, num_devices: int) -> None:
    """Checks all fields together, before anything is read or allocated.

    Args:
        config: the configuration.
        num_devices: devices of all processes.

    Raises:
        ConfigError: with one line for each problem.
    """
    problems = list(_check_types(config))
    if not problems:  # the other checks compute with the values
        checks = (_check_ranges(config), _check_names(config), _check_data(config), _check_batches(config, num_devices))
        problems = [problem for check in checks for problem in check]
    if problems:
        raise ConfigError("The configuration cannot work:\n" + "\n".join(f"  - {p}" for p in problems))


def _check_types(config: ConfigDict) -> Iterator[str]:
    """Checks that there are all fields and no others, each of the type of its default."""
    reference = default_config()
    values, defaults = dict(flatten(config)), dict(flatten(reference))
    for path in sorted(values.keys() - defaults.keys()):
        yield f"{path} is no field of the configuration: {closest(path, list(defaults), 'vision_jax/config.py')}"
    for path in sorted(defaults.keys() - values.keys()):
        yield f"{path} is missing: start from vision_jax.config.default_config()."
    for path in sorted(defaults.keys() & values.keys()):
        value = values[path]
        node, name = _parent(reference, path)
        kind = node.get_type(name)
        allowed = {float: (float, int), tuple: (list,)}.get(kind, (kind,))
        if value is None:
            if defaults[path] is not None:
                yield f"{path} is None; it takes a {kind.__name__}, such as {defaults[path]!r}."
        elif not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            yield f"{path} is {value!r}; it takes a {kind.__name__}."
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{path} is {value!r}; it takes a finite number."
        elif isinstance(value, list):
            yield from _check_items(path, value)


def _check_items(path: str, items: list) -> Iterator[str]:
    """Checks what a tuple holds."""

    def is_number(value: object) -> bool:
        return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)

    if path in _PATTERNS:
        if not all(isinstance(v, str) for v in items):
            yield f"{path} is {items!r}; it takes strings, regular expressions."
    elif path in _PAIRS:
        first, what = _PAIRS[path]
        for pair in items:
            if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], first) and is_number(pair[1])):
                yield f"{path} has {pair!r} in it; it takes pairs of {what}."
    elif path in _STRING_PAIRS:
        for pair in items:
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(v, str) for v in pair)):
                yield f"{path} has {pair!r} in it; it takes pairs of strings, {_STRING_PAIRS[path]}."
    elif not all(is_number(v) for v in items):
        yield f"{path} is {items!r}; it takes finite numbers."


def _check_ranges(config: ConfigDict) -> Iterator[str]:
    """Checks the fields that have a range or a list of choices of their own."""
    values = dict(flatten(config))
    for path, allowed in _CHOICES.items():
        if values[path] not in allowed:
            yield f"{path} is {values[path]!r}: {closest(str(values[path]), allowed)}"
    for path in _POSITIVE:
        if values[path] is not None and not values[path] > 0:  # type: ignore[operator]
            yield f"{path} is {values[path]!r}, which must be positive."
    for path in _NOT_NEGATIVE:
        if values[path] is not None and not values[path] >= 0:  # type: ignore[operator]
            yield f"{path} is {values[path]!r}, which must not be negative."
    for path in _BELOW_ONE:
        if values[path] is not None and not 0 <= values[path] < 1:  # type: ignore[operator]
            yield f"{path} is {values[path]!r}, which must be at least 0 and less than 1."
    if config.seed >= 2**31:
        yield f"seed is {config.seed}, which must be less than 2^31."
    for path in _PROBABILITIES:
        if not 0 <= values[path] <= 1:  # type: ignore[operator]
            yield f"{path} is {values[path]!r}, a probability between 0 and 1."
    if config.schedule.warmup_steps is not None and config.schedule.warmup_share is not None:
        yield "schedule.warmup_steps and schedule.warmup_share are both set: leave one of them unset."
    in_epochs = config.total_steps is None and config.schedule.warmup_steps is config.schedule.warmup_share is None
    if in_epochs and config.schedule.warmup_epochs >= config.epochs > 0:
        yield (
            f"schedule.warmup_epochs is {config.schedule.warmup_epochs} and the training only {config.epochs} "
            "epochs: shorten the warm-up or lengthen the training."
        )
    if config.batch_size % config.optimizer.accumulate:
        yield (
            f"optimizer.accumulate is {config.optimizer.accumulate}, which does not divide "
            f"batch_size={config.batch_size}."
        )
    if config.loss.name != "sigmoid" and (config.loss.threshold is not None or config.loss.sum_classes):
        yield f"loss.threshold and loss.sum_classes are of the loss sigmoid, and loss.name is {config.loss.name!r}."
    if any(not weight >= 0 for weight in config.loss.class_weights):
        yield f"loss.class_weights is {config.loss.class_weights}: no weight may be negative."
    if (config.distill.teacher is None) != (config.distill.pretrained is None):
        yield (
            f"distill.teacher is {config.distill.teacher!r} and distill.pretrained {config.distill.pretrained!r}: a "
            "teacher takes a name and weights, such as resnet50 and resnet50.safetensors."
        )
    profiled = config.log.profile_steps
    if profiled and not (
        len(profiled) == 2 and all(isinstance(step, int) for step in profiled) and 1 <= profiled[0] <= profiled[1]
    ):
        yield f"log.profile_steps is {tuple(profiled)}: it takes (first, last), positive integers, or () for none."
    best_metric = config.checkpoint.best_metric
    names = [f"val/{prefix}{name}" for prefix in ("", "ema_") for name in ("top1", "top5", "loss")]
    if best_metric not in names:
        yield f"checkpoint.best_metric is {best_metric!r}: {closest(best_metric, names)}"
    elif config.ema_decay is None and best_metric.startswith("val/ema_"):
        yield f"checkpoint.best_metric is {best_metric!r}, but ema_decay is not set."


def _check_names(config: ConfigDict) -> Iterator[str]:
    """Checks the names that other modules define, and that what has such a name has the options that are set."""
    from vision_jax import augment, models, optim  # here, because they import JAX

    if config.optimizer.name not in optim.list_optimizers():
        yield f"optimizer.name is {config.optimizer.name!r}: {closest(config.optimizer.name, optim.list_optimizers())}"
    else:
        takes = optim.optimizer_arguments(config.optimizer.name)
        yield from _check_options(config.optimizer, "optimizer", dict.fromkeys(OPTIMIZER_OPTIONS), takes)
    if config.schedule.name not in optim.list_schedules():
        yield f"schedule.name is {config.schedule.name!r}: {closest(config.schedule.name, optim.list_schedules())}"
    else:
        yield from _check_options(
            config.schedule, "schedule", SCHEDULE_OPTIONS, optim.schedule_arguments(config.schedule.name)
        )
    try:
        augment.create_augmentation(augmentation_fields(config))
    except ConfigError as error:
        yield str(error)
    for path, name in (("model.name", config.model.name), ("distill.teacher", config.distill.teacher)):
        try:
            fields = [] if name is None else models.registry.option_names(name)
        except ConfigError as error:
            yield f"{path}: {error}"
        else:
            if path == "model.name":
                yield from _check_options(config.model, "model", dict.fromkeys(MODEL_OPTIONS), fields)
            elif name and config.distill.model_input:
                channels = models.registry.entry(name).input.channels
                if channels != config.data.channels:
                    yield f"distill.model_input is set, but {name} expects {channels} channels: set it to False."


def _check_options(
    node: ConfigDict, path: str, options: Mapping[str, str | None], takes: Container[str]
) -> Iterator[str]:
    """Checks that what a node names has the options that the node sets: its fields, and their names there if others."""
    for field, name in options.items():
        if node[field] is not None and (name or field) not in takes:
            yield f"{path}.{field} is set to {node[field]!r}, but {node.name} has no such option: leave it unset."


def _check_data(config: ConfigDict) -> Iterator[str]:
    """Checks `config.data`, and that what is to be read is there."""
    data = config.data
    if data.source == "digits" and data.dir and pathlib.Path(data.dir).expanduser().is_file():
        yield f"data.dir is {data.dir!r}, a file: it takes the folder that the digits are cached in."
    if data.channels not in (1, 3):
        yield f"data.channels is {data.channels}: 3 is RGB, 1 is greyscale."
    for path in ("mean", "std"):
        if len(data[path]) != data.channels:
            yield f"data.{path} has {len(data[path])} values for data.channels={data.channels}: give one a channel."
    if any(not s > 0 for s in data.std):
        yield f"data.std is {data.std}: every value must be positive."
    if data.eval_crop is not None and not 0 < data.eval_crop <= 1:
        yield f"data.eval_crop is {data.eval_crop}, a share: more than 0 and at most 1."
    elif (resize := eval_resize(config)) < eval_size(config):
        what = "image_size" if data.eval_size is None else "eval_size"
        yield f"data.eval_resize is {resize}, less than data.{what}={eval_size(config)}: raise it."
    if data.balanced and data.repeats > 1:
        yield f"data.balanced and data.repeats={data.repeats} cannot go together: set repeats to 1."
    if data.repeats > config.batch_size:
        yield f"data.repeats is {data.repeats}, more than batch_size={config.batch_size}."
    yield from _check_progressive(config)
    for path, top in (("crop_scale", 1.0), ("crop_ratio", math.inf)):
        if len(data[path]) != 2 or not 0 < data[path][0] <= data[path][1] <= top:
            limit = " and at most 1" if top == 1 else ""
            yield f"data.{path} is {data[path]}: it takes (least, largest), positive{limit}."
    if data.source in ("tfds", "folder"):
        if not data.dir:
            yield (
                f"data.dir is not set, and data.source={data.source} reads from it: pass --config.data.dir=DIR, or "
                "--config.data.source=synthetic for a run without data."
            )
        elif not (directory := pathlib.Path(data.dir).expanduser()).is_dir():
            yield f"data.dir is {data.dir!r}, and there is no such directory."
        elif not any(directory.iterdir()):
            yield f"data.dir is {data.dir!r}, which is empty."


def _check_progressive(config: ConfigDict) -> Iterator[str]:
    """Checks the sizes of progressive resizing."""
    epochs, sizes = config.data.progressive_epochs, config.data.progressive_sizes
    if len(epochs) != len(sizes):
        yield (
            f"data.progressive_epochs has {len(epochs)} values and data.progressive_sizes {len(sizes)}: each size "
            "takes the epoch from which on it holds."
        )
    elif epochs and (epochs[0] != 0 or any(a >= b for a, b in itertools.pairwise(epochs))):
        yield f"data.progressive_epochs is {tuple(epochs)}: it must begin with 0 and rise."
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        yield f"data.progressive_sizes is {tuple(sizes)}: every size must be a positive integer."


def eval_size(config: ConfigDict) -> int:
    """Returns height and width of the images that are evaluated."""
    return config.data.eval_size or config.data.image_size


def eval_resize(config: ConfigDict) -> int:
    """Returns what the shorter side of an evaluation image is resized to."""
    crop = config.data.eval_crop
    return config.data.eval_resize if crop is None else math.floor(eval_size(config) / crop)


def _check_batches(config: ConfigDict, num_devices: int) -> Iterator[str]:
    """Checks the batches against the devices."""
    from vision_jax import sharding  # here, because it imports JAX

    try:
        axes = sharding.mesh_axes(config, num_devices)
    except ConfigError as error:
        yield str(error)
        return
    along_data = axes["data"] * axes["fsdp"]
    batches = {"batch_size": config.batch_size, "eval.batch_size": config.eval.batch_size}
    for path, batch_size in batches.items():
        if batch_size is not None and batch_size % along_data:
            near = max(1, round(batch_size / along_data)) * along_data
            yield f"{path} is {batch_size}, which {along_data} devices do not divide: {near} would do."
    if 0 < config.augment.mix_group < config.batch_size and config.batch_size % config.augment.mix_group:
        yield f"augment.mix_group is {config.augment.mix_group}, which does not divide batch_size={config.batch_size}."
    part = config.batch_size // config.optimizer.accumulate
    if config.optimizer.accumulate > 1 and part % along_data:
        yield (
            f"optimizer.accumulate is {config.optimizer.accumulate}: its parts of {part} examples are not divided by "
            f"{along_data} devices."
        )
    group = config.model.bn_group_size
    if group and 0 < group < part and part % group:
        what = "batch_size" if part == config.batch_size else "batch_size / optimizer.accumulate"
        yield f"model.bn_group_size is {group}, which does not divide {what}={part}."


@dataclasses.dataclass(frozen=True)
class Plan:
    """What follows from a configuration once the number of training examples is known.

    Attributes:
        steps_per_epoch: floor(examples / batch_size).
        total_steps: updates in the whole training.
        warmup_steps: updates during which the learning rate rises.
        learning_rate: the peak, scaled to the batch.
        eval_every: steps between evaluations.
        checkpoint_every: steps between checkpoints; None: only those before evaluations and at the end.
        train_sizes: (first step, size) of progressive resizing, ascending; empty without it.
        ema_start: updates until the moving average is one.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    learning_rate: float
    eval_every: int
    checkpoint_every: int | None
    train_sizes: tuple[tuple[int, int], ...] = ()
    ema_start: int = 0

    def evaluates_at(self, step: int) -> bool:
        """Returns whether the state is evaluated after `step` updates."""
        return step > 0 and (step % self.eval_every == 0 or step == self.total_steps)

    def saves_at(self, step: int) -> bool:
        """Returns whether the state is saved after `step` updates: also before each evaluation."""
        every = self.checkpoint_every
        return self.evaluates_at(step) or (step > 0 and every is not None and step % every == 0)


def make_plan(config: ConfigDict, num_examples: int) -> Plan:
    """Turns epochs into steps and scales the learning rate.

    Args:
        config: the configuration.
        num_examples: in the training split.

    Raises:
        ConfigError: if the batch is larger than the split, or the warm-up not shorter than the training.
    """
    steps_per_epoch = num_examples // config.batch_size
    if not steps_per_epoch:
        raise ConfigError(
            f"batch_size is {config.batch_size}, more than the {num_examples} examples of the split "
            f"{config.data.train_split!r}: make it at most {num_examples}."
        )

    def steps(path: str, epochs: float, given: int | None) -> int:
        if given is not None:
            return given
        if epochs > 0 and (result := round(epochs * steps_per_epoch)) == 0:
            raise ConfigError(f"{path} is {epochs}, less than one of the {steps_per_epoch} steps of an epoch.")
        return result if epochs > 0 else 0

    total_steps = steps("epochs", config.epochs, config.total_steps)
    warmup_steps = config.schedule.warmup_steps
    if config.schedule.warmup_share is not None:
        warmup_steps = round(config.schedule.warmup_share * total_steps)
    warmup_steps = steps("schedule.warmup_epochs", config.schedule.warmup_epochs, warmup_steps)
    if warmup_steps >= total_steps:
        raise ConfigError(
            f"The warm-up is {warmup_steps} steps and the training {total_steps} (an epoch has {steps_per_epoch}): "
            "lower schedule.warmup_epochs or schedule.warmup_steps, or raise epochs or total_steps."
        )
    learning_rate = config.optimizer.learning_rate
    if (reference := config.optimizer.learning_rate_batch_size) is not None:
        from vision_jax import optim  # here, because it imports JAX

        scaling = config.optimizer.learning_rate_scaling
        learning_rate = optim.scale_learning_rate(learning_rate, config.batch_size, reference, scaling)
    return Plan(
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        learning_rate=learning_rate,
        eval_every=steps("eval.every_epochs", config.eval.every_epochs, config.eval.every_steps),
        checkpoint_every=config.checkpoint.every_steps,
        train_sizes=tuple(
            (round(epoch * steps_per_epoch), size)
            for epoch, size in zip(config.data.progressive_epochs, config.data.progressive_sizes, strict=True)
        ),
        ema_start=round(config.ema_start_epochs * steps_per_epoch),
    )
