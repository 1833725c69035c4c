"""The benchmark of predicting: `Predictor` beside its own loader alone, in one run, on the same JPEGs."""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import models
from vision_jax.benchmark import photos
from vision_jax.benchmark.common import positive, span, versions
from vision_jax.data.images import ImageSource
from vision_jax.data.loader import Loader
from vision_jax.data.order import EvalOrder
from vision_jax.errors import DataError, check_no_url, check_output, reason
from vision_jax.predict import Predictor, published_preprocessing
from vision_jax.runtime.writers import write_atomically

_BATCH = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `predict`."""
    add = parser.add_argument
    add("--model", default="lenet5", help="with random weights; default: %(default)s, which costs next to nothing")
    add("--images", type=positive(int), default=2000, help="made up, of ImageNet's sizes; default: %(default)s")
    add("--threads", type=positive(int), help="that decode; default: one per core")
    add("--rounds", type=positive(int), default=5, help="measurements of each; default: %(default)s")
    add("--json", metavar="FILE", help="write the results there, too")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints a table, and writes --json.

    Raises:
        VisionJaxError: if a flag cannot work, or the images cannot be written.
    """
    if arguments.json is not None:
        check_no_url("--json", arguments.json)
        check_output("--json", pathlib.Path(arguments.json))
    model = models.create_model(arguments.model)
    preprocessing = published_preprocessing(model)
    size, channels = preprocessing.transform.size, preprocessing.transform.channels
    images = jnp.zeros((1, size, size, channels))
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()
    predictor = Predictor(model, jax.device_get(variables), topk=1, batch_size=_BATCH, num_threads=arguments.threads)
    with tempfile.TemporaryDirectory(prefix="vision_jax.benchmark.") as temporary:
        try:
            for number, (data, _) in enumerate(photos.make(arguments.images, seed=0)):
                (pathlib.Path(temporary) / f"{number:06d}.jpg").write_bytes(data)
        except OSError as error:
            raise DataError(
                f"Cannot write the images to {temporary}: {reason(error, path=True)}. Set TMPDIR to another folder."
            ) from error
        source = ImageSource.find([temporary])

        def load() -> None:
            order = EvalOrder(len(source), _BATCH)
            with Loader(source, order, preprocessing.transform, np.arange(_BATCH), arguments.threads) as loader:
                begun = [loader.start(step) for step in range(min(loader.lookahead, order.num_batches))]
                for step in range(order.num_batches):
                    begun.pop(0)().release()
                    if (ahead := step + loader.lookahead) < order.num_batches:
                        begun.append(loader.start(ahead))

        def predict() -> None:
            if any(prediction.error for prediction in predictor.stream(source)):
                raise AssertionError("The images are made here, and none of them is damaged.")

        rates: dict[str, list[float]] = {"loader": [], "predict": []}
        for number in range(-1, arguments.rounds):  # the first is for warming up, and for compiling
            for name, action in (("loader", load), ("predict", predict)):
                seconds = _timed(action)
                if number >= 0:
                    rates[name].append(len(source) / seconds)
    ratios = [ours / alone for ours, alone in zip(rates["predict"], rates["loader"], strict=True)]
    print(
        f"{len(source)} JPEGs of ImageNet's sizes, {arguments.model} at {size}x{size} pixels on "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}\n"
        f"{'':<18}{'images/s':>9} (rounds)\n"
        + "".join(f"{name:<18}{statistics.median(found):9.0f} {span(found, 0)}\n" for name, found in rates.items())
        + f"{'predict / loader':<18}{statistics.median(ratios):9.2f} {span(ratios, 2)}"
    )
    if arguments.json is not None:
        used = versions(("jax", "numpy", "simplejpeg", "pillow"))
        result = {"flags": vars(arguments), "versions": used, "images_per_second": rates, "ratios": ratios}
        write_atomically(pathlib.Path(arguments.json), json.dumps(result, indent=2) + "\n")


def _timed(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
