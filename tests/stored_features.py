"""Models with random weights, and files of features that no model has made."""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from vision_jax import build, config, features
from vision_jax.devices import sharding

SIZE = 28  # of the images of LeNet-5


def random_model(seed: int = 0, objective: str = "classification", scale: float = 1.0) -> build.TrainedModel:
    """Returns LeNet-5 with ten classes, or none with another objective, for gray images of its size."""
    fields = config.default_config()
    fields.model.name, fields.objective.name, fields.dtype = "lenet5", objective, "float32"
    fields.data.update({"source": "synthetic", "image_size": SIZE, "eval_resize": SIZE, "channels": 1})
    fields.data.update({"mean": (0.3,), "std": (0.35,), "num_threads": 2})
    made = build.make_objective(fields, 10)
    mesh = sharding.make_mesh(fields.mesh)
    initial = jax.device_get(jax.jit(lambda: build.initialize(made, jax.random.key(seed)))())
    variables = sharding.place(jax.tree.map(lambda x: scale * x, initial), sharding.replicated(mesh))
    return build.TrainedModel(fields, made, variables, (), f"seed {seed}", mesh)


def store(
    directory: pathlib.Path,
    rows: np.ndarray,
    labels: Sequence[int] | np.ndarray | None = None,
    names: Sequence[str] | None = None,
    *,
    shard_size: int = 100,
    **about: object,
) -> features.Features:
    """Writes features, and reads them again; `about` are fields of `features.About`."""
    directory.mkdir(exist_ok=True)
    classes = 0 if labels is None else int(np.max(labels)) + 1
    values = {
        **{"model": "none", "origin": "nowhere", "digest": "0", "compute_dtype": "float32", "dtype": "float32"},
        **{"dim": rows.shape[1], "images": "some", "split": "", "fingerprint": "1", "records": len(rows)},
        **{"num_classes": classes, "class_names": (), "shard_size": shard_size, "batch_size": 8, "versions": {}},
    }
    writer = features.ShardWriter(directory, features.About(**{**values, **about}))
    names = [f"image {i}" for i in range(len(rows))] if names is None else names
    for shard in writer.open():
        span = slice(shard * shard_size, (shard + 1) * shard_size)
        here = None if labels is None else np.asarray(labels[span])
        writer.write(shard, rows[span], here, names[span], [])
    writer.finish()
    return features.read(directory)


def clusters(count: int, dim: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns features, (count, dim) float32, around a center for each class, and their labels."""
    random = np.random.RandomState(seed)
    labels = random.randint(0, classes, count)
    centers = np.random.RandomState(99).randn(classes, dim)
    return (centers[labels] + 1.3 * random.randn(count, dim)).astype(np.float32), labels
