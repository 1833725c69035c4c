"""Writes smaller files of a model, and measures them beside the one in float32."""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import shutil
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax import build
from vision_jax.build import TrainedModel
from vision_jax.compress import METHODS, measure, quantize, sparsity
from vision_jax.data.order import subset
from vision_jax.data.sources import Source, SubsetSource, closing
from vision_jax.devices import flops
from vision_jax.errors import CheckpointError, ConfigError, DataError, reason
from vision_jax.export import card, onnx_file, program, subject
from vision_jax.export.onnx_model import OnnxModel
from vision_jax.export.subject import Options as Form

log = logging.getLogger(__name__)

RESULTS = "compress.json"
_FULL = "float32"
# What is smaller in files that are made of the one in float32.
_FORMS = {
    "weights8": "Its weights are stored in int8, with a scale for each output channel, and made float32 again.",
    "int8": (
        "Its convolutions and matrix products are computed in int8: weights of seven bits have a scale for each output "
        "channel, and activations have ranges that were taken from images of the training split."
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What is made, and how it is measured.

    Attributes:
        methods: of METHODS.
        calibration: see `quantize.to_int8`.
        calibration_images: of the training split, from which ranges are taken.
        examples: of the validation split that accuracy is measured on; None: all.
        batch_size: of measuring.
        overwrite: replace files of the output folder.
        workdir: of the run, whose metrics the model cards quote; None: there is none.
    """

    methods: tuple[str, ...] = METHODS
    calibration: str = "percentile"
    calibration_images: int = 256
    examples: int | None = None
    batch_size: int = 64
    overwrite: bool = False
    workdir: pathlib.Path | None = None


def compress(trained: TrainedModel, output: pathlib.Path, options: Options) -> tuple[list[dict[str, Any]], dict]:
    """Writes files, each `METHOD.onnx` with a model card, and `compress.json` with what they are worth.

    float32 is among them. All of them come at the end: after an error there is none, and what was there is as it was.

    Args:
        trained: the model, whose configuration says where its data are.
        output: a folder; it is made.
        options: see there.

    Returns:
        a row for each: `method`, `bytes`, `multiply_adds`, `top1`, `top5`, `loss`, `count`, `milliseconds` of one
        image, and `relative_time`, its median ratio to float32's; and the zeros of the model, see `sparsity.summary`.

    Raises:
        ConfigError: if files are there, or the model has no classifier.
        DataError: if images cannot be read, or there are none to calibrate with.
        CheckpointError: if files cannot be written.
    """
    if not trained.num_classes:
        raise ConfigError(f"The model, {trained.name}, has no classifier, so that it has no accuracy to compare.")
    names = (_FULL, *options.methods)
    files = [output / f"{name}.onnx" for name in names]
    cards = [program.Target(path).card for path in files]
    for path in (*files, *cards, *map(program.data_path, files), output / RESULTS):
        if path.is_dir():
            raise ConfigError(f"{path} is a folder, and a file is to be written there: give another --output.")
        if path.exists() and not options.overwrite:
            raise ConfigError(f"{path} is there already: give another --output, or --overwrite.")
    validation = _source(trained, train=False)
    with closing(validation), _aside(output) as folder:
        paths = {name: folder / f"{name}.onnx" for name in names}
        _write(trained, paths, options)
        models = {name: OnnxModel.open(path) for name, path in paths.items()}
        wanted = min(options.examples or len(validation), len(validation))
        chosen = SubsetSource(validation, subset(len(validation), wanted))
        log.info("Accuracy is measured on %d images of the validation split.", wanted)
        found = measure.accuracy(models, measure.batches(trained, chosen, options.batch_size))
        taken = measure.latency(models, 1)
        ratios, multiply_adds = measure.ratios(taken, _FULL), _multiply_adds(trained)
        rows = [
            {
                **{"method": name, "bytes": path.stat().st_size, "multiply_adds": multiply_adds, **found[name]},
                **{"milliseconds": 1000 * statistics.median(taken[name]), "relative_time": ratios[name]},
            }
            for name, path in paths.items()
        ]
        zeros = sparsity.summary(build.without_heads(trained.objective, trained.variables)["params"])
        _write_cards(trained, folder, rows)
        about = {"model": trained.name, "origin": trained.origin, "rows": rows, "sparsity": zeros}
        about["versions"] = card.versions("onnxruntime")
        (folder / RESULTS).write_text(json.dumps(about, indent=2) + "\n")
    return rows, zeros


@contextlib.contextmanager
def _aside(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder in the output folder, whose files are moved into the latter at the end, unless there was an error.

    After an error, folders that were made are gone too.

    Raises:
        CheckpointError: if the folder cannot be made, or files cannot be written.
    """
    made: list[pathlib.Path] = []
    folder = output / f".compress.{os.getpid()}.tmp"
    try:
        try:
            for path in (*reversed(output.parents), output, folder):
                if not path.is_dir():
                    path.mkdir()
                    made.append(path)
        except OSError as error:
            raise CheckpointError(
                f"Cannot make the folder {output}: {error.strerror}. Give another --output."
            ) from error
        yield folder
        # The results come last: with them, everything is there.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == RESULTS):
            path.replace(output / path.name)
    except OSError as error:
        raise CheckpointError(
            f"Cannot write into {output}: {reason(error, path=True)}. Make room, or give another --output."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for path in reversed(made):
            with contextlib.suppress(OSError):  # it is not empty, as there was no error
                path.rmdir()


def _write(trained: TrainedModel, paths: dict[str, pathlib.Path], options: Options) -> None:
    pixels = program.read_pixels(trained)
    for name in paths:
        log.info("%s is made.", paths[name].name)
        if name in ("float32", "float16"):
            target = program.Target(paths[name], workdir=options.workdir)
            program.export_onnx(trained, target, Form(dtype=name), pixels=pixels)
        elif name == "weights8":
            quantize.to_int8_weights(paths[_FULL], paths[name])
        else:
            quantize.to_int8(
                paths[_FULL], paths[name], _calibration(trained, paths[_FULL], options), options.calibration
            )


def _write_cards(trained: TrainedModel, folder: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes the model cards of files that were made of float32.onnx; the others have theirs from the export."""
    made, packages = subject.make(trained, Form()), card.versions("onnx", "onnxruntime")
    for row in rows:
        file = f"{row['method']}.onnx"
        if row["method"] not in _FORMS:
            continue
        form = (
            f"{_FORMS[row['method']]} The accuracy below is that of this file, on {row['count']} images of the "
            "validation split; compress.json has that of the others."
        )
        sections = card.smaller_sections(made, file, onnx_file.DEFAULT_OPSET, form)
        measured = {"val/top1": row["top1"], "val/top5": row["top5"]}
        (folder / f"{file}.md").write_text(card.card(trained, file, sections, measured, packages), encoding="utf-8")


def _calibration(trained: TrainedModel, path: pathlib.Path, options: Options) -> Sequence[np.ndarray]:
    """Returns batches of the training split, in the form that a file takes; the same ones each time.

    Raises:
        DataError: if there are no images.
    """
    source = _source(trained, train=True)
    with closing(source):
        count = min(options.calibration_images, len(source))
        chosen = SubsetSource(source, subset(len(source), count))
        model = OnnxModel.open(path)
        found = [model.images(pixels) for pixels, _ in measure.batches(trained, chosen, min(16, options.batch_size))]
    if not found:
        raise DataError("There is no image to calibrate with: all are damaged.")
    log.info("Ranges are taken from %d images of the training split (%s).", count, options.calibration)
    return found


def _source(trained: TrainedModel, *, train: bool) -> Source:
    """Returns the images of a split.

    Raises:
        DataError: if they cannot be read, or are of other classes.
    """
    source = build.create_source(trained.config, train=train)
    names = tuple(source.class_names)
    if source.num_classes != trained.num_classes or (names and trained.class_names and names != trained.class_names):
        raise DataError(
            f"The data have {source.num_classes} classes, such as {names[:1] or 0}, and the model "
            f"{trained.num_classes}, such as {trained.class_names[:1] or 0}: set --config.data.dir to the model's own."
        )
    return source


def _multiply_adds(trained: TrainedModel) -> int:
    """Returns the multiply-adds of an image."""
    transform = trained.preprocessing.transform
    image = jax.ShapeDtypeStruct((1, transform.size, transform.size, transform.channels), jnp.float32)
    model: Any = trained.model
    variables = build.without_heads(trained.objective, trained.variables)
    jaxpr = jax.make_jaxpr(lambda variables, images: model.apply(variables, images, train=False))(variables, image)
    return flops.multiply_adds(jaxpr)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows of `compress` as Markdown."""
    full = next(row for row in rows if row["method"] == _FULL)
    lines = [
        "| file | bytes | of float32 | multiply-adds | top-1 | difference | ms an image | of float32's time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        difference = 100 * (row["top1"] - full["top1"])
        lines.append(
            f"| {row['method']}.onnx | {row['bytes']:,} | {row['bytes'] / full['bytes']:.2f} "
            f"| {row['multiply_adds']:,} | {100 * row['top1']:.2f} % | {difference:+.2f} | {row['milliseconds']:.2f} "
            f"| {row['relative_time']:.2f} |"
        )
    return "\n".join(lines)
