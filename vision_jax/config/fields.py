"""Every field of the configuration, its default, and what it means.

A file in `configs/` starts from `default_config()` and overrides what differs. The result is locked: a misspelled field
is an error that suggests the closest valid name. Where `None` is the default, the comment above the field says what the
program does then.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vision_jax.data.pillow import MAX_PIXELS


def default_config() -> ConfigDict:
    """Returns the locked configuration that every file in `configs/` starts from."""
    config = ConfigDict()
    # Random seed of the initial parameters, the order of the data and every augmentation.
    config.seed = 0
    # Examples per step, over all devices of all processes.
    config.batch_size = 256
    # Length of the run in epochs, of floor(examples / batch_size) steps each.
    config.epochs = 90.0
    # Length of the run in steps; overrides `epochs`.
    config.total_steps = placeholder(int)
    # Compute dtype of the model: float32, bfloat16, or (evaluation only) float16; auto is bfloat16 on GPU and TPU and
    # float32 on CPU. Parameters, batch statistics, optimizer state and loss are always float32.
    config.dtype = "auto"

    config.model = model = ConfigDict()
    # One of `vision_jax.list_models()`.
    model.name = "resnet50"
    # None: as many as the training data has.
    model.num_classes = placeholder(int)
    # The fields below are passed to the model if set; None means the model's own default. Not every model has each.
    # Number of consecutive examples that batch norm normalizes together; 0, or more than the batch: the global batch
    # (sync-BN). In torch it is the batch of one GPU, unless norms are synchronized.
    model.bn_group_size = placeholder(int)
    # Stem of one 3x3 convolution of stride 1 without max pooling, for images of about 32 pixels.
    model.small_stem = placeholder(bool)
    # Blur before downsampling (BlurPool): by strided convolutions (conv), or by max pooling too (conv+pool).
    model.blur_pool = placeholder(str)
    # Stride of a ResNet's last map: 16 or 8 instead of 32, for segmentation, with dilated convolutions.
    model.output_stride = placeholder(int)
    # What a ResNet's batch norms add to variances. 0 for torchvision's COCO_V1 weights of RetinaNet; None: 1e-5.
    model.norm_epsilon = placeholder(float)
    # Initialize the last norm scale of each residual branch to zero, so that each block starts as the identity.
    model.zero_init_last = placeholder(bool)
    # Dropout rate before the classifier.
    model.drop_rate = placeholder(float)
    # Dropout rate after the dense layers of a transformer's blocks.
    model.proj_drop_rate = placeholder(float)
    # Stochastic depth: drop rate of the last residual branch, increasing linearly with depth from 0.
    model.drop_path_rate = placeholder(float)
    # Initial bias of the classifier; a large negative one suits a sigmoid loss over many classes.
    model.head_bias = placeholder(float)
    # Standard deviation of the initial classifier of a ResNet, ResNetV2 or vision transformer; a small one suits
    # pretrained weights.
    model.head_std = placeholder(float)
    # Batch norm without scale and bias before a vision transformer's classifier, as in MAE's linear probe.
    model.norm_before_head = placeholder(bool)
    # Train auxiliary classifiers too; `loss.auxiliary_weight` is their weight.
    model.aux_logits = placeholder(bool)
    # How a transformer pools its tokens: token (the class token), avg (the mean of the patch tokens), or, of a vision
    # transformer, token+avg (both). And of how many of its last blocks it takes the class token, as DINO's probe does.
    model.global_pool = placeholder(str)
    model.feature_blocks = placeholder(int)
    # Position embedding of a transformer: learned, or the fixed sincos2d; mae and mocov3 begin as the tables of these
    # methods, and are fixed where pos_embed is in optimizer.frozen; relative: a bias of attention for each offset.
    model.positions = placeholder(str)
    # Initial weights of a vision transformer: normal, as in timm; xavier, as in MAE; or mocov3.
    model.weight_init = placeholder(str)
    # Heads of a vision transformer's attention.
    model.num_heads = placeholder(int)
    # Whether a transformer has a class token; without one, global_pool is avg.
    model.class_token = placeholder(bool)
    # Interpolate a transformer's learned positions for images of other sizes than data.image_size, such as small crops.
    model.interpolate_positions = placeholder(bool)
    # Height and width of Swin's windows, in positions.
    model.window_size = placeholder(int)
    # Height and width, in patches, of the windows within which most blocks of a vision transformer attend, as in
    # ViTDet, for which class_token is False and global_pool avg; and how many blocks, evenly spaced, see all patches.
    model.attention_window = placeholder(int)
    model.global_blocks = placeholder(int)
    # Initial LayerScale of a transformer's residual branches; and whether all blocks have the same `drop_path_rate`.
    model.layer_scale = placeholder(float)
    model.drop_path_uniform = placeholder(bool)
    # Scan over the blocks, which compiles only one of them: shorter compilation.
    model.scan_blocks = placeholder(bool)
    # Rematerialization (gradient checkpointing) within blocks, to save memory: full, or dots, which keeps the results
    # of matrix products.
    model.remat = placeholder(str)
    # Pretrained weights to start from, or to evaluate: a safetensors, npz or torch file, or hf://timm/resnet50.a1_in1k,
    # with timm's, torchvision's or the authors' tensor names; or, to start from, the workdir of another run. A
    # different number of classes gets a new classifier, unless the class names of both sides are known, and rows can be
    # matched.
    model.pretrained = placeholder(str)
    # If that is a workdir, whether to start from its moving averages, which a method's teacher may be. None: if it has
    # some.
    model.pretrained_average = placeholder(bool)
    # Class names of these weights: imagenet (the 1,000 WordNet ids, sorted), or a text file with one name per line.
    # None: what the file says, or imagenet if the weights have 1,000 classes and all classes of the data are WordNet
    # ids among them. If model.num_classes is the number of classes of the weights, labels are mapped to those classes.
    model.pretrained_classes = placeholder(str)

    config.data = data = ConfigDict()
    # digits: scikit-learn's 1,797 digits. tfds: a data set in tfds' layout, as ArrayRecord files (which `python -m
    # vision_jax prepare` writes) or TFRecord files. folder: DIR/SPLIT/CLASS/IMAGE. pairs: images with captions, as
    # DIR/SPLIT.csv or DIR/SPLIT/*.tar. synthetic: generated JPEGs, which need no data. For objectives that learn from
    # boxes or masks: coco: DIR/annotations/instances_SPLIT.json and DIR/SPLIT; voc: DIR/JPEGImages and so on, such as
    # VOCdevkit/VOC2012; masks: DIR/images/SPLIT and DIR/masks/SPLIT; scenes: made-up images with scikit-learn's digits;
    # tfds: what `prepare` has made of these; synthetic: made-up ones. A config file may add others: docs/extending.md.
    data.source = "tfds"
    # tfds: the folder with features.json, or a parent that holds no other data set. folder, coco, voc, masks: DIR as
    # above. digits, scenes: where the data set is cached; None: vision_jax's cache.
    data.dir = placeholder(str)
    # Names of the splits; for tfds also slices such as train[:99%].
    data.train_split = "train"
    data.val_split = "validation"
    # tfds: the name of the class label, where there are several; None: label.
    data.label = placeholder(str)
    # folder: a CSV file of image names and classes, for a split that is not in class folders; its path, absolute or
    # relative to `dir`. None: class folders, or a CSV file with a usual name, such as LOC_val_solution.csv, beside the
    # split.
    data.train_labels = placeholder(str)
    data.val_labels = placeholder(str)
    # Decode every validation image before training, and refuse to start if more than `max_bad_eval_records` are
    # damaged.
    data.check_val_images = False
    # Images with more pixels count as damaged. The default takes half a gigabyte of memory in a decoding thread.
    data.max_pixels = MAX_PIXELS
    # Set image_size, channels, mean, std, eval_crop and eval_filter to what the model's published weights expect
    # (timm's values), overriding the fields below.
    data.model_input = False
    # Height and width of the training images.
    data.image_size = 224
    # Height and width of the evaluation images, where larger ones than in training can help; None: `image_size`.
    data.eval_size = placeholder(int)
    # 3: RGB, 1: grayscale.
    data.channels = 3
    # Normalization, one value per channel, for pixels from 0 to 1.
    data.mean = (0.485, 0.456, 0.406)
    data.std = (0.229, 0.224, 0.225)
    # Random resized crop in training: range of the share of the area, and of width / height; a crop_ratio of () is that
    # of the image, so that the image is squeezed into a square, and a crop cut out of it.
    data.crop_scale = (0.08, 1.0)
    data.crop_ratio = (3 / 4, 4 / 3)
    # Views (multi-crop) of each training image, which is decoded only once: [NAME=]COUNTxSIZE[:MIN-MAX] (share of the
    # area), separated by commas, such as DINO's 2x224:0.14-1,8x96:0.05-0.14. Unnamed views become the fields `image`,
    # `view1`, `view2`, ... of a batch. "": one view of image_size and crop_scale.
    data.views = ""
    # How training crops are resized. OpenCV's bilinear and bicubic: fast, antialiased only by scaled decoding; area:
    # antialiased. pillow-bilinear and pillow-bicubic: antialiased, as in torchvision and timm.
    data.train_filter = "bilinear"
    # Decode a JPEG at 1/2, 3/8, 1/4 or 1/8 of its size if the crop is still at least as large as `image_size`.
    data.scaled_decoding = True
    # libjpeg-turbo's faster, less exact decoding in training; each saves about 5 % of the time.
    data.fast_dct = False
    data.fast_upsampling = False
    # Train on a random subset of this many examples, the same for every seed; None: on all.
    data.train_examples = placeholder(int)
    # Or on this many random examples of each class, the same for every seed. This may read all labels, once.
    data.train_per_class = placeholder(int)
    # Or on the images that a text file lists, one name a line: IMAGE, or CLASS/IMAGE.
    data.train_list = placeholder(str)
    # Repeated augmentation: copies of each example in a batch, cropped and augmented independently.
    data.repeats = 1
    # Balanced sampling: every class is seen equally often, so examples of small classes more often than others.
    data.balanced = False
    # Progressive resizing: the size of training images from each of these epochs on; (): always `image_size`. The step
    # is compiled for all sizes before the first one.
    data.progressive_epochs = ()
    data.progressive_sizes = ()
    # Evaluation: the shorter side is resized to this, then the center is cropped.
    data.eval_resize = 256
    # timm's crop_pct: the share of the resized shorter side that is cropped; overrides `eval_resize`.
    data.eval_crop = placeholder(float)
    # Resize the whole image to a square of this size, whatever its aspect ratio, before the center is cropped.
    data.eval_square = False
    # How evaluation images are resized: Pillow's antialiased bilinear or bicubic.
    data.eval_filter = "bilinear"
    # Number of damaged training records that each process may replace by others; one more is an error.
    data.max_bad_records = 0
    # Number of damaged validation records that each process may leave out of an evaluation; one more is an error.
    # `val/count` is the number of examples that were evaluated.
    data.max_bad_eval_records = 0
    # Decoding threads per process of the run; None: one per core.
    data.num_threads = placeholder(int)
    # Worker processes among which these threads are divided, per process of the run; 0: none. The GIL keeps one process
    # from using more than a few cores; see docs/benchmarks.md.
    data.num_workers = 0
    # Global batches to prefetch onto the devices.
    data.prefetch = 2
    # Sizes of the splits of the synthetic source.
    data.synthetic_train_examples = 1_281_167
    data.synthetic_val_examples = 1_000

    # Images with boxes or masks; see vision_jax/data/boxes.py. The fields above that crop or resize do not apply.
    data.dense = dense = ConfigDict()
    # How training images are resized. fit: the shorter side to `shorter`, but the longer one to at most `longer`; of
    # several `shorter` sides one is drawn for each image. range: the shorter side to a length drawn from the two of
    # `shorter`, then a random crop of the canvas. jitter: to fit the canvas, times a factor drawn from `jitter`, then a
    # random crop of the canvas (large-scale jitter). squash: to the canvas, whatever the aspect ratio.
    dense.resize = "fit"
    dense.shorter = (800,)
    # None: 1333 for fit, else without a limit.
    dense.longer = placeholder(int)
    dense.jitter = (0.1, 2.0)
    # (height, width) of the arrays that images are laid into, each into the smallest that holds it; batches are made of
    # images of one canvas, and the step is compiled for each. What cuts or squashes takes one canvas.
    dense.canvases = ((800, 1344), (1344, 800))
    # The same in evaluation, where images are never cut: fit, or squash if training does. None and (): `shorter` (the
    # largest) and `longer`, or where training cuts, the shorter side of the canvas for both; and `canvases`.
    dense.eval_shorter = placeholder(int)
    dense.eval_longer = placeholder(int)
    dense.eval_canvases = ()
    # Most boxes of an image; more are an error.
    dense.max_boxes = 100
    # coco, voc: names of the categories to take, in the order of their labels; (): all; ("voc",): of COCO those 20 that
    # Pascal VOC has. masks: names of the classes; (): the lines of DIR/classes.txt.
    dense.categories = ()
    # coco, voc: labels are the category ids of the data, with 0 as the background, as in torchvision's weights for
    # detection; False: they number the categories.
    dense.category_ids = False
    # masks: the classes begin at 1, and 0 is ignored, as in ADE20K.
    dense.reduce_zero_label = False
    # Leave out of training what has nothing to learn from, as torchvision's references do: images without a box, or
    # with objects of at most a thousand pixels together.
    dense.drop_empty = False
    # Leave out objects and images that are wrong, such as boxes without area, of which COCO has some, and count them;
    # False: the first one is an error.
    dense.skip_bad = False

    # Augmentation of training images on the devices; vision_jax/augment/pipeline.py has the order.
    config.augment = augment = ConfigDict()
    # Probability of a horizontal flip.
    augment.flip = 0.5
    # A policy such as rand-m9-mstd0.5-inc1, autoaugment, trivialaugment_wide, augmix-m3-w3 or 3augment; "": none.
    # vision_jax/augment/notation.py has all of them.
    augment.policy = ""
    # Strengths of random brightness, contrast, saturation and, optionally, hue (at most 0.5); (): none.
    augment.color_jitter = ()
    augment.color_jitter_prob = 1.0
    # Probabilities of grayscale, of solarization (at 128), and of a Gaussian blur (sigma 0.1 to 2).
    augment.greyscale = 0.0
    augment.solarize = 0.0
    augment.blur = 0.0
    # How these and the color jitter are done: in 8 bits as by Pillow (pillow), or in floating point as in the code of
    # simclr (version 2) or byol, where brightness is added. vision_jax/augment/float_color.py has the formulas.
    augment.style = "pillow"
    # Random erasing after normalization: probability; fill, const (the mean) or pixel (noise); maximum number of boxes.
    augment.erase = 0.0
    augment.erase_mode = "const"
    augment.erase_count = 1
    # Side of Cutout's square, in pixels; 0: none.
    augment.cutout = 0
    # Pad by this many pixels and crop at random, for small images; set data.crop_scale and crop_ratio to (1, 1) with
    # it. The padding is black (constant) or mirrored (reflect).
    augment.shift = 0
    augment.shift_mode = "constant"
    # ColOut: share of the rows and columns that is dropped, the same ones in the whole batch; 0: none.
    augment.col_out = 0.0
    # Alpha of mixup and of CutMix; 0: off. If both are on, CutMix is chosen with probability `mix_switch_prob`.
    augment.mixup = 0.0
    augment.cutmix = 0.0
    augment.mix_prob = 1.0
    augment.mix_switch_prob = 0.5
    # What the mixing choice and ratio are drawn for: batch, pair or elem, as in timm.
    augment.mix_mode = "batch"
    # Number of examples that are mixed with each other, such as the batch per GPU of the source; 0, or more than the
    # batch: the whole batch.
    augment.mix_group = 0
    # What differs from the fields above for each crop of data.views, such as MoCo v3's "blur=1|blur=0.1,solarize=0.2",
    # one part per crop, separated by |; the last part is that of all crops that follow. "": nothing.
    augment.crops = ""

    config.optimizer = optimizer = ConfigDict()
    # One of `vision_jax.optim.list_optimizers()`.
    optimizer.name = "sgd"
    # Peak learning rate, at a batch size of `learning_rate_batch_size`, or at any if that is None.
    optimizer.learning_rate = 0.1
    # Scale the learning rate by batch_size / learning_rate_batch_size (linear), or by its square root (sqrt).
    optimizer.learning_rate_batch_size = placeholder(int)
    optimizer.learning_rate_scaling = "linear"
    optimizer.weight_decay = 1e-4
    # Weight decay at the end of the run, reached on a cosine schedule; None: constant.
    optimizer.weight_decay_end = placeholder(float)
    # Form of weight decay: coupled (added to the gradient), decoupled (times the learning rate), relative (times
    # learning rate / peak); None: the usual one of the optimizer. vision_jax/optim/optimizers.py has the formulas.
    optimizer.decay_form = placeholder(str)
    # Parameters that decay: kernels, all, timm (no vectors, positions or tokens) or not_norms.
    optimizer.decay_rule = "kernels"
    # Regular expressions, searched for in parameter paths such as layer1/0/conv1/kernel: parameters exempt from decay,
    # frozen parameters, and learning-rate multipliers as (pattern, factor) pairs.
    optimizer.no_decay = ()
    optimizer.frozen = ()
    optimizer.multipliers = ()
    # Parameters whose learning rate leaves the schedule, and is the peak in every step.
    optimizer.constant_rate = ()
    # Layer-wise learning rate decay: ratio of each layer's rate to that of the next one; None: one rate for all.
    optimizer.layer_decay = placeholder(float)
    # What its layers are: path patterns from the first layer to the last, where what a pattern captures, such as the
    # number of a block, makes layers of its own; what none matches is the head. (): timm's layers.
    optimizer.layers = ()
    # Parameters that are frozen at first, as (pattern, epochs) pairs: until then they have neither updates nor decay.
    optimizer.frozen_until = ()
    # Gradient clipping, by value, adaptively (AGC), of each parameter by its own norm, or by global norm; None: none.
    optimizer.clip_value = placeholder(float)
    optimizer.clip_adaptive = placeholder(float)
    # Parameters exempt from adaptive clipping; by default, the classifier.
    optimizer.no_clip_adaptive = (r"^(head|head_dist|fc|classifier)/",)
    optimizer.clip_parameter_norm = placeholder(float)
    optimizer.clip_global_norm = placeholder(float)
    # Arguments of the optimizer, in optax's names; None: its default. Not every optimizer has each. `decay` is torch's
    # alpha of RMSprop, and `mu_dtype` the dtype of the first moment. Of LARS, `by_rank` is the form of MoCo v3, BYOL,
    # Barlow Twins, VICReg and MAE, which adapts all but vectors, and `classic_momentum` that of SimCLR.
    optimizer.momentum = placeholder(float)
    optimizer.nesterov = placeholder(bool)
    optimizer.b1 = placeholder(float)
    optimizer.b2 = placeholder(float)
    optimizer.eps = placeholder(float)
    optimizer.decay = placeholder(float)
    optimizer.mu_dtype = placeholder(str)
    optimizer.by_rank = placeholder(bool)
    optimizer.classic_momentum = placeholder(bool)
    # Sharpness-aware minimization: rho, the radius of the perturbation (None: no SAM), applied every `sam_every` steps.
    optimizer.sam_rho = placeholder(float)
    optimizer.sam_every = 1
    # Gradient accumulation: micro-batches per update. Batch norm normalizes each micro-batch by itself.
    optimizer.accumulate = 1

    # Pruning while training, by the magnitudes of weights: sparsity rises from `initial_sparsity` to `sparsity` between
    # `begin_epochs` and `end_epochs` as in Zhu and Gupta 2017 (arXiv:1710.01878); vision_jax/optim/pruning.py has the
    # formula. Kernels alone are pruned, and of these not the ones that have a single input for each output.
    config.prune = prune = ConfigDict()
    # Share of the weights of pruned kernels that are zero at the end; None: no pruning, unless `pattern` is set.
    prune.sparsity = placeholder(float)
    prune.initial_sparsity = 0.0
    # With the same epoch, all is pruned at once. end_epochs None: half of what is left of the run at begin_epochs.
    prune.begin_epochs = 0.0
    prune.end_epochs = placeholder(float)
    # Steps between masks; they are made at the end too.
    prune.every_steps = 100
    # Prune as much of each array (array; of each block, if blocks are stacked), or by one threshold for all (global).
    prune.scope = "array"
    # N:M, such as 2:4 or 4:8: at most N of M consecutive inputs of each output are not zero, which sets the sparsity to
    # 1 - N/M. Inputs are the last axis but one of a kernel; kernels whose inputs M does not divide stay dense. "": any.
    prune.pattern = ""
    # Regular expressions, searched for in parameter paths: kernels that stay dense; by default, the first convolution.
    # And whether the classifier is pruned too.
    prune.exclude = (r"^(visual/)?(stem|conv_stem|patch_embed|prep|conv1|Conv2d_1a_3x3|features/(0|conv0))/",)
    prune.classifier = False
    # What a masked weight is until `end_epochs`: zero for good (zero), kept aside to come back if others become smaller
    # (held, as Zhu and Gupta do), or kept aside and updated (updated, as in arXiv:2006.07253).
    prune.masked = "zero"

    config.schedule = schedule = ConfigDict()
    # cosine, linear, polynomial, step, exponential, rsqrt, piecewise, wsd or constant; vision_jax/optim/schedules.py
    # has the formulas.
    schedule.name = "cosine"
    # Linear warm-up, from `warmup_factor` times the peak.
    schedule.warmup_epochs = 5.0
    # The same in steps, or as a share of the run; either overrides `warmup_epochs`.
    schedule.warmup_steps = placeholder(int)
    schedule.warmup_share = placeholder(float)
    schedule.warmup_factor = 0.0
    # Reach the peak with the last step of the warm-up, as in the code of DINO and SwAV; False: after it.
    schedule.warmup_reaches_peak = False
    # Final learning rate, as a share of the peak; and final epochs in which it then falls linearly to zero.
    schedule.end_factor = 0.0
    schedule.cooldown_epochs = 0.0
    # Start the decay at step 0, underneath the warm-up, as timm does; False: after the warm-up.
    schedule.overlap_warmup = False
    # Update only at epoch boundaries, like a torch scheduler that is stepped once per epoch.
    schedule.by_epoch = False
    # Arguments of the schedule; None: its default. Not every schedule has each. Points are (epoch, share of the peak).
    schedule.power = placeholder(float)
    schedule.factor = placeholder(float)
    schedule.every_epochs = placeholder(float)
    schedule.milestone_epochs = placeholder(tuple)
    # The same in steps; overrides `milestone_epochs`.
    schedule.milestone_steps = placeholder(tuple)
    schedule.points = placeholder(tuple)
    schedule.timescale = placeholder(float)
    schedule.decay_epochs = placeholder(float)

    # Training objective: a name in `vision_jax.objectives.OBJECTIVES`, together with those fields of its dataclass that
    # differ from their defaults (`vision_jax.recipes.objective` sets all of them). None: classification, or
    # distillation if distill.teacher is set; both take their options from the fields below.
    config.objective = ConfigDict({"name": placeholder(str)})

    # Label smoothing: share of the target that is spread evenly over all classes.
    config.label_smoothing = 0.0
    config.loss = loss = ConfigDict()
    # softmax: cross-entropy; sigmoid: binary cross-entropy per class.
    loss.name = "softmax"
    # sigmoid: binarize targets at this value; None: leave them as smoothing and mixing made them.
    loss.threshold = placeholder(float)
    # sigmoid: sum over the classes; False: mean.
    loss.sum_classes = False
    # Weight of each class; (): all 1.
    loss.class_weights = ()
    # Weight of the loss of each auxiliary classifier; see model.aux_logits.
    loss.auxiliary_weight = 0.3

    # Distillation from a teacher's logits for the same images.
    config.distill = distill = ConfigDict()
    # The teacher: one of `vision_jax.list_models()`, and its weights, as in model.pretrained; None: no teacher.
    distill.teacher = placeholder(str)
    distill.pretrained = placeholder(str)
    # Normalize the teacher's images as its published weights expect (timm's values); False: like the student's.
    distill.model_input = False
    # soft: the teacher's probabilities at a temperature; hard: its top class. In a model with a distillation token,
    # that token's classifier learns from the teacher; in others, the one that also learns from the labels.
    distill.kind = "soft"
    distill.temperature = 1.0
    # Weight of the distillation loss; the label loss gets 1 - weight.
    distill.weight = 0.5

    # Decay per update of the exponential moving average (EMA) of parameters and batch statistics; None: no EMA.
    config.ema_decay = placeholder(float)
    # Update the EMA every this many steps.
    config.ema_every_steps = 1
    # Epochs before averaging starts; until then the EMA is a copy.
    config.ema_start_epochs = 0.0
    # Limit the decay of the n-th update after that to (1 + n) / (10 + n).
    config.ema_warmup = False

    config.guard = guard = ConfigDict()
    # On NaN or infinity in the loss or gradients: stop ends the run; skip drops the update; rewind restores the last
    # good checkpoint and continues with the batches after the bad one.
    guard.nonfinite = "stop"
    # The same on spikes: a loss or gradient norm this many standard deviations above its mean over the last `window`
    # steps that were not skipped; None: no check. After 8 skipped steps in a row, the change is considered lasting, and
    # the window restarts.
    guard.spikes = "skip"
    guard.spike_deviations = placeholder(float)
    guard.window = 128
    # The run ends after this many skipped steps in a row, or when it would have to rewind more often than this.
    guard.max_skips = 20
    guard.max_rewinds = 3

    config.eval = evaluation = ConfigDict()
    # Epochs between evaluations; the last one is always at the end. The state is saved before each.
    evaluation.every_epochs = 1.0
    # The same in steps; overrides `every_epochs`.
    evaluation.every_steps = placeholder(int)
    # Examples per batch, over all devices of all processes; None: config.batch_size.
    evaluation.batch_size = placeholder(int)
    # Average the logits with those of the horizontally flipped image.
    evaluation.flip = False

    # Evaluations by name; those of `val` report val/top1 and so on. `kind` is a name in
    # `vision_jax.evaluators.EVALUATORS`; None: classification, or the objective's own loss if that has no classes.
    # `every_epochs` overrides eval.every_epochs. Others are fields of the kind's dataclass: docs/evaluation.md.
    config.evals = ConfigDict({"val": {"kind": placeholder(str), "every_epochs": placeholder(float)}})

    config.checkpoint = checkpoint = ConfigDict()
    # Steps between checkpoints, in addition to those before evaluations and at the end; None: only those.
    checkpoint.every_steps = placeholder(int)
    # Number of latest checkpoints to keep.
    checkpoint.keep = 2
    # The best checkpoint by this metric is kept as well. Objectives and evaluators say which metrics are best high.
    checkpoint.best_metric = "val/top1"
    # On failing storage (full, read-only or gone): stop ends the run; continue warns and tries again at the next
    # checkpoint. A run whose last checkpoint cannot be saved fails in either case.
    checkpoint.on_error = "stop"

    config.log = log = ConfigDict()
    # Steps between lines of metrics.jsonl.
    log.every_steps = 50
    # Write TensorBoard events too.
    log.tensorboard = True
    # Experiment trackers that get the same lines: wandb, mlflow, or tensorboard, which `log.tensorboard` turns on too.
    # Where they send them is up to their environment variables, such as WANDB_PROJECT and MLFLOW_TRACKING_URI.
    log.trackers = ()
    # Profile steps (first, last) into WORKDIR/profile; (): none. SIGUSR1 profiles the next ten steps.
    log.profile_steps = ()

    # Persistent compilation cache; None: vision_jax's cache folder; "": no cache.
    config.compilation_cache = placeholder(str)

    # Dump the stacks of all threads and exit if no step or evaluation batch finishes within this time, not counting
    # compilation and checkpoints. 0: never.
    config.watchdog_seconds = 900.0

    # Number of devices along each mesh axis; one may be -1, for all that remain. Batches are sharded over data and
    # fsdp.
    config.mesh = mesh = ConfigDict()
    mesh.data = -1
    # FSDP: parameters, their EMA and the optimizer state are sharded over this axis, along the largest dimension that
    # it divides, if they have at least `fsdp_min_size` elements.
    mesh.fsdp = 1
    mesh.fsdp_min_size = 2**16
    # Tensor parallelism: heads and hidden units of transformers are sharded over this axis.
    mesh.tensor = 1
    # (regular expression, layout) pairs, which take precedence over the rules above; the first match counts. Patterns
    # are searched for in paths such as blocks/0/mlp/fc1/kernel. A layout names the axes of the last dimensions, with
    # + between axes of one dimension and - for none, as in "fsdp,tensor" or "-,fsdp+tensor".
    mesh.rules = ()

    return config.lock()


# Fields of config.model that are passed to the model if they are set.
MODEL_OPTIONS = (
    *("bn_group_size", "small_stem", "blur_pool", "zero_init_last", "drop_rate", "proj_drop_rate"),
    *("drop_path_rate", "drop_path_uniform", "layer_scale", "head_bias", "head_std", "norm_before_head", "aux_logits"),
    *("output_stride", "norm_epsilon"),
    *("global_pool", "feature_blocks"),
    *("positions", "class_token", "interpolate_positions", "window_size", "weight_init", "num_heads"),
    *("attention_window", "global_blocks"),
    *("scan_blocks", "remat"),
)


# Fields of config.optimizer that are passed to the optimizer if they are set.
OPTIMIZER_OPTIONS = ("momentum", "nesterov", "b1", "b2", "eps", "decay", "mu_dtype", "by_rank", "classic_momentum")


# Fields of config.schedule that are passed to the schedule if they are set, and their names there.
SCHEDULE_OPTIONS = {
    **{"power": "power", "factor": "factor", "timescale": "timescale", "points": "points"},
    **{"every_epochs": "every", "milestone_epochs": "milestones", "decay_epochs": "decay_steps"},
    "milestone_steps": "milestones",
}

# Fields that every evaluation in config.evals has; others are options of its kind.
EVAL_FIELDS = ("kind", "every_epochs")
# Prefixes of fields that are not listed here but in the dataclasses of objectives and evaluators.
OPEN_FIELDS = ("objective.", "evals.")
