"""Detectors and segmenters on a small backbone, their batches, and a step of them that is compiled once a test run."""

import dataclasses
import functools
import pathlib
from typing import Any, ClassVar

import dense_cases
import jax
import numpy as np
import optax

from vision_jax import augment, build, optim, recipes, steps
from vision_jax.augment.pipeline import AugmentConfig
from vision_jax.dense import postprocess
from vision_jax.dense.postprocess import Selection
from vision_jax.devices import sharding
from vision_jax.models import registry
from vision_jax.models.resnet import BasicBlock, ResNet
from vision_jax.objectives import OBJECTIVES, Dense, Setup
from vision_jax.objectives.detection import RetinaNet

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
CLASSES, BOXES, BATCH = 3, 5, 4
CANVAS = (48, 64)
SIZES = ((48, 64), (48, 40), (30, 64), (33, 47))  # height and width of each image on it
SMALL = {"anchor_scale": 0.25, "channels": 32}
OPTIONS: dict[str, dict[str, Any]] = {
    "retinanet": SMALL,
    "fcos": SMALL,
    "segmentation": {"head": "linear"},  # the others normalize by batch statistics
}
BACKBONE = "tiny_dense_resnet"
if BACKBONE not in registry.list_models():
    registry.register(BACKBONE, functools.partial(ResNet, block=BasicBlock, depths=(1, 1, 1, 1)), library="")


@functools.cache
def objective(name: str, *options: tuple[str, Any]) -> Dense:
    """Returns an objective that flips half of the images."""
    setup = Setup(
        registry.create_model(BACKBONE, num_classes=0, zero_init_last=False),
        (*CANVAS, 3),
        MEAN,
        STD,
        augment.create_augmentation(AugmentConfig(flip=0.5)),
        batch_size=BATCH,
    )
    found = OBJECTIVES[name](setup=setup, num_classes=CLASSES, **{**OPTIONS[name], **dict(options)})
    assert isinstance(found, Dense)
    return found


