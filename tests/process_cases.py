"""What two processes do when they do not see the same files.

`launch/local.py --processes=2 --devices=1 --module=process_cases -- --directory=DIR` runs all cases, one after another,
and leaves what each process found in DIR/process_I.json, for test_processes.py.
"""

import json
import logging
import os
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any

import evaluation_sets
import jax
import launched
import numpy as np
import pytest
import small_vit
import tiny_dense
from conftest import Pictures
from dense_cases import write_coco
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec
from stored_features import random_model

from vision_jax import build, config, evaluate, features, train
from vision_jax.devices import distributed, sharding
from vision_jax.errors import CheckpointError
from vision_jax.runtime import writers
from vision_jax.runtime.checkpoint import Checkpointer
from vision_jax.suite.find import find_sets
from vision_jax.suite.run import Options, run_suite


def attempt(function: Callable[[], Any]) -> Any:
    """Returns what a function does, or the kind and text of what it raises."""
    try:
        return function()
    except Exception as error:
        return [type(error).__name__, str(error)]


def damaged_shard(directory: pathlib.Path) -> dict[str, Any]:
    """Of the newest of two checkpoints a file is cut in half that one process alone reads."""
    config = small_vit.get_config()
    config.mesh.update({"fsdp": 2, "fsdp_min_size": 1})
    config.total_steps, config.eval.every_steps = 8, 4
    config.checkpoint.update({"every_steps": 4, "keep": 2})
    workdir = directory / "w"
    train.train_and_evaluate(config, workdir)
    if jax.process_index() == 0:
        shards = (workdir / "checkpoints" / "8" / "model" / "ocdbt.process_1" / "d").iterdir()
        values = max(shards, key=lambda path: path.stat().st_size)  # the others hold an index
        os.truncate(values, values.stat().st_size // 2)
    sharding.wait_for_all("a file is damaged")
    evaluated, _ = evaluate.evaluate_checkpoint(workdir)
    wanted = attempt(lambda: evaluate.evaluate_checkpoint(workdir, 8))
    config.total_steps = 12
    state = train.train_and_evaluate(config, workdir, allow_config_change=True)
    # Once more, now that it is complete: by what process 0 sees alone.
    with pytest.MonkeyPatch.context() as patch:
        if jax.process_index() == 1:
            patch.setattr(Checkpointer, "steps", lambda self: [])
            patch.setattr(writers, "training_records", lambda workdir: [])
        again = train.train_and_evaluate(config, workdir)
    return {"evaluated": evaluated, "wanted": wanted, "steps": [int(state.step), int(again.step)]}


def told_by_the_first() -> list[Any]:
    """A value, and errors, which are raised in both."""

    def fail(error: Exception) -> None:
        raise error

    return [
        distributed.from_first(lambda: {"process": jax.process_index(), "é": [1.5, None]}),
        attempt(lambda: distributed.from_first(lambda: fail(CheckpointError("There is none.")))),
        attempt(lambda: distributed.from_first(lambda: fail(OSError("stale handle")))),
        distributed.gather("x" * jax.process_index()),
    ]


class Records:
    """Stands for a source."""

    def __init__(self, length: int, class_names: list[str], fingerprint: str = ""):
        self.length, self.class_names, self.num_classes = length, class_names, len(class_names)
        if fingerprint:
            self.fingerprint = lambda: fingerprint

    def __len__(self) -> int:
        return self.length


def other_data() -> list[Any]:
    """Records are missing, classes are in another order, contents differ, and all is the same."""
    one, index = Records(9, ["a", "b"], "same"), jax.process_index()
    others = (Records(9 + index, ["a", "b"], "same"), Records(9, ["ab", "ba"][index]), Records(9, [], "same"[index:]))
    return [
        attempt(
            lambda source=source: distributed.check_agreement({}, {"training data": one, "validation data": source})
        )
        for source in (*others, one)
    ]


def placed() -> list[Any]:
    """Weights of the host reach a mesh without any comparison of processes, which `jax.device_put` does."""
    mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "tensor": 1})
    layouts = {"a": sharding.replicated(mesh), "b": jax.sharding.NamedSharding(mesh, PartitionSpec("fsdp"))}
    tree = {"a": np.arange(3.0, dtype=np.float32), "b": np.arange(4)}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("compared")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multihost_utils, "assert_equal", refuse)
        by_jax = attempt(lambda: jax.device_put(tree, layouts))
        found = sharding.place(tree, layouts)
        everywhere = sharding.place(tree, sharding.replicated(mesh))
    local = [np.asarray(x.addressable_data(0)).tolist() for tree in (found, everywhere) for x in tree.values()]
    return [by_jax[1], local]


