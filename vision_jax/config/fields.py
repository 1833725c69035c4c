"""Every field of the configuration, its default, and what it means.

A file in `configs/` starts from `default_config()` and overrides what differs. The result is locked: a misspelt field
is an error that names the nearest right one. `None` in a field that has it as its default means that the program
decides, as the comment beside the field says.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vision_jax.data.pillow import MAX_PIXELS


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
    # What the model computes in: float32 or bfloat16, or in evaluation alone float16; auto is bfloat16 on GPU and TPU,
    # float32 on CPU. Parameters, statistics, optimizer state and loss are float32 always.
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
    # Weights to start from, or to evaluate: a safetensors, npz or torch file, or hf://timm/resnet50.a1_in1k, as timm,
    # torchvision or the model's authors name their tensors. Another number of classes gets a new classifier, unless
    # both sides' names are known and tell which rows to take over; see vision_jax/pretrained.
    model.pretrained = placeholder(str)
    # What the classes of these weights are called: imagenet (the 1,000 WordNet ids, sorted), or a text file with one
    # name a line. None: what the file says, or imagenet where the weights have 1,000 classes and all of the data's are
    # WordNet ids among these. With model.num_classes set to the weights' number, labels are mapped into these classes.
    model.pretrained_classes = placeholder(str)

    config.data = data = ConfigDict()
    # digits: scikit-learn's 1,797 digits. tfds: a data set in tfds' layout, of ArrayRecord files (as prepared by
    # `python -m vision_jax prepare`) or of TFRecord files. folder: DIR/SPLIT/CLASS/IMAGE. synthetic: made-up JPEGs that
    # need no data.
    data.source = "tfds"
    # tfds: the folder with features.json, or one above it that holds no second data set. folder: DIR as above.
    # digits: where the data set is cached; None: vision_jax's cache.
    data.dir = placeholder(str)
    # Names of the splits; for tfds also slices, such as train[:99%].
    data.train_split = "train"
    data.val_split = "validation"
    # folder: a CSV file of images and their classes, for a split whose images are not in class folders; a path, also
    # below `dir`. None: class folders, or a file of a usual name, such as LOC_val_solution.csv beside the split.
    data.train_labels = placeholder(str)
    data.val_labels = placeholder(str)
    # Before training, read and decode every validation image, and refuse to start if one is damaged.
    data.check_val_images = False
    # Larger images count as damaged: this many pixels take half a gigabyte of a decoding thread's memory.
    data.max_pixels = MAX_PIXELS
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
    # What is cut out of each training image, which is decoded once: [NAME=]COUNTxSIZE[:LEAST-LARGEST] (share of the
    # area), separated by commas, such as DINO's 2x224:0.14-1,8x96:0.05-0.14. Unless they have names, the first is the
    # field `image` of a batch, the following are `view1`, `view2` and so on; "": one, of image_size and crop_scale.
    data.views = ""
    # How training crops are resized. OpenCV's bilinear and bicubic: fast, no antialiasing beyond the decoder's
    # halvings; area: antialiased. Pillow's, as torchvision and timm train, antialiased: pillow-bilinear and
    # pillow-bicubic.
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
    # Damaged validation records that each process may leave out of an evaluation before that is an error; `val/count`
    # says how many were evaluated.
    data.max_bad_eval_records = 0
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

    # What is minimized: a name of `vision_jax.objectives.OBJECTIVES`, and beside it the fields of that dataclass that
    # differ from their defaults (`vision_jax.recipes.objective` has all of them). None: classification, or distillation
    # where distill.teacher is set; both take their options from the fields below.
    config.objective = ConfigDict({"name": placeholder(str)})

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
    # `window` steps that were not skipped; None: no step is. After 8 skipped steps in a row this is taken for a lasting
    # change, and the window begins anew.
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

    # What is measured, by name: the metrics of `val` are val/top1 and so on. `kind` is a name of
    # `vision_jax.evaluators.EVALUATORS`; None: classification, or the objective's own loss where that has no classes.
    # `every_epochs` overrides eval.every_epochs; None: as often. Further fields are those of the kind's dataclass.
    config.evals = ConfigDict({"val": {"kind": placeholder(str), "every_epochs": placeholder(float)}})

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

    # End the process, with the stacks of all its threads, when no step ends for so long; compiling does not count,
    # nor do checkpoints. 0: never.
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


# Fields of config.optimizer that are passed to the optimizer where they are set.
OPTIMIZER_OPTIONS = ("momentum", "nesterov", "b1", "b2", "eps", "decay", "mu_dtype")


# Fields of config.schedule that are passed to the schedule where they are set, and what they are called there.
SCHEDULE_OPTIONS = {
    **{"power": "power", "factor": "factor", "timescale": "timescale", "points": "points"},
    **{"every_epochs": "every", "milestone_epochs": "milestones", "decay_epochs": "decay_steps"},
}

# Fields that every evaluation of config.evals has; others are options of its kind.
EVAL_FIELDS = ("kind", "every_epochs")
# Beginnings of the paths of fields that are not listed here, but in the dataclasses of objectives and evaluators.
OPEN_FIELDS = ("objective.", "evals.")