def rows(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a batch as `DenseTransform` makes it."""
    generator = np.random.default_rng(seed)
    image = np.zeros((BATCH, *CANVAS, 3), np.uint8)
    for number, (height, width) in enumerate(SIZES):
        image[number, :height, :width] = generator.integers(0, 256, (height, width, 3))
    found = {
        "image": image,
        "size": np.array(SIZES, np.int32),
        "original": 2 * np.array(SIZES, np.int32),
        "index": np.arange(BATCH, dtype=np.int32),
        "mask": np.ones(BATCH, np.float32),
    }
    if name == "segmentation":
        labels = np.full((BATCH, *CANVAS), 255, np.uint8)
        for number, (height, width) in enumerate(SIZES):
            labels[number, :height, :width] = generator.integers(0, CLASSES, (height, width))
        labels[generator.random(labels.shape) < 0.1] = 255
        return {**found, "segmentation": labels}
    boxes, numbers = np.zeros((BATCH, BOXES, 4), np.float32), np.full((BATCH, BOXES), -1, np.int32)
    for number, (height, width) in enumerate(SIZES):
        count = (3, 0, 5, 1)[number]  # one image has none
        corner = generator.uniform(0, 0.5, (count, 2)) * (width, height)
        side = generator.uniform(0.2, 0.5, (count, 2)) * (width, height)
        boxes[number, :count] = np.concatenate([corner, corner + side], 1)
        numbers[number, :count] = generator.integers(0, CLASSES, count)
    return {**found, "boxes": boxes, "box_labels": numbers}


def state_of(of: Dense, optimizer: optax.GradientTransformation, rules: optim.GroupRules | None = None) -> Any:
    """Returns a state in which norms are not as they began."""
    state = jax.jit(lambda: build.create_state(of, optimizer, rules, seed=0))()
    random = np.random.default_rng(1)

    def moved(x: jax.Array) -> np.ndarray:
        return np.asarray(x) + random.uniform(0, 0.2, x.shape).astype(np.float32)

    return state.replace(batch_stats=jax.tree.map(moved, state.batch_stats))


@functools.cache
def step_of(name: str, accumulate: int, *options: tuple[str, Any]) -> Any:
    """Returns a jitted step of gradient descent with a rate of 1, so that the change of parameters is the gradient."""
    step = steps.make_train_step(
        objective(name, *options), optax.sgd(1.0), lambda step: 1.0, seed=5, accumulate=accumulate
    )
    return jax.jit(step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EagerRetinaNet(RetinaNet):
    """RetinaNet that takes every box for a detection, so that random weights find some of everything."""

    selected: ClassVar[Selection] = dataclasses.replace(postprocess.RETINANET, score_threshold=0.0, candidates=200)


def spread(variables: Any) -> Any:
    """Returns variables with which scores differ from box to box and class to class, and pixels."""

    def wider(path: Any, x: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        return x * 40 if "head" in name and "kernel" in name and ("cls_logits" in name or "classifier" in name) else x

    return {**variables, "params": jax.tree_util.tree_map_with_path(wider, variables["params"])}


def coco_annotations() -> dict[str, Any]:
    """COCO's instances of sixteen images of four sizes, with crowds, areas of all kinds and images without objects."""
    random = np.random.RandomState(0)
    images, annotations = [], []
    for key in (7, 3, 12, 20, 107, 103, 112, 120, 207, 203, 212, 220, 307, 303, 312, 320):
        height, width = dense_cases.SIZES[key % 100]
        images.append({"id": key, "file_name": f"{key % 100:04}.jpg", "height": height, "width": width})
        for _ in range(0 if key == 20 else random.randint(1, 7)):
            w, h = random.uniform(4, width), random.uniform(4, height)
            box = [random.uniform(0, width - w), random.uniform(0, height - h), w, h]
            number = {"id": len(annotations) + 1, "image_id": key, "category_id": int(random.choice([2, 5, 9]))}
            crowd = int(random.uniform() < 0.2)
            outline = [[box[0], box[1], box[0] + w, box[1], box[0] + w, box[1] + h]]
            scale = random.choice([0.7, 4.0, 30.0])  # so that some are large to COCO
            annotations.append(
                {**number, "bbox": box, "iscrowd": crowd, "area": w * h * scale, "segmentation": outline}
            )
    return {"images": images, "annotations": annotations, "categories": dense_cases.CATEGORIES}


def evaluation_config(source: str, directory: pathlib.Path, **evaluation: Any) -> Any:
    """Returns a configuration with two canvases; what is given are options of its evaluation."""
    name = "segmentation" if source == "masks" else "retinanet"
    config = recipes.dense(BACKBONE, name, **OPTIONS[name])
    config.batch_size, config.eval.batch_size, config.dtype = 2, 4, "float32"
    config.data.update({"source": source, "dir": str(directory), "mean": MEAN, "std": STD})
    config.data.train_split = config.data.val_split = "validation" if source == "masks" else "val2017"
    config.data.dense.shorter, config.data.dense.longer = (40,), 64
    config.data.dense.canvases = ((40, 64), (64, 40))
    with config.unlocked():
        config.evals = {"val": {"kind": "segmentation" if source == "masks" else "detection", **evaluation}}
    return config


def detection_setting(directory: pathlib.Path, mesh: Any, **fields: Any) -> tuple[Any, Any, Any, Any]:
    """Returns evaluators, objective, variables and source of made-up COCO images in `directory`."""
    evaluation = {key: fields.pop(key) for key in ("measure", "detections") if key in fields}
    config = evaluation_config("coco", directory, **evaluation)
    config.update_from_flattened_dict(fields)
    source = build.create_source(config, train=False)
    of = EagerRetinaNet(setup=objective("retinanet").setup, num_classes=CLASSES, **SMALL)
    variables = spread(jax.jit(lambda: build.initialize(of, jax.random.key(0)))())
    placed = sharding.place(jax.device_get(variables), sharding.replicated(mesh))
    return build.make_evaluators(config, of, mesh, source), of, placed, source
