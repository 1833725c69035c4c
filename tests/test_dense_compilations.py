"""No shape of detection or segmentation depends on the data: there is a program for each canvas, and no other."""

import contextlib
import functools
import logging
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from dense_cases import coco_content, write_coco

from vision_jax import recipes, train
from vision_jax.models import registry
from vision_jax.models.vit import VisionTransformer

BACKBONE = "tiny_dense_vit"
if BACKBONE not in registry.list_models():
    tiny = functools.partial(VisionTransformer, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    registry.register(BACKBONE, tiny, library="")
CANVASES = ((40, 64), (64, 40))
EVALUATED = "evaluated"


@contextlib.contextmanager
def events() -> Iterator[list[str]]:
    """Gives a list of the names of the functions that are compiled, and `EVALUATED` after each evaluation."""
    found: list[str] = []

    def compiled(event: str, _: float, **fields: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(re.sub(r"^jit\((.*)\)$", r"\1", fields["fun_name"]))

    handler = logging.Handler()
    handler.emit = lambda record: found.append(EVALUATED) if ", evaluated:" in record.getMessage() else None
    logger = logging.getLogger("vision_jax.train")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(compiled)
        logger.removeHandler(handler)
        logger.setLevel(level)


def content(copies: int) -> dict[str, Any]:
    """Annotations in which each image is there several times, of the same file but each time with other boxes."""
    whole, random = coco_content(), np.random.RandomState(0)
    images, annotations = [], []
    for image in copies * whole["images"]:
        images.append({**image, "id": len(images) + 1})
        for _ in range(random.randint(0, 7)):
            size = np.array([image["width"], image["height"]])
            x, y, width, height = (random.uniform(0, 0.5, (2, 2)) * size + [[0, 0], [2, 2]]).reshape(-1).tolist()
            outline = [[x, y, x + width, y, x + width, y + height, x, y + height]]
            number = {"id": len(annotations) + 1, "image_id": len(images), "category_id": 5, "iscrowd": 0}
            annotations.append(
                {**number, "bbox": [x, y, width, height], "area": width * height, "segmentation": outline}
            )
    return {**whole, "images": images, "annotations": annotations}


@pytest.mark.parametrize("name", ["segmentation", pytest.param("retinanet", marks=pytest.mark.exhaustive)])
def test_each_canvas_is_compiled_once(name: str, tmp_path: pathlib.Path):
    """However many boxes the images have, and however often they are seen."""
    for split, copies in (("train2017", 10), ("val2017", 5)):
        write_coco(tmp_path / "coco", content(copies), split)
    config = recipes.dense(BACKBONE, name, **({"head": "linear"} if name == "segmentation" else {"channels": 8}))
    config.update({"batch_size": 8, "epochs": 2.0, "dtype": "float32"})
    config.model.interpolate_positions = True
    data = {"source": "coco", "dir": str(tmp_path / "coco"), "train_split": "train2017", "val_split": "val2017"}
    config.data.update({**data, "image_size": 64})
    config.data.dense.update({"shorter": (40,), "longer": 64, "canvases": CANVASES})
    config.schedule.warmup_epochs = 0.0
    with events() as found:
        train.train_and_evaluate(config, tmp_path / "run")
    first = found.index(EVALUATED)
    # Batches of what is left over of both have a canvas that holds either.
    assert found.count("train_step") == len(CANVASES) + 1
    assert found.count("step") == len(CANVASES)
    assert found[first:] == [EVALUATED, EVALUATED]
