"""Fields of the configuration: unknown, of the wrong type, out of range, or impossible together."""

from typing import Any

from bad_inputs.case import Case, directory, images, text, training


def _field(name: str, *fields: str, value: str, remedy: str, **options: Any) -> Case:
    """Returns a case of a training with FIELD=VALUE each."""
    return training(name, *(f"--config.{field}" for field in fields), value=value, remedy=remedy, **options)


CASES = (
    _field("a misspelt group", "modle.name=x", value="modle", remedy='Did you mean "model"', status=2),
    _field("a misspelt field", "model.nam=x", value="nam", remedy='Did you mean "name"', status=2),
    _field("a field of nothing", "zebra=1", value="zebra", remedy="fields.py", status=2),
    _field("a field of a number", "batch_size.x=1", value="batch_size", remedy="fields.py|no field", status=2),
    _field("an option of an evaluation", "evals.val.k=4", value="'k'", remedy="docs/evaluation.md", status=2),
    _field("a word for a number", "batch_size=many", value="many", remedy="takes an integer", status=2),
    _field("a fraction for an integer", "batch_size=2.5", value=r"2\.5", remedy="takes an integer", status=2),
    _field("words in a tuple of numbers", "data.mean=('a',)", value="'a'", remedy="number"),
    _field("code in a tuple", "data.mean=(1,", value=r"\(1,", remedy="tuple", status=2),
    _field("a word for a switch", "nesterov=maybe", value="nesterov", remedy="fields.py", status=2),
    _field("neither true nor false", "log.tensorboard=maybe", value="maybe", remedy="true or false", status=2),
    _field("None where there must be a value", "batch_size=None", value="batch_size is None", remedy="takes an int"),
    _field("no number", "optimizer.learning_rate=nan", value="nan", remedy="finite"),
    _field("a batch of nothing", "batch_size=0", value="batch_size is 0", remedy="positive|at least"),
    _field("a negative learning rate", "optimizer.learning_rate=-1", value="-1", remedy="positive"),
    _field("an average that grows", "ema_decay=2", value="ema_decay is 2", remedy="below 1|less than 1"),
    _field("a probability above one", "augment.flip=1.5", value=r"augment\.flip is 1\.5", remedy="0.*1"),
    _field("an unknown data type", "dtype=float8", value="float8", remedy="bfloat16"),
    _field("an unknown source", "data.source=foldr", value="foldr", remedy="folder"),
    _field("an unknown optimizer", "optimizer.name=adamx", value="adamx", remedy="did you mean adam"),
    _field("an unknown schedule", "schedule.name=cosin", value="cosin", remedy="did you mean cosine"),
    _field("an unknown policy", "augment.policy=rand-m99x", value="rand-m99x", remedy="m9|randaugment|such as|takes"),
    _field("an unknown model", "model.name=resnet5", value="resnet5", remedy="did you mean resnet50"),
    _field("an unknown tracker", "log.trackers=('wandbb',)", value="wandbb", remedy="did you mean wandb"),
    _field("an unknown metric", "checkpoint.best_metric=val/top7", value="val/top7", remedy="val/top1"),
    _field("a batch larger than the data", "batch_size=2000", value="2000", remedy="1437"),
    _field(
        "a batch for other devices",
        "batch_size=9",
        "mesh.data=1",
        "mesh.fsdp=2",
        value="2 devices",
        remedy="there are 1: set",
    ),
    _field("classes that the data has not", "model.num_classes=3", value="3", remedy="10"),
    _field("a warm-up beyond the end", "schedule.warmup_epochs=9", value="9|198|warm", remedy="total_steps|lower"),
    _field("crops larger than the image", "data.crop_scale=(0.5,2.0)", value=r"2\.0", remedy="at most 1"),
    _field("crops from large to small", "data.crop_scale=(0.9,0.5)", value=r"0\.9", remedy="minimum, maximum"),
    _field("a crop above the resized image", "data.eval_resize=16", value="eval_resize is 16", remedy="raise it"),
    _field(
        "images too small for the model", "data.image_size=4", "data.eval_resize=4", value="4", remedy="data.image_size"
    ),
    _field(
        "two channels",
        "data.channels=2",
        "data.mean=(0.5,0.5)",
        "data.std=(1,1)",
        value="channels is 2",
        remedy="3 is RGB",
    ),
    _field("a mean for each of two channels", "data.mean=(0.5,0.5)", value="2 values", remedy="one per channel"),
    _field("micro-batches that do not fit", "optimizer.accumulate=7", value="accumulate.*7", remedy="64|divide"),
    _field("a pattern that matches nothing", "optimizer.frozen=('^zebra/',)", value="zebra", remedy="conv1|parameters"),
    _field("a pattern that is none", "optimizer.frozen=('(',)", value="frozen.*'\\('", remedy="Write"),
    _field(
        "a method without labels, mixed",
        "objective.name=simclr",
        "checkpoint.best_metric=val/loss",
        "augment.mixup=0.2",
        value="0.2",
        remedy="to 0",
    ),
    _field("pruning of everything", "prune.sparsity=1.0", value="1", remedy="below 1|less than 1"),
    _field("float16 in training", "dtype=float16", value="float16", remedy="bfloat16"),
    _field("a teacher without weights", "distill.teacher=lenet5", value="distill", remedy="distill.pretrained"),
    _field("an evaluation never", "eval.every_steps=0", value="every_steps is 0", remedy="positive|more than 0"),
    _field("a layer option of another model", "model.window_size=7", value="window_size", remedy="lenet5|unset"),
    _field("an option of another optimizer", "optimizer.b1=0.9", value="b1", remedy="sgd|unset"),
    _field("an unknown way on", "guard.nonfinite=maybe", value="maybe", remedy="stop.*skip.*rewind"),
    _field(
        "mixing the images of one class",
        *("data.source=folder", "data.dir=data", "augment.mixup=0.2", "batch_size=2", "data.channels=3"),
        *("data.mean=(0.5,0.5,0.5)", "data.std=(0.5,0.5,0.5)"),
        value="1 class, 'ant'",
        remedy="add images of another",
        before=(images(classes=("ant",)),),
    ),
    _field("a cache that is a file", "data.dir=file", value="'file'", remedy="folder", before=(text("file", "mine"),)),
    _field("weights in a bucket", "model.pretrained=s3://b/w", value="s3://b/w", remedy="mount"),
    _field("data that is not there", "data.source=folder", value="data.dir is not set", remedy="--config.data.dir=DIR"),
    _field("empty data", "data.source=tfds", "data.dir=d", value="'d'", remedy="empty", before=(directory("d"),)),
)