def measured() -> dict[str, Any]:
    """The measures of a random classifier, and its tables; 21 examples leave a part of the last batch empty."""
    fields = config.default_config()
    fields.model.name, fields.data.image_size, fields.data.eval_resize, fields.eval.batch_size = "lenet5", 16, 16, 8
    fields.data.max_bad_eval_records = 1
    with fields.unlocked():
        fields.evals = {"classes": {"kind": "per_class"}, "calibration": {"kind": "calibration"}}
        fields.evals.neighbors = {"kind": "knn", "k": 3, "train_examples": 17}
        fields.evals.shots = {"kind": "ridge", "shots": 2}
        fields.evals.probe = {"kind": "linear_probe", "epochs": 2, "batch_size": 8, "learning_rates": (0.1, 1.0)}
    mesh = sharding.make_mesh(fields.mesh)
    source = Pictures(np.random.RandomState(1).randint(0, 5, 21).tolist(), size=20, num_classes=5)
    objective = build.make_objective(fields, 5)
    variables = sharding.place(
        jax.device_get(jax.jit(lambda: build.initialize(objective, jax.random.key(0)))()), sharding.replicated(mesh)
    )
    tables: dict[str, Any] = {}
    train = Pictures(np.random.RandomState(2).randint(0, 5, 19).tolist(), size=20, num_classes=5)
    train.records[18] = (b"\xff\xd8 no image", 0)
    evaluators = build.make_evaluators(fields, objective, mesh, source, train_source=train)
    results = evaluate.measure(evaluators, objective, {"": variables}, keep_tables=tables.update)
    return {"results": results, "tables": tables}


def detected(directory: pathlib.Path) -> dict[str, float]:
    """COCO's numbers of a random detector on two canvases, to which each process brings half of a batch."""
    if jax.process_index() == 0:
        write_coco(directory / "coco", tiny_dense.coco_annotations(), "val2017")
    sharding.wait_for_all("the images are written")
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    evaluators, objective, variables, _ = tiny_dense.detection_setting(directory / "coco", mesh)
    return evaluate.measure(evaluators, objective, {"": variables})


def stored(directory: pathlib.Path) -> list[str]:
    """Features of 21 pictures, one of which is damaged, in shards of nine; then of more of them than the files have."""
    trained = random_model()
    source = Pictures([i % 3 for i in range(21)], size=20, num_classes=3)
    source.records[20] = (b"nothing", 0)
    options = features.Options(dtype="float32", shard_size=9, batch_size=8, max_bad=1)
    features.extract(trained, features.Images(source, "pictures"), directory / "features", options)
    del source.records[0]
    return attempt(lambda: features.extract(trained, features.Images(source, "pictures"), directory / "features"))


def suite_of_sets(directory: pathlib.Path) -> dict[str, Any]:
    """The scores of miniatures of evaluation sets; of one, every process leaves out a damaged image."""
    if jax.process_index() == 0:
        evaluation_sets.write_archives(directory / "sets")
        evaluation_sets.write(directory / "sets", evaluation_sets.corruption_files(("fog",)))
        damaged = evaluation_sets.png(evaluation_sets.right(0))[:60]
        for number in range(4):
            evaluation_sets.write(directory / "sets" / "fog" / "1", {f"n01440764/{number}.JPEG": damaged})
    sharding.wait_for_all("the sets are written")
    found = find_sets(directory / "sets")
    done = [
        run_suite(evaluation_sets.trained(), found, found.sets(), directory / "suite", Options(8, max_bad))
        for max_bad in (0, 4)
    ]
    sets = json.loads((directory / "suite" / "suite.json").read_text())["sets"]
    for entry in sets.values():
        del entry["seconds"]
    return {"done": done, "sets": sets}


def main() -> None:
    arguments = launched.start(cases=False)
    messages: list[str] = []
    handler = types.SimpleNamespace(level=logging.WARNING, handle=lambda record: messages.append(record.getMessage()))
    logging.getLogger("vision_jax").addHandler(handler)
    found = {
        "told": told_by_the_first(),
        "data": other_data(),
        "placed": placed(),
        "measured": measured(),
        "stored": stored(arguments.directory),
        "detected": detected(arguments.directory),
        "suite": suite_of_sets(arguments.directory),
        "damaged": damaged_shard(arguments.directory),
        "directory": str(arguments.directory),
        "messages": messages,
    }
    (arguments.directory / f"process_{arguments.process_id}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
