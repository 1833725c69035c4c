"""What a file is worth: its accuracy on a labelled split, and its latency beside that of others."""

import collections
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.build import TrainedModel, make_eval_transform
from vision_jax.data.loader import Loader
from vision_jax.data.order import EvalOrder
from vision_jax.data.sources import Source
from vision_jax.errors import DataError
from vision_jax.export.onnx_model import OnnxModel
from vision_jax.metrics import classification_sums

_AHEAD = 2  # batches that are loaded while another one is computed


def batches(trained: TrainedModel, source: Source, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pixels, (n, size, size, channels) uint8, and labels, (n,) integers, of a source.

    Args:
        trained: the model, by whose evaluation preprocessing they are made.
        source: of the images.
        batch_size: n, but for the last.

    Raises:
        DataError: if more images are damaged than `data.max_bad_eval_records`; fewer are left out.
    """
    data = trained.config.data
    order = EvalOrder(len(source), batch_size)
    with Loader(
        source,
        order,
        make_eval_transform(trained.config),
        np.arange(batch_size),
        data.num_threads,
        max_bad_records=data.max_bad_eval_records,
        leave_out=True,
    ) as loader:
        waits = collections.deque(loader.start(step) for step in range(min(_AHEAD, order.num_batches)))
        for step in range(order.num_batches):
            rows = waits.popleft()()
            if step + _AHEAD < order.num_batches:
                waits.append(loader.start(step + _AHEAD))
            counted = rows["mask"] > 0
            if counted.any():
                yield rows["image"][counted], rows["label"][counted]


def accuracy(models: Mapping[str, OnnxModel], labelled: Iterator[tuple[np.ndarray, np.ndarray]]) -> dict[str, dict]:
    """Returns what evaluation measures, by the same functions, of several models in one pass.

    Args:
        models: by name.
        labelled: pixels and labels, as `batches` yields them.

    Returns:
        by name: `top1` and `top5`, shares; `loss`, the cross-entropy; `count`, of images.

    Raises:
        DataError: if there are no images.
    """
    sums: dict[str, collections.Counter] = {name: collections.Counter() for name in models}
    for pixels, labels in labelled:
        for name, model in models.items():
            found = classification_sums(jnp.asarray(model(pixels)), jnp.asarray(labels), jnp.ones(len(labels)))
            sums[name].update({key: float(value) for key, value in jax.device_get(found).items()})
    if not all(one["count"] for one in sums.values()):
        raise DataError("There is no image to measure accuracy with: all are damaged.")
    return {
        name: {"count": int(one["count"]), **{key: one[key] / one["count"] for key in ("top1", "top5", "loss")}}
        for name, one in sums.items()
    }


def latency(models: Mapping[str, OnnxModel], batch: int, rounds: int = 15) -> dict[str, list[float]]:
    """Returns seconds that each model takes for a batch, by name, one number a round.

    In each round all of them take turns, so that what else the machine does meets all of them.
    """
    pixels = {
        name: np.zeros((batch, *model.transform.fields()["image"].shape), np.uint8) for name, model in models.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            begun = time.perf_counter()
            model(pixels[name])
            if number:  # the first one allocates
                taken[name].append(time.perf_counter() - begun)
    return taken


def ratios(taken: Mapping[str, Sequence[float]], to: str) -> dict[str, float]:
    """Returns the median over the rounds of how many times longer each takes than one of them."""
    return {
        name: statistics.median(a / b for a, b in zip(values, taken[to], strict=True)) for name, values in taken.items()
    }
