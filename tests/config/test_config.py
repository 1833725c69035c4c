import importlib.util
import json
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from vision_jax import build
from vision_jax import config as config_lib
from vision_jax.errors import ConfigError

DIRECTORY = pathlib.Path(__file__).parent.parent.parent / "configs"
CONFIGS = sorted(DIRECTORY.glob("*.py"))


def load(path: pathlib.Path) -> ConfigDict:
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def synthetic(**fields: object) -> ConfigDict:
    config = config_lib.default_config()
    config.data.source = "synthetic"
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_files_are_valid_and_locked(path: pathlib.Path):
    config = load(path)
    config.data.source = "synthetic"
    config_lib.validate(config, num_devices=8)
    with pytest.raises(AttributeError, match='Did you mean "batch_size"'):
        config.batchsize = 3


def test_json_keeps_every_field():
    config = load(CONFIGS[0])
    assert config_lib.from_dict(json.loads(config_lib.to_json(config))).to_dict() == config.to_dict()


def test_json_keeps_patterns_and_pairs():
    config = synthetic(
        **{
            "schedule.name": "piecewise",
            "schedule.points": ((0, 0.2), (1.5, 1.0)),
            "optimizer.multipliers": (("^fc/", 10.0),),
            "optimizer.frozen": ("^conv1/",),
        }
    )
    config_lib.validate(config, num_devices=8)
    stored = config_lib.from_dict(json.loads(config_lib.to_json(config)))
    assert stored.to_dict() == config.to_dict()
    assert config_lib.differences(stored, config) == ([], [])
    config_lib.validate(stored, num_devices=8)


def test_what_helps_a_run_that_ended_over_an_image_is_no_other_run():
    before, after = synthetic(), synthetic()
    after.data.update({"max_pixels": 10**9, "check_val_images": True, "max_bad_eval_records": 3, "val_labels": "v.csv"})
    changed, free = config_lib.differences(before, after)
    assert not changed
    assert len(free) == 4


