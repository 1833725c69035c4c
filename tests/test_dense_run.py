"""A configuration of images with boxes or masks: what is checked, made of it, compiled and trained."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_cases import coco_content, write_coco, write_masks, write_voc

from vision_jax import build, recipes, train
from vision_jax import config as config_lib
from vision_jax.augment import dense
from vision_jax.data.boxes import IGNORED
from vision_jax.data.order import BucketOrder, TrainOrder
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError, DataError
from vision_jax.objectives import OBJECTIVES, Objective, Out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels(Objective):
    """A linear classifier of ink by a pixel's color: as little as can be learned from masks."""

    dense: ClassVar[str] = "masks"
    metrics: ClassVar[Mapping[str, bool]] = {"loss": False}
    configured: ClassVar[frozenset[str]] = frozenset({"num_classes"})

    num_classes: int = 2

    def init(self, key, inputs):
        return {"params": {"pixel": {"kernel": jnp.zeros(3), "bias": jnp.zeros(())}}, "batch_stats": {}}

    def views(self, keys, rows):
        setup = self.setup

        def one(key, example):
            example = dense.augment(key, example, setup.augmentation)
            image = dense.normalize_valid(example["image"], example["size"], setup.mean, setup.std)
            return {"image": image, "segmentation": example["segmentation"]}

        fields = {name: rows[name] for name in ("image", "size", "segmentation")}
        return {**jax.vmap(one)(keys, fields), "mask": rows["mask"]}

    def loss(self, variables, views, targets, key, progress, *, train):
        pixel = variables["params"]["pixel"]
        logits = views["image"] @ pixel["kernel"] + pixel["bias"]
        counts = (views["segmentation"] != IGNORED) & (views["mask"] > 0)[:, None, None]
        each = jnp.logaddexp(0, jnp.where(views["segmentation"] > 0, -logits, logits))
        return Out(jnp.where(counts, each, 0).sum(), counts.sum().astype(jnp.float32), {}, {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boxes(Pixels):
    dense: ClassVar[str] = "boxes"


@pytest.fixture(autouse=True)
def objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "pixels", Pixels)
    monkeypatch.setitem(OBJECTIVES, "boxes", Boxes)


def make_config(name: str, source: str, directory: pathlib.Path, **fields: Any):
    config = config_lib.default_config()
    config.objective.name, config.data.source, config.data.dir = name, source, str(directory)
    config.model.name, config.checkpoint.best_metric = "resnet18", "val/loss"
    config.evals.val.kind = "objective"  # these have no network to measure
    config.batch_size, config.epochs, config.schedule.warmup_epochs = 2, 2.0, 0.0
    config.data.dense.shorter, config.data.dense.longer = (40,), 64
    config.data.dense.canvases = ((40, 64), (64, 40))
    config.update_from_flattened_dict(fields)
    return config


def problems(*arguments: Any, **fields: Any) -> str:
    try:
        config_lib.validate(make_config(*arguments, **fields), 1)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.fixture
def coco(tmp_path: pathlib.Path) -> pathlib.Path:
    write_coco(tmp_path / "coco")
    return write_coco(tmp_path / "coco", split="val2017")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("pixels", {}, ""),
        ("boxes", {"data.dense.categories": ("dog",), "augment.color_jitter": (0.4, 0.4, 0.4)}, ""),
        ("boxes", {"data.dense.resize": "range"}, "data.dense.shorter is (40,): for a range"),
        (
            "boxes",
            {"data.dense.canvases": ((40, 64),)},
            "data.dense.canvases is ((40, 64),), none of which holds 64x40",
        ),
        ("boxes", {"data.dense.eval_shorter": 80}, "data.dense.eval_shorter"),
        ("boxes", {"data.dense.reduce_zero_label": True}, "data.dense.reduce_zero_label is set, which is for"),
        ("boxes", {"augment.mixup": 0.2}, "augment.mixup is 0.2, which is not for boxes"),
        ("boxes", {"augment.policy": "randaugment"}, "augment.policy"),
        ("boxes", {"label_smoothing": 0.1}, "label_smoothing is 0.1, which is not for boxes: leave it unset"),
        ("pixels", {"loss.class_weights": (1.0, 2.0)}, "loss.class_weights"),
        ("boxes", {"loss.name": "sigmoid"}, "loss.name is 'sigmoid', which is not for boxes"),
        ("boxes", {"augment.erase": 0.25}, "augment.erase is 0.25, which is not for boxes"),
        ("boxes", {"data.crop_scale": (0.5, 1.0)}, "data.crop_scale"),
        ("pixels", {"model.head_std": 0.01}, "model.head_std is 0.01, which is not for masks"),
        ("boxes", {"data.dense.jitter": (0.5, 1.5)}, "set that to 'jitter', or leave it unset"),
        ("boxes", {"distill.temperature": 3.0}, "distill.temperature is 3.0, which is not for boxes"),
        ("boxes", {"distill.teacher": "resnet18", "distill.pretrained": "a.npz"}, "distill.teacher is 'resnet18'"),
        ("boxes", {"prune.sparsity": 0.5, "ema_decay": 0.9, "optimizer.sam_rho": 0.05}, ""),
        (
            "simclr",
            {"data.source": "digits", "augment.mixup": 0.2},
            "augment.mixup is 0.2, which is for objectives with labels, and simclr has none: set it to 0.",
        ),
        ("pixels", {"data.repeats": 2}, "data.repeats is 2, which is not for masks"),
        ("pixels", {"data.views": "2x224"}, "data.views"),
        ("boxes", {"data.source": "digits"}, "data.source is 'digits', and boxes learns from boxes: it takes one of"),
        ("boxes", {"data.source": "masks"}, "has no boxes"),
        ("classification", {}, "data.source is 'coco', which has boxes or masks, and classification learns from"),
        ("classification", {"data.source": "digits", "checkpoint.best_metric": "val/top1"}, ""),
        ("boxes", {"data.dir": "/nowhere"}, "there is no such directory"),
    ],
)
def test_what_is_checked(name: str, fields: dict, message: str, coco: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    found = problems(name, "coco", coco, **fields)
    assert message in found
    assert bool(found) == bool(message)


def test_frozen_norms_leave_no_dropping_of_branches():
    config = recipes.scenes("resnet18", "retinanet", frozen_norms=True)
    config.update({"batch_size": 8, "model": {"drop_path_rate": 0.1, "bn_group_size": 2}})
    with pytest.raises(ConfigError, match=r"model.drop_path_rate is 0.1, which objective.frozen_norms") as raised:
        config_lib.validate(config, 1)
    assert "model.bn_group_size is 2" in str(raised.value)
    config = recipes.scenes("resnet18", "segmentation", frozen_norms=True)
    config.update({"batch_size": 8, "model": {"bn_group_size": 2}})  # of the heads
    config_lib.validate(config, 1)


def test_sources_of_a_configuration(coco: pathlib.Path, tmp_path: pathlib.Path):
    splits = {"data.train_split": "train2017", "data.val_split": "val2017"}
    boxes = build.create_source(make_config("boxes", "coco", coco, **splits), train=True)
    assert (boxes.num_classes, len(boxes)) == (3, 4)
    fields = {**splits, "data.dense.drop_empty": True, "data.train_examples": 2}
    few = build.create_source(make_config("boxes", "coco", coco, **fields), train=True)
    assert (len(few), few.has_boxes, few.has_masks) == (2, True, False)
    assert few.image_size(0) == few[0]["size"] == few.annotations(0)["size"]
    assert len(build.create_source(make_config("boxes", "coco", coco, **fields), train=False)) == 4
    assert (
        len(build.create_source(make_config("boxes", "synthetic", coco, **{"data.train_examples": 5}), train=True)) == 5
    )
    with pytest.raises(DataError, match=r"0007.jpg has 2 boxes, more than data.dense.max_boxes=1"):
        build.create_source(make_config("boxes", "coco", coco, **splits, **{"data.dense.max_boxes": 1}), train=True)
    file = coco / "annotations" / "instances_train2017.json"
    content = file.read_text()
    file.write_text(json.dumps({**json.loads(content), "annotations": []}))
    for fields in (splits, {**splits, "data.dense.drop_empty": True}):
        with pytest.raises(DataError, match=r"No image of the split 'train2017' of .*coco has a box to learn from"):
            build.create_source(make_config("boxes", "coco", coco, **fields), train=True)
    file.write_text(content)
    masks = build.create_source(make_config("pixels", "coco", coco, **splits), train=True)
    assert (masks.num_classes, masks.has_masks) == (4, True)
    voc = write_voc(tmp_path / "voc")
    assert build.create_source(make_config("boxes", "voc", voc), train=True).num_classes == 20
    assert build.create_source(make_config("pixels", "voc", voc), train=True).num_classes == 21
    folders = write_masks(tmp_path / "masks")
    config = make_config(
        "pixels", "masks", folders, **{"data.train_split": "training", "data.dense.categories": list("abcd")}
    )
    assert build.create_source(config, train=True).class_names == list("abcd")


def test_transforms_and_orders_of_a_configuration(coco: pathlib.Path):
    config = make_config("boxes", "coco", coco, **{"data.train_split": "train2017", "data.dense.eval_shorter": 32})
    source = build.create_source(config, train=True)
    plan = config_lib.make_plan(config, len(source))
    transform = build.make_transform(config, plan)
    assert {t.fields()["image"].shape for t in transform.shapes()} == {(40, 64, 3), (64, 40, 3), (64, 64, 3)}
    order = build.make_order(config, source)
    assert isinstance(order, BucketOrder)
    assert order.steps_per_epoch == plan.steps_per_epoch
    shape_at = build.image_shapes(config, plan, order)
    assert [shape_at(step)[:2] for step in range(6)] == [order.canvas(step) for step in range(6)]
    evaluation = build.make_eval_transform(config)
    assert evaluation.resizing.shorter == (32,)
    assert evaluation.fields()["image"].shape == (64, 64, 3)
    assert evaluation.on((40, 64)).fields()["image"].shape == (40, 64, 3)
    with pytest.raises(ConfigError, match="boxes is not for whole images"):
        build.make_preprocessing(config)
    one = make_config("boxes", "coco", coco, **{"data.dense.resize": "jitter", "data.dense.canvases": ((48, 56),)})
    assert isinstance(build.make_order(one, source), TrainOrder)
    evaluation = build.make_eval_transform(one)
    assert (evaluation.resizing.kind, evaluation.resizing.shorter, evaluation.resizing.longer) == ("fit", (48,), 48)


def many(copies: int) -> dict[str, Any]:
    """Annotations in which each image, of the same file, is there several times."""
    content = coco_content()
    for name, key in (("images", "id"), ("annotations", "image_id")):
        content[name] = [{**item, key: item[key] + 100 * i} for i in range(copies) for item in content[name]]
    return content


def test_a_run_compiles_for_each_canvas_and_learns(tmp_path: pathlib.Path):
    """And a rewind shifts the batches, and their canvases with them."""
    directory = tmp_path / "coco"
    for split, copies in (("train2017", 10), ("val2017", 3)):
        write_coco(directory, many(copies), split)
    fields = {"data.train_split": "train2017", "data.val_split": "val2017", "eval.every_epochs": 1.0, "batch_size": 8}
    config = make_config("pixels", "coco", directory, **fields, **{"optimizer.learning_rate": 0.1})
    state = train.train_and_evaluate(config, tmp_path / "run")
    assert int(state.step) == 10
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["val/loss"] for line in lines if "val/loss" in line]
    assert len(losses) == 2
    assert losses[1] < losses[0] < np.log(2)
    assert [line["val/count"] for line in lines if "val/count" in line] == [12, 12]
    source = build.create_source(config, train=True)
    order = build.make_order(config, source)
    kinds = [order.canvas(step) for step in range(5)]
    assert sorted(kinds) == [(40, 64)] * 3 + [(64, 40), (64, 64)]
    plan, mesh = config_lib.make_plan(config, len(source)), sharding.make_mesh(config.mesh)
    with build.make_train_loader(config, plan, mesh, source, rewinds=[(3, 1)]) as loader:
        for step in range(6):
            batch = loader.start(step)()
            assert batch["image"].shape[1:3] == order.canvas(step + 2)
            assert batch["index"].tolist() == order.records(step + 2).tolist()