def test_stored_field_that_is_unknown():
    with pytest.raises(ConfigError, match=r"data\.colour"):
        config_lib.from_dict({"data": {"colour": 3}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 12}, "batch_size is 12, which is not divisible by 8 devices: use 16"),
        ({"eval.batch_size": 4}, "eval.batch_size is 4, which is not divisible by 8 devices"),
        ({"model.name": "resnet5"}, "There is no model 'resnet5': did you mean resnet50"),
        ({"model.name": "?"}, "There is no model '?': python -m vision_jax models lists them all."),
        ({"model.name": "lenet5", "model.small_stem": True}, "lenet5 has no such option"),
        (
            {"model.name": "swin_tiny_patch4_window7_224", "model.num_heads": 6},
            "model.num_heads is 6, but swin_tiny_patch4_window7_224 has (3, 6, 12, 24)",
        ),
        ({"model.bn_group_size": 96}, "does not divide batch_size=256"),
        ({"mesh.data": 4}, "mesh.data=4, mesh.fsdp=1, mesh.tensor=1 make 4 devices, but there are 8"),
        ({"data.source": "digit"}, "did you mean digits"),
        ({"data.source": "tfds"}, "data.dir is not set"),
        (
            {"data.source": "tfds", "data.dir": "gs://bucket/x"},
            "data.dir is 'gs://bucket/x': URLs are not supported here",
        ),
        ({"data.val_labels": "s3://b/val.csv"}, "data.val_labels is 's3://b/val.csv': URLs"),
        ({"data.train_labels": "a.csv"}, "data.train_labels is set, which is for data.source=folder"),
        ({"data.max_pixels": 0}, "data.max_pixels is 0, which must be positive"),
        ({"data.max_bad_eval_records": -1}, "data.max_bad_eval_records is -1, which must not be negative"),
        ({"data.source": "folder", "data.dir": "/nowhere"}, "'/nowhere', and there is no such directory"),
        ({"data.channels": 2}, "data.channels is 2"),
        ({"data.mean": (0.5,)}, "data.mean has 1 values"),
        ({"data.eval_resize": 200}, "less than data.image_size=224"),
        ({"data.crop_scale": (0.5, 1.5)}, "data.crop_scale is"),
        ({"data.views": "2x224,8by96"}, "data.views: '8by96' in '2x224,8by96': It is not of the form"),
        (
            {"data.views": "a=2x224", "data.progressive_epochs": (0,), "data.progressive_sizes": (128,)},
            "data.progressive_sizes are those of the view 'image', and data.views has a",
        ),
        ({"augment.flip": 1.5}, "augment.flip is 1.5"),
        ({"schedule.warmup_epochs": 90.0}, "lengthen the run"),
        ({"optimizer.learning_rate": 0.0}, "must be positive"),
        ({"optimizer.momentum": 1.0}, "less than 1"),
        ({"optimizer.weight_decay": -1.0}, "must not be negative"),
        ({"checkpoint.best_metric": "val/ema_top1"}, "ema_decay is not set"),
        ({"checkpoint.best_metric": "val/top2"}, "did you mean"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"dtype": "float16"}, "dtype is 'float16', which in training needs loss scaling"),
        ({"optimizer.name": "sgdd"}, "optimizer.name is 'sgdd': did you mean sgd"),
        ({"optimizer.b1": 0.9}, "optimizer.b1 is set to 0.9, but sgd has no such option"),
        ({"schedule.name": "cosin"}, "schedule.name is 'cosin': did you mean cosine"),
        ({"schedule.power": 2.0}, "schedule.power is set to 2.0, but cosine has no such option"),
        ({"epochs": float("inf")}, "epochs is inf; it takes a finite number"),
        ({"optimizer.frozen": (1.0,)}, "optimizer.frozen is [1.0]; it takes strings, regular expressions"),
        ({"optimizer.multipliers": (("fc", "ten"),)}, "has ['fc', 'ten'] in it; it takes pairs of (pattern, factor)"),
        ({"optimizer.layers": (r"^stem/",)}, "but optimizer.layer_decay is not set: set both"),
        ({"schedule.points": (1.0, 2.0)}, "schedule.points has 1.0 in it; it takes pairs of (epoch, share"),
        ({"optimizer.accumulate": 3}, "optimizer.accumulate is 3, which does not divide batch_size=256"),
        ({"optimizer.accumulate": 64}, "its micro-batches of 4 examples are not divisible by 8 devices"),
        (
            {"optimizer.accumulate": 4, "model.bn_group_size": 48},
            "does not divide batch_size / optimizer.accumulate=64",
        ),
        ({"loss.threshold": 0.2}, "are of the loss sigmoid, and loss.name is 'softmax'"),
        ({"loss.class_weights": (1.0, -1.0)}, "no weight may be negative"),
        ({"distill.teacher": "resnet50"}, "a teacher takes a name and weights"),
        (
            {"distill.teacher": "resnet5", "distill.pretrained": "x"},
            "distill.teacher: There is no model 'resnet5': did you mean resnet50",
        ),
        (
            {"distill.teacher": "lenet5", "distill.pretrained": "x", "distill.model_input": True},
            "distill.model_input is set, but lenet5 expects 1 channels",
        ),
        ({"augment.mix_group": 48}, "augment.mix_group is 48, which does not divide batch_size=256"),
        ({"data.eval_size": 288}, "data.eval_resize is 256, less than data.eval_size=288"),
        ({"guard.nonfinite": "skp"}, "guard.nonfinite is 'skp': did you mean skip"),
        ({"schedule.warmup_steps": 1, "schedule.warmup_share": 0.1}, "are both set"),
        ({"seed": 2**31}, "seed is 2147483648, which must be less than"),
        ({"data.std": (0.1, "x", 0.1)}, "data.std is [0.1, 'x', 0.1]; it takes finite numbers"),
    ],
)
def test_what_cannot_work_is_said(fields: dict, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_lib.validate(synthetic(**fields), num_devices=8)


def test_float16_is_for_evaluation():
    config_lib.validate(synthetic(dtype="float16"), num_devices=8, train=False)


@pytest.mark.parametrize("path", ["data.dir", "compilation_cache", "model.pretrained", "distill.pretrained"])
def test_urls_are_refused(path: str):
    config = synthetic(**{path: "gs://bucket/folder"})
    message = (
        f"^{path} is 'gs://bucket/folder': URLs are not supported here; mount the bucket \\(gcsfuse, s3fs, ...\\) and "
        "give its path.$"
    )
    with pytest.raises(ConfigError, match=message):
        config_lib.check_urls(config)
    with pytest.raises(ConfigError, match=message):
        config_lib.validate(config, num_devices=8)
    config_lib.check_urls(synthetic(**{path: "folder:/x"}))


def test_weights_may_be_on_the_hub():
    config_lib.check_urls(synthetic(**{"model.pretrained": "hf://timm/resnet50.a1_in1k"}))


def test_fields_that_are_none_or_missing_or_unknown():
    config = synthetic()
    with config.ignore_type():
        config.batch_size = None
        config.augment.flip = "often"
    with config.unlocked():
        del config.model.name
        config.model.nam = "resnet50"
    with pytest.raises(ConfigError) as caught:
        config_lib.validate(config, num_devices=8)
    assert str(caught.value).splitlines()[1:] == [
        "  - model.nam is no field of the configuration: did you mean model.name or model.remat or model.num_heads?",
        "  - model.name is missing: start from vision_jax.config.default_config().",
        "  - augment.flip is 'often'; it takes a float.",
        "  - batch_size is None; it takes an int, such as 256.",
    ]


def test_all_problems_are_said_at_once():
    with pytest.raises(ConfigError) as caught:
        config_lib.validate(synthetic(**{"batch_size": 12, "model.name": "x", "data.channels": 2}), num_devices=8)
    assert str(caught.value).count("\n  - ") >= 3


def test_empty_data_directory(tmp_path: pathlib.Path):
    with pytest.raises(ConfigError, match="which is empty"):
        config_lib.validate(synthetic(**{"data.source": "folder", "data.dir": str(tmp_path)}), num_devices=8)


def test_plan_of_the_resnet50_recipe():
    """1,281,167 // 2048 = 625 steps an epoch, of which there are 90; 8 warm up; 0.256 for each 256 examples."""
    plan = config_lib.make_plan(load(DIRECTORY / "resnet50.py"), 1_281_167)
    assert (plan.steps_per_epoch, plan.total_steps, plan.warmup_steps) == (625, 56_250, 5_000)
    assert plan.learning_rate == pytest.approx(2.048)
    assert plan.eval_every == 625


def test_plan_scales_and_counts_as_it_is_told():
    config = synthetic(
        **{
            "batch_size": 1024,
            "epochs": 10.0,
            "optimizer.learning_rate_batch_size": 256,
            "optimizer.learning_rate_scaling": "sqrt",
            "schedule.warmup_share": 0.05,
            "ema_start_epochs": 1.5,
        }
    )
    plan = config_lib.make_plan(config, 102_400)
    assert plan.learning_rate == pytest.approx(0.2)
    assert (plan.total_steps, plan.warmup_steps, plan.ema_start) == (1000, 50, 150)


def test_plan_says_when_to_evaluate_and_save():
    config = synthetic(
        total_steps=10, **{"schedule.warmup_steps": 0, "eval.every_steps": 4, "checkpoint.every_steps": 3}
    )
    plan = config_lib.make_plan(config, 1000)
    assert [step for step in range(11) if plan.evaluates_at(step)] == [4, 8, 10]
    assert [step for step in range(11) if plan.saves_at(step)] == [3, 4, 6, 8, 9, 10]


@pytest.mark.parametrize(
    ("fields", "examples", "message"),
    [
        ({}, 255, "more than the 255 examples"),
        ({"total_steps": 5, "schedule.warmup_steps": 5}, 1000, "warm-up is 5 steps and the run 5"),
        ({"epochs": 0.01, "schedule.warmup_epochs": 0.0}, 1000, "less than one of the 3 steps"),
    ],
)
def test_plan_that_cannot_work(fields: dict, examples: int, message: str):
    with pytest.raises(ConfigError, match=message):
        config_lib.make_plan(synthetic(**fields), examples)


def test_options_of_the_schedule_are_in_steps():
    config = synthetic(**{"schedule.every_epochs": 2.4, "schedule.factor": 0.97})
    assert build.schedule_options(config, 100) == {"every": 240.0, "factor": 0.97}
    config = synthetic(**{"schedule.points": ((0, 0.2), (1.5, 1.0), (8, 0.0))})
    assert build.schedule_options(config, 100) == {"points": ((0, 0.2), (150.0, 1.0), (800, 0.0))}
    config = synthetic(**{"schedule.milestone_epochs": (30, 60)})
    assert build.schedule_options(config, 100) == {"milestones": (3000, 6000)}
    config.schedule.milestone_steps = (201, 301)
    assert build.schedule_options(config, 100) == {"milestones": (201, 301)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "calibration", "bins": 0}, r"evals\.cal\.bins is 0: calibration needs at least one"),
        ({"kind": "per_class", "confusions": -1}, r"evals\.cal\.confusions is -1: it is how many"),
        ({"kind": "per_class", "bins": 5}, r"evals\.cal\.bins is no option"),
    ],
)
def test_options_of_evaluations(options: dict, message: str):
    config = synthetic()
    with config.unlocked():
        config.evals.cal = ConfigDict(options)
    with pytest.raises(ConfigError, match=message):
        config_lib.validate(config, num_devices=8)
